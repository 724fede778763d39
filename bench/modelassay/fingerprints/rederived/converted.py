"""A model that llama.cpp's tools converted to GGUF, tensor by tensor, against the same made anew of its source."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from modelassay.fingerprints.rederived import blocks
from modelassay.fingerprints.rederived.compare import (
    ABSENT,
    FLOATS,
    OTHER_SHAPE,
    Outcome,
    Way,
    closest,
    is_narrower,
    read_bytes,
    read_source,
    units,
)
from modelassay.fingerprints.rederived.result import Remade
from modelassay.models.checkpoints.architectures import Sizes
from modelassay.models.checkpoints.forms import stored_in
from modelassay.models.checkpoints.gguf import BLOCKS, Gguf, GgufTensor, read_gguf
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, TORCH_DTYPES
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.hub import Files


def gguf_file(files: Files) -> Path | None:
    """Return the GGUF file that holds a model on this machine; None of other forms, and where it was split or is a repository's."""
    if not files.local:
        return None
    stored = stored_in(files, files.open_weights)
    return files.get(stored.files[0]) if stored.form == "gguf" and len(stored.files) == 1 else None


_LAYER: Final = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OUTSIDE: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
"""What llama.cpp calls the modules of the architectures below."""
_GGUF_ARCHITECTURES: Final = frozenset({"llama", "qwen2", "qwen3"})
_IN_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def gguf_name(name: str) -> str | None:
    """Return what llama.cpp calls a tensor of transformers; None where that is not known here.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("model.embed_tokens.weight"), gguf_name("visual.proj.weight")
    ('blk.3.attn_q.weight', 'token_embd.weight', None)
    """
    match = _IN_LAYER.fullmatch(name)
    if match is not None:
        module = _LAYER.get(match[2])
        return None if module is None else f"blk.{match[1]}.{module}.{match[3]}"
    module = _OUTSIDE.get(name.rpartition(".")[0])
    return None if module is None else f"{module}.{name.rpartition('.')[2]}"


def remake_gguf(a: TensorTable, sizes: Sizes, path: Path) -> Outcome:
    """Make the tensors of a GGUF file anew from those of ``a``."""
    header = read_gguf(path)
    architecture = header.metadata.get("general.architecture")
    if architecture not in _GGUF_ARCHITECTURES:
        reason = f"GGUF of architecture {str(architecture)[:40]}, whose names are not known here"
        return [], [(reason, math.prod(info.shape)) for info in header.tensors.values()]
    tensors, reasons = list[Remade](), list[tuple[str, int]]()
    for name in sorted(a.names()):
        source = read_source(a, name)
        if source is None:
            continue
        other = gguf_name(name)
        info = None if other is None else header.tensors.get(other)
        if other is None or info is None:
            reasons.append((ABSENT, source.numel()))
        elif info.type not in BLOCKS:
            reasons.append((
                f"{info.type}: its scales are searched, which no definition makes again bit for bit",
                source.numel(),
            ))
        elif info.shape != tuple(source.shape) or source.shape[-1] % BLOCKS[info.type][0]:
            reasons.append((OTHER_SHAPE, source.numel()))
        else:
            turned = _turned(source, other, sizes) if architecture == "llama" else source
            fewer = _has_fewer_bits(a.find(name)[1].dtype, info.type)
            tensors.append(
                closest(other, info.type, _ways(turned, header, info), num_weights=source.numel(), is_narrower=fewer)
            )
    return tensors, reasons


def _turned(source: Tensor, name: str, sizes: Sizes) -> Tensor:
    """Return q and k with the rows of each head in llama.cpp's order for this architecture: halves interleaved."""
    heads = {"attn_q": sizes.num_heads, "attn_k": sizes.num_kv_heads}.get(name.split(".")[-2])
    if heads is None or source.shape[0] % (2 * heads):
        return source
    return (
        source.reshape(heads, 2, source.shape[0] // heads // 2, *source.shape[1:]).transpose(1, 2).reshape(source.shape)
    )


def _ways(source: Tensor, header: Gguf, info: GgufTensor) -> Iterator[Way]:
    """Yield what converters do: direct or through fp16, and, in blocks, with or without a fused last step."""
    weights, size = BLOCKS[info.type]
    stored = torch.from_numpy(read_bytes(header.path, info.offset, source.numel() // weights * size))
    starts: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("direct", Tensor.float),
        ("through fp16", lambda tensor: tensor.half().float()),
    ]
    for start, convert in starts:
        values = convert(source)
        if info.type in FLOATS:
            dtype = getattr(torch, TORCH_DTYPES[info.type])
            yield start, [(units(values.to(dtype)), units(stored.view(dtype)))]
            continue
        for fused in (False, True):
            made = torch.from_numpy(blocks.quantise(info.type, values.numpy(), fused=fused))
            yield f"{start}{', fused' if fused else ''}", [(made, stored.reshape(-1, size))]


def _has_fewer_bits(source: str, stored: str) -> bool:
    return stored not in DTYPE_BITS or is_narrower(source, stored)

"""What a layer holds besides its four attention matrices: biases, norms and the feed-forward network, by role."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelassay.models.checkpoints import Checkpoint, config_path
from modelassay.models.checkpoints.architectures import language_config
from modelassay.models.checkpoints.factors import is_plain
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, TensorInfo, read_elements, read_rows
from modelassay.models.checkpoints.tensors import Matrix, TensorTable
from modelassay.models.gate import read_json
from modelassay.models.hub import Files

if TYPE_CHECKING:
    from torch import Tensor

    from modelassay_kernels import FileSpan

_MODULES = {
    "norm-1": "input_layernorm|ln_1|attention_norm|ln_attn",
    "norm-2": "post_attention_layernorm|ln_2|ffn_norm|ln_mlp",
    "gate": "gate_proj|w1",
    "up": "up_proj|w3|c_fc|fc1|fc_in|dense_h_to_4h",
    "down": "down_proj|w2|mlp.c_proj|fc2|fc_out|dense_4h_to_h",
}
"""Role -> what modules of the language models in `architectures` call it; the experts of a layer share one role."""
_OTHERWISE = {
    "qwen": {"gate": "w2", "up": "w1", "down": "mlp.c_proj"},  # c_proj(w1(x) * silu(w2(x)))
    **dict.fromkeys(("gemma2", "gemma3_text"), {"norm-2": "pre_feedforward_layernorm"}),  # norms on both sides of each part
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "electra"),
        {"up": r"intermediate\.dense", "down": r"(?<!attention\.)output\.dense"},
    ),
    "distilbert": {"up": r"ffn\.lin1", "down": r"ffn\.lin2"},
}  # fmt: skip
"""Architectures where one of those names means something else."""
_PLAIN_HEADS = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
"""Architectures whose head is ``lm_head.weight`` without bias, or the embedding where that is not stored."""
_EMBEDDING = re.compile(r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|embed_in)\.weight")


def layer_tensors(checkpoint: Checkpoint) -> list[dict[str, list[str]]]:
    """Return for each layer the names of the tensors of ``norm-1 norm-2 gate up down``, those it has; experts in order."""
    stem, rest = checkpoint.layer_path.split("{layer}")
    inside = re.compile(rf"{re.escape(stem)}(\d+){re.escape(rest)}(.+)")
    modules = {**_MODULES, **_OTHERWISE.get(checkpoint.architecture, {})}
    weights = [(role, re.compile(rf"(?:.*\.)?(?:{names})\.weight")) for role, names in modules.items()]
    layers: list[dict[str, list[str]]] = [{} for _ in range(checkpoint.num_layers)]
    for name in sorted(checkpoint.tensors.names(), key=_by_number):
        match = inside.fullmatch(name)
        if match is None or int(match[1]) >= checkpoint.num_layers:
            continue
        for role, pattern in weights:
            if pattern.fullmatch(match[2]):
                layers[int(match[1])].setdefault(role, []).append(name)
    return layers


def _by_number(name: str) -> list[tuple[int, str]]:
    """Order ``experts.10`` behind ``experts.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def layer_spans(checkpoint: Checkpoint) -> list[dict[str, list[FileSpan]]]:
    """Return for each layer the spans of ``norm-1 norm-2 gate up down q-bias k-bias v-bias``, those it has.

    Tensors that hold no plain numbers (packed or scaled by a quantiser) are left out. Of a repository on the Hub the
    files that hold these tensors are fetched.
    """
    layers: list[dict[str, list[FileSpan]]] = [{} for _ in range(checkpoint.num_layers)]
    for layer, tensors in zip(layers, layer_tensors(checkpoint), strict=True):
        for role, names in tensors.items():
            spans = [span for name in names if (span := _whole(checkpoint.tensors, name)) is not None]
            if spans:
                layer[role] = spans
    for matrix in checkpoint.matrices:
        if matrix.role != "o" and (bias := _bias(checkpoint, matrix)) is not None:
            layers[matrix.layer][f"{matrix.role}-bias"] = [bias]
    return layers


def _whole(tensors: TensorTable, name: str) -> FileSpan | None:
    """Return where a tensor of plain numbers lies; None for one without elements, too, or one that a factor belongs to."""
    from modelassay_kernels import FileSpan

    path, info = tensors.find(name)
    if not info.size_bytes or not is_plain(tensors, name, info):
        return None
    count = math.prod(info.shape)
    return FileSpan(str(path), info.offset, info.dtype, 1, count, count)


def _bias(checkpoint: Checkpoint, matrix: Matrix) -> FileSpan | None:
    """Return where a projection's bias lies; None where it has none."""
    from modelassay_kernels import FileSpan

    name = matrix.tensor_name.removesuffix(".weight") + ".bias"
    if name not in checkpoint.tensors.names():
        return None
    path, info = checkpoint.tensors.find(name)
    sharers = [other for other in checkpoint.matrices_in(matrix.layer) if other.tensor_name == matrix.tensor_name]
    count, before = matrix.shape[0], sum(other.shape[0] for other in sharers[: sharers.index(matrix)])
    total = sum(other.shape[0] for other in sharers)
    if info.dtype not in {"BF16", "F16", "F32", "F64"} or info.shape != (total,):
        return None
    size = DTYPE_BITS[info.dtype] // 8
    if matrix.grouped:
        groups = checkpoint.num_kv_heads
        offset, rows = info.offset + before // groups * size, (groups, count // groups, total // groups)
    else:
        offset, rows = info.offset + before * size, (1, count, count)
    return FileSpan(str(path), offset, info.dtype, *rows)


def read_span(span: FileSpan) -> Tensor:
    """Return a copy of a span without scales as float64: [rows, columns]."""
    count = (span.num_rows - 1) * span.row_stride + span.num_cols
    flat = read_elements(Path(span.path), span.dtype, span.offset, count)
    return flat.as_strided((span.num_rows, span.num_cols), (span.row_stride, 1)).double()


def _embedding(checkpoint: Checkpoint) -> tuple[Path, TensorInfo] | None:
    """Return where the input embedding lies; None where none is known whose stored numbers are its weights."""
    for name in checkpoint.tensors.names():
        if _EMBEDDING.fullmatch(name):
            path, info = checkpoint.tensors.find(name)
            fits = len(info.shape) == 2 and info.shape[1] == checkpoint.hidden_size
            if fits and _whole(checkpoint.tensors, name) is not None:
                return path, info
    return None


def read_embedding(checkpoint: Checkpoint, num_rows: int) -> Tensor | None:
    """Return the first rows of the input embedding as float64 [num_rows or fewer, hidden size]; None where none is known."""
    place = _embedding(checkpoint)
    if place is None:
        return None
    path, info = place
    rows = min(num_rows, info.shape[0])
    return read_elements(path, info.dtype, info.offset, rows * info.shape[1]).double().reshape(rows, info.shape[1])


def read_embedding_rows(checkpoint: Checkpoint, rows: Sequence[int]) -> Tensor | None:
    """Return some rows of the input embedding as float32 [rows, hidden size]; None where none is known, or it has fewer rows."""
    place = _embedding(checkpoint)
    if place is None or max(rows, default=0) >= place[1].shape[0]:
        return None
    path, info = place
    return read_rows(path, info, rows).float()


def read_head(files: Files) -> Tensor | None:
    """Return the matrix that makes logits of hidden states, in fp32 [V, D]; None where the files alone do not tell which it is.

    Saves loading a whole model; of a repository the file that holds it is fetched.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    config = read_json(config_path(files))
    model_type, own, _ = language_config(config)
    if model_type not in _PLAIN_HEADS:
        return None
    tensors = TensorTable(files)
    separate = "lm_head.weight" in tensors.names()
    if separate and own.get("tie_word_embeddings", config.get("tie_word_embeddings")):
        return None
    name = "lm_head.weight" if separate else "model.embed_tokens.weight"
    if name not in tensors.names():
        return None
    path, info = tensors.find(name)
    if info.dtype == "F64" or not is_plain(tensors, name, info) or len(info.shape) != 2:
        return None
    return read_elements(path, info.dtype, info.offset, math.prod(info.shape)).float().reshape(info.shape)

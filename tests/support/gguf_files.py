"""GGUF files written from ggml's definitions, one weight at a time: slow, and independent of what reads them."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "BF16": 30,
}  # fmt: skip
f32 = np.float32


def block(type_name: str, weights: list[np.float32]) -> bytes:
    """One block of 32 weights, every step in float32."""
    if type_name == "Q8_0":
        scale = max(abs(weight) for weight in weights) / f32(127)
        inverse = f32(1) / scale if scale else f32(0)
        codes = [int(np.floor(abs(float(weight * inverse)) + 0.5)) * (-1 if weight < 0 else 1) for weight in weights]
        return struct.pack("<e32b", scale, *codes)
    bits, has_offset = int(type_name[1]), type_name.endswith("1")
    low = min(weights) if has_offset else f32(0)
    if has_offset:
        scale, shift = (max(weights) - low) / f32(2**bits - 1), f32(0.5)
    else:
        scale, shift = max(weights, key=abs) / f32(-(2 ** (bits - 1))), f32(2 ** (bits - 1) + 0.5)
    inverse = f32(1) / scale if scale else f32(0)
    codes = [min(int((weight - low) * inverse + shift), 2**bits - 1) for weight in weights]
    data = struct.pack("<ee", scale, low) if has_offset else struct.pack("<e", scale)
    if bits == 5:
        data += struct.pack("<I", sum((code >> 4) << at for at, code in enumerate(codes)))
    return data + bytes((codes[at] & 15) | ((codes[at + 16] & 15) << 4) for at in range(16))


def encoded(type_name: str, weights: np.ndarray) -> bytes:
    flat = weights.astype(f32).reshape(-1)
    if type_name in {"F32", "F16"}:
        return flat.astype({"F32": "<f4", "F16": "<f2"}[type_name]).tobytes()
    return b"".join(block(type_name, list(flat[at : at + 32])) for at in range(0, len(flat), 32))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, value: int | float | str | Sequence[str] | Sequence[int]) -> bytes:
    """One key of a header with its value: a whole number, a float, a text, or an array of texts or whole numbers."""
    if isinstance(value, str):
        return _text(name) + struct.pack("<I", 8) + _text(value)
    if isinstance(value, int | float):
        return _text(name) + (
            struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
        )
    if value and isinstance(value[0], str):
        return _text(name) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(str(item)) for item in value)
    return _text(name) + struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)  # type: ignore[arg-type]


def write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    *,
    architecture: str = "qwen2",
    keys: Mapping[str, int | float | str | Sequence[str] | Sequence[int]] | None = None,
) -> Path:
    """Write tensors (type, shape as torch has it, data), with some keys, or one of each sort that a reader must pass over."""
    entries = [
        key("general.architecture", architecture),
        *([key("tokenizer.ggml.tokens", ["a", "bc"])] if keys is None else [key(*item) for item in keys.items()]),
        _text("tokenizer.ggml.scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5),
        key("general.alignment", 64),
    ]
    header, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries), b""
    for name, (type_name, shape, content) in tensors.items():
        header += (
            _text(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            + struct.pack("<IQ", NUMBERS[type_name], len(data))
        )
        data += content + bytes(-len(content) % 64)
    path.write_bytes(header + bytes(-len(header) % 64) + data)
    return path


LLAMA_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
LLAMA_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def turned(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a llama's q or k as llama.cpp's converter puts them, one at a time: row 2 i + j of a head was row j d / 2 + i."""
    size = rows.shape[0] // heads
    order = [head * size + (at % 2) * (size // 2) + at // 2 for head in range(heads) for at in range(size)]
    return rows[order]


def converted_llama(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    type_name: str,
    *,
    heads: tuple[int, int],
    architecture: str = "llama",
    head_dim: int,
    tokens: Sequence[str],
    token_types: Sequence[int] | None = None,
    **more: str,
) -> Path:
    """A model of transformers' names converted as llama.cpp does, its matrices in ``type_name``; K-quants by gguf's own code or random."""
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if ".layers." in name)
    stored: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, values in tensors.items():
        module, _, kind = name.rpartition(".")
        if ".layers." in module:
            _, _, layer, below = module.split(".", 3)
            other = f"blk.{layer}.{LLAMA_NAMES[below]}.{kind}"
            count = {"self_attn.q_proj": heads[0], "self_attn.k_proj": heads[1]}.get(below)
            if architecture == "llama" and count is not None:
                values = turned(values, count)
        else:
            other = f"{LLAMA_OUTSIDE[module]}.{kind}"
        plus_one = architecture.startswith("gemma") and values.ndim == 1
        own = "F32" if values.ndim == 1 else type_name
        stored[other] = own, values.shape, encoded(own, values + 1 if plus_one else values)
    shape = tensors["model.embed_tokens.weight"].shape
    keys: dict[str, int | float | str | Sequence[str] | Sequence[int]] = {
        f"{architecture}.block_count": layers, f"{architecture}.embedding_length": shape[1],
        f"{architecture}.attention.head_count": heads[0], f"{architecture}.attention.head_count_kv": heads[1],
        f"{architecture}.attention.key_length": head_dim, f"{architecture}.attention.value_length": head_dim,
        f"{architecture}.feed_forward_length": tensors["model.layers.0.mlp.up_proj.weight"].shape[0],
        f"{architecture}.context_length": 64, f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.token_type": list(token_types or [1] * len(tokens)), **more,
    }  # fmt: skip
    return write_gguf(path, stored, architecture=architecture, keys=keys)

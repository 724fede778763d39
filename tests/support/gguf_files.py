"""GGUF files written from ggml's definitions, one weight at a time: slow, and independent of what reads them."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q6_K": 14}
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


def write_gguf(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], *, architecture: str = "qwen2"
) -> Path:
    """Write tensors (type, shape as torch has it, data) with one key of each sort that a reader must pass over."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5),
        text("general.alignment") + struct.pack("<II", 4, 64),
    ]
    header, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys), b""
    for name, (type_name, shape, content) in tensors.items():
        header += (
            text(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            + struct.pack("<IQ", NUMBERS[type_name], len(data))
        )
        data += content + bytes(-len(content) % 64)
    path.write_bytes(header + bytes(-len(header) % 64) + data)
    return path

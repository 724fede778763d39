"""Weights packed as each quantiser does, one number at a time, and what they stand for in float64: slow, and independent of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which column of eight the numbers of an integer are, the lowest bits first."""


@dataclass(frozen=True)
class Packed:
    """One module's tensors by suffix, what they stand for, and what config.json says."""

    tensors: Mapping[str, Tensor]
    meant: np.ndarray
    quantization: Mapping[str, Any] = field(default_factory=dict)
    key: str = "quantization_config"


def words(numbers: list[int], bits: int) -> list[int]:
    """Signed 32-bit integers that hold numbers, the first in the lowest bits."""
    per = 32 // bits
    filled = numbers + [0] * (-len(numbers) % per)
    values = [
        sum(number << (bits * at) for at, number in enumerate(filled[start : start + per]))
        for start in range(0, len(filled), per)
    ]
    return [value - 2**32 if value >= 2**31 else value for value in values]


def _codes(random: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    return random.integers(0, 2**bits, shape)


def gptq(
    rows: int, columns: int, seed: int, *, bits: int = 4, group: int = 16, ordered: bool = True, v2: bool = False
) -> Packed:
    random = np.random.default_rng(seed)
    codes, groups = _codes(random, (columns, rows), bits), columns // group
    zeros = random.integers(1, 2**bits, (groups, rows))
    scales = torch.tensor(random.uniform(0.001, 0.01, (groups, rows))).half()
    index = np.arange(columns) // group if ordered else random.permutation(np.arange(columns) // group)
    meant = np.array([
        [(codes[c, r] - zeros[index[c], r]) * float(scales[index[c], r]) for c in range(columns)] for r in range(rows)
    ])
    tensors = {
        ".qweight": torch.tensor([words(codes[:, r].tolist(), bits) for r in range(rows)], dtype=torch.int32).T,
        ".qzeros": torch.tensor([words((zeros[g] - (not v2)).tolist(), bits) for g in range(groups)], dtype=torch.int32),
        ".scales": scales, ".g_idx": torch.tensor(index, dtype=torch.int32),
    }  # fmt: skip
    said = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        **({"checkpoint_format": "gptq_v2"} if v2 else {}),
    }
    return Packed(tensors, meant, said)


def awq(rows: int, columns: int, seed: int, *, group: int = 16) -> Packed:
    random = np.random.default_rng(seed)
    codes, zeros = _codes(random, (columns, rows), 4), _codes(random, (columns // group, rows), 4)
    scales = torch.tensor(random.uniform(0.001, 0.01, (columns // group, rows))).half()

    def packed(row: np.ndarray) -> list[int]:
        return [
            word for at in range(0, rows, 8) for word in words([int(row[at + column]) for column in AWQ_COLUMNS], 4)
        ]

    meant = np.array([
        [(codes[c, r] - zeros[c // group, r]) * float(scales[c // group, r]) for c in range(columns)]
        for r in range(rows)
    ])
    tensors = {
        ".qweight": torch.tensor([packed(row) for row in codes], dtype=torch.int32),
        ".qzeros": torch.tensor([packed(row) for row in zeros], dtype=torch.int32), ".scales": scales,
    }  # fmt: skip
    return Packed(tensors, meant, {"quant_method": "awq", "bits": 4, "group_size": group})


def compressed(rows: int, columns: int, seed: int, *, bits: int = 4, group: int = 16, zero: bool = False) -> Packed:
    random = np.random.default_rng(seed)
    codes, half = _codes(random, (rows, columns), bits), 2 ** (bits - 1)
    scales = torch.tensor(random.uniform(0.001, 0.01, (rows, columns // group))).bfloat16()
    zeros = random.integers(-half, half, scales.shape) if zero else np.zeros(scales.shape, dtype=int)
    meant = np.array([
        [(codes[r, c] - half - zeros[r, c // group]) * float(scales[r, c // group]) for c in range(columns)]
        for r in range(rows)
    ])
    tensors = {
        ".weight_packed": torch.tensor([words(row.tolist(), bits) for row in codes], dtype=torch.int32), ".weight_scale": scales,
        ".weight_shape": torch.tensor([rows, columns]),
    }  # fmt: skip
    if zero:
        stored = [words((zeros[:, g] + half).tolist(), bits) for g in range(zeros.shape[1])]
        tensors[".weight_zero_point"] = torch.tensor(stored, dtype=torch.int32).T
    return Packed(tensors, meant, {"quant_method": "compressed-tensors", "format": "pack-quantized"})


def int8(rows: int, columns: int, seed: int) -> Packed:
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (rows, columns))
    scales = torch.tensor(random.uniform(0.001, 0.01, (rows, 1))).bfloat16()
    tensors = {".weight": torch.tensor(codes, dtype=torch.int8), ".weight_scale": scales}
    return Packed(
        tensors, codes * scales.double().numpy(), {"quant_method": "compressed-tensors", "format": "int-quantized"}
    )


def _fp4(random: np.random.Generator, rows: int, columns: int) -> tuple[Tensor, np.ndarray]:
    codes = _codes(random, (rows, columns), 4)
    stored = [[int(row[at] | row[at + 1] << 4) for at in range(0, columns, 2)] for row in codes]
    return torch.tensor(stored, dtype=torch.uint8), np.array([
        [FP4[code & 7] * (-1 if code & 8 else 1) for code in row] for row in codes
    ])


def nvfp4(rows: int, columns: int, seed: int, *, compressed_tensors: bool = False) -> Packed:
    random = np.random.default_rng(seed)
    stored, values = _fp4(random, rows, columns)
    scales = torch.tensor(random.uniform(0.5, 100, (rows, columns // 16))).to(torch.float8_e4m3fn)
    one = torch.tensor(0.003 if not compressed_tensors else 300.0)
    factor = 1 / float(one) if compressed_tensors else float(one)
    meant = values * np.repeat(scales.double().numpy(), 16, 1) * factor
    if compressed_tensors:
        tensors = {".weight_packed": stored, ".weight_scale": scales, ".weight_global_scale": one.reshape(1)}
        return Packed(tensors, meant, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"})
    tensors = {".weight": stored, ".weight_scale": scales, ".weight_scale_2": one, ".input_scale": torch.tensor(2.0)}
    return Packed(tensors, meant, {"quant_method": "modelopt", "quant_algo": "NVFP4"})


def mxfp4(rows: int, columns: int, seed: int) -> Packed:
    random = np.random.default_rng(seed)
    stored, values = _fp4(random, rows, columns)
    exponents = random.integers(110, 130, (rows, columns // 32))
    meant = values * np.repeat(2.0 ** (exponents - 127.0), 32, 1)
    tensors = {".weight_packed": stored, ".weight_scale": torch.tensor(exponents, dtype=torch.uint8)}
    return Packed(tensors, meant, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"})


def mlx(rows: int, columns: int, seed: int, *, bits: int = 4, group: int = 32) -> Packed:
    random = np.random.default_rng(seed)
    codes = _codes(random, (rows, columns), bits)
    scales, biases = (torch.tensor(random.normal(0, 0.01, (rows, columns // group))).half() for _ in range(2))
    meant = codes * np.repeat(scales.double().numpy(), group, 1) + np.repeat(biases.double().numpy(), group, 1)
    stored = torch.tensor([words(row.tolist(), bits) for row in codes], dtype=torch.int32).view(torch.uint32)
    return Packed(
        {".weight": stored, ".scales": scales, ".biases": biases},
        meant,
        {"group_size": group, "bits": bits},
        key="quantization",
    )


def bnb8(rows: int, columns: int, seed: int) -> Packed:
    random = np.random.default_rng(seed)
    codes, largest = random.integers(-127, 128, (rows, columns)), torch.tensor(random.uniform(0.1, 1, rows)).float()
    tensors = {
        ".weight": torch.tensor(codes, dtype=torch.int8),
        ".SCB": largest,
        ".weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return Packed(
        tensors, codes * largest.double().numpy()[:, None] / 127, {"quant_method": "bitsandbytes", "load_in_8bit": True}
    )


def bnb4(rows: int, columns: int, seed: int, *, nested: bool = False) -> Packed:
    random = np.random.default_rng(seed)
    codes, levels = _codes(random, (rows * columns,), 4), torch.tensor(np.sort(random.uniform(-1, 1, 16))).float()
    num_blocks = rows * columns // 64
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
    absmax = torch.tensor(random.uniform(0.01, 0.1, num_blocks)).float()
    tensors = {
        ".weight": torch.tensor([[int(codes[at] << 4 | codes[at + 1])] for at in range(0, len(codes), 2)], dtype=torch.uint8),
        ".weight.absmax": absmax, ".weight.quant_map": levels,
    }  # fmt: skip
    factors = absmax.double().numpy()
    if nested:
        stored, table = random.integers(0, 256, num_blocks), torch.tensor(np.sort(random.uniform(-1, 1, 256))).float()
        outer = torch.tensor(random.uniform(0.01, 0.02, -(-num_blocks // 256))).float()
        factors = np.array([float(table[code]) * float(outer[at // 256]) + 0.05 for at, code in enumerate(stored)])
        tensors |= {
            ".weight.absmax": torch.tensor(stored, dtype=torch.uint8), ".weight.nested_absmax": outer, ".weight.nested_quant_map": table,
        }  # fmt: skip
        state |= {"nested_blocksize": 256, "nested_offset": 0.05}
    tensors[".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    meant = np.array([float(levels[code]) * factors[at // 64] for at, code in enumerate(codes)]).reshape(rows, columns)
    return Packed(tensors, meant, {"quant_method": "bitsandbytes", "load_in_4bit": True})


def fp8(rows: int, columns: int, seed: int, *, suffix: str = ".weight_scale_inv", block: int | None = 16, exponent: bool = False,
        fnuz: bool = False) -> Packed:  # fmt: skip
    """Scales per block, or one for all where ``block`` is None."""
    random = np.random.default_rng(seed)
    kind = torch.float8_e4m3fnuz if fnuz else torch.float8_e4m3fn
    stored = torch.tensor(random.normal(0, 50, (rows, columns))).to(kind)
    shape = () if block is None else (-(-rows // block), -(-columns // block))
    factors = 2.0 ** random.integers(-9, -5, shape) if exponent else np.float32(random.uniform(0.001, 0.01, shape))
    scale = torch.tensor(np.asarray(factors)).float()
    size = block or max(rows, columns)
    meant = np.array([
        [float(stored[r, c].float()) * float(scale[r // size, c // size] if block else scale) for c in range(columns)]
        for r in range(rows)
    ])
    said = {"quant_method": "fp8", "weight_block_size": [block, block]} if block else {}
    return Packed({".weight": stored, suffix: scale.to(torch.float8_e8m0fnu) if exponent else scale}, meant, said)


FORMATS: Mapping[str, Callable[[int, int, int], Packed]] = {
    "GPTQ 4 bit": gptq,
    "GPTQ 8 bit": lambda r, c, s: gptq(r, c, s, bits=8),
    "GPTQ 2 bit": lambda r, c, s: gptq(r, c, s, bits=2),
    "GPTQ, groups out of order": lambda r, c, s: gptq(r, c, s, ordered=False),
    "GPTQ, second version": lambda r, c, s: gptq(r, c, s, v2=True),
    "AWQ": awq,
    "compressed-tensors 4 bit": compressed,
    "compressed-tensors 8 bit": lambda r, c, s: compressed(r, c, s, bits=8),
    "compressed-tensors, zero points": lambda r, c, s: compressed(r, c, s, zero=True),
    "compressed-tensors int8": int8,
    "compressed-tensors NVFP4": lambda r, c, s: nvfp4(r, c, s, compressed_tensors=True),
    "compressed-tensors MXFP4": mxfp4,
    "NVFP4": nvfp4,
    "MLX 4 bit": mlx,
    "MLX 8 bit": lambda r, c, s: mlx(r, c, s, bits=8),
    "bitsandbytes 8 bit": bnb8,
    "bitsandbytes 4 bit": bnb4,
    "bitsandbytes 4 bit, nested": lambda r, c, s: bnb4(r, c, s, nested=True),
    "fp8, blocks of exponents": lambda r, c, s: fp8(r, c, s, exponent=True),
    "fp8, DeepSeek's names": lambda r, c, s: fp8(r, c, s, suffix=".scale"),
    "fp8, ComfyUI's names": lambda r, c, s: fp8(r, c, s, suffix=".scale_weight", block=None),
    "fp8 of AMD": lambda r, c, s: fp8(r, c, s, suffix=".weight_scale", block=None, fnuz=True),
}  # fmt: skip

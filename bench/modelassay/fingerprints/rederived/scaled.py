"""Quantising as the libraries do that store codes beside scales in safetensors: int8, fp8 and NF4.

Codes and scales are both made anew from the full-precision weights; nothing of the quantised model is used but the extents
of its scales and their dtype. Each library rounds at its own places, so that a few ways are made and the best one counts.
"""

# R, C = rows and columns of a weight, r, c = of its scales

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
NF4_BLOCK = 64
"""bitsandbytes' default number of weights per scale."""


def per_row_int8(weights_RC: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield bitsandbytes' codes int8 [R, C] and row maxima fp32 [R] (LLM.int8(), Dettmers 2022): round(127 w / max).

    The library halves weights to fp16 before; both with and without are made.
    """
    for name, weights in (("through fp16", weights_RC.half().float()), ("direct", weights_RC.float())):
        maxima_R = weights.abs().amax(1)
        factors = torch.where(maxima_R == 0, 0.0, 127 / maxima_R)[:, None]
        yield name, (weights * factors).round().to(torch.int8), maxima_R


def grouped(
    weights_RC: Tensor, dtype: str, shape: tuple[int, int], block: tuple[int, int], scale_dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield codes [R, C] and scales [r, c] of symmetric int8 or fp8: each block of weights divided by max / largest code.

    ``shape`` is that of the scales, ``block`` the rows and columns of one. int8's largest code is 127 in some libraries and 127.5 in
    others; scales are computed in fp32 or in the weights' own dtype; the weights are divided by the rounded scale, or multiplied by its inverse.
    """
    largest = (127.0, 127.5) if dtype == "I8" else (float(torch.finfo(FP8[dtype]).max),)
    own = weights_RC.dtype if weights_RC.dtype in {torch.bfloat16, torch.float16} else torch.float32
    for top in largest:
        for precision in dict.fromkeys((torch.float32, own)):
            weights = weights_RC.to(precision)
            scales_rc = (_block_maxima(weights, shape, block) / top).to(scale_dtype)
            spread = _spread(scales_rc.to(precision), weights.shape, block)
            for name, quotient in (("divided", weights / spread), ("times the inverse", weights * (1 / spread))):
                yield (
                    f"{name} in {str(precision).removeprefix('torch.')}, up to {top:g}",
                    _coded(quotient, dtype),
                    scales_rc,
                )


def nf4(weights_RC: Tensor, levels: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield NF4's packed codes uint8 [n/2, 1] and block maxima fp32 (QLoRA, Dettmers 2023); the nearest of 16 ``levels``, high half first."""
    flat = weights_RC.float().reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % NF4_BLOCK)).reshape(-1, NF4_BLOCK)
    maxima = blocks.abs().amax(1)
    inverse = torch.where(maxima == 0, 0.0, 1 / maxima)[:, None]
    middles = (levels[1:].double() + levels[:-1].double()) / 2
    codes = torch.bucketize((blocks * inverse).reshape(-1)[: flat.numel()], middles.float()).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2))
    yield "nearest level", ((codes[0::2] << 4) | codes[1::2])[:, None], maxima


def _coded(quotient: Tensor, dtype: str) -> Tensor:
    quotient = quotient.nan_to_num(0.0)  # 0 / 0 of a block of zeros
    if dtype == "I8":
        return quotient.round().clamp(-128, 127).to(torch.int8)
    top = torch.finfo(FP8[dtype]).max
    return quotient.clamp(-top, top).to(FP8[dtype])


def _block_maxima(weights: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    rows, columns = weights.shape
    padded = torch.nn.functional.pad(weights.abs(), (0, shape[1] * block[1] - columns, 0, shape[0] * block[0] - rows))
    return padded.reshape(shape[0], block[0], shape[1], block[1]).amax((1, 3))


def _spread(scales_rc: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    return scales_rc.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]

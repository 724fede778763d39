"""The scales of stored elements: per tensor, per row or column, or per block of a matrix."""

# R = rows, C = columns, r, c = rows and columns of a scale

from __future__ import annotations

import math

import torch
from torch import Tensor

_COMMON_BLOCK = 128  # of DeepSeek-V3 and Qwen3 fp8 checkpoints, whose last block is ragged


def dequantise(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """Return the float64 values ``tensor`` stands for: each element times the scale of its block.

    >>> dequantise(torch.ones(2, 3), torch.tensor([[2.0, 3.0, 4.0]]))
    tensor([[2., 3., 4.],
            [2., 3., 4.]], dtype=torch.float64)
    """
    if scale is None:
        return tensor.double()
    if scale.numel() == 1:
        return tensor.double() * scale.double().reshape(())
    scale_rc, block_rows, block_cols = split_scale(tuple(tensor.shape), scale)
    rows = torch.arange(tensor.shape[0], device=scale.device) // block_rows
    cols = torch.arange(tensor.shape[1], device=scale.device) // block_cols
    return tensor.double() * scale_rc.double()[rows[:, None], cols]


def split_scale(shape: tuple[int, ...], scale: Tensor) -> tuple[Tensor, int, int]:
    """Return a scale as fp32 [r, c] and the rows and columns of a block of a matrix of ``shape`` [R, C].

    Along a dimension of length L with s scales the block is L for one scale and 1 for L of them; otherwise 128 (ragged
    at the end) if that gives s blocks, else L / s if whole, else the power of two that gives s. A scale of one
    dimension and length R counts as [R, 1].

    >>> split_scale((300, 512), torch.ones(3, 4))[1:]
    (128, 128)
    >>> split_scale((96, 512), torch.ones(96))[1:]
    (1, 512)

    Raises:
        ValueError: the tensor is not a matrix, or no block fits.
    """
    if len(shape) != 2:
        raise ValueError(
            f"layer_std: a scale of shape {tuple(scale.shape)} needs a matrix, got a tensor of shape {shape}; "
            "pass the matrices of a stack one by one"
        )
    scale_rc = scale.detach().to(torch.float32)
    if scale_rc.ndim == 1:
        scale_rc = scale_rc[:, None]
    if scale_rc.ndim == 2:
        block_rows = _block_length(shape[0], scale_rc.shape[0])
        block_cols = _block_length(shape[1], scale_rc.shape[1])
        if block_rows and block_cols:
            return scale_rc.contiguous(), block_rows, block_cols
    raise ValueError(
        f"layer_std: a scale of shape {tuple(scale.shape)} fits no blocks of a matrix of shape {shape}; "
        "expected [ceil(R / b), ceil(C / b)], [R, 1], [1, C] or one element"
    )


def _block_length(length: int, num_scales: int) -> int | None:
    if num_scales == 1:
        return max(length, 1)
    if num_scales < 1 or num_scales > length:
        return None
    candidates = [1 if num_scales == length else _COMMON_BLOCK]
    if length % num_scales == 0:
        candidates.append(length // num_scales)
    candidates += [1 << power for power in range(1, length.bit_length())]
    return next((block for block in candidates if -(-length // block) == num_scales), None)


def whole_factor(scale: Tensor | None) -> float:
    """Return what a scale of one element multiplies a deviation by; NaN where it is not finite."""
    factor = 1.0 if scale is None else abs(float(scale))
    return factor if math.isfinite(factor) else math.nan

"""Standard deviation of many tensors at once, the scalar behind sigma-curves."""

# T = tensors, E = elements of one tensor

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class FileSpan(NamedTuple):
    """A block of a matrix in a file, read in place: rows of `num_cols` elements whose starts are `row_stride` apart."""

    path: str
    """File that holds the elements, little-endian."""
    offset: int
    """Byte of the first element."""
    dtype: str
    """safetensors code: BF16, F16, F32, F64, F8_E4M3 or F8_E5M2."""
    num_rows: int
    num_cols: int
    row_stride: int
    """Elements between row starts; equals `num_cols` where the block is contiguous."""
    scale: Tensor | None = None
    """What stored fp8 values are multiplied by; None where they are the values."""


def _layer_std_reference(tensors: Sequence[Tensor], correction: int = 1) -> Tensor:
    """Std of all elements of each tensor in float64 by two passes: mean first, then the centred squares."""
    return torch.stack([_std(tensor.double(), correction) for tensor in tensors])


def _std(x_E: Tensor, correction: int) -> Tensor:
    return ((x_E - x_E.mean()).square().sum() / (x_E.numel() - correction)).sqrt()


def layer_std(
    tensors: Sequence[Tensor], *, scales: Sequence[Tensor | None] | None = None, correction: int = 1
) -> Tensor:
    """Return the standard deviation of all elements of each tensor: float64 [T]."""
    return _layer_std_reference(tensors, correction)

"""Inputs and the one comparison of the tests of layer_std, whatever computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.dtypes import CODES

DTYPES = [*CODES]
SIZES = [1, 2, 3, 31, 127, 4097, 1_000_003]
RELATIVE_TOLERANCE = 1e-6  # of every type: the result is float64, whatever the elements are


def normal(*shape: int, dtype: torch.dtype, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * std + mean).to(dtype)


def every_code(dtype: torch.dtype) -> Tensor:
    """All finite values of a type of one or two bytes: zeros of both signs, subnormals, the largest."""
    bits = torch.uint8 if dtype.itemsize == 1 else torch.int16
    values = torch.arange(1 << (8 * dtype.itemsize)).to(bits).view(dtype)
    return values[values.double().isfinite()]


def assert_same_std(got_T: Tensor, want_T: Tensor) -> None:
    assert got_T.dtype == torch.float64
    torch.testing.assert_close(got_T, want_T, rtol=RELATIVE_TOLERANCE, atol=0.0, equal_nan=True)

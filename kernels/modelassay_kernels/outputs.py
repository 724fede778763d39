"""Memory for results: the caller's, checked before it is written, or fresh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelassay_kernels.native import ask_for_large_pages

LARGE_BYTES = 4 << 20
"""From here on the faults of a fresh CPU tensor's 4 KiB pages show beside the work; large pages are asked for."""


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a CPU tensor whose elements are about to be written."""
    out = torch.empty(tuple(shape), dtype=dtype)
    if out.nbytes >= LARGE_BYTES:
        ask_for_large_pages(out)
    return out


def check_out(
    operation: str,
    name: str,
    out: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    like: Tensor,
    inputs: Sequence[Tensor],
) -> None:
    """Raise unless a result of this shape and type may be written to ``out``, on the device of ``like``.

    Raises:
        ValueError: its shape, type, device or strides are others, a gradient would be lost, or it shares memory with an input
            in other places than its own.
    """
    if tuple(out.shape) != tuple(shape) or out.dtype != dtype or out.device != like.device:
        raise ValueError(
            f"{operation}: {name} must be {dtype} {[*shape]} on {like.device}, got {out.dtype} {[*out.shape]} on {out.device}"
        )
    if not out.is_contiguous():
        raise ValueError(f"{operation}: {name} has strides {out.stride()}; give a contiguous tensor")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, *inputs)):
        raise ValueError(f"{operation}: {name} carries no gradient; detach the inputs, or leave {name} away")
    for x in inputs:
        same_place = x.data_ptr() == out.data_ptr() and x.stride() == out.stride() and x.dtype == out.dtype
        if out.numel() and not same_place and _overlap(out, x):
            raise ValueError(
                f"{operation}: {name} shares memory with an input in other places than its own; give other memory"
            )


def _overlap(a: Tensor, b: Tensor) -> bool:
    if a.is_meta or b.is_meta or b.numel() == 0 or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    (first, end), (other_first, other_end) = _reach(a), _reach(b)
    return first < other_end and other_first < end


def _reach(x: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()

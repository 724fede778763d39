"""What may be asked of bottom_k and linear_bottom_k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelassay_kernels.outputs import check_out
from modelassay_kernels.products import capturing
from modelassay_kernels.remembered import Remembered

_num_valid = Remembered[int]()
"""Of masks."""


def check_request(name: str, num_cols: int, device: torch.device, k: int, valid: Tensor | None) -> None:
    """Check what `bottom_k` and `linear_bottom_k` are asked for.

    Counting the valid ids waits for a GPU, so it is done once for each mask that did not change since, and not while a CUDA graph is
    captured.

    Raises:
        ValueError: a mask of another length, device or type, or k outside 0 ... number of valid ids.
    """
    num_valid = num_cols
    if valid is not None:
        if valid.dtype != torch.bool or tuple(valid.shape) != (num_cols,) or valid.device != device:
            raise ValueError(
                f"{name}: valid must be bool [{num_cols}] on {device}, got {valid.dtype} {[*valid.shape]} on {valid.device}"
            )
        num_valid = num_cols if capturing(device) else _num_valid.of(valid, None, lambda: int(valid.sum()))
    if not 0 <= k <= num_valid:
        raise ValueError(f"{name}: k = {k}, but {num_valid} of {num_cols} ids are valid; ask for 0 to {num_valid}")


def check_outs(
    name: str, out: tuple[Tensor, Tensor], shape: tuple[int, int], dtype: torch.dtype, inputs: Sequence[Tensor]
) -> None:
    """Check the memory that values and ids are to be written to.

    Raises:
        ValueError: it cannot take them, or one is the other.
    """
    values_NK, ids_NK = out
    inputs = [x.detach() for x in inputs]  # gradients are never carried
    check_out(name, "out[0]", values_NK, shape, dtype, inputs[0], inputs)
    check_out(name, "out[1]", ids_NK, shape, torch.int64, inputs[0], [*inputs, values_NK])


def copied(result: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return ``out`` with the result in it, or the result where there is none."""
    if out is None:
        return result
    for to, part in zip(out, result, strict=True):
        to.copy_(part)
    return out

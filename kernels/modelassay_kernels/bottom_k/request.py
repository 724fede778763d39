"""What may be asked of bottom_k and linear_bottom_k."""

from __future__ import annotations

import torch
from torch import Tensor


def check_request(name: str, num_cols: int, device: torch.device, k: int, valid: Tensor | None) -> None:
    """Check what `bottom_k` and `linear_bottom_k` are asked for; counting the valid ids waits for a GPU.

    Raises:
        ValueError: a mask of another length, device or type, or k outside 0 ... number of valid ids.
    """
    num_valid = num_cols
    if valid is not None:
        if valid.dtype != torch.bool or tuple(valid.shape) != (num_cols,) or valid.device != device:
            raise ValueError(
                f"{name}: valid must be bool [{num_cols}] on {device}, got {valid.dtype} {[*valid.shape]} on {valid.device}"
            )
        num_valid = int(valid.sum())
    if not 0 <= k <= num_valid:
        raise ValueError(f"{name}: k = {k}, but {num_valid} of {num_cols} ids are valid; ask for 0 to {num_valid}")

"""Standard deviation of many tensors at once, the scalar behind sigma-curves."""

# T = tensors, E = elements of one tensor

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _layer_std_reference(tensors: Sequence[Tensor], correction: int = 1) -> Tensor:
    """std of all elements of each tensor in float64 by two passes: mean first, then the centred squares."""
    return torch.stack([_std(tensor.double(), correction) for tensor in tensors])


def _std(x_E: Tensor, correction: int) -> Tensor:
    return ((x_E - x_E.mean()).square().sum() / (x_E.numel() - correction)).sqrt()


def layer_std(tensors: Sequence[Tensor], *, scales: Sequence[Tensor | None] | None = None, correction: int = 1) -> Tensor:
    """Return the standard deviation of all elements of each tensor: float64 [T]."""
    return _layer_std_reference(tensors, correction)

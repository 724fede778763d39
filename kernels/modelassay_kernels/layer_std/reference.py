"""The definition of layer_std in PyTorch, which devices without a kernel take."""

# T = tensors, E = elements of one tensor

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modelassay_kernels.layer_std.scales import Block, blocks_of, dequantise


def layer_std_reference(
    tensors: Sequence[Tensor],
    scales: Sequence[Tensor | None] | None = None,
    correction: int = 1,
    *,
    blocks: Sequence[Block | None] | None = None,
) -> Tensor:
    """Standard deviations in float64 [T] by two passes: the mean first, then the centred squares.

    Costs one float64 copy of the largest tensor, and of its expanded scale.
    """
    scaled = zip(tensors, scales or [None] * len(tensors), blocks_of(blocks, len(tensors)), strict=True)
    stds = [_std(dequantise(*parts).flatten(), correction) for parts in scaled]
    return torch.stack(stds) if stds else torch.empty(0, dtype=torch.float64)


def _std(x_E: Tensor, correction: int) -> Tensor:
    if x_E.numel() <= correction or x_E.numel() == 0:
        return x_E.new_tensor(math.nan)
    exponent = torch.frexp(x_E.abs().max()).exponent.clamp(-1000, 1000)
    x_E = torch.ldexp(x_E, -exponent)  # by a power of two, so exact; no square overflows
    x_E = x_E - x_E[0]  # so that equal elements give exactly 0
    centred_E = x_E - x_E.mean()
    return torch.ldexp((centred_E.square().sum() / (x_E.numel() - correction)).sqrt(), exponent)

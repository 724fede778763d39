"""The formula of softmax_ggn in PyTorch: in float64, and in the type that a device without a kernel computes in."""

# N is rows, V is vocabulary

from __future__ import annotations

import torch
from torch import Tensor


def softmax_ggn_reference(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute the formula in float64; costs five float64 copies of the logits."""
    p_NV = logits_NV.double().softmax(1)
    u_NV = u_NV.double()
    return p_NV * (u_NV - (p_NV * u_NV).sum(1, keepdim=True))


def softmax_ggn_torch(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute the formula in PyTorch's kernels, accumulating in float32 or float64."""
    wide = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    p_NV = torch.softmax(logits_NV, 1, dtype=wide)
    u_NV = u_NV.to(wide)
    mean_N1 = (p_NV * u_NV).sum(1, keepdim=True)  # not a product of matrices: autocast would round it
    return ((u_NV - mean_N1) * p_NV).to(logits_NV.dtype)

"""The definition of bottom_k in PyTorch, which float64 and devices without a kernel take."""

# N = rows, V = size of the vocabulary, K = kept of each row

from __future__ import annotations

import torch
from torch import Tensor


def bottom_k_reference(
    logits_NV: Tensor, k: int, *, valid: Tensor | None = None, largest: bool = False, sort: bool = True
) -> tuple[Tensor, Tensor]:
    """A stable sort of every row, of which the first k stay; always sorted. Costs several copies of the logits."""
    ids_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    if valid is not None:
        ids_V = ids_V[valid]
        logits_NV = logits_NV[:, valid]
    order_NV = (-logits_NV if largest else logits_NV).sort(dim=1, stable=True).indices  # ascending: NaN is last
    order_NK = order_NV[:, :k]
    return logits_NV.gather(1, order_NK), ids_V[order_NK]

"""What layer_std cannot avoid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from modelassay_kernels.work import Work


def layer_std_work(tensors: Sequence[Tensor], scales: Sequence[Tensor | None] | None = None) -> Work:
    """Every element read once, its scale too, and one float64 written for each tensor.

    Of an element: it leaves the mean, is squared, and both are summed.

    >>> import torch
    >>> layer_std_work([torch.zeros(3, 4), torch.zeros(2, dtype=torch.bfloat16)])
    Work(bytes=68, flops=56)
    """
    scale_bytes = sum(scale.nbytes for scale in scales or () if scale is not None)
    size_bytes = sum(tensor.nbytes for tensor in tensors) + scale_bytes + 8 * len(tensors)
    return Work(bytes=size_bytes, flops=4 * sum(tensor.numel() for tensor in tensors))

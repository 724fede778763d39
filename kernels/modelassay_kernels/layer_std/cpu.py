"""layer_std by the compiled extension."""

# T = tensors; R, C = rows and columns of a matrix

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelassay_kernels.dtypes import CODES, FP8
from modelassay_kernels.layer_std.scales import Block, blocks_of, is_whole, split_scale, whole_factor
from modelassay_kernels.native import require_native


def rows_of(tensor: Tensor) -> Tensor:
    """Return the elements of ``tensor`` as a view [R, C] whose rows are contiguous, in any order; a copy if there is none.

    A standard deviation does not ask for an order, so transposed tensors need no copy.

    >>> rows_of(torch.ones(6, 4).t()[:3]).stride()
    (4, 1)
    """
    if tensor.is_contiguous():
        return tensor.view(1, -1)
    dims = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1)
    merged: list[tuple[int, int]] = []  # (stride, size), innermost first
    for stride, size in dims:
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0], merged[-1][1] * size)
        else:
            merged.append((stride, size))
    repeated = merged.pop(0) if merged and merged[0][0] == 0 else None
    if not merged or merged[0][0] != 1:
        merged.insert(0, (1, 1))
    if repeated is not None:
        merged.append(repeated)
    if len(merged) > 2:
        return tensor.contiguous().view(1, -1)
    (_, num_cols), (row_stride, num_rows) = merged[0], merged[1] if len(merged) == 2 else (merged[0][1], 1)
    return tensor.as_strided((num_rows, num_cols), (row_stride, 1))


def layer_std_native(
    tensors: Sequence[Tensor],
    scales: Sequence[Tensor | None] | None = None,
    correction: int = 1,
    instruction_set: str = "",
    *,
    blocks: Sequence[Block | None] | None = None,
) -> Tensor:
    """Measure CPU tensors that were checked, with `torch.get_num_threads()` threads."""
    require_native()
    from modelassay_kernels import _native

    items = []
    factors_T = torch.ones(len(tensors), dtype=torch.float64)
    for i, (tensor, block) in enumerate(zip(tensors, blocks_of(blocks, len(tensors)), strict=True)):
        scale = scales[i] if scales is not None else None
        tensor = tensor.detach()
        if is_whole(scale, block):
            scaled, matrix = None, rows_of(tensor)
            factors_T[i] = whole_factor(scale)
        else:
            assert scale is not None
            scaled = split_scale(tuple(tensor.shape), scale, block)
            matrix = tensor if tensor.stride(1) == 1 else tensor.contiguous()
        items.append((matrix.view(torch.uint8) if tensor.dtype in FP8 else matrix, CODES[tensor.dtype], scaled))
    std_T = torch.empty(len(tensors), dtype=torch.float64)
    _native.layer_std(items, std_T, correction, torch.get_num_threads(), instruction_set)
    return std_T * factors_T

"""The scales of stored elements: per tensor, per row or column, or per block of a matrix."""

# R = rows, C = columns, r, c = rows and columns of a scale

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Block: TypeAlias = tuple[int, int]
"""Rows and columns that one scale holds for; the last block of a row or column may be ragged."""


def dequantise(tensor: Tensor, scale: Tensor | None, block: Block | None = None) -> Tensor:
    """Return the float64 values ``tensor`` stands for: each element times the scale of its block.

    >>> dequantise(torch.ones(2, 3), torch.tensor([[2.0, 3.0, 4.0]]))
    tensor([[2., 3., 4.],
            [2., 3., 4.]], dtype=torch.float64)
    """
    if is_whole(scale, block):
        return tensor.double() if scale is None else tensor.double() * scale.double().reshape(())
    assert scale is not None
    scale_rc, block_rows, block_cols = split_scale(tuple(tensor.shape), scale, block)
    rows = torch.arange(tensor.shape[0], device=scale.device) // block_rows
    cols = torch.arange(tensor.shape[1], device=scale.device) // block_cols
    return tensor.double() * scale_rc.double()[rows[:, None], cols]


def is_whole(scale: Tensor | None, block: Block | None) -> bool:
    """Return whether one factor, or none, holds for a whole tensor.

    Raises:
        ValueError: a block is stated where there is no scale.
    """
    if scale is None and block is not None:
        raise ValueError(f"layer_std: a block of {block} without a scale; pass the scale, or no block")
    return scale is None or (scale.numel() == 1 and block is None)


def blocks_of(blocks: Sequence[Block | None] | None, num_tensors: int) -> Sequence[Block | None]:
    """Return a block or None for each tensor.

    Raises:
        ValueError: there are not as many as tensors.
    """
    if blocks is None:
        return [None] * num_tensors
    if len(blocks) != num_tensors:
        raise ValueError(
            f"layer_std: got {len(blocks)} blocks for {num_tensors} tensors; give None where the scale's shape says it"
        )
    return blocks


def split_scale(shape: tuple[int, ...], scale: Tensor, block: Block | None = None) -> tuple[Tensor, int, int]:
    """Return a scale as fp32 [r, c] and the rows and columns of a block of a matrix of ``shape`` [R, C].

    A stated ``block`` must give exactly the scale's shape, [ceil(R / rows), ceil(C / columns)]. Without one, the shapes
    must leave a single reading: along a dimension of length L one scale holds for all of it and L scales for one element
    each; any other number s only if a single b gives ceil(L / b) = s (7 scales for 100 rows may be blocks of 15 or 16). A
    scale of one dimension and length R counts as [R, 1].

    >>> split_scale((300, 512), torch.ones(3, 4), (128, 128))[1:]
    (128, 128)
    >>> split_scale((96, 512), torch.ones(96))[1:]
    (1, 512)

    Raises:
        ValueError: the tensor is not a matrix, the block does not fit, or several would.
    """
    if len(shape) != 2:
        raise ValueError(
            f"layer_std: a scale of shape {tuple(scale.shape)} needs a matrix, got a tensor of shape {shape}; "
            "pass the matrices of a stack one by one"
        )
    scale_rc = scale.detach().to(torch.float32)
    if scale_rc.ndim < 2:
        scale_rc = scale_rc.reshape(-1, 1)
    said = f"layer_std: a scale of shape {tuple(scale.shape)}"
    if scale_rc.ndim != 2:
        raise ValueError(f"{said} fits no blocks of a matrix of shape {shape}; expected two dimensions")
    counts = (scale_rc.shape[0], scale_rc.shape[1])
    if block is None:
        block = _only_block(shape, counts, said)
    elif min(block) < 1 or counts != tuple(-(-length // size) for length, size in zip(shape, block, strict=True)):
        raise ValueError(
            f"{said} fits no blocks of {block} of a matrix of shape {shape}; expected [ceil(R / rows), ceil(C / columns)]"
        )
    return scale_rc.contiguous(), *block


def _only_block(shape: tuple[int, ...], counts: Block, said: str) -> Block:
    lengths = []
    for length, count in zip(shape, counts, strict=True):
        smallest, largest = _block_lengths(length, count)
        if smallest > largest:
            raise ValueError(
                f"{said} fits no blocks of a matrix of shape {shape}; "
                "expected [ceil(R / b), ceil(C / b)], [R, 1], [1, C] or one element"
            )
        if smallest < largest:
            raise ValueError(
                f"{said} may be blocks of {smallest} to {largest} along {length} elements of a matrix of shape {shape}; "
                "state the block"
            )
        lengths.append(smallest)
    return lengths[0], lengths[1]


def _block_lengths(length: int, count: int) -> tuple[int, int]:
    """Return the smallest and the largest b with ceil(length / b) = count; the smallest is above the largest where none has.

    >>> _block_lengths(100, 7), _block_lengths(300, 150), _block_lengths(10, 11), _block_lengths(8, 1), _block_lengths(0, 1)
    ((15, 16), (2, 2), (1, 0), (8, 8), (1, 1))
    """
    if count == 1:
        return max(length, 1), max(length, 1)
    if count < 1 or count > length:
        return 1, 0
    return -(-length // count), (length - 1) // (count - 1)


def whole_factor(scale: Tensor | None) -> float:
    """Return what a scale of one element multiplies a deviation by; NaN where it is not finite."""
    factor = 1.0 if scale is None else abs(float(scale))
    return factor if math.isfinite(factor) else math.nan

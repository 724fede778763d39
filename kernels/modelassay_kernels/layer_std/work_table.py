"""The table that lets one kernel launch walk over every tensor of a model.

One int64 row per tensor (`FIELDS`) and, per chunk of work, the index of its tensor. Building it costs a few microseconds
of host time per tensor and one copy of T x 15 x 8 bytes; the chunk index is expanded on the device.
"""

# T = tensors, F = fields of one row, C = chunks

from __future__ import annotations

import weakref
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modelassay_kernels.dtypes import INDICES
from modelassay_kernels.layer_std.scales import Block, blocks_of, is_whole, split_scale
from modelassay_kernels.products import capturing, stream_of

FIELDS = (
    "address",  # of the first element
    "dtype",  # one of `dtypes.INDICES`
    "numel",
    "rows",  # a contiguous tensor is cut into rows of `tile_cols` elements, the last one ragged
    "cols",
    "row_stride",  # elements
    "col_tiles",  # tiles side by side; tiles count row-major
    "full_tiles",  # leading tiles that are complete and may be read in 16-byte words
    "num_tiles",
    "first_chunk",
    "scale_address",  # of the block scales, fp32, 0 where there are none
    "scale_rows",  # rows of the tensor under one scale; the fast path wants a power of two, LONGEST where all are under one
    "scale_cols",
    "scale_stride",  # scales per row of scales
    "scalar_address",  # of the scale of the whole tensor, fp32, 0 where there is none
)
_FLOAT64 = INDICES[torch.float64]
_ITEMSIZE = torch.tensor([dtype.itemsize for dtype in INDICES], device="cpu")
WORD_BYTES = 16  # the widest global load of every supported GPU
SCALE_GROUP = 32  # columns that share one scale on the fast path: the smallest block in use (MX formats)
LONGEST = 2**31  # rows or columns of a block that is the whole tensor's, which has fewer
PIECES = 4  # a tile is read in this many pieces where every element needs its own address and mask, to save registers


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Shape of the work of one program; every field is a compile-time constant of the kernel."""

    block: int
    """Elements of one tile, all held in registers; a power of two, at least PIECES * tile_cols."""
    num_warps: int
    num_stages: int = 1
    """Depth of the copy pipeline through shared memory; 1 loads straight into registers."""
    tile_cols: int = 256
    """Columns of one tile: the row length a contiguous tensor is cut into. A power of two, at least SCALE_GROUP."""
    chunk: int = 131072
    """Elements of one program's work; 8e9 parameters are then 61 thousand programs, so the last wave weighs under 1 %."""

    @property
    def tile_rows(self) -> int:
        """Rows of one tile."""
        return self.block // self.tile_cols

    @property
    def tiles(self) -> int:
        """Tiles of one chunk."""
        return self.chunk // self.block


@dataclass(frozen=True, kw_only=True, eq=False)
class WorkTable:
    """Tensors laid out for the kernel; valid as long as no tensor's storage is resized or replaced."""

    rows_TF: Tensor
    """int64 on the tensors' device."""
    tensor_C: Tensor
    """int32: the tensor each chunk belongs to."""
    config: LaunchConfig
    kept: tuple[Tensor, ...]
    """Every tensor whose address is in the table: copies made here, and the caller's own, so that none is freed."""


def build_work_table(
    tensors: Sequence[Tensor],
    scales: Sequence[Tensor | None] | None,
    config: LaunchConfig,
    *,
    blocks: Sequence[Block | None] | None = None,
) -> WorkTable:
    """Describe `tensors`, all on one device, in a table on that device. Values that change later are seen through it.

    Except those of copies: a tensor that is neither contiguous, nor the transpose of one that is, nor a 2-D view with unit
    column stride is copied here, as are scales that are not contiguous fp32.

    Raises:
        TypeError: for a dtype that no kernel takes.
        ValueError: for tensors on different devices, or scales that do not fit their tensor.
    """
    if not tensors:
        raise ValueError("build_work_table: no tensors were given; pass at least one")
    if scales is None:
        scales = [None] * len(tensors)
    if len(scales) != len(tensors):
        raise ValueError(
            f"scales: got {len(scales)} entries for {len(tensors)} tensors; pass one per tensor, None where a tensor has no scale"
        )
    device = tensors[0].device
    kept: list[Tensor] = []
    descriptions = array("q")  # torch.tensor takes half a millisecond for a list of 300 rows
    for index, (x, scale, block) in enumerate(zip(tensors, scales, blocks_of(blocks, len(tensors)), strict=True)):
        descriptions.extend(_describe(index, x, scale, block, device, config, kept))
    rows_TF, num_chunks_T = _complete(torch.frombuffer(descriptions, dtype=torch.int64).view(len(tensors), -1), config)
    total = int(num_chunks_T.sum())
    if device.type == "cuda":
        rows_TF = rows_TF.pin_memory().to(device, non_blocking=True)
        num_chunks_T = num_chunks_T.pin_memory().to(device, non_blocking=True)
    ids_T = torch.arange(len(tensors), dtype=torch.int32, device=device)
    tensor_C = torch.repeat_interleave(ids_T, num_chunks_T, output_size=total)
    return WorkTable(rows_TF=rows_TF, tensor_C=tensor_C, config=config, kept=tuple(kept))


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a tensor lies, and what it is; by a weak reference, so that nothing is kept alive."""

    ref: weakref.ref[Tensor]
    address: int
    layout: tuple[object, ...]

    @classmethod
    def of(cls, x: Tensor) -> _Place:
        return cls(ref=weakref.ref(x), address=x.data_ptr(), layout=(x.shape, x.stride(), x.dtype))

    def is_of(self, x: Tensor) -> bool:
        return self.ref() is x and self.address == x.data_ptr() and self.layout == (x.shape, x.stride(), x.dtype)


_tables: deque[tuple[tuple[object, ...], list[_Place], WorkTable]] = deque(maxlen=4)
"""The last tables that hold no copies: (configuration, what is scaled by which blocks, stream), the tensors and scales, and the table."""


def work_table_of(
    tensors: Sequence[Tensor],
    scales: Sequence[Tensor | None] | None,
    config: LaunchConfig,
    *,
    blocks: Sequence[Block | None] | None = None,
) -> WorkTable:
    """As `build_work_table`, but once for the same tensors where they are: a look at each takes a sixth of its description.

    A table with copies, whose values would be those of its making, is made each time, as is one in a CUDA graph.
    """
    device = tensors[0].device
    if capturing(device):
        return build_work_table(tensors, scales, config, blocks=blocks)
    all_tensors = [*tensors, *(scale for scale in scales or () if scale is not None)]
    scaled = tuple(scale is not None for scale in scales or ())
    key = (config, len(tensors), scaled, tuple(blocks or ()), stream_of(device))
    for of, places, table in _tables:
        if of == key and all(place.is_of(x) for place, x in zip(places, all_tensors, strict=True)):
            return table
    table = build_work_table(tensors, scales, config, blocks=blocks)
    addresses = {x.data_ptr() for x in all_tensors}
    if not all(x.data_ptr() in addresses for x in table.kept):
        return table
    table = replace(table, kept=())  # the caller has them
    _tables.append((key, [_Place.of(x) for x in all_tensors], table))
    return table


def _complete(descriptions: Tensor, config: LaunchConfig) -> tuple[Tensor, Tensor]:
    """Turn what `_describe` gives into whole rows [T, F] and the number of chunks of each tensor [T]."""
    (address, dtype, numel, rows, cols, row_stride, scale_address, scale_rows, scale_cols, scale_stride, scalar) = (
        descriptions.unbind(1)
    )
    itemsize = _ITEMSIZE[dtype]
    col_tiles = _ceil_div(cols, config.tile_cols)
    num_tiles = _ceil_div(rows, config.tile_rows) * col_tiles
    num_chunks = _ceil_div(num_tiles, config.tiles)
    scale_rows, scale_cols = (torch.where(s >= x, LONGEST, s) for s, x in ((scale_rows, rows), (scale_cols, cols)))
    powers = (scale_rows & (scale_rows - 1) == 0) & (scale_cols & (scale_cols - 1) == 0)
    scale_fits = (scale_address == 0) | (
        (itemsize == 1) & powers & (scale_cols >= SCALE_GROUP) & (rows < LONGEST) & (cols < LONGEST)
    )
    wide = (address % WORD_BYTES == 0) & (row_stride * itemsize % WORD_BYTES == 0) & (cols % config.tile_cols == 0)
    complete_rows = numel // cols.clamp(min=1)
    full_tiles = torch.where(scale_fits & wide & (dtype != _FLOAT64), complete_rows // config.tile_rows * col_tiles, 0)
    first_chunk = num_chunks.cumsum(0) - num_chunks
    columns = (
        *(address, dtype, numel, rows, cols, row_stride, col_tiles, full_tiles, num_tiles, first_chunk),
        *(scale_address, scale_rows, scale_cols, scale_stride, scalar),
    )
    return torch.stack(columns, dim=1), num_chunks


def _describe(
    index: int,
    x: Tensor,
    scale: Tensor | None,
    block: Block | None,
    device: torch.device,
    config: LaunchConfig,
    kept: list[Tensor],
) -> tuple[int, ...]:
    """Address, shape and scale of one tensor, as `_complete` unpacks them."""
    if x.dtype not in INDICES:
        supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in INDICES)
        raise TypeError(f"tensors[{index}]: dtype {x.dtype} is not supported; convert it to one of {supported}")
    if x.device != device:
        raise ValueError(f"tensors[{index}] is on {x.device} and tensors[0] on {device}; move all to one device")
    block_scale, scalar_address = None, 0
    whole = is_whole(scale, block)
    if scale is not None:
        if scale.device != device:
            raise ValueError(f"scales[{index}] is on {scale.device}, its tensor on {device}; move it there")
        scale = scale.to(torch.float32).contiguous()
        kept.append(scale)
        if whole:
            scalar_address = scale.data_ptr()
        else:
            block_scale, scale_rows, scale_cols = split_scale(tuple(x.shape), scale, block)
    contiguous = x.is_contiguous()
    if block_scale is None and not contiguous and x.ndim == 2 and x.t().is_contiguous():
        x, contiguous = x.t(), True  # the order of the elements does not matter
    elif not contiguous and (x.ndim != 2 or x.stride(1) != 1):
        x, contiguous = x.contiguous(), True
    kept.append(x)
    numel = x.numel()
    if block_scale is None and contiguous:
        shape = (-(-numel // config.tile_cols), config.tile_cols, config.tile_cols)
    else:
        shape = (x.shape[0], x.shape[1], x.stride(0))
    blocks = (0, 1, 1, 1)
    if block_scale is not None:
        blocks = (block_scale.data_ptr(), scale_rows, scale_cols, -(-x.shape[1] // scale_cols))
    return (x.data_ptr(), INDICES[x.dtype], numel, *shape, *blocks, scalar_address)


def _ceil_div(numerator: Tensor, denominator: Tensor | int) -> Tensor:
    return -(-numerator // denominator)

"""softmax_ggn on a GPU, in one launch that reads device memory once: 3 N V elements, not 5 or 6.

A row is cut into splits of at most `span` columns, one program each, and visited twice: for its statistics

    m = max(x),   l = sum exp(x - m),   d = sum exp(x - m) u

and, when all splits of the row have theirs, for y = exp(x - m) / l * (u - d / l) after merging them in fixed order. Rows come
in groups small enough that the second visit finds logits and u in L2: programs take tickets in the order

    statistics of group 0;  statistics of group 1, results of group 0;  statistics of group 2, results of group 1;  ...

A program waits for its row only if the previous group has not finished. It cannot deadlock: who waits holds a later ticket
than those it waits for, which have started and do not wait. Integer counters are the only atomics, so equal inputs give equal bits.
"""

# N = rows, V = vocabulary, S = splits of a row

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay_kernels.optional_triton import HAS_TRITON, constexpr, is_interpreted, jit, tl

LOG2_E = constexpr(1.4426950408889634)


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel is launched."""

    span: int
    """Columns of one program, at most: what it finds out before its first is spread over them."""
    vectors: int
    """Of 16 bytes that a thread loads at one time of logits, and of u."""
    num_warps: int
    """Of one program."""


DEFAULT = LaunchConfig(span=16384, vectors=2, num_warps=8)
"""By reasoning and compiled code, not measured: 16 KB of loads in flight per program."""
MAX_REGISTERS = 64
"""Of a thread: four programs of 256 threads share a multiprocessor, so 64 KB of loads are in flight."""
L2_SHARE = 0.5
"""Of L2, for the logits and u of two groups; the rest is for what is written. By reasoning, not measured."""


def softmax_ggn_triton(
    logits_NV: Tensor, u_NV: Tensor, config: LaunchConfig | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Like `softmax_ggn`, for CUDA tensors of bfloat16, float16 or float32 that were checked there.

    Raises:
        RuntimeError: where Triton is not installed.
        ValueError: for tensors that are not on a CUDA device.
    """
    if not HAS_TRITON:
        raise RuntimeError(
            "softmax_ggn: needs Triton on CUDA tensors; install the `triton` package or move them to the CPU"
        )
    device = logits_NV.device
    if device.type != "cuda" and not is_interpreted(softmax_ggn_kernel):
        raise ValueError(f"softmax_ggn_triton: tensors are on {device}; move them to a CUDA device or call softmax_ggn")
    num_rows, num_cols = logits_NV.shape
    logits_NV, u_NV = (x if x.stride(1) == 1 else x.contiguous() for x in (logits_NV, u_NV))
    y_NV = torch.empty(num_rows, num_cols, dtype=logits_NV.dtype, device=device) if out is None else out
    if num_rows == 0 or num_cols == 0:
        return y_NV
    config = config or DEFAULT
    width = 16 // logits_NV.element_size()
    lanes = 32 * config.num_warps * config.vectors
    splits = -(-num_cols // config.span)
    tiles = -(-num_cols // (splits * lanes * width))
    splits = -(-num_cols // (tiles * lanes * width))
    rows_per_group = min(num_rows, _rows_per_group(device, num_cols * logits_NV.element_size(), splits))
    num_stages = -(-num_rows // rows_per_group) + 1
    partials_NS3 = torch.empty(num_rows, splits, 3, dtype=torch.float32, device=device)
    counters = torch.zeros(
        1 + num_rows, dtype=torch.int32, device=device
    )  # the next ticket; finished splits of each row
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        softmax_ggn_kernel[(num_stages * 2 * rows_per_group * splits,)](
            logits_NV, u_NV, y_NV, partials_NS3, counters, num_rows, num_cols, logits_NV.stride(0), u_NV.stride(0),
            rows_per_group, splits, tiles, LANES=lanes, WIDTH=width, SPLITS=_power_of_two(splits),
            num_warps=config.num_warps, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
    return y_NV


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _rows_per_group(device: torch.device, row_bytes: int, splits: int) -> int:
    """Return as many rows as L2 keeps, but not many more than occupy the whole device."""
    if device.type != "cuda":
        return 2
    properties = torch.cuda.get_device_properties(device)
    kept = int(L2_SHARE * properties.L2_cache_size) // (4 * row_bytes)  # logits and u of two groups
    occupying = -(-8 * properties.multi_processor_count // splits)
    return max(1, min(kept, occupying))


@jit()
def _statistics(x_ptrs, u_ptrs, cols, num_cols, tiles, LANES: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """m, l and d of a split. A lane keeps its own maximum, which changes the scale of its sums once for WIDTH elements."""
    m_L = tl.full([LANES], float("-inf"), tl.float32)
    l_L = tl.zeros([LANES], tl.float32)
    d_L = tl.zeros([LANES], tl.float32)
    inside = cols < num_cols
    next_x = tl.load(x_ptrs, mask=inside, other=float("-inf"), eviction_policy="evict_last")
    next_u = tl.load(u_ptrs, mask=inside, other=0.0, eviction_policy="evict_last")
    for tile in range(tiles):
        x, u = next_x.to(tl.float32), next_u.to(tl.float32)
        start = (tile + 1) * (LANES * WIDTH)  # both of the next are on their way while these are summed
        inside = (cols < num_cols - start) & (tile + 1 < tiles)
        next_x = tl.load(x_ptrs + start, mask=inside, other=float("-inf"), eviction_policy="evict_last")
        next_u = tl.load(u_ptrs + start, mask=inside, other=0.0, eviction_policy="evict_last")
        old_L, m_L = m_L, tl.maximum(m_L, tl.max(x, 1))
        subtracted_L = tl.where(m_L == float("-inf"), 0.0, m_L)  # a lane of -infinity alone weighs nothing
        scale_L = tl.exp2((old_L - subtracted_L) * LOG2_E)
        e = tl.exp2((x - subtracted_L[:, None]) * LOG2_E)
        l_L = l_L * scale_L + tl.sum(e, 1)
        d_L = d_L * scale_L + tl.sum(e * u, 1)
    m = tl.max(m_L)
    scale_L = tl.exp2((m_L - tl.where(m == float("-inf"), 0.0, m)) * LOG2_E)
    return m, tl.sum(l_L * scale_L), tl.sum(d_L * scale_L)


@jit()
def _merged(partial, splits, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """m, 1 / l and d / l of a row from those of its splits, in fixed order."""
    s_S = tl.arange(0, SPLITS)
    m_S = tl.load(partial + s_S * 3, mask=s_S < splits, other=float("-inf"), cache_modifier=".cg")
    l_S = tl.load(partial + s_S * 3 + 1, mask=s_S < splits, other=0.0, cache_modifier=".cg")
    d_S = tl.load(partial + s_S * 3 + 2, mask=s_S < splits, other=0.0, cache_modifier=".cg")
    m = tl.max(m_S)
    weight_S = tl.exp2((m_S - m) * LOG2_E)
    inverse = 1.0 / tl.sum(l_S * weight_S)
    return m, inverse, tl.sum(d_S * weight_S) * inverse


@jit(do_not_specialize=("num_rows", "rows_per_group", "splits", "tiles"))
def softmax_ggn_kernel(
    logits_ptr: tl.tensor, u_ptr: tl.tensor, y_ptr: tl.tensor, partial_ptr: tl.tensor, counter_ptr: tl.tensor,
    num_rows: tl.tensor, num_cols: tl.tensor, logits_stride: tl.tensor, u_stride: tl.tensor, rows_per_group: tl.tensor,
    splits: tl.tensor, tiles: tl.tensor, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
) -> None:  # fmt: skip
    """One ticket: the statistics of one split of one row, or its result."""
    ticket = tl.atomic_add(counter_ptr, 1, sem="relaxed")  # fewer than 2^31, as a grid has
    items = rows_per_group * splits
    stage, item = ticket // (2 * items), ticket % (2 * items)
    second = item >= items
    item = tl.where(second, item - items, item)
    row = ((stage - second.to(tl.int32)) * rows_per_group + item // splits).to(tl.int64)
    split = item % splits
    if (row >= 0) & (row < num_rows):
        first = split * tiles * (LANES * WIDTH)  # a row has fewer than 2^31 columns; rows start at 64 bits
        cols = first + tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        partial, ready_ptr = partial_ptr + row * splits * 3, counter_ptr + 1 + row
        x_ptrs, u_ptrs = logits_ptr + row * logits_stride + cols, u_ptr + row * u_stride + cols
        if second:
            while tl.atomic_add(ready_ptr, 0, sem="acquire") < splits:
                pass
            m, inverse, mean = _merged(partial, splits, SPLITS)
            y_ptrs = y_ptr + row * num_cols + cols
            for tile in range(tiles):
                start = tile * (LANES * WIDTH)
                inside = cols < num_cols - start
                x = tl.load(x_ptrs + start, mask=inside, other=float("-inf"), eviction_policy="evict_first")
                u = tl.load(u_ptrs + start, mask=inside, other=0.0, eviction_policy="evict_first")
                y = tl.exp2((x.to(tl.float32) - m) * LOG2_E) * inverse * (u.to(tl.float32) - mean)
                tl.store(y_ptrs + start, y.to(y_ptr.dtype.element_ty), mask=inside, cache_modifier=".cs")
        else:
            m, total, weighted = _statistics(x_ptrs, u_ptrs, cols, num_cols, tiles, LANES, WIDTH)
            tl.store(partial + split * 3, m)
            tl.store(partial + split * 3 + 1, total)
            tl.store(partial + split * 3 + 2, weighted)
            tl.debug_barrier()  # what all threads stored is released by the one that counts
            tl.atomic_add(ready_ptr, 1, sem="release")

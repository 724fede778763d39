"""softmax_ggn on a GPU, in one launch that reads device memory once: 3 N V elements, not 5 or 6.

A row is cut into splits of SPAN columns, one program each, and visited twice: for its statistics

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

from modelassay_kernels.optional_triton import HAS_TRITON, is_interpreted, jit, tl


@dataclass(frozen=True)
class LaunchConfig:
    """How a kernel is launched."""

    span: int
    """Columns of one program: a power of two."""
    num_warps: int
    """Of one program."""


DEFAULT = LaunchConfig(span=4096, num_warps=8)
"""By reasoning, not measured: 16 to 32 KB of loads in flight per program, and by its registers three programs per multiprocessor."""
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
    splits = -(-num_cols // config.span)
    rows_per_group = min(num_rows, _rows_per_group(device, num_cols * logits_NV.element_size(), splits))
    num_stages = -(-num_rows // rows_per_group) + 1
    partials_NS3 = torch.empty(num_rows, splits, 3, dtype=torch.float32, device=device)
    counters = torch.zeros(
        1 + num_rows, dtype=torch.int32, device=device
    )  # the next ticket; finished splits of each row
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        softmax_ggn_kernel[(num_stages * 2 * rows_per_group * splits,)](
            logits_NV, u_NV, y_NV, partials_NS3, counters, num_rows, num_cols, logits_NV.stride(0), u_NV.stride(0),
            rows_per_group, splits, SPAN=config.span, SPLITS=_power_of_two(splits), num_warps=config.num_warps,
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


@jit(do_not_specialize=("num_rows", "rows_per_group", "splits"))
def softmax_ggn_kernel(
    logits_ptr: tl.tensor, u_ptr: tl.tensor, y_ptr: tl.tensor, partial_ptr: tl.tensor, counter_ptr: tl.tensor,
    num_rows: tl.tensor, num_cols: tl.tensor, logits_stride: tl.tensor, u_stride: tl.tensor, rows_per_group: tl.tensor,
    splits: tl.tensor, SPAN: tl.constexpr, SPLITS: tl.constexpr,
) -> None:  # fmt: skip
    """One ticket: the statistics of one split of one row, or its result."""
    ticket = tl.atomic_add(counter_ptr, 1, sem="relaxed").to(tl.int64)
    items = rows_per_group.to(tl.int64) * splits
    stage, item = ticket // (2 * items), ticket % (2 * items)
    second = item >= items
    row = (stage - second.to(tl.int64)) * rows_per_group + item % items // splits
    split = item % splits
    if (row >= 0) & (row < num_rows):
        cols = split.to(tl.int32) * SPAN + tl.arange(
            0, SPAN
        )  # a row has fewer than 2^31 columns; rows start at 64 bits
        inside = cols < num_cols
        partial = partial_ptr + row * splits * 3
        ready_ptr = counter_ptr + 1 + row
        x_ptrs, u_ptrs = logits_ptr + row * logits_stride + cols, u_ptr + row * u_stride + cols
        if second:
            while tl.atomic_add(ready_ptr, 0, sem="acquire") < splits:
                pass
            s_S = tl.arange(0, SPLITS)
            m_S = tl.load(partial + s_S * 3, mask=s_S < splits, other=float("-inf"), cache_modifier=".cg")
            l_S = tl.load(partial + s_S * 3 + 1, mask=s_S < splits, other=0.0, cache_modifier=".cg")
            d_S = tl.load(partial + s_S * 3 + 2, mask=s_S < splits, other=0.0, cache_modifier=".cg")
            m = tl.max(m_S)
            weight_S = tl.exp(m_S - m)
            inverse = 1.0 / tl.sum(l_S * weight_S)
            mean = tl.sum(d_S * weight_S) * inverse
            x = tl.load(x_ptrs, mask=inside, other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
            u = tl.load(u_ptrs, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
            y = tl.exp(x - m) * inverse * (u - mean)
            tl.store(y_ptr + row * num_cols + cols, y.to(y_ptr.dtype.element_ty), mask=inside, cache_modifier=".cs")
        else:
            x = tl.load(x_ptrs, mask=inside, other=float("-inf"), eviction_policy="evict_last").to(tl.float32)
            u = tl.load(u_ptrs, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
            m = tl.max(x)
            e = tl.exp(x - tl.where(m == float("-inf"), 0.0, m))  # a split of -infinity alone weighs nothing
            tl.store(partial + split * 3, m)
            tl.store(partial + split * 3 + 1, tl.sum(e))
            tl.store(partial + split * 3 + 2, tl.sum(e * u))
            tl.debug_barrier()  # what all threads stored is released by the one that counts
            tl.atomic_add(ready_ptr, 1, sem="release")

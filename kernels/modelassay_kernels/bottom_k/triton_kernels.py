"""The k smallest of each row on a GPU: one read of the logits in the common case, exact in every case.

A logit is its *key*, a signed int32 in the order of the result: -0.0 and +0.0 share one, NaN has the last. Two launches:

- `filter_kernel` (`triton_filter`) reads a row once. A limit, the key that a little more than k of the row are expected not
  to be above, comes from a sample of it; one bit of each element says whether it may be among the k. Where rows are
  fewer than the device has room for, each is cut into segments.
- `finish_kernel`, one program per row, gathers what passed by rising ids into a buffer, finds the k-th key among these few by
  histograms of 8 bits, and writes the k by rising ids: so ties go to the smaller. Where the sample misled (fewer than k
  passed, or more than the buffer holds) it does the same over the row itself, which is then read three to five times more.

`torch.sort` on the keys of the k, stable, then gives the order. No atomics in device memory: equal inputs give equal bits.
"""

# N = rows, V = vocabulary, K = kept, C = capacity of a buffer, B = elements of one tile, H = bins

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay_kernels.bottom_k.triton_filter import filter_kernel, gather
from modelassay_kernels.bottom_k.triton_keys import LAST, load_row, numbers
from modelassay_kernels.optional_triton import HAS_TRITON, constexpr, is_interpreted, jit, tl

NUM_PASSES = {torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}
"""Histograms of 8 bits until the key is known: widened to fp32, a bf16 keeps 16 bits and an fp16 19."""

MAX_COLS = 2**31 - 2**16  # so that a tile that begins within them ends within int32
PROGRAMS = 1024  # enough to fill any present card: 132 to 160 multiprocessors of about eight programs
SCRATCH_BYTES = 2**28
"""Bits and buffers of the rows that are done at once: at k = 2000 of 152k some 4,400 rows, five times what a card holds."""

BINS = constexpr(256)


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the work is cut; any values give the same result. Chosen by reasoning, not measured: no GPU has run this yet."""

    block: int = 2048
    """Elements of one tile of a row: 8 per thread, whose bits are one byte."""

    num_warps: int = 8
    num_stages: int = 4
    """Tiles in flight, 4 KB each in bf16: three resident programs hold 36 KB, where an H200 needs 25 to hide its latency."""

    finish_block: int = 1024
    """Elements of one tile of a buffer, of which a row at k = 2000 fills three, and words of bits, of which 152k fill five."""

    finish_warps: int = 4
    """Few, so that many rows are resident: what a row waits for is barriers, not memory."""

    fold_block: int = 1024
    """Columns of one tile of a chunk: 8 per thread."""

    sample: int = 4096
    """Elements the limit comes from: at k = 2000 of 152k, 54 of them are expected among the k, give or take 7."""


DEFAULT = LaunchConfig()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is decided before a launch from the sizes alone."""

    num_segments: int
    capacity: int
    """Entries of one row's buffer: 2 k and some, so that memory is of the order of the result."""

    rank: int
    """The limit is the key of this rank in the sample; 0: no sample, the row is sorted out directly."""

    bits_stride: int
    """Bytes of a row's bits."""

    rows_at_once: int
    """As many as SCRATCH_BYTES hold, but no fewer than fill the device."""

    @staticmethod
    def make(num_rows: int, num_cols: int, k: int, config: LaunchConfig) -> Plan:
        """Aim for 3 deviations over the k expected: about one row in a thousand is then read again.

        >>> Plan.make(8192, 151936, 2000, DEFAULT)
        Plan(num_segments=1, capacity=5024, rank=79, bits_stride=19200, rows_at_once=4512)
        >>> Plan.make(1, 151936, 2000, DEFAULT).num_segments
        18
        """
        expected = k * config.sample / max(num_cols, 1)
        rank = int(expected + 3 * math.sqrt(expected + 1) + 3)
        if num_cols < 4 * config.sample or rank > config.sample // 2:
            return Plan(num_segments=1, capacity=0, rank=0, bits_stride=0, rows_at_once=max(num_rows, 1))
        longest = max(1, num_cols // (4 * config.block))  # four tiles or more, or the sample costs more than it saves
        num_segments = max(1, min(PROGRAMS // max(num_rows, 1), longest))
        capacity = -(-(2 * k + 1024) // 16) * 16
        bits_stride = -(-(num_cols + 7) // config.block) * config.block // 8  # a row may start 7 elements behind a word
        rows_at_once = max(PROGRAMS, SCRATCH_BYTES // (8 * capacity + bits_stride) // 16 * 16)  # starts at 16 bytes
        return Plan(
            num_segments=num_segments, capacity=capacity, rank=rank, bits_stride=bits_stride, rows_at_once=rows_at_once
        )


@jit()
def load_entries(ptr_B: tl.tensor, inside_B: tl.tensor) -> tl.tensor:
    """Return keys and ids."""
    entry_B = tl.load(ptr_B, mask=inside_B, other=0)
    return (entry_B >> 32).to(tl.int32), entry_B.to(tl.int32)


@jit()
def append(entries_ptr: tl.tensor, count: tl.tensor, key_B: tl.tensor, id_B: tl.tensor, keep_B: tl.tensor) -> tl.tensor:
    """Write key << 32 | id of what is kept behind `count` entries, in order; return how many there are then."""
    one_B = keep_B.to(tl.int32)
    o_B = count + tl.cumsum(one_B, 0) - one_B
    tl.store(entries_ptr + o_B, (key_B.to(tl.int64) << 32) | id_B.to(tl.int64), mask=keep_B)
    return count + tl.sum(one_B)


@jit()
def _load_source(row_ptr: tl.tensor, valid_ptr: tl.tensor, entries_ptr: tl.tensor, o_B: tl.tensor, num: tl.tensor,
                 col_stride: tl.tensor, from_row: tl.tensor, HAS_ROW: tl.constexpr, LARGEST: tl.constexpr,
                 HAS_VALID: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return keys, ids and which of them count, from the row itself or from a buffer."""
    inside_B = o_B < num
    if HAS_ROW:
        if from_row:
            key_B, keep_B = load_row(row_ptr, valid_ptr, o_B, inside_B, col_stride, LARGEST, HAS_VALID)
            id_B = o_B
        else:
            key_B, id_B = load_entries(entries_ptr + o_B, inside_B)
            keep_B = inside_B
    else:
        key_B, id_B = load_entries(entries_ptr + o_B, inside_B)
        keep_B = inside_B
    return key_B, id_B, keep_B


@jit()
def kth_key(row_ptr: tl.tensor, valid_ptr: tl.tensor, entries_ptr: tl.tensor, num: tl.tensor, col_stride: tl.tensor,
            k: tl.tensor, from_row: tl.tensor, HAS_ROW: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr,
            LARGEST: tl.constexpr, HAS_VALID: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return the upper 8 * PASSES bits of the k-th key of `num`, and how many of those that share them are among the k."""
    prefix = tl.full([], 0, tl.int32)
    rank = tl.full([], 0, tl.int32) + k
    bin_H = tl.arange(0, BINS)
    for p in tl.static_range(PASSES):
        num_H = tl.zeros([BINS], tl.int32)
        for start in range(0, num, BLOCK):
            o_B = start + tl.arange(0, BLOCK)
            key_B, _, match_B = _load_source(
                row_ptr, valid_ptr, entries_ptr, o_B, num, col_stride, from_row, HAS_ROW, LARGEST, HAS_VALID
            )
            digit_B = (key_B >> (24 - 8 * p)) & 255
            if p == 0:
                digit_B = digit_B ^ 128  # negative keys first
            else:
                match_B = match_B & ((key_B >> (32 - 8 * p)) == prefix)
            num_H += tl.histogram(digit_B, BINS, mask=match_B)
        up_to_H = tl.cumsum(num_H, 0)
        here_H = (up_to_H - num_H < rank) & (up_to_H >= rank)
        digit = tl.sum(tl.where(here_H, bin_H, 0))
        rank -= tl.sum(tl.where(here_H, up_to_H - num_H, 0))
        prefix = digit - 128 if p == 0 else prefix * 256 + digit
    return prefix, rank


@jit()
def kept(key_B: tl.tensor, inside_B: tl.tensor, prefix: tl.tensor, rank: tl.tensor, num_ties: tl.tensor,
          PASSES: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return which of a tile are among the k: all before the k-th, and the first `rank` of those that tie with it."""
    upper_B = key_B >> (32 - 8 * PASSES)
    tie_B = inside_B & (upper_B == prefix)
    one_B = tie_B.to(tl.int32)
    before_B = num_ties + tl.cumsum(one_B, 0) - one_B
    return inside_B & ((upper_B < prefix) | (tie_B & (before_B < rank))), num_ties + tl.sum(one_B)


@jit(do_not_specialize=("k", "capacity", "bits_stride"))
def finish_kernel(x_ptr: tl.tensor, valid_ptr: tl.tensor, bits_ptr: tl.tensor, entries_ptr: tl.tensor, counts_ptr: tl.tensor,
                  out_keys_ptr: tl.tensor, out_values_ptr: tl.tensor, out_ids_ptr: tl.tensor, num_cols: tl.tensor,
                  row_stride: tl.tensor, col_stride: tl.tensor, k: tl.tensor, capacity: tl.tensor, bits_stride: tl.tensor,
                  FILTERED: tl.constexpr, HAS_ROW: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr,
                  LARGEST: tl.constexpr, HAS_VALID: tl.constexpr, NEIGHBOURS: tl.constexpr,
                  ALIGNED: tl.constexpr) -> None:  # fmt: skip
    """Write keys, values and ids of the k of one row, by rising ids, from what passed or, where that does not do, the row.

    Without HAS_ROW, `counts` entries of the row are there already, and no row.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = x_ptr + row * row_stride
    entries_ptr += row * capacity
    num = tl.full([], 0, tl.int32) + num_cols  # not a constant where it is 1
    from_row = tl.full([], 0, tl.int32) != 0
    if not HAS_ROW:
        num = tl.load(counts_ptr + row)
    elif FILTERED:
        count = gather(
            bits_ptr + row * bits_stride, entries_ptr, row_ptr, num_cols, col_stride, capacity, BLOCK, LARGEST,
            NEIGHBOURS, ALIGNED,
        )  # fmt: skip
        from_row = (count < k) | (count > capacity)
        num = tl.where(from_row, num, count)
    else:
        from_row = num >= 0
    prefix, rank = kth_key(
        row_ptr, valid_ptr, entries_ptr, num, col_stride, k, from_row, HAS_ROW, PASSES, BLOCK, LARGEST, HAS_VALID
    )
    num_kept = tl.full([], 0, tl.int32)
    num_ties = tl.full([], 0, tl.int32)
    for start in range(0, num, BLOCK):
        o_B = start + tl.arange(0, BLOCK)
        key_B, id_B, inside_B = _load_source(
            row_ptr, valid_ptr, entries_ptr, o_B, num, col_stride, from_row, HAS_ROW, LARGEST, HAS_VALID
        )
        keep_B, num_ties = kept(key_B, inside_B, prefix, rank, num_ties, PASSES)
        x_B = numbers(key_B, LARGEST, out_values_ptr.dtype.element_ty)
        if HAS_ROW:
            several_B = keep_B & ((key_B == 0) | (key_B == LAST))  # zeros and NaN share a key: the element itself
            exact_B = tl.load(row_ptr + id_B.to(tl.int64) * col_stride, mask=several_B, other=0.0)
            x_B = tl.where(several_B, exact_B, x_B)
        one_B = keep_B.to(tl.int32)
        to_B = row * k + num_kept + tl.cumsum(one_B, 0) - one_B
        tl.store(out_keys_ptr + to_B, key_B, mask=keep_B)
        tl.store(out_values_ptr + to_B, x_B, mask=keep_B)
        tl.store(out_ids_ptr + to_B, id_B.to(tl.int64), mask=keep_B)
        num_kept += tl.sum(one_B)


def check_device(tensor: Tensor) -> None:
    """Check that kernels can take ``tensor``.

    Raises:
        RuntimeError: Triton is not installed.
        ValueError: the tensor is not on a CUDA device, nor are kernels interpreted.
    """
    if not HAS_TRITON:
        raise RuntimeError("bottom_k_triton: Triton is not installed; install the `triton` package or call bottom_k")
    if not tensor.is_cuda and not is_interpreted(finish_kernel):
        raise ValueError(f"bottom_k_triton: logits are on {tensor.device}; move them to a CUDA device or call bottom_k")


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launch on this device, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def by_key(keys_NK: Tensor, values_NK: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Order by key; entries come by rising ids and the sort is stable, so ties stay so."""
    if values_NK.dtype == torch.bfloat16:
        keys_NK = (keys_NK >> 16).to(torch.int16)  # all there is of a bf16's key, and half the sort
    order_NK = keys_NK.sort(dim=1, stable=True).indices
    return values_NK.gather(1, order_NK), ids_NK.gather(1, order_NK)


def bottom_k_triton(
    logits_NV: Tensor, k: int, *, valid: Tensor | None = None, largest: bool = False, sort: bool = True,
    config: LaunchConfig = DEFAULT,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do what `bottom_k` says for bf16, fp16 or fp32 logits on a CUDA device; k > 0 and rows must be there.

    Reads each logit once, and a row whose sample misled 3 (bf16), 4 (fp16) or 5 (fp32) times more. Scratch memory: SCRATCH_BYTES,
    or one bit an element and 8 bytes times 2 k + 1024 for each of 1024 rows where that is more.

    Raises:
        RuntimeError: where Triton is not installed.
        ValueError: logits that are not on a CUDA device, or more than MAX_COLS columns.
    """
    check_device(logits_NV)
    (num_rows, num_cols), device = logits_NV.shape, logits_NV.device
    if num_cols > MAX_COLS:
        raise ValueError(f"bottom_k_triton: {num_cols} columns are more than {MAX_COLS}; split the vocabulary")
    logits_NV = logits_NV.detach()
    plan = Plan.make(num_rows, num_cols, k, config)
    keys_NK = torch.empty(num_rows, k, dtype=torch.int32, device=device)
    values_NK = torch.empty(num_rows, k, dtype=logits_NV.dtype, device=device)
    ids_NK = torch.empty(num_rows, k, dtype=torch.int64, device=device)
    mask = logits_NV if valid is None else valid.contiguous().view(torch.uint8)
    strides = logits_NV.stride()
    common = {
        "LARGEST": largest, "HAS_VALID": valid is not None, "NEIGHBOURS": strides[1] == 1,
        "ALIGNED": strides[1] == 1 and (logits_NV.data_ptr() | strides[0] * logits_NV.itemsize) % 16 == 0,
    }  # fmt: skip
    held = min(num_rows, plan.rows_at_once) if plan.rank else 0
    bits = torch.empty(held, plan.bits_stride, dtype=torch.uint8, device=device)
    entries = torch.empty(held, plan.capacity, dtype=torch.int64, device=device)
    with on_device(device):
        for start in range(0, num_rows, plan.rows_at_once):
            rows = slice(start, start + plan.rows_at_once)
            logits_RV, outputs = logits_NV[rows], (keys_NK[rows], values_NK[rows], ids_NK[rows])
            if plan.rank:
                filter_kernel[(logits_RV.shape[0], plan.num_segments)](
                    logits_RV, mask, bits, num_cols, *strides, plan.rank, plan.bits_stride, SAMPLE=config.sample,
                    BLOCK=config.block, STAGES=config.num_stages, num_warps=config.num_warps, **common,
                )  # fmt: skip
            finish_kernel[(logits_RV.shape[0],)](
                logits_RV, mask, bits, entries, entries, *outputs, num_cols, *strides, k, plan.capacity, plan.bits_stride,
                FILTERED=plan.rank > 0, HAS_ROW=True, PASSES=NUM_PASSES[logits_NV.dtype], BLOCK=config.finish_block,
                num_warps=config.finish_warps, **common,
            )  # fmt: skip
    return by_key(keys_NK, values_NK, ids_NK) if sort else (values_NK, ids_NK)

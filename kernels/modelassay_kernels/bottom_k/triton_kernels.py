"""The k smallest of each row on a GPU: one read of the logits in the common case, exact in every case.

A logit is its *key*, a signed int32 in the order of the result: -0.0 and +0.0 share one, NaN has the last. Two launches:

- `filter_kernel` reads a row once. A limit, the key that a little more than k of the row are expected not to be above, comes
  from a sample of it; what is not above the limit goes, by rising ids, to a buffer. Where rows are fewer than the
  device has room for, each is cut into segments with a buffer each.
- `finish_kernel`, one program per row, finds the k-th key among the few in the buffers by histograms of 8 bits, and writes
  the k by rising ids: so ties go to the smaller. Where the sample misled (fewer than k passed, or more than the buffer
  holds) it does the same over the row itself, which is then read three to five times more.

`torch.sort` on the keys of the k, stable, then gives the order. No atomics in device memory: equal inputs give equal bits.
"""

# N = rows, V = vocabulary, K = kept, S = segments of one row, C = capacity of a buffer, B = elements of one tile, H = bins

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay_kernels.optional_triton import HAS_TRITON, constexpr, is_interpreted, jit, tl

NUM_PASSES = {torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}
"""Histograms of 8 bits until the key is known: widened to fp32, a bf16 keeps 16 bits and an fp16 19."""

MAX_COLS = 2**31 - 2**16  # so that a tile that begins within them ends within int32
PROGRAMS = 1024  # enough to fill any present card: 132 to 160 multiprocessors of about eight programs
RUN = constexpr(32)  # neighbours of a sample: one or two 64-byte sectors
LAST = constexpr(0x7FFFFFFF)  # NaN
LAST_NUMBER = constexpr(0x7F800000)  # the infinity that comes last
BEFORE_NUMBERS = constexpr(-2139095042)  # one below the infinity that comes first
HALVINGS = constexpr(20)  # of 2^32 keys: leaves the limit within 2^-11 of its number
BINS = constexpr(256)


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the work is cut; any values give the same result. Chosen by reasoning, not measured: no GPU has run this yet."""

    block: int = 2048
    """Elements of one tile of a row: 8 per thread. With 16 the filter needs 150 registers and half as many warps are resident."""

    num_warps: int = 8
    num_stages: int = 4
    """Tiles in flight, 4 KB each in bf16: three resident programs hold 36 KB, where an H200 needs 25 to hide its latency."""

    finish_block: int = 1024
    """Elements of one tile of a buffer, of which a row at k = 2000 fills three."""

    finish_warps: int = 4
    """Few, so that many rows are resident: what a row waits for is barriers, not memory."""

    sample: int = 4096
    """Elements the limit comes from: at k = 2000 of 152k, 54 of them are expected among the k, give or take 7."""


DEFAULT = LaunchConfig()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is decided before a launch from the sizes alone."""

    num_segments: int
    capacity: int
    """Entries of one segment's buffer: 2 k and some, so that memory is of the order of the result."""

    rank: int
    """The limit is the key of this rank in the sample; 0: no sample, the row is sorted out directly."""

    @staticmethod
    def make(num_rows: int, num_cols: int, k: int, config: LaunchConfig) -> Plan:
        """Aim for 3 deviations over the k expected: about one row in a thousand is then read again.

        >>> Plan.make(8192, 151936, 2000, DEFAULT)
        Plan(num_segments=1, capacity=5024, rank=79)
        >>> Plan.make(1, 151936, 2000, DEFAULT).num_segments
        18
        """
        expected = k * config.sample / max(num_cols, 1)
        rank = int(expected + 3 * math.sqrt(expected + 1) + 3)
        if num_cols < 4 * config.sample or rank > config.sample // 2:
            return Plan(num_segments=1, capacity=0, rank=0)
        longest = max(
            1, num_cols // (4 * config.block)
        )  # four tiles or more each, or the sample costs more than it saves
        num_segments = max(1, min(PROGRAMS // max(num_rows, 1), longest))
        return Plan(num_segments=num_segments, capacity=-(-(2 * k + 1024) // 16) * 16, rank=rank)


@jit()
def _keys(x_B: tl.tensor, LARGEST: tl.constexpr) -> tl.tensor:
    """int32 keys of numbers of any type."""
    if x_B.dtype == tl.bfloat16:
        bits_B = x_B.to(tl.int16, bitcast=True).to(tl.int32) << 16  # exact also where a cast would flush subnormals
    else:
        bits_B = x_B.to(tl.float32).to(tl.int32, bitcast=True)
    nan_B = (bits_B & 0x7FFFFFFF) > LAST_NUMBER
    if LARGEST:
        bits_B = bits_B ^ -2147483648
    key_B = bits_B ^ ((bits_B >> 31) & 0x7FFFFFFF)
    key_B = tl.where(key_B == -1, 0, key_B)  # -0.0 would come just before +0.0
    return tl.where(nan_B, LAST, key_B)


@jit()
def _numbers(key_B: tl.tensor, LARGEST: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Return numbers that have these keys."""
    bits_B = key_B ^ ((key_B >> 31) & 0x7FFFFFFF)
    if LARGEST:
        bits_B = tl.where((key_B == 0) | (key_B == LAST), bits_B, bits_B ^ -2147483648)
    if dtype == tl.bfloat16:
        x_B = (bits_B >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        x_B = bits_B.to(tl.float32, bitcast=True).to(dtype)
    return x_B


@jit()
def load_row(row_ptr: tl.tensor, valid_ptr: tl.tensor, o_B: tl.tensor, inside_B: tl.tensor, col_stride: tl.tensor,
              LARGEST: tl.constexpr, HAS_VALID: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return the keys of columns o, and which of them may be chosen."""
    x_B = tl.load(row_ptr + o_B.to(tl.int64) * col_stride, mask=inside_B, other=0.0)
    if HAS_VALID:
        inside_B = inside_B & (tl.load(valid_ptr + o_B, mask=inside_B, other=0) != 0)
    return _keys(x_B, LARGEST), inside_B


@jit()
def append(entries_ptr: tl.tensor, count: tl.tensor, key_B: tl.tensor, id_B: tl.tensor, keep_B: tl.tensor,
            capacity: tl.tensor) -> tl.tensor:  # fmt: skip
    """Write key << 32 | id of what is kept behind `count` entries, in order, where there is room; return how many were kept."""
    one_B = keep_B.to(tl.int32)
    o_B = count + tl.cumsum(one_B, 0) - one_B
    entry_B = (key_B.to(tl.int64) << 32) | id_B.to(tl.int64)
    tl.store(entries_ptr + o_B, entry_B, mask=keep_B & (o_B < capacity))
    return count + tl.sum(one_B)


@jit()
def _sampled_limit(row_ptr: tl.tensor, valid_ptr: tl.tensor, num_cols: tl.tensor, col_stride: tl.tensor, rank: tl.tensor,
                   SAMPLE: tl.constexpr, LARGEST: tl.constexpr, HAS_VALID: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return a key that `rank` or a few more of the sample are not above; NaN's where there are fewer numbers."""
    i_B = tl.arange(0, SAMPLE)
    o_B = i_B // RUN * (num_cols // (SAMPLE // RUN)) + i_B % RUN
    key_B, inside_B = load_row(row_ptr, valid_ptr, o_B, i_B >= 0, col_stride, LARGEST, HAS_VALID)
    low = tl.full([], BEFORE_NUMBERS, tl.int32)
    high = tl.full([], LAST_NUMBER, tl.int32)
    for _ in range(HALVINGS):
        middle = (low & high) + ((low ^ high) >> 1)  # their sum may overflow
        enough = tl.sum((inside_B & (key_B <= middle)).to(tl.int32)) >= rank
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle)
    numbers = tl.sum((inside_B & (key_B <= LAST_NUMBER)).to(tl.int32))
    return tl.where(numbers >= rank, high, LAST)


@jit(do_not_specialize=("rank", "capacity"))
def filter_kernel(x_ptr: tl.tensor, valid_ptr: tl.tensor, entries_ptr: tl.tensor, counts_ptr: tl.tensor,
                  num_cols: tl.tensor, row_stride: tl.tensor, col_stride: tl.tensor, rank: tl.tensor,
                  capacity: tl.tensor, SAMPLE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
                  LARGEST: tl.constexpr, HAS_VALID: tl.constexpr, ALIGNED: tl.constexpr) -> None:  # fmt: skip
    """Put what passes the row's limit into its segments' buffers; counts[row, segment] may exceed the capacity.

    ALIGNED: columns are neighbours and every row starts at a multiple of 16 bytes.
    """
    row, segment, num_segments = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    row_ptr = x_ptr + row * row_stride
    limit = _sampled_limit(row_ptr, valid_ptr, num_cols, col_stride, rank, SAMPLE, LARGEST, HAS_VALID)
    buffer = row * num_segments + segment
    entries_ptr += buffer * capacity
    num_tiles = tl.cdiv(num_cols, BLOCK)
    first = (num_tiles * segment.to(tl.int64) // num_segments).to(tl.int32)
    end = (num_tiles * (segment.to(tl.int64) + 1) // num_segments).to(tl.int32)
    count = tl.full([], 0, tl.int32)
    whole = tl.minimum(end, num_cols // BLOCK)
    for tile in tl.range(first, whole, num_stages=STAGES):
        o_B = tile * BLOCK + tl.arange(0, BLOCK)
        if ALIGNED:
            x_B = tl.load(tl.multiple_of(row_ptr + tile * BLOCK, 16) + tl.arange(0, BLOCK))
        else:
            x_B = tl.load(row_ptr + o_B.to(tl.int64) * col_stride)
        key_B = _keys(x_B, LARGEST)
        keep_B = key_B <= limit
        if HAS_VALID:
            keep_B = keep_B & (tl.load(valid_ptr + o_B) != 0)
        count = append(entries_ptr, count, key_B, o_B, keep_B, capacity)
    for tile in range(whole, end):  # the last one, ragged
        o_B = tile * BLOCK + tl.arange(0, BLOCK)
        key_B, keep_B = load_row(row_ptr, valid_ptr, o_B, o_B < num_cols, col_stride, LARGEST, HAS_VALID)
        count = append(entries_ptr, count, key_B, o_B, keep_B & (key_B <= limit), capacity)
    tl.store(counts_ptr + buffer, count)


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
def load_entries(ptr_B: tl.tensor, inside_B: tl.tensor) -> tl.tensor:
    """Return keys and ids."""
    entry_B = tl.load(ptr_B, mask=inside_B, other=0)
    return (entry_B >> 32).to(tl.int32), entry_B.to(tl.int32)


@jit()
def kth_key(row_ptr: tl.tensor, valid_ptr: tl.tensor, entries_ptr: tl.tensor, counts_ptr: tl.tensor, num_cols: tl.tensor,
         col_stride: tl.tensor, k: tl.tensor, capacity: tl.tensor, from_row: tl.tensor, num_sources: tl.tensor,
         HAS_ROW: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
         HAS_VALID: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Return the upper 8 * PASSES bits of the k-th key, and how many of those that share them are among the k."""
    prefix = tl.full([], 0, tl.int32)
    rank = tl.full([], 0, tl.int32) + k
    bin_H = tl.arange(0, BINS)
    for p in tl.static_range(PASSES):
        num_H = tl.zeros([BINS], tl.int32)
        for source in range(num_sources):
            num = tl.full([], 0, tl.int32) + num_cols  # not a constant where it is 1
            if not from_row:
                num = tl.load(counts_ptr + source)
            for start in range(0, num, BLOCK):
                o_B = start + tl.arange(0, BLOCK)
                source_ptr = (
                    entries_ptr + (tl.full([], 0, tl.int64) + source) * capacity
                )  # a plain int in the interpreter
                key_B, _, match_B = _load_source(
                    row_ptr, valid_ptr, source_ptr, o_B, num, col_stride, from_row, HAS_ROW, LARGEST, HAS_VALID
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


@jit(do_not_specialize=("k", "capacity"))
def finish_kernel(x_ptr: tl.tensor, valid_ptr: tl.tensor, entries_ptr: tl.tensor, counts_ptr: tl.tensor,
                  out_keys_ptr: tl.tensor, out_values_ptr: tl.tensor, out_ids_ptr: tl.tensor, num_cols: tl.tensor,
                  row_stride: tl.tensor, col_stride: tl.tensor, k: tl.tensor, capacity: tl.tensor, num_segments: tl.tensor,
                  FILTERED: tl.constexpr, HAS_ROW: tl.constexpr, PASSES: tl.constexpr, BLOCK: tl.constexpr,
                  LARGEST: tl.constexpr, HAS_VALID: tl.constexpr) -> None:  # fmt: skip
    """Write keys, values and ids of the k of one row, by rising ids, from its buffers or, where these do not do, the row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = x_ptr + row * row_stride
    entries_ptr += row * num_segments * capacity
    counts_ptr += row * num_segments
    total = tl.full([], 0, tl.int32)
    longest = tl.full([], 0, tl.int32)
    if FILTERED:
        for segment in range(num_segments):
            count = tl.load(counts_ptr + segment)
            total += count
            longest = tl.maximum(longest, count)
    from_row = (total < k) | (longest > capacity)
    num_sources = tl.where(from_row, 1, num_segments)
    prefix, rank = kth_key(
        row_ptr, valid_ptr, entries_ptr, counts_ptr, num_cols, col_stride, k, capacity, from_row, num_sources,
        HAS_ROW, PASSES, BLOCK, LARGEST, HAS_VALID,
    )  # fmt: skip
    num_kept = tl.full([], 0, tl.int32)
    num_ties = tl.full([], 0, tl.int32)
    for source in range(num_sources):
        num = tl.full([], 0, tl.int32) + num_cols  # not a constant where it is 1
        if not from_row:
            num = tl.load(counts_ptr + source)
        for start in range(0, num, BLOCK):
            o_B = start + tl.arange(0, BLOCK)
            source_ptr = entries_ptr + (tl.full([], 0, tl.int64) + source) * capacity
            key_B, id_B, inside_B = _load_source(
                row_ptr, valid_ptr, source_ptr, o_B, num, col_stride, from_row, HAS_ROW, LARGEST, HAS_VALID
            )
            keep_B, num_ties = kept(key_B, inside_B, prefix, rank, num_ties, PASSES)
            x_B = _numbers(key_B, LARGEST, out_values_ptr.dtype.element_ty)
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
    if not tensor.is_cuda and not is_interpreted(filter_kernel):
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

    Reads each logit once, and a row whose sample misled 3 (bf16), 4 (fp16) or 5 (fp32) times more. Scratch memory: 8 bytes
    times 2 k + 1024 for each row, or for each of 1024 programs where rows are fewer.

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
    num_buffers = num_rows * plan.num_segments if plan.rank else 0
    entries = torch.empty(num_buffers, plan.capacity, dtype=torch.int64, device=device)
    counts = torch.empty(num_buffers, dtype=torch.int32, device=device)
    out_keys_NK = torch.empty(num_rows, k, dtype=torch.int32, device=device)
    values_NK = torch.empty(num_rows, k, dtype=logits_NV.dtype, device=device)
    ids_NK = torch.empty(num_rows, k, dtype=torch.int64, device=device)
    mask = logits_NV if valid is None else valid.contiguous().view(torch.uint8)
    strides = logits_NV.stride()
    aligned = strides[1] == 1 and (logits_NV.data_ptr() | strides[0] * logits_NV.itemsize) % 16 == 0
    common = {"LARGEST": largest, "HAS_VALID": valid is not None}
    with on_device(device):
        if plan.rank:
            filter_kernel[(num_rows, plan.num_segments)](
                logits_NV, mask, entries, counts, num_cols, *strides, plan.rank, plan.capacity,
                SAMPLE=config.sample, BLOCK=config.block, STAGES=config.num_stages, ALIGNED=aligned,
                num_warps=config.num_warps, **common,
            )  # fmt: skip
        finish_kernel[(num_rows,)](
            logits_NV, mask, entries, counts, out_keys_NK, values_NK, ids_NK, num_cols, *strides, k, plan.capacity,
            plan.num_segments, FILTERED=plan.rank > 0, HAS_ROW=True, PASSES=NUM_PASSES[logits_NV.dtype],
            BLOCK=config.finish_block, num_warps=config.finish_warps, **common,
        )  # fmt: skip
    return by_key(out_keys_NK, values_NK, ids_NK) if sort else (values_NK, ids_NK)

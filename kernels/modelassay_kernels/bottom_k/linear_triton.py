"""The k smallest of each row on a GPU, of columns that come in chunks: entries and keys are those of `triton_kernels`."""

# R = rows, C = columns of one chunk, K = kept of each row, B = elements of one tile

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.bottom_k.triton_filter import append_ids, fill, pack
from modelassay_kernels.bottom_k.triton_kernels import (
    DEFAULT,
    LaunchConfig,
    append,
    by_key,
    check_device,
    finish_kernel,
    kept,
    kth_key,
    load_entries,
    on_device,
)
from modelassay_kernels.bottom_k.triton_keys import LAST, interval, passes
from modelassay_kernels.optional_triton import jit, tl


@jit(do_not_specialize=("first_id", "k", "capacity"))
def fold_kernel(x_ptr: tl.tensor, valid_ptr: tl.tensor, entries_ptr: tl.tensor, counts_ptr: tl.tensor,
                limits_ptr: tl.tensor, num_cols: tl.tensor, row_stride: tl.tensor, first_id: tl.tensor, k: tl.tensor,
                capacity: tl.tensor, max_cols: tl.tensor, BLOCK: tl.constexpr, FINISH_BLOCK: tl.constexpr,
                LARGEST: tl.constexpr, HAS_VALID: tl.constexpr) -> None:  # fmt: skip
    """Take the columns of one row of a chunk into its buffer; leave room for a chunk more by keeping only the k."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = x_ptr + row * row_stride
    entries_ptr += row * capacity
    first_bits, length = interval(tl.load(limits_ptr + row), LARGEST)
    before = tl.load(counts_ptr + row)
    count = before
    g_G = tl.arange(0, BLOCK // 8)
    for start in range(0, num_cols, BLOCK):
        o_B = start + tl.arange(0, BLOCK)
        inside_B = o_B < num_cols
        keep_B = passes(tl.load(row_ptr + o_B, mask=inside_B, other=0.0), first_bits, length) & inside_B
        if HAS_VALID:
            keep_B = keep_B & (tl.load(valid_ptr + o_B, mask=inside_B, other=0) != 0)
        count = append_ids(entries_ptr, count, pack(keep_B).to(tl.uint32), first_id + start + g_G * 8, capacity)
    tl.debug_barrier()  # what other threads appended is there
    fill(entries_ptr, row_ptr, before, count, first_id, 1, FINISH_BLOCK, LARGEST)
    tl.store(counts_ptr + row, count)
    if count > capacity - max_cols:
        tl.debug_barrier()
        prefix, rank = kth_key(
            row_ptr, valid_ptr, entries_ptr, count, 1, k, False, False, 4, FINISH_BLOCK, LARGEST, HAS_VALID
        )
        num_kept = tl.full([], 0, tl.int32)
        num_ties = tl.full([], 0, tl.int32)
        for start in range(0, count, FINISH_BLOCK):
            o_B = start + tl.arange(0, FINISH_BLOCK)
            inside_B = o_B < count
            key_B, id_B = load_entries(entries_ptr + o_B, inside_B)
            keep_B, num_ties = kept(key_B, inside_B, prefix, rank, num_ties, 4)
            tl.debug_barrier()  # all of the tile has been read before any of it is overwritten
            num_kept = append(entries_ptr, num_kept, key_B, id_B, keep_B)
        tl.store(counts_ptr + row, num_kept)
        tl.store(limits_ptr + row, prefix - 1)  # a tie with the k-th that comes later has a larger id


class TritonRunning:
    """The k smallest of each row of fp32 columns that come in chunks of at most ``max_cols``, by rising ids.

    Holds 8 bytes times 2 k + 2 max_cols for each row. `fold` is one launch: after about every second chunk at first, and
    seldom later, rows find their k-th key again.
    """

    def __init__(
        self, num_rows: int, k: int, max_cols: int, largest: bool, device: torch.device, config: LaunchConfig = DEFAULT
    ) -> None:
        self._k, self._max_cols, self._largest, self._config = k, max_cols, largest, config
        self._capacity = 2 * k + 2 * max_cols
        self._entries = torch.empty(num_rows, self._capacity, dtype=torch.int64, device=device)
        self._counts = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._limits = torch.full((num_rows,), int(LAST), dtype=torch.int32, device=device)

    def fold(self, logits_RC: Tensor, first_id: int, valid_C: Tensor | None) -> None:
        """Take in the next columns."""
        check_device(logits_RC)
        mask = logits_RC if valid_C is None else valid_C.contiguous().view(torch.uint8)
        with on_device(logits_RC.device):
            fold_kernel[(logits_RC.shape[0],)](
                logits_RC, mask, self._entries, self._counts, self._limits, logits_RC.shape[1],
                logits_RC.stride(0), first_id, self._k, self._capacity, self._max_cols, BLOCK=self._config.fold_block,
                FINISH_BLOCK=self._config.finish_block, LARGEST=self._largest, HAS_VALID=valid_C is not None, num_warps=self._config.finish_warps,
            )  # fmt: skip

    def finish(self, values_RK: Tensor, ids_RK: Tensor) -> None:
        """Write what is kept, sorted."""
        keys_RK = torch.empty_like(values_RK, dtype=torch.int32)
        with on_device(values_RK.device):
            finish_kernel[(values_RK.shape[0],)](
                values_RK, values_RK, values_RK, self._entries, self._counts, keys_RK, values_RK, ids_RK, 0, 0, 1, self._k,
                self._capacity, 0, FILTERED=True, HAS_ROW=False, PASSES=4, BLOCK=self._config.finish_block,
                LARGEST=self._largest, HAS_VALID=False, NEIGHBOURS=True, ALIGNED=True, num_warps=self._config.finish_warps,
            )  # fmt: skip
        values, ids = by_key(keys_RK, values_RK, ids_RK)
        values_RK.copy_(values)
        ids_RK.copy_(ids)

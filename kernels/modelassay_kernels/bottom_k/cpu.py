"""bottom_k by the compiled extension: of whole rows, and of rows that come in chunks of columns."""

# N = rows, V = size of the vocabulary, K = kept of each row, R = rows and C = columns of one chunk

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.dtypes import CODES
from modelassay_kernels.native import require_native
from modelassay_kernels.outputs import fresh


def bottom_k_native(
    logits_NV: Tensor,
    k: int,
    *,
    valid: Tensor | None = None,
    largest: bool = False,
    sort: bool = True,
    instruction_set: str = "",
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose from bfloat16, float16 or float32 rows that were checked, with `torch.get_num_threads()` threads."""
    require_native()
    from modelassay_kernels import _native

    logits_NV = logits_NV.detach()
    shape = (logits_NV.shape[0], k)
    values_NK, ids_NK = (fresh(shape, logits_NV.dtype), fresh(shape, torch.int64)) if out is None else out
    _native.bottom_k(
        logits_NV, CODES[logits_NV.dtype], values_NK, ids_NK, mask_bytes(valid), largest, sort,
        torch.get_num_threads(), instruction_set,
    )  # fmt: skip
    return values_NK, ids_NK


def mask_bytes(valid: Tensor | None) -> Tensor | None:
    """Return a mask as the bytes the compiled extension takes."""
    return None if valid is None else valid.contiguous().view(torch.uint8)


class NativeRunning:
    """Entries, counts and limits of `csrc/bottom_k.hpp`."""

    def __init__(self, num_rows: int, k: int, largest: bool, instruction_set: str = "") -> None:
        from modelassay_kernels import _native

        self._native = _native
        self._k, self._largest, self._instruction_set = k, largest, instruction_set
        self._entries = torch.empty(num_rows, _native.bottom_k_capacity(k), dtype=torch.int64)
        self._counts = torch.zeros(num_rows, dtype=torch.int64)
        self._limits = torch.full((num_rows,), 0xFFFFFFFF)

    def fold(self, logits_RC: Tensor, first_id: int, valid_C: Tensor | None) -> None:
        """Take in the next columns."""
        self._native.bottom_k_fold(
            logits_RC, "F32", first_id, self._k, self._entries, self._counts, self._limits, mask_bytes(valid_C),
            self._largest, torch.get_num_threads(), self._instruction_set,
        )  # fmt: skip

    def finish(self, values_RK: Tensor, ids_RK: Tensor) -> None:
        """Write what is kept, sorted."""
        self._native.bottom_k_finish(
            self._entries, self._counts, self._limits, values_RK, ids_RK, self._largest, True, torch.get_num_threads()
        )

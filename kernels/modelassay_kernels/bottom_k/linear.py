"""The k smallest logits of each row from hidden states and the language model's head: the [N, V] logits never exist.

logits = softcap * tanh((hidden weight^T + bias) / softcap), in fp32 (float64 from float64 inputs) whatever the inputs'
type, then `bottom_k`. They are made chunk by chunk, small enough for a cache, and only what is not above the largest of the
k smallest so far is kept. (A running limit cannot skip products: at k = 2000 of 152k every tile holds a candidate.)
"""

# N = rows, D = hidden size, V = size of the vocabulary, K = kept of each row, R = rows and C = columns of one chunk

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from modelassay_kernels.bottom_k.cpu import NativeRunning
from modelassay_kernels.bottom_k.reference import bottom_k_reference
from modelassay_kernels.bottom_k.request import check_outs, check_request
from modelassay_kernels.dtypes import FLOATS
from modelassay_kernels.native import native_available
from modelassay_kernels.products import full_fp32
from modelassay_kernels.softcap import check_softcap

CPU_CHUNK = (512, 2048)  # rows and columns: 4 MiB of logits, within the caches two cores share
GPU_CHUNK = (4096, 2048)  # 32 MiB, within the 50 MiB L2 cache of an H100 or H200


def gpu_chunk(num_rows: int) -> tuple[int, int]:
    """Return rows and columns of a chunk: of few rows more columns, so that its product fills a GPU and launches stay few.

    >>> gpu_chunk(8192), gpu_chunk(1024), gpu_chunk(3)
    ((4096, 2048), (1024, 8192), (3, 2795520))
    """
    rows = min(max(num_rows, 1), GPU_CHUNK[0])
    return rows, GPU_CHUNK[0] * GPU_CHUNK[1] // rows // GPU_CHUNK[1] * GPU_CHUNK[1]


def _logits(hidden_RD: Tensor, weight_CD: Tensor, bias_C: Tensor | None, softcap: float | None) -> Tensor:
    """Logits of one chunk in fp32, or float64 from float64."""
    if hidden_RD.dtype == torch.float64:
        logits_RC = hidden_RD @ weight_CD.double().t()
    elif hidden_RD.is_cuda and hidden_RD.dtype == weight_CD.dtype and hidden_RD.dtype != torch.float32:
        logits_RC = torch.mm(hidden_RD, weight_CD.t(), out_dtype=torch.float32)  # a CPU has no such product
    else:
        logits_RC = hidden_RD.float() @ weight_CD.float().t()
    if bias_C is not None:
        logits_RC += bias_C
    if softcap is not None:
        logits_RC.div_(softcap).tanh_().mul_(softcap)
    return logits_RC


class Running(Protocol):
    """The k smallest of each row of what has been seen, of columns that come by rising ids."""

    def fold(self, logits_RC: Tensor, first_id: int, valid_C: Tensor | None) -> None:
        """Take in the next columns."""

    def finish(self, values_RK: Tensor, ids_RK: Tensor) -> None:
        """Write what is kept, sorted."""


class _PlainRunning:
    """The same in PyTorch, for float64, other devices, and CPUs without the compiled extension."""

    def __init__(self, k: int, largest: bool) -> None:
        self._k, self._largest = k, largest
        self._values: Tensor | None = None
        self._ids: Tensor | None = None

    def fold(self, logits_RC: Tensor, first_id: int, valid_C: Tensor | None) -> None:
        """Take in the next columns."""
        num_valid = logits_RC.shape[1] if valid_C is None else int(valid_C.sum())
        values, ids = bottom_k_reference(logits_RC, min(self._k, num_valid), valid=valid_C, largest=self._largest)
        ids = ids + first_id
        if self._values is not None and self._ids is not None:
            values, ids = torch.cat([self._values, values], 1), torch.cat([self._ids, ids], 1)
            values, order = bottom_k_reference(values, min(self._k, values.shape[1]), largest=self._largest)
            ids = ids.gather(1, order)  # earlier columns come first, so ties stay by the smaller id
        self._values, self._ids = values, ids

    def finish(self, values_RK: Tensor, ids_RK: Tensor) -> None:
        """Write what is kept, sorted."""
        if self._values is not None and self._ids is not None:
            values_RK.copy_(self._values)
            ids_RK.copy_(self._ids)


def _make_running(hidden_RD: Tensor, k: int, largest: bool, num_cols: int) -> Running:
    if hidden_RD.dtype != torch.float64:
        if hidden_RD.is_cuda:
            from modelassay_kernels.bottom_k.linear_triton import TritonRunning

            return TritonRunning(hidden_RD.shape[0], k, num_cols, largest, hidden_RD.device)
        if hidden_RD.device.type == "cpu" and native_available():
            return NativeRunning(hidden_RD.shape[0], k, largest)
    return _PlainRunning(k, largest)


def _spans(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _check(
    hidden_ND: Tensor, weight_VD: Tensor, k: int, valid: Tensor | None, bias: Tensor | None, softcap: float | None
) -> None:
    if hidden_ND.ndim != 2 or weight_VD.ndim != 2 or hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"linear_bottom_k: expected hidden [rows, D] and weight [vocabulary, D], got {[*hidden_ND.shape]} and "
            f"{[*weight_VD.shape]}; flatten the leading dimensions of the hidden states"
        )
    for what, tensor in (("hidden", hidden_ND), ("weight", weight_VD)):
        if tensor.dtype not in FLOATS:
            raise TypeError(f"linear_bottom_k: {what} has dtype {tensor.dtype}; expected one of {[*FLOATS]}")
    if weight_VD.device != hidden_ND.device:
        raise ValueError(f"linear_bottom_k: weight is on {weight_VD.device}, hidden on {hidden_ND.device}; move one")
    if bias is not None and (tuple(bias.shape) != weight_VD.shape[:1] or bias.device != hidden_ND.device):
        raise ValueError(
            f"linear_bottom_k: bias must be [{weight_VD.shape[0]}] on {hidden_ND.device}, got {[*bias.shape]} on {bias.device}"
        )
    check_softcap("linear_bottom_k", softcap)
    check_request("linear_bottom_k", weight_VD.shape[0], hidden_ND.device, k, valid)


def linear_bottom_k(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    k: int,
    *,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    largest: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k smallest logits of each row and their ids, without the logits: values fp32 [N, K], ids int64 [N, K], sorted.

    The logits are softcap * tanh((hidden weight^T + bias) / softcap), summed and kept in fp32 (float64 where the hidden
    states are), not rounded to a 16-bit type as a model's own head may; the order is that of `bottom_k`. A sum's
    last bits depend on the matrix product the machine chooses. The sign of a zero is not kept.

    Costs `linear_bottom_k_work`, the weight being read once per 512 (CPU) or 4096 (GPU) rows. Memory beside the result: one
    chunk of 4 or 32 MiB, and for each of its rows 16 bytes per kept element and, on a GPU, per column of the chunk (128 MiB in all).
    On a CPU, 16-bit inputs are widened chunk by chunk.

    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> linear_bottom_k(torch.tensor([[2.0, 1.0]]), weight, 2)
    (tensor([[-2.,  1.]]), tensor([[2, 1]]))

    Args:
        hidden_ND: bfloat16, float16, float32 or float64.
        weight_VD: of the head, one row per token.
        k: how many of each row, 0 to the number of valid ids.
        valid: bool [V], False for ids that are never chosen; None: all may be.
        bias: [V], added to the product; None: none.
        softcap: the bound that Gemma-2 puts on logits; None: none.
        largest: whether to give the k largest instead.
        out: contiguous values and ids to write to instead of fresh memory.

    Raises:
        ValueError: shapes or devices that do not fit, a softcap that is not positive, a k that cannot be had, or an ``out``
            that cannot take the result.
        TypeError: another element type.
    """
    if out is None and torch.compiler.is_compiling():  # see modelassay_kernels.compiled
        values, ids = torch.ops.modelassay.linear_bottom_k(hidden_ND, weight_VD, k, valid, bias, softcap, largest)
        return values, ids
    _check(hidden_ND, weight_VD, k, valid, bias, softcap)
    hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    (num_rows, _), num_cols = hidden_ND.shape, weight_VD.shape[0]
    dtype = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
    if out is not None:
        check_outs("linear_bottom_k", out, (num_rows, k), dtype, (hidden_ND, weight_VD))
        values_NK, ids_NK = out
    else:
        values_NK = torch.empty(num_rows, k, dtype=dtype, device=hidden_ND.device)
        ids_NK = torch.empty(num_rows, k, dtype=torch.int64, device=hidden_ND.device)
    max_rows, max_cols = gpu_chunk(num_rows) if hidden_ND.is_cuda else CPU_CHUNK
    for rows in _spans(num_rows if k > 0 else 0, max_rows):
        hidden_RD = hidden_ND[rows]
        running = _make_running(hidden_RD, k, largest, min(max_cols, num_cols))
        for cols in _spans(num_cols, max_cols):
            bias_C = None if bias is None else bias.detach()[cols]
            with full_fp32():
                logits_RC = _logits(hidden_RD, weight_VD[cols], bias_C, softcap)
            running.fold(logits_RC, cols.start, None if valid is None else valid[cols])
        running.finish(values_NK[rows], ids_NK[rows])
    return values_NK, ids_NK

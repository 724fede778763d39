"""Losses, gradients and their tangents of a linear layer followed by cross-entropy, chunk of rows by chunk of rows.

Plain numbers in, plain numbers out: `autograd` makes derivatives of them. The logits of one chunk exist at
a time. In products of [N, V] with D, forward costs 1, the gradient 3, the tangents of the losses 1 + 2 K, and the
tangents of the gradient 3 + 4 K with the losses' tangents for free (1 + 6 K if the logits are counted once).
"""

# N = rows (tokens), R = rows that are not ignored, C = rows of a chunk, V = vocabulary, D = hidden size, K = tangents

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from modelassay_kernels.cross_entropy import rows as torch_rows
from modelassay_kernels.cross_entropy import triton_kernels as triton_rows
from modelassay_kernels.cross_entropy.rows import Spec
from modelassay_kernels.products import capturing, full_fp32
from modelassay_kernels.remembered import Remembered

Point = tuple[Tensor, Tensor, Tensor | None]
"""hidden [N, D], weight [V, D], bias [V]."""
Tangents = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a point, each with K in front; None stands for zero."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

BUDGET_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
"""Logits of one chunk with their copies, at most."""
CPU_CHUNK_ROWS = 128
"""On a CPU fewer rows cost time (twice at 16), and more cost time and memory: with 1024 tokens and 32,768 words the budget's
chunks took 1.6 times as long for a gradient and 1.1 for a Hessian product, in twice the memory. Not measured on a GPU."""
UPCAST_BYTES = 16 << 20
"""Of the weight's rows that are widened at one time where the product of narrow types would be rounded to them."""


@dataclass(frozen=True, kw_only=True)
class GradientMask:
    """Which gradients are asked for."""

    hidden: bool = True
    weight: bool = True
    bias: bool = True


def accumulator(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any tensor holds it, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


class _Chunks:
    """Iterates over the rows that count, and multiplies them."""

    def __init__(self, spec: Spec, labels_N: Tensor, point: Point, *, num_buffers: int) -> None:
        hidden, weight, _ = point
        self.spec, self.point = spec, point
        self.dtype, self.device = accumulator(*point), hidden.device
        self.num_rows, self.num_cols = hidden.shape[0], weight.shape[0]
        self.keep_R = self.keep_N = self.fill_N = None
        if capturing(
            self.device
        ):  # every row takes part; those without a target with zeros, those with a wrong one with NaN
            self.keep_N, wrong_N = _kept_and_wrong(labels_N.long(), spec, self.num_cols)
            self.labels_R = torch.where(self.keep_N & ~wrong_N, labels_N.long(), 0)
            self.fill_N = torch.where(wrong_N, math.nan, 0.0)
            self.keep_N = self.keep_N & ~wrong_N
        else:
            self.labels_R, self.keep_R = _kept_rows(labels_N, spec, self.num_cols)
        row_bytes = num_buffers * self.num_cols * self.dtype.itemsize
        budget = BUDGET_BYTES.get(self.device.type, BUDGET_BYTES["cuda"]) // row_bytes
        if self.device.type == "cpu":
            budget = min(budget, CPU_CHUNK_ROWS)
        rows = spec.chunk_rows if spec.chunk_rows is not None else budget
        self.chunk_rows = max(1, min(rows, self.labels_R.numel()))
        native = self.device.type == "cuda" and self.dtype == torch.float32
        self.rows = triton_rows if native and triton_rows.available() else torch_rows

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield for each chunk its place among the kept rows, and their labels."""
        for start in range(0, self.labels_R.numel(), self.chunk_rows):
            place = slice(start, min(start + self.chunk_rows, self.labels_R.numel()))
            yield place, self.labels_R[place]

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def take(self, x_N: Tensor, place: slice, dim: int = 0) -> Tensor:
        """Return the chunk's rows of a tensor whose dimension ``dim`` counts all rows."""
        if self.keep_R is not None:
            return x_N.index_select(dim, self.keep_R[place])
        return self._filled(x_N.narrow(dim, place.start, place.stop - place.start), place, dim)

    def _filled(self, x_C: Tensor, place: slice, dim: int) -> Tensor:
        if self.keep_N is None or self.fill_N is None:
            return x_C
        shape = [-1 if d == dim else 1 for d in range(x_C.ndim)]
        keep_C, fill_C = self.keep_N[place].reshape(shape), self.fill_N[place].reshape(shape)
        return torch.where(keep_C, x_C, fill_C.to(x_C.dtype))

    def spread(self, x_R: Tensor, dtype: torch.dtype, dim: int = 0) -> Tensor:
        """Return the values of all rows, zero for the ignored."""
        if self.keep_R is None:
            return self._filled(x_R.to(dtype), slice(0, self.num_rows), dim)
        shape = (*x_R.shape[:dim], self.num_rows, *x_R.shape[dim + 1 :])
        return torch.zeros(shape, dtype=dtype, device=self.device).index_copy_(dim, self.keep_R, x_R.to(dtype))

    def logits(self, h_CD: Tensor) -> Tensor:
        _, weight, bias = self.point
        z_CV = self.empty(h_CD.shape[0], self.num_cols)
        project(z_CV, h_CD, weight, fresh=True)
        return z_CV if bias is None else z_CV.add_(bias)

    def logit_tangents(self, h_CD: Tensor, tangents: Tangents, num_tangents: int, place: slice) -> Tensor:
        """Return z. = h. W^T + h W.^T + b. as [K, C, V]."""
        hidden_t, weight_t, bias_t = tangents
        zt_KCV = self.empty(num_tangents, h_CD.shape[0], self.num_cols)
        if hidden_t is not None:
            project(zt_KCV.flatten(0, 1), self.take(hidden_t, place, 1).flatten(0, 1), self.point[1], fresh=True)
        if weight_t is not None:
            for zt_CV, weight_t_VD in zip(zt_KCV, weight_t, strict=True):
                project(zt_CV, h_CD, weight_t_VD, fresh=hidden_t is None)
        if hidden_t is None and weight_t is None:
            zt_KCV.zero_()
        return zt_KCV if bias_t is None else zt_KCV.add_(bias_t[:, None, :])


Kept = tuple[Tensor, Tensor | None]
"""The labels that count, and their rows; None for all of them."""

_kept = Remembered[Kept]()
"""The rows of labels, by (ignore_index, number of columns). Their number has to come to the host, which waits for it: once for labels
that many products share."""


def _kept_rows(labels_N: Tensor, spec: Spec, num_cols: int) -> Kept:
    """Check labels and find the rows that count, unless it was done for this tensor as it is.

    Raises:
        ValueError: a label is neither in the vocabulary nor `ignore_index`.
    """
    key = (spec.ignore_index, num_cols)
    return _kept.of(labels_N, key, lambda: _kept_rows_now(labels_N.long(), spec, num_cols))


def _kept_rows_now(labels_N: Tensor, spec: Spec, num_cols: int) -> Kept:
    keep_N, wrong_N = _kept_and_wrong(labels_N, spec, num_cols)
    if bool(wrong_N.any()):
        row = int(wrong_N.nonzero()[0])
        raise ValueError(
            f"linear_cross_entropy: labels[{row}] is {int(labels_N[row])}; expected a row of the weight, 0 to "
            f"{num_cols - 1}, or ignore_index ({spec.ignore_index}) for a token without a target"
        )
    if bool(keep_N.all()):
        return labels_N, None
    keep_R = keep_N.nonzero().flatten()
    return labels_N[keep_R], keep_R


def _kept_and_wrong(labels_N: Tensor, spec: Spec, num_cols: int) -> tuple[Tensor, Tensor]:
    keep_N = labels_N != spec.ignore_index
    return keep_N, keep_N & ((labels_N < 0) | (labels_N >= num_cols))


def _native(out: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether the vendor's product of two narrow types gives fp32 unrounded: on CUDA alone."""
    narrow = a.dtype == b.dtype and a.dtype in {torch.bfloat16, torch.float16}
    return narrow and has_tensor_cores(out.device) and out.dtype == torch.float32


def has_tensor_cores(device: torch.device) -> bool:
    """Whether narrow types are multiplied as they are."""
    return device.type == "cuda"


def _addmm_(out: Tensor, a: Tensor, b: Tensor, *, fresh: bool, unit: Tensor | None = None) -> None:
    """Compute out = a b, or out += a b unit, in out's type."""
    if unit is not None:
        for part in _row_blocks(out):  # a product that stays in the cache until it is added
            out[part].addcmul_(torch.mm(a[part], b, out_dtype=torch.float32), unit)
    elif not _native(out, a, b):
        torch.addmm(out, a.to(out.dtype), b.to(out.dtype), beta=0 if fresh else 1, out=out)
    elif fresh:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    elif _adds_to_wide(out.device):
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out += torch.mm(a, b, out_dtype=torch.float32)


@functools.cache
def _adds_to_wide(device: torch.device) -> bool:
    """Whether `addmm` can add a product of bfloat16 to fp32; it takes a bfloat16 addend in earlier versions of PyTorch."""
    narrow = torch.zeros(16, 16, dtype=torch.bfloat16, device=device)
    wide = narrow.float()
    try:
        torch.addmm(wide, narrow, narrow, out_dtype=torch.float32, out=wide)
    except RuntimeError:
        return False
    return True


def _blocks(out: Tensor, a: Tensor, w_VD: Tensor) -> list[slice]:
    whole = w_VD.dtype == out.dtype or _native(out, a, w_VD)
    return [slice(0, w_VD.shape[0])] if whole else _row_blocks(w_VD, out.dtype.itemsize)


def _row_blocks(x_VD: Tensor, itemsize: int = 4) -> list[slice]:
    rows = max(1, UPCAST_BYTES // max(1, x_VD.shape[1] * itemsize))
    return [slice(start, start + rows) for start in range(0, x_VD.shape[0], rows)]


def project(out_CV: Tensor, a_CD: Tensor, w_VD: Tensor, *, fresh: bool) -> None:
    """Compute out = a W^T, or add it to out."""
    for part in _blocks(out_CV, a_CD, w_VD):
        _addmm_(out_CV[:, part], a_CD, w_VD[part].t(), fresh=fresh)


def back(out_CD: Tensor, a_CV: Tensor, w_VD: Tensor, unit: Tensor | None = None) -> None:
    """Add a W, times the unit if there is one, to out."""
    for part in _blocks(out_CD, a_CV, w_VD):
        _addmm_(out_CD, a_CV[:, part], w_VD[part], fresh=False, unit=unit)


def _operand(a_CV: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Round what multiplies a narrow type on tensor cores to it; return it and what its product is to be multiplied by.

    Half precision ends at 6e-8, where gradients of logits begin: the largest is brought to 2^14 or above by a power of two, so what
    is under 2^-29 of it loses digits and what is under 2^-40 counts as zero. bfloat16 has float32's range.
    """
    if not has_tensor_cores(a_CV.device) or like.dtype not in {torch.bfloat16, torch.float16}:
        return a_CV, None
    if like.dtype == torch.bfloat16:
        return a_CV.bfloat16(), None
    if not a_CV.numel():
        return a_CV.half(), a_CV.new_ones(())
    least, most = torch.aminmax(a_CV)
    exponent = torch.frexp(torch.maximum(-least, most)).exponent.clamp(-100, 128)
    half_CV = torch.empty_like(a_CV, dtype=torch.float16)
    torch.mul(a_CV, torch.exp2((15 - exponent).float()), out=half_CV)
    return half_CV, torch.exp2((exponent - 15).float())


class _Gradient:
    """Accumulates (sum of dz^T h, of dz W and of dz) of the inputs in the mask, in the accumulating type."""

    def __init__(self, chunks: _Chunks, mask: GradientMask) -> None:
        hidden, weight, bias = chunks.point
        self.chunks, self.mask = chunks, mask
        self.hidden_RD = chunks.zeros(chunks.labels_R.numel() if mask.hidden else 0, hidden.shape[1])
        self.weight_VD = chunks.zeros(*weight.shape) if mask.weight else None
        self.bias_V = chunks.zeros(chunks.num_cols) if mask.bias and bias is not None else None

    def add(self, dz_CV: Tensor, h_CD: Tensor, w_VD: Tensor, place: slice) -> None:
        dz_of_w, unit_of_w = _operand(dz_CV, w_VD)
        dz_of_h, unit_of_h = (dz_of_w, unit_of_w) if h_CD.dtype == w_VD.dtype else _operand(dz_CV, h_CD)
        if self.mask.hidden:
            back(self.hidden_RD[place], dz_of_w, w_VD, unit_of_w)
        if self.weight_VD is not None:
            _addmm_(self.weight_VD, dz_of_h.t(), h_CD, fresh=False, unit=unit_of_h)
        if self.bias_V is not None:
            self.bias_V += dz_CV.sum(0)

    def add_crossed(self, dz_CV: Tensor, ht_CD: Tensor | None, wt_VD: Tensor | None, place: slice) -> None:
        """Add what the tangents of the other factor make of the gradient itself."""
        if self.mask.hidden and wt_VD is not None:
            dz_of_w, unit = _operand(dz_CV, wt_VD)
            back(self.hidden_RD[place], dz_of_w, wt_VD, unit)
        if self.weight_VD is not None and ht_CD is not None:
            dz_of_h, unit = _operand(dz_CV, ht_CD)
            _addmm_(self.weight_VD, dz_of_h.t(), ht_CD, fresh=False, unit=unit)

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients in their inputs' types; one of no elements where none is asked for."""
        hidden, weight, bias = self.chunks.point
        none = self.chunks.empty(0)
        return (
            self.chunks.spread(self.hidden_RD, hidden.dtype) if self.mask.hidden else none,
            none if self.weight_VD is None else self.weight_VD.to(weight.dtype),
            none if self.bias_V is None or bias is None else self.bias_V.to(bias.dtype),
        )


def _in_own_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep products in the types chosen here: autocast would round fp32 gradients of logits to its own type, TF32 the factors."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(full_fp32())
            return function(*args, **kwargs)

    return run


@_in_own_precision
def losses(spec: Spec, labels_N: Tensor, point: Point) -> Tensor:
    """Return the loss of each row [N], 0 for the ignored."""
    chunks = _Chunks(spec, labels_N, point, num_buffers=1)
    losses_R = chunks.empty(chunks.labels_R.numel())
    for place, labels_C in chunks:
        z_CV = chunks.logits(chunks.take(point[0], place))
        losses_R[place] = chunks.rows.primal_(z_CV, labels_C, None, spec)
    return chunks.spread(losses_R, chunks.dtype)


@_in_own_precision
def gradient(
    spec: Spec, labels_N: Tensor, g_N: Tensor, point: Point, mask: GradientMask
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sum(g * losses) and its gradients; those not in the mask have no elements."""
    chunks = _Chunks(spec, labels_N, point, num_buffers=1 if spec.softcap is None else 2)
    total = torch.zeros((), dtype=torch.float64, device=chunks.device)
    sums = _Gradient(chunks, mask)
    for place, labels_C in chunks:
        h_CD, g_C = chunks.take(point[0], place), chunks.take(g_N, place).to(chunks.dtype)
        z_CV = chunks.logits(h_CD)
        total += (chunks.rows.primal_(z_CV, labels_C, g_C, spec).double() * g_C).sum()
        sums.add(z_CV, h_CD, point[1], place)
    return total.to(chunks.dtype), *sums.results()


@_in_own_precision
def losses_tangent(spec: Spec, labels_N: Tensor, point: Point, tangents: Tangents, num_tangents: int) -> Tensor:
    """Return the tangents of the losses [K, N]."""
    chunks = _Chunks(spec, labels_N, point, num_buffers=num_tangents + 1)
    losses_t_KR = chunks.empty(num_tangents, chunks.labels_R.numel())
    for place, labels_C in chunks:
        h_CD = chunks.take(point[0], place)
        zt_KCV = chunks.logit_tangents(h_CD, tangents, num_tangents, place)
        _, losses_t_KR[:, place] = chunks.rows.tangents_(chunks.logits(h_CD), zt_KCV, labels_C, None, None, spec)
    return chunks.spread(losses_t_KR, chunks.dtype, 1)


@_in_own_precision
def gradient_tangent(
    spec: Spec,
    labels_N: Tensor,
    g_N: Tensor,
    point: Point,
    g_tangent_KN: Tensor | None,
    tangents: Tangents,
    num_tangents: int,
    mask: GradientMask,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tangents of sum(g * losses) [K] and of its gradients, each with K in front."""
    num_buffers = num_tangents + (1 if spec.softcap is None and g_tangent_KN is None else 4)
    chunks = _Chunks(spec, labels_N, point, num_buffers=num_buffers)
    totals_K = torch.zeros(num_tangents, dtype=torch.float64, device=chunks.device)
    sums = [_Gradient(chunks, mask) for _ in range(num_tangents)]
    hidden_t, weight_t, _ = tangents
    for place, labels_C in chunks:
        h_CD, g_C = chunks.take(point[0], place), chunks.take(g_N, place).to(chunks.dtype)
        gt_KC = None if g_tangent_KN is None else chunks.take(g_tangent_KN, place, 1).to(chunks.dtype)
        z_CV = chunks.logits(h_CD)
        zt_KCV = chunks.logit_tangents(h_CD, tangents, num_tangents, place)
        losses_C, losses_t_KC = chunks.rows.tangents_(z_CV, zt_KCV, labels_C, g_C, gt_KC, spec)
        totals_K += (losses_t_KC.double() * g_C).sum(1)
        if gt_KC is not None:
            totals_K += (gt_KC.double() * losses_C).sum(1)
        for k, part in enumerate(sums):
            part.add(zt_KCV[k], h_CD, point[1], place)
            ht_CD = None if hidden_t is None else chunks.take(hidden_t[k], place)
            part.add_crossed(z_CV, ht_CD, None if weight_t is None else weight_t[k], place)
    results = [part.results() for part in sums]
    stacked = (torch.stack(column) if num_tangents > 1 else column[0][None] for column in zip(*results, strict=True))
    hidden, weight, bias = stacked
    return totals_K.to(chunks.dtype), hidden, weight, bias

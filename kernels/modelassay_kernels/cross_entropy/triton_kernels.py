"""What cross-entropy does to a chunk of fp32 logits on a GPU: two kernels over splits of rows (formulas in rows).

The first reads logits and tangents once and leaves, per split, m = max(s), l = sum exp(s - m), sum(s), and for each tangent
sum exp(s - m) u and sum(u); these are merged in float64 in fixed order. The second reads them again and writes the
gradient and its tangents in their place. tanh is made of exp: off by 1e-7, so capped logits by softcap * 1e-7.
"""

# C = rows of a chunk, V = vocabulary, K = tangents, S = splits of a row

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from modelassay_kernels.cross_entropy.rows import Spec, smooth
from modelassay_kernels.optional_triton import HAS_TRITON, jit, tl
from modelassay_kernels.softcap import slope_of_tanh

SPAN = 1024
"""Columns of one program of 4 warps: no more than 64 registers, so eight programs and more per multiprocessor, each with 4 KB
of loads in flight. By reasoning, not measured."""
_NUM_STATS = 3


def available() -> bool:
    """Whether the kernels can be launched; otherwise PyTorch does the rows."""
    return HAS_TRITON


def primal_(z_CV: Tensor, labels_C: Tensor, g_C: Tensor | None, spec: Spec, span: int = SPAN) -> Tensor:
    """Do what `rows.primal_` does."""
    no_tangents = z_CV.new_empty(0, *z_CV.shape)
    return tangents_(z_CV, no_tangents, labels_C, g_C, None, spec, span)[0]


def tangents_(
    z_CV: Tensor,
    zt_KCV: Tensor,
    labels_C: Tensor,
    g_C: Tensor | None,
    gt_KC: Tensor | None,
    spec: Spec,
    span: int = SPAN,
) -> tuple[Tensor, Tensor]:
    """Do what `rows.tangents_` does; logits and tangents must be contiguous and fp32."""
    num_rows, num_cols = z_CV.shape
    num_tangents, splits = zt_KCV.shape[0], -(-num_cols // span)
    smoothing = spec.label_smoothing
    softcap = spec.softcap or 0.0
    partials_CSP = torch.empty(num_rows, splits, _NUM_STATS + 2 * num_tangents, dtype=torch.float32, device=z_CV.device)
    shape = (num_rows, num_cols, splits, num_tangents)
    constants = {"SOFTCAP": spec.softcap is not None, "SPAN": span, "num_warps": 4}
    with torch.cuda.device(z_CV.device) if z_CV.is_cuda else contextlib.nullcontext():
        statistics_kernel[(num_rows * splits,)](z_CV, zt_KCV, partials_CSP, *shape, softcap, **constants)
        target_C, target_t_KC = _targets(z_CV, zt_KCV, labels_C, partials_CSP, spec)
        m_CS, l_CS, _, *_ = partials_CSP.double().unbind(2)
        m_C = m_CS.amax(1)
        weight_CS = torch.exp(m_CS - m_C[:, None])
        sum_C = (l_CS * weight_CS).sum(1)
        lse_C = m_C + sum_C.log()
        a_C = 1.0 + 2.0 * spec.z_loss * lse_C
        loss_C = sum_C.log() + (m_C - target_C)
        if spec.z_loss:  # as in rows
            loss_C.addcmul_(lse_C * spec.z_loss, lse_C)
        sums_CSK = partials_CSP[:, :, _NUM_STATS : _NUM_STATS + num_tangents].double()
        lse_t_KC = ((sums_CSK * weight_CS[:, :, None]).sum(1) / sum_C[:, None]).t()
        if g_C is not None:
            row_C4 = torch.stack([m_C, 1.0 / sum_C, a_C, g_C.double()], 1).float().contiguous()
            shift_KC = (2.0 * spec.z_loss - a_C) * lse_t_KC
            gt_or_zero_KC = torch.zeros_like(shift_KC) if gt_KC is None else gt_KC.double()
            tangent_KC2 = torch.stack([shift_KC, gt_or_zero_KC], 2).float().contiguous()
            result_kernel[(num_rows * splits,)](
                z_CV, zt_KCV, labels_C, row_C4, tangent_KC2, *shape, softcap, smoothing, **constants
            )
    return loss_C.float(), (a_C * lse_t_KC - target_t_KC).float()


def _targets(z_CV: Tensor, zt_KCV: Tensor, labels_C: Tensor, partials_CSP: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Return <target, s> [C] and <target, u> [K, C] in float64: the label's, smoothed."""
    num_tangents, num_cols = zt_KCV.shape[0], z_CV.shape[1]
    label_C1 = labels_C[:, None]
    label_C = z_CV.gather(1, label_C1).squeeze(1).double()
    label_t_KC = zt_KCV.gather(2, label_C1.expand(num_tangents, -1, -1)).squeeze(2).double()
    if spec.softcap is not None:
        scaled_C = label_C / spec.softcap
        label_C, label_t_KC = scaled_C.tanh() * spec.softcap, label_t_KC * slope_of_tanh(scaled_C)
    if not spec.label_smoothing:
        return label_C, label_t_KC
    means = partials_CSP.double().sum(1) / num_cols
    mean_t_KC = means[:, _NUM_STATS + num_tangents :].t()
    return smooth(label_C, means[:, 2], spec.label_smoothing), smooth(label_t_KC, mean_t_KC, spec.label_smoothing)


@jit()
def _tanh_and_slope(x: tl.tensor) -> tl.tensor:
    """tanh(x), and 1 - tanh(x)^2 as sech(x)^2, which keeps its digits where tanh is near 1."""
    e = tl.exp(-2.0 * tl.abs(x))
    inverse = 1.0 / (1.0 + e)
    tanh = (1.0 - e) * inverse
    return tl.where(x < 0.0, -tanh, tanh), 4.0 * e * inverse * inverse


@jit(do_not_specialize=("num_rows", "num_tangents"))
def statistics_kernel(
    z_ptr: tl.tensor, zt_ptr: tl.tensor, partial_ptr: tl.tensor, num_rows: tl.tensor, num_cols: tl.tensor, splits: tl.tensor,
    num_tangents: tl.tensor, softcap: tl.tensor, SOFTCAP: tl.constexpr, SPAN: tl.constexpr,
) -> None:  # fmt: skip
    """partial[row, split] = (m, l, sum(s), sum exp(s - m) u of each tangent, sum(u) of each); one program per split."""
    program = tl.program_id(0).to(tl.int64)
    row, split = program // splits, program % splits
    cols = split.to(tl.int32) * SPAN + tl.arange(0, SPAN)  # a row has fewer than 2^31 columns; rows start at 64 bits
    inside = cols < num_cols
    s = tl.load(z_ptr + row * num_cols + cols, mask=inside, other=float("-inf"))
    slope = tl.full([SPAN], 1.0, tl.float32)
    if SOFTCAP:
        ratio, slope = _tanh_and_slope(s / softcap)
        s = tl.where(inside, softcap * ratio, float("-inf"))
    m = tl.max(s)
    e = tl.exp(s - tl.where(m == float("-inf"), 0.0, m))  # a split of -infinity alone weighs nothing
    partial = partial_ptr + program * (3 + 2 * num_tangents)
    tl.store(partial, m)
    tl.store(partial + 1, tl.sum(e))
    tl.store(partial + 2, tl.sum(tl.where(inside, s, 0.0)))
    for k in range(num_tangents):
        u = tl.load(zt_ptr + (k * num_rows.to(tl.int64) + row) * num_cols + cols, mask=inside, other=0.0) * slope
        tl.store(partial + 3 + k, tl.sum(e * u))
        tl.store(partial + 3 + num_tangents + k, tl.sum(u))


@jit(do_not_specialize=("num_rows", "num_tangents"))
def result_kernel(
    z_ptr: tl.tensor, zt_ptr: tl.tensor, label_ptr: tl.tensor, row_ptr: tl.tensor, tangent_ptr: tl.tensor,
    num_rows: tl.tensor, num_cols: tl.tensor, splits: tl.tensor, num_tangents: tl.tensor, softcap: tl.tensor,
    smoothing: tl.tensor, SOFTCAP: tl.constexpr, SPAN: tl.constexpr,
) -> None:  # fmt: skip
    """Leave g c d in z, its tangents in zt; one program per split. Rows give (m, 1/sum, a, g), tangents (b, g.)."""
    program = tl.program_id(0).to(tl.int64)
    row, split = program // splits, program % splits
    cols = split.to(tl.int32) * SPAN + tl.arange(0, SPAN)  # a row has fewer than 2^31 columns; rows start at 64 bits
    inside = cols < num_cols
    z_ptrs = z_ptr + row * num_cols + cols
    m, inverse = tl.load(row_ptr + row * 4), tl.load(row_ptr + row * 4 + 1)
    a, g = tl.load(row_ptr + row * 4 + 2), tl.load(row_ptr + row * 4 + 3)
    s = tl.load(z_ptrs, mask=inside, other=0.0)
    slope = tl.full([SPAN], 1.0, tl.float32)
    bend = tl.zeros([SPAN], tl.float32)
    if SOFTCAP:
        ratio, slope = _tanh_and_slope(s / softcap)
        bend = -2.0 * ratio / softcap
        s = softcap * ratio
    p = tl.exp(s - m) * inverse
    d = a * p - smoothing / num_cols - tl.where(cols == tl.load(label_ptr + row), 1.0 - smoothing, 0.0)
    for k in range(num_tangents):
        index = k * num_rows.to(tl.int64) + row
        shift, gt = tl.load(tangent_ptr + index * 2), tl.load(tangent_ptr + index * 2 + 1)
        ut_ptrs = zt_ptr + index * num_cols + cols
        u = tl.load(ut_ptrs, mask=inside, other=0.0) * slope
        result = slope * (g * p * (a * u + shift) + gt * d)
        if SOFTCAP:
            result += g * d * bend * u
        tl.store(ut_ptrs, result, mask=inside)
    tl.store(z_ptrs, g * d * slope, mask=inside)

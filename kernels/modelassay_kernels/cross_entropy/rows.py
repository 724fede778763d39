"""What cross-entropy does to a chunk of logits, row by row, in place: PyTorch's version, the definition of the others.

With s = softcap * tanh(z / softcap) (or s = z), p = softmax(s), lse = logsumexp(s), e = label smoothing, y the label:

    loss   = lse - (1 - e) s[y] - e mean(s) + z_loss lse^2
    dloss/ds = d = a p - (1 - e) onehot(y) - e / V              a = 1 + 2 z_loss lse
    dloss/dz = c d                                              c = sech(z / softcap)^2, or 1

A dot is a tangent, and u = c z. :

    lse.  = <p, u>,   loss. = <d, u>
    d.    = p (a u + b)                                         b = (2 z_loss - a) lse.
    (c d). = c d. - 2 (s / softcap^2) u d

The row maximum is subtracted before anything else, so logits far from zero lose no digits.
"""

# C = rows of a chunk, V = vocabulary, K = tangents

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from modelassay_kernels.softcap import slope_of_tanh


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The settings of one loss."""

    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""
    label_smoothing: float = 0.0
    """The share of the target that is spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """What logsumexp^2 is multiplied by."""
    ignore_index: int = -100
    """Rows with this label take no part."""
    chunk_rows: int | None = None
    """Rows whose logits exist at one time; None leaves it to the device's budget."""


class _Softmax:
    """The row statistics of a chunk; its logits become exp(s - max)."""

    def __init__(
        self, z_CV: Tensor, labels_C: Tensor, spec: Spec, *, keep_slope: bool = False, keep_ratio: bool = False
    ) -> None:
        self.spec, self.labels_C1 = spec, labels_C[:, None]
        self.slope_CV = self.ratio_CV = None  # c, and s / softcap
        if spec.softcap is not None:
            z_CV.div_(spec.softcap)
            self.slope_CV = slope_of_tanh(z_CV) if keep_slope else None
            z_CV.tanh_()
            self.ratio_CV = z_CV.clone() if keep_ratio else None
            z_CV.mul_(spec.softcap)
        max_C = z_CV.amax(1)
        z_CV.sub_(max_C[:, None])
        targeted_C = self.target(z_CV)
        self.sum_C = z_CV.exp_().sum(1)
        log_C = self.sum_C.log()
        lse_C = max_C + log_C
        self.loss_C = log_C - targeted_C
        if spec.z_loss:  # 0 times the square of a large lse would be NaN
            self.loss_C.addcmul_(lse_C * spec.z_loss, lse_C)  # in this order it overflows only where the result does
        self.a_C = 1.0 + 2.0 * spec.z_loss * lse_C

    def target(self, x_CV: Tensor) -> Tensor:
        """Return <target, x> of each row: the label's x, smoothed."""
        smoothing = self.spec.label_smoothing
        at_label_C = x_CV.gather(1, self.labels_C1).squeeze(1)
        return smooth(at_label_C, x_CV.mean(1), smoothing) if smoothing else at_label_C

    def take_target_(self, x_CV: Tensor, weight_C: Tensor) -> None:
        """Subtract weight * target from each row."""
        smoothing = self.spec.label_smoothing
        if smoothing:
            x_CV.sub_((weight_C * (smoothing / x_CV.shape[1]))[:, None])
        x_CV.scatter_add_(1, self.labels_C1, (weight_C * (smoothing - 1.0))[:, None])


def smooth(at_label: Tensor, mean: Tensor, smoothing: float) -> Tensor:
    """Return (1 - e) at_label + e mean; `Tensor.lerp` takes a difference that is NaN where both are -infinity."""
    return mean if smoothing == 1.0 else at_label * (1.0 - smoothing) + mean * smoothing


def primal_(z_CV: Tensor, labels_C: Tensor, g_C: Tensor | None, spec: Spec) -> Tensor:
    """Return the losses [C]; the logits become their gradient of sum(g * losses), or rubbish where g is None."""
    softmax = _Softmax(z_CV, labels_C, spec, keep_slope=g_C is not None)
    if g_C is not None:
        z_CV.mul_((g_C * softmax.a_C / softmax.sum_C)[:, None])
        softmax.take_target_(z_CV, g_C)
        if softmax.slope_CV is not None:
            z_CV.mul_(softmax.slope_CV)
    return softmax.loss_C


def tangents_(
    z_CV: Tensor, zt_KCV: Tensor, labels_C: Tensor, g_C: Tensor | None, gt_KC: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Return the losses [C] and their tangents [K, C] along the logits' tangents ``zt``.

    Where g is given the logits become their gradient of sum(g * losses), and ``zt`` the tangents of that gradient when g
    has the tangents ``gt`` (None: none); else both become rubbish.
    """
    softmax = _Softmax(z_CV, labels_C, spec, keep_slope=True, keep_ratio=g_C is not None)
    p_CV = z_CV.div_(softmax.sum_C[:, None])
    slope_CV, ratio_CV = softmax.slope_CV, softmax.ratio_CV
    a_C1 = softmax.a_C[:, None]
    d_CV = None
    if g_C is not None and (gt_KC is not None or slope_CV is not None):
        d_CV = p_CV * a_C1
        softmax.take_target_(d_CV, softmax.a_C.new_ones(()).expand_as(softmax.a_C))
    loss_tangents_KC = zt_KCV.new_empty(zt_KCV.shape[:2])
    for k, u_CV in enumerate(zt_KCV):
        if slope_CV is not None:
            u_CV.mul_(slope_CV)
        lse_tangent_C = (p_CV[:, None, :] @ u_CV[:, :, None]).flatten()
        loss_tangents_KC[k] = softmax.a_C * lse_tangent_C - softmax.target(u_CV)
        if g_C is None:
            continue
        bend_CV = None
        if d_CV is not None and ratio_CV is not None:
            bend_CV = (u_CV * ratio_CV).mul_(d_CV).mul_((g_C * (-2.0 / _cap(spec)))[:, None])
        shift_C = (2.0 * spec.z_loss - softmax.a_C) * lse_tangent_C
        u_CV.mul_(a_C1 * g_C[:, None]).add_((shift_C * g_C)[:, None]).mul_(p_CV)
        if gt_KC is not None and d_CV is not None:
            u_CV.addcmul_(d_CV, gt_KC[k][:, None])
        if slope_CV is not None and bend_CV is not None:
            u_CV.mul_(slope_CV).add_(bend_CV)
    if g_C is not None:
        p_CV.mul_((g_C * softmax.a_C)[:, None])
        softmax.take_target_(p_CV, g_C)
        if slope_CV is not None:
            p_CV.mul_(slope_CV)
    return softmax.loss_C, loss_tangents_KC


def _cap(spec: Spec) -> float:
    return 1.0 if spec.softcap is None else spec.softcap

"""What is said about a spectrum: each quantity defined before it is measured."""

# P = parameters, M = Lanczos steps, K = probes, R = eigenvalues removed

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modelassay.curvature.cost import Cost, CostMeter
from modelassay.curvature.estimators import Moments, deflated_moments
from modelassay.curvature.lanczos import Krylov, extend, krylov, ritz_ends, ritz_estimate
from modelassay.curvature.operators import Operator
from modelassay.curvature.vectors import Budget
from modelassay.errors import UsageError
from modelassay.statistics.estimate import LEVEL, Estimate, undefined

Array = NDArray[np.float64]

REMOVED = {"all": 0, "without_10": 10, "without_50": 50}
"""Three definitions of sigma_bulk, by how many eigenvalues of largest magnitude are taken out first; no gap in a language
model's spectrum tells outliers from bulk, so the number is fixed beforehand, and the ratio lambda_max / sigma_bulk of one
model moves by an order of magnitude with it."""
PREREGISTERED = "without_10"
OUTLIER_SIGMAS = 5.0
STEPS, NUM_PROBES = 120, 10  # 130 products in all; ten probes, since one alone leaves 12 to 20 % of noise
NUM_VECTORS = 10


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """A symmetric operator's spectrum in a few numbers; lambda_1 >= ... >= lambda_P are its eigenvalues."""

    lambda_max: Estimate
    """lambda_1, the largest by value."""
    lambda_min: Estimate
    """lambda_P, the smallest by value: for a Hessian negative, never the largest by magnitude under another name."""
    sigma_bulk: dict[str, Estimate]
    """For each definition in `REMOVED`, the standard deviation of the eigenvalues that stay when those of largest magnitude
    are taken out: sqrt(mean(lambda^2) - mean(lambda)^2) over the P - R others. `PREREGISTERED` is the one to be tested. Undefined
    where no more than R steps were taken, or there are no more than R + 1 eigenvalues."""
    centre: Estimate
    """The mean of the eigenvalues that stay under the pre-registered definition."""
    spread: Estimate
    """lambda_1 - lambda_P."""
    gap: Estimate
    """lambda_1 - lambda_2."""
    outliers: Estimate
    """How many eigenvalues lie above centre + 5 sigma_bulk (pre-registered), from Ritz values: interlacing makes the count
    a lower bound, up to the error of the threshold. The interval counts what their residuals allow."""
    ratio: Estimate
    """lambda_1 / sigma_bulk (pre-registered), the plan's *spectral ratio*; the interval is sigma_bulk's."""
    vectors_KP: Tensor
    """Unit Ritz vectors of the largest eigenvalues by value (ten unless told), largest first; for `overlap` with another model's."""
    trace: Estimate
    """tr A."""
    cost: Cost


def spectrum(operator: Operator, *, steps: int = STEPS, num_probes: int = NUM_PROBES, seed: int = 0, level: float = LEVEL,
             num_vectors: int = NUM_VECTORS, budget: Budget | None = None) -> Spectrum:  # fmt: skip
    """Measure all of `Spectrum` from one Lanczos run of ``steps`` products and ``num_probes`` products more.

    The moments tr A and tr A^2 are exact on the Krylov space and unbiased off it (`deflated_moments`); the removed
    eigenvalues are Ritz values. Intervals of sigma_bulk, centre and trace are Student's t over the probes, widened by
    what the residuals of the removed Ritz values allow. Of a bf16 operator what is certain is taken from 3 products and two
    per probe in fp32 (`ritz_ends`, `deflated_moments`); where no product is exact (differences), nothing has an interval.

    Raises:
        UsageError: an operator with no more eigenvalues than `PREREGISTERED` removes, or no more steps than that.
    """
    check_size(operator.size, steps)
    meter = CostMeter(operator)
    space = extend(krylov(operator, seed=seed, budget=budget), operator, steps)
    moments = deflated_moments(operator, space, num_probes=num_probes, seed=seed + 1)
    ends = ritz_ends(space, operator, end_places(space.steps))
    return summary(operator, space, moments, cost=meter.cost(space.basis), level=level, num_vectors=num_vectors, ends=ends)  # fmt: skip


def check_size(size: int, steps: int) -> None:
    """Refuse what has no bulk left when the outliers of the pre-registered definition are taken out.

    Raises:
        UsageError: no more parameters, or Lanczos steps, than eigenvalues are to be removed.
    """
    most = REMOVED[PREREGISTERED]
    if size <= most + 1 or steps <= most:
        raise UsageError(f"spectrum: needs more than {most + 1} parameters and more than {most} Lanczos steps, got {size} and {steps}")  # fmt: skip


def end_places(steps: int) -> list[int]:
    """Return the Ritz values that `Spectrum` reports, largest first: lambda_1, lambda_2 and lambda_P.

    >>> end_places(60), end_places(1)
    ([0, 1, 59], [0])
    """
    return sorted({0, min(1, steps - 1), steps - 1})


def summary(operator: Operator, space: Krylov, moments: Moments, *, cost: Cost, level: float = LEVEL,
            num_vectors: int = NUM_VECTORS, ends: Sequence[tuple[float, float]] | None = None) -> Spectrum:  # fmt: skip
    """Put together what a Krylov space and the moments off it tell.

    With ``ends``, the `ritz_ends` at `end_places`, no product is made, and without vectors no basis needed.
    """
    values, residuals, rows = space.ritz()
    residuals = np.hypot(residuals, moments.error)
    probes = len(moments.lengths_K)
    pairs = ritz_ends(space, operator, end_places(space.steps)) if ends is None else ends
    top, second = (ritz_estimate(space, operator, *pairs[min(i, len(pairs) - 1)], upward=True) for i in (0, 1))
    bottom = ritz_estimate(space, operator, *pairs[-1], upward=False)
    most = min(moments.size - 2, moments.size if space.is_exhausted else len(values) - 1)
    bulk = {name: _bulk(moments, values, residuals, count, level) for name, count in REMOVED.items() if count <= most}

    def estimate(value: float, low: float, high: float) -> Estimate:
        if not moments.exact:
            return Estimate(value=value, method="deflated Hutchinson", n=probes, note="no interval: products are approximate")  # fmt: skip
        return Estimate(value=value, low=low, high=high, level=level, method="deflated Hutchinson, Student over probes", n=probes)  # fmt: skip

    sigmas = {
        name: estimate(bulk[name].sigma, bulk[name].sigma_low, bulk[name].sigma_high)
        if name in bulk
        else undefined(f"takes more than {count} Lanczos steps, and {count + 1} eigenvalues", n=probes)
        for name, count in REMOVED.items()
    }
    chosen, sigma = bulk[PREREGISTERED], sigmas[PREREGISTERED]
    total, half = moments.trace(level)
    outliers = _outliers(values, residuals, chosen)
    return Spectrum(
        lambda_max=top, lambda_min=bottom, sigma_bulk=sigmas, centre=estimate(chosen.centre, *chosen.centre_interval),
        spread=_difference(top, bottom), gap=_difference(top, second),
        outliers=outliers if moments.exact else Estimate(value=outliers.value, method="Ritz values above the threshold"),
        ratio=_ratio(top, sigma),
        vectors_KP=space.vectors(rows[:num_vectors] if num_vectors else np.zeros((0, len(space.basis)))),
        trace=estimate(total, total - half, total + half), cost=cost,
    )  # fmt: skip


def overlap(vectors_KP: Tensor, others_KP: Tensor) -> float:
    """Return |U W^T|_F^2 / K for the orthonormal rows of U and W: 1 for one and the same space, K / P for unrelated ones.

    With K = 1 it is the squared cosine of the two vectors. Gur-Ari, Roberts and Dyer 2018.

    Raises:
        UsageError: spaces of different shapes.

    >>> import torch
    >>> overlap(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, -1.0]]))
    1.0
    """
    if vectors_KP.shape != others_KP.shape:
        raise UsageError(
            f"overlap: needs two [K, P] of one shape, got {tuple(vectors_KP.shape)} and {tuple(others_KP.shape)}"
        )
    inner_KK = vectors_KP @ others_KP.to(vectors_KP.device, vectors_KP.dtype).T
    return float(inner_KK.double().square().sum()) / len(vectors_KP)


@dataclass(frozen=True)
class _Bulk:
    sigma: float
    sigma_low: float
    sigma_high: float
    centre: float
    centre_interval: tuple[float, float]


def _bulk(moments: Moments, values: Array, residuals: Array, count: int, level: float) -> _Bulk:
    """Moments of what stays when the ``count`` Ritz values of largest magnitude are taken out (all, if there are fewer)."""
    chosen = np.argsort(-np.abs(values))[:count]
    removed, left = values[chosen], moments.size - len(chosen)
    trace, half_trace = moments.trace(level, chosen)
    mean = trace / left
    # About the mean itself: to first order its own error then does not count.
    square, half = moments.square_about(mean, level, chosen)
    variance = max(square, 0.0) / left
    errors = _errors(values, residuals)[chosen]
    half = (half + float(errors @ (2 * np.abs(removed - mean) + errors))) / left
    half_centre = (half_trace + float(errors.sum())) / left
    return _Bulk(sigma=variance**0.5, sigma_low=max(variance - half, 0.0) ** 0.5, sigma_high=(variance + half) ** 0.5,
                 centre=mean, centre_interval=(mean - half_centre, mean + half_centre))  # fmt: skip


def _errors(values: Array, residuals: Array) -> Array:
    """Return min(r, r^2 / gap) for each Ritz value, gap the distance to its nearest neighbour (values in order)."""
    if len(values) < 2:
        return residuals
    steps = np.abs(np.diff(values))
    gaps = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
    quadratic = np.divide(residuals**2, gaps, out=np.full_like(residuals, np.inf), where=gaps > 0)
    smaller: Array = np.minimum(residuals, quadratic)
    return smaller


def _outliers(values: Array, residuals: Array, bulk: _Bulk) -> Estimate:
    threshold = bulk.centre + OUTLIER_SIGMAS * bulk.sigma
    least = bulk.centre_interval[0] + OUTLIER_SIGMAS * bulk.sigma_low
    most = bulk.centre_interval[1] + OUTLIER_SIGMAS * bulk.sigma_high
    counts = [int(np.sum(part)) for part in (values > threshold, values - residuals > most, values + residuals > least)]
    return Estimate(value=counts[0], low=min(counts[:2]), high=max(counts[0], counts[2]),
                    method="Ritz values above the threshold, residual bounds")  # fmt: skip


def _difference(larger: Estimate, smaller: Estimate) -> Estimate:
    value = larger.value - smaller.value
    if not (larger.has_interval and smaller.has_interval):
        return Estimate(value=value, method="difference of Ritz values")
    (low, high), (least, most) = _ends(larger), _ends(smaller)
    return Estimate(value=value, low=low - most, high=high - least, method="difference of Ritz values, residual bounds")  # fmt: skip


def _ratio(top: Estimate, sigma: Estimate) -> Estimate:
    if sigma.value == 0:
        return undefined("sigma_bulk is 0", n=sigma.n)
    if not (top.has_interval and sigma.has_interval):
        return Estimate(value=top.value / sigma.value, method="ratio", n=sigma.n)
    corners = [end / width if width else np.inf for end in _ends(top) for width in _ends(sigma)]
    return Estimate(value=top.value / sigma.value, low=min(corners), high=max(corners), level=sigma.level,
                    method="ratio of the two intervals' ends", n=sigma.n)  # fmt: skip


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Return the interval; the value twice where there is none."""
    if estimate.low is None or estimate.high is None:
        return estimate.value, estimate.value
    return estimate.low, estimate.high

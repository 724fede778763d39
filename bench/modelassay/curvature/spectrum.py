"""What is said about a spectrum: each quantity defined before it is measured."""

# P = parameters, M = Lanczos steps, K = probes, R = eigenvalues removed

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelassay.curvature.estimate import LEVEL, Estimate, Spending, half_interval
from modelassay.curvature.estimators import Moments, deflated_moments
from modelassay.curvature.lanczos import Krylov, extend, krylov, ritz_estimate
from modelassay.curvature.operators import Operator
from modelassay.curvature.vectors import Budget
from modelassay.errors import UsageError

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
    are taken out: sqrt(mean(lambda^2) - mean(lambda)^2) over the P - R others. `PREREGISTERED` is the one to be tested."""
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
    """lambda_1 / sigma_bulk (pre-registered), the seed's *spectral ratio*; the interval is sigma_bulk's."""
    vectors_KP: Tensor
    """Unit Ritz vectors of the ten largest eigenvalues by value, largest first; for `overlap` with another model's."""
    trace: Estimate
    """tr A."""


def spectrum(operator: Operator, *, steps: int = STEPS, num_probes: int = NUM_PROBES, seed: int = 0, level: float = LEVEL,
             budget: Budget | None = None) -> Spectrum:  # fmt: skip
    """Measure all of `Spectrum` from one Lanczos run of ``steps`` products and ``num_probes`` products more.

    The moments tr A and tr A^2 are exact on the Krylov space and unbiased off it (`deflated_moments`); the removed
    eigenvalues are Ritz values. Intervals of sigma_bulk, centre and trace are Student's t over the probes, by the delta method
    where the quantity is a function of two moments, widened by what the residuals of the removed Ritz values allow.

    Raises:
        UsageError: an operator with no more eigenvalues than are to be removed, or fewer steps than that.
    """
    most = max(REMOVED.values())
    if operator.size <= most + 1 or steps <= most:
        raise UsageError(f"spectrum: needs more than {most + 1} parameters and more than {most} Lanczos steps, got {operator.size} and {steps}")  # fmt: skip
    spending = Spending(operator)
    space = extend(krylov(operator, seed=seed, budget=budget), operator, steps)
    moments = deflated_moments(operator, space, num_probes=num_probes, seed=seed + 1)
    values, residuals, rows = space.ritz()
    cost = spending.cost(space.basis)
    ends = [ritz_estimate(space, operator, values[i], residuals[i], cost, upward=i >= 0) for i in (0, -1)]
    second = ritz_estimate(space, operator, values[1], residuals[1], cost, upward=True) if len(values) > 1 else ends[0]
    bulk = {name: _bulk(moments, values, residuals, count, level) for name, count in REMOVED.items()}
    sigmas = {name: _estimate(part.sigma, part.sigma_low, part.sigma_high, level, cost) for name, part in bulk.items()}
    chosen, sigma = bulk[PREREGISTERED], sigmas[PREREGISTERED]
    half = half_interval(moments.first_K, level)
    return Spectrum(
        lambda_max=ends[0], lambda_min=ends[1], sigma_bulk=sigmas, centre=_estimate(chosen.centre, *chosen.centre_interval, level, cost),
        spread=_difference(ends[0], ends[1]), gap=_difference(ends[0], second),
        outliers=_outliers(values, residuals, chosen), ratio=_ratio(ends[0], sigma),
        vectors_KP=space.vectors(rows[:NUM_VECTORS]),
        trace=_estimate(moments.trace, moments.trace - half, moments.trace + half, level, cost),
    )  # fmt: skip

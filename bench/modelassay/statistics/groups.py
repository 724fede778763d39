"""Whether groups differ in their means, where their spreads may differ: one test of all, pairs, paired signs, effect sizes, power."""

# N = pairs or members of a group

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from modelassay.statistics.estimate import LEVEL, Estimate, undefined
from modelassay.statistics.intervals import student_half_width

Floats = NDArray[np.float64]
MOST_EXACT = 16
"""Pairs up to which all sign changes are gone through."""


def welch_anova(groups: Sequence[ArrayLike]) -> Estimate:
    """Return Welch's F over groups of unequal spread, with its p. Welch 1951, by scipy.

    >>> round(welch_anova([[1, 2, 3], [2, 3, 9]]).p, 4)
    0.3467
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if len(arrays) < 2 or min(array.size for array in arrays) < 2:
        return undefined("no test: it takes two groups of two at least", n=sum(array.size for array in arrays))
    if all(float(array.var()) == 0 for array in arrays):
        return undefined("no test: no group varies", n=sum(array.size for array in arrays))
    with np.errstate(divide="ignore", invalid="ignore"):
        result = stats.f_oneway(*arrays, equal_var=False)
    if not math.isfinite(float(result.statistic)):
        return undefined("no test: a group does not vary", n=sum(array.size for array in arrays))
    return Estimate(
        value=float(result.statistic), p=float(result.pvalue), n=sum(array.size for array in arrays), method="Welch", exact=True,
        note=f"F over {len(arrays)} groups",
    )  # fmt: skip


def games_howell(groups: Sequence[ArrayLike], *, level: float = LEVEL) -> dict[tuple[int, int], Estimate]:
    """Return, for each pair of groups, the first mean less the second with a simultaneous interval and p. Games and Howell 1976.

    >>> pairs = games_howell([[1.0, 2.0, 3.0], [2.0, 3.0, 9.0], [5.0, 5.5, 6.0]])
    >>> round(pairs[0, 2].value, 2), pairs[0, 2].low < -3.5 < pairs[0, 2].high
    (-3.5, True)
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    total = sum(array.size for array in arrays)
    if min(array.size for array in arrays) < 2 or any(float(array.var()) == 0 for array in arrays):
        missing = undefined("no test: a group does not vary, or has one member", n=total)
        return dict.fromkeys(itertools.combinations(range(len(arrays)), 2), missing)
    result = stats.tukey_hsd(*arrays, equal_var=False)
    interval = result.confidence_interval(level)
    return {
        (i, j): Estimate(
            value=float(result.statistic[i, j]), low=float(interval.low[i, j]), high=float(interval.high[i, j]), level=level,
            p=float(result.pvalue[i, j]), n=total, method="Games-Howell",
        )
        for i, j in itertools.combinations(range(len(arrays)), 2)
    }  # fmt: skip


def sign_change(differences_N: ArrayLike) -> Estimate:
    """Return the mean difference of pairs with the two-sided exact p of changing signs, and Student's interval.

    Under the null that each difference is as likely with the other sign, p is the share of the 2^N sign changes whose mean is as
    far from 0; it never falls below 2 / 2^N. Fisher 1935, section 21. Up to `MOST_EXACT` pairs.

    >>> six = sign_change([1.0, 2.0, 1.5, 0.5, 1.0, 3.0])
    >>> six.p, six.min_p
    (0.03125, 0.03125)

    Raises:
        ValueError: more than `MOST_EXACT` pairs.
    """
    values = np.asarray(differences_N, dtype=np.float64)
    n = values.size
    if n > MOST_EXACT:
        raise ValueError(f"sign_change: {n} pairs have 2^{n} sign changes; give at most {MOST_EXACT}")
    if n < 2 or not np.isfinite(values).all():
        return undefined("no test: it takes two finite differences at least", n=n)
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    sums = np.abs(signs @ values)
    own = abs(float(values.sum()))
    p = float(np.mean(sums >= own - 1e-9 * np.abs(values).sum()))
    half = student_half_width(values)
    mean = float(values.mean())
    return Estimate(value=mean, low=mean - half, high=mean + half, level=LEVEL, p=p, min_p=2.0 / 2**n, n=n,
                    method="exact sign changes, Student")  # fmt: skip


def cohens_d(one: ArrayLike, other: ArrayLike, *, level: float = LEVEL) -> Estimate:
    """Return the difference of two means over their pooled standard deviation, with the interval of the noncentral t.

    Two independent groups; Cumming and Finch 2001. `hedges_g` is the same without its bias.

    >>> d = cohens_d([2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    >>> round(d.value, 3), round(d.low, 2), round(d.high, 2)
    (0.632, -0.66, 1.89)
    """
    first, second = (np.asarray(group, dtype=np.float64) for group in (one, other))
    sizes = first.size, second.size
    if min(sizes) < 2 or (pooled := _pooled(first, second)) == 0:
        return undefined("no effect size: a group of one, or no spread", n=sum(sizes))
    scale = math.sqrt(1 / sizes[0] + 1 / sizes[1])
    d = float(first.mean() - second.mean()) / pooled
    low, high = _noncentral(d / scale, sum(sizes) - 2, level)
    return Estimate(value=d, low=low * scale, high=high * scale, level=level, n=sum(sizes), method="noncentral t")


def hedges_g(one: ArrayLike, other: ArrayLike, *, level: float = LEVEL) -> Estimate:
    """Return `cohens_d` times its correction for few members, J = Gamma(m/2) / (sqrt(m/2) Gamma((m-1)/2)). Hedges 1981.

    >>> round(hedges_g([2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, 5.0]).value, 3)
    0.571
    """
    d = cohens_d(one, other, level=level)
    if not d.defined or d.low is None or d.high is None or d.n is None:
        return d
    half = (d.n - 2) / 2
    factor = math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half)
    return replace(d, value=d.value * factor, low=d.low * factor, high=d.high * factor, method="noncentral t, Hedges")


def _pooled(first: Floats, second: Floats) -> float:
    squares = float(((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum())
    return math.sqrt(squares / (first.size + second.size - 2))


def _noncentral(t: float, df: int, level: float) -> tuple[float, float]:
    """Return the noncentralities under which t is the upper and the lower end of the central ``level``."""
    reach = 10 + 2 * abs(t)

    def end(share: float) -> float:
        # scipy's nct returns NaN far out; there the tail has been passed.
        def gap(centre: float) -> float:
            below = float(stats.nct.cdf(t, df, centre))
            return (below if math.isfinite(below) else float(centre < t)) - share

        return float(optimize.brentq(gap, t - reach, t + reach))

    return end((1 + level) / 2), end((1 - level) / 2)


def smallest_effect(n: int, *, paired: bool, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest standardised effect that a two-sided t test of ``n`` pairs, or of two groups of ``n``, sees so often.

    The effect is over the standard deviation of the differences where it is ``paired``, else over that of a group.

    >>> round(smallest_effect(5, paired=False), 2), round(smallest_effect(6, paired=True), 2)
    (2.02, 1.43)
    """
    df, scale = (n - 1, math.sqrt(n)) if paired else (2 * n - 2, math.sqrt(n / 2))
    if df < 1:
        return math.inf
    critical = float(stats.t.ppf(1 - alpha / 2, df))
    return float(optimize.brentq(lambda d: float(stats.nct.sf(critical, df, d * scale)) - power, 0.0, 20.0))

"""Intervals of a mean and of any statistic: Student's, and two bootstraps over SciPy's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from modelassay.statistics.estimate import LEVEL, Estimate

# D = number of resamples

MAX_UNDEFINED = 0.05
"""Share of undefined resamples above which an interval would describe the survivors, not the data."""


def student_quantile(df: int, level: float = LEVEL) -> float:
    """Return half of Student's two-sided interval in standard errors.

    >>> round(student_quantile(7), 3)
    2.365
    """
    return float(stdtrit(df, (1 + level) / 2))


def student_half_width(samples: ArrayLike, level: float = LEVEL) -> float:
    """Return half of Student's interval of a mean of independent samples.

    >>> round(student_half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    values = np.asarray(samples, dtype=np.float64)
    return student_quantile(values.size - 1, level) * (float(values.std(ddof=1)) / float(values.size**0.5))


def student_mean(
    samples: ArrayLike, *, level: float = LEVEL, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Return a mean with Student's interval, cut to ``bounds``; without one of fewer than two samples.

    >>> mean = student_mean([0.2, 0.3, 0.4], bounds=(0, 1))
    >>> round(mean.low, 4), round(mean.high, 4)                        # 0.3 -+ 4.3027 * 0.1 / sqrt(3)
    (0.0516, 0.5484)
    """
    values = np.asarray(samples, dtype=np.float64)
    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2:
        return Estimate(value=mean, n=values.size, note="no interval: one sample has no spread")
    half = student_half_width(values, level)
    return Estimate(value=mean, low=max(bounds[0], mean - half), high=min(bounds[1], mean + half), level=level,
                    method="Student", n=values.size)  # fmt: skip


def percentile(
    value: float, values_D: NDArray[np.float64], *, level: float = LEVEL, n: int | None = None, unit: str = "sample"
) -> Estimate:
    """Return ``value`` with the percentile interval of a statistic over resamples of ``unit``s.

    Resamples in which the statistic is not finite are left out. With more than 5 % of them there is no interval, which would
    describe the survivors and not the data; the note counts them.

    >>> interval = percentile(500.0, np.append(np.arange(1001.0), np.nan))
    >>> round(interval.low), round(interval.high)
    (25, 975)
    """
    finite_D = values_D[np.isfinite(values_D)]
    num_undefined = values_D.size - finite_D.size
    if not finite_D.size or num_undefined > MAX_UNDEFINED * values_D.size:
        reason = f"no interval: {num_undefined} of {values_D.size} resamples of the {unit}s leave it undefined"
        return Estimate(value=value, n=n, note=reason)
    low, high = np.quantile(finite_D, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=value, low=float(low), high=float(high), level=level, method="percentile", n=n)


def bootstrap(samples: Sequence[ArrayLike], statistic: Callable[..., Any], *,
              method: Literal["percentile", "BCa"] = "BCa", paired: bool = False, level: float = LEVEL,
              draws: int = 9_999, seed: int = 0) -> Estimate:  # fmt: skip
    """Return ``statistic(*samples, axis=-1)``, vectorised over leading axes, with a bootstrap interval.

    ``paired`` resamples all samples with the same indices. The percentile method leaves out resamples in which the
    statistic is not finite (`percentile`); with ``BCa`` there is no interval from the first one on, nor of degenerate data
    (all resamples equal). 9,999 draws put the Monte-Carlo error of a 2.5 % tail at 0.16 percentage points. Efron and
    Tibshirani 1993, chapters 13 and 14.

    >>> mean = bootstrap([np.arange(101.0)], np.mean, method="percentile", seed=1)
    >>> abs(mean.low - (50 - 1.96 * 2.90)) < 0.5              # the mean's standard error is 29.15 / sqrt(101) = 2.90
    True
    """
    from scipy.stats import DegenerateDataWarning
    from scipy.stats import bootstrap as resample

    arrays = tuple(np.asarray(sample, dtype=np.float64) for sample in samples)
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # said by the interval that is not returned
        value = float(statistic(*arrays, axis=-1))
        # SciPy's own name for the generator changed in 1.15; both sides of it accept this one.
        result = resample(arrays, statistic, method=method, paired=paired, n_resamples=draws, confidence_level=level,
                          vectorized=True, random_state=rng)  # fmt: skip
    values_D, n = (
        np.asarray(result.bootstrap_distribution),
        sum(array.shape[-1] for array in arrays[: 1 if paired else None]),
    )
    if method == "percentile":
        return percentile(value, values_D, level=level, n=n)
    low, high = (float(end) for end in result.confidence_interval)
    if not np.isfinite(values_D).all() or math.isnan(low) or math.isnan(high):
        return Estimate(value=value, n=n, note="no interval: a resample leaves it undefined, or all are equal")
    return Estimate(value=value, low=low, high=high, level=level, method=method, n=n)


def median_interval(samples: ArrayLike, *, level: float = LEVEL, unit: str = "") -> Estimate:
    """Return the median with the interval between two of the ordered samples: exact, whatever their law.

    The ends are the r-th smallest and the r-th largest for the largest r with P(Binomial(n, 1/2) < r) <= (1 - level) / 2; up to five
    samples, where there is none at 95 %, the median stands without an interval. David and Nagaraja, Order Statistics, 7.1.

    >>> median = median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    >>> (median.value, median.low, median.high)                                 # 1 - 2 / 2^6 = 0.969
    (3.5, 1.0, 6.0)
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    n, rank, below = values.size, 0, 0.0
    if not n:
        return Estimate(value=math.nan, n=0, note="no samples")
    while rank < n // 2 and (below := below + math.comb(n, rank) / 2**n) <= (1 - level) / 2:
        rank += 1
    median = float(np.median(values))
    if rank == 0:
        return Estimate(value=median, n=n, unit=unit, note=f"no interval: {n} samples are too few")
    return Estimate(value=median, low=float(values[rank - 1]), high=float(values[n - rank]), level=level,
                    method="order statistics", n=n, unit=unit)  # fmt: skip

"""A threshold that is chosen on some seeds and judged on another: what an alarm is worth to whoever did not choose it."""

# S = seeds, N = checkpoints of a seed

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import betaincinv

from modelassay.statistics.estimate import LEVEL, Estimate, undefined

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """How a threshold does on seeds that it was not chosen on."""

    sensitivity: Estimate
    """Share of the positive checkpoints that are called."""
    false_alarms: Estimate
    """Share of the negative ones that are."""


def best_threshold(score_N: ArrayLike, positive_N: ArrayLike) -> float:
    """Return the threshold of the ROC that is farthest above chance: greatest sensitivity less false alarms. Youden 1950.

    What is above it is called. It lies midway between two scores; of equal ones the highest, which has the fewest false alarms.

    >>> best_threshold([0.0, 1.0, 2.0, 3.0], [False, False, True, True])
    1.5

    Raises:
        ValueError: no positive or no negative checkpoint, or a score that is not finite.
    """
    score, positive = np.asarray(score_N, dtype=np.float64), np.asarray(positive_N, dtype=bool)
    if not np.isfinite(score).all() or not positive.any() or positive.all():
        raise ValueError("best_threshold: needs finite scores, of which some are positive and some negative")
    values = np.unique(score)
    cuts = np.concatenate(([values[0] - 1.0], (values[1:] + values[:-1]) / 2, [values[-1]]))
    called = score[None] > cuts[:, None]
    gain = called[:, positive].mean(axis=1) - called[:, ~positive].mean(axis=1)
    return float(cuts[np.flatnonzero(gain >= gain.max() - 1e-12)[-1]])


def left_out_alarms(score_SN: ArrayLike, positive_SN: ArrayLike, counted_SN: ArrayLike | None = None) -> Alarms:
    """Return sensitivity and false alarms of the best threshold, chosen for each seed on all the others.

    Args:
        score_SN: a row for each seed; what is greater is more alarming.
        positive_SN: whether the checkpoint should be called.
        counted_SN: which checkpoints count at all; all if None.

    >>> rng = np.random.default_rng(0)
    >>> truth = np.tile([False, False, True, True], (6, 1))
    >>> alarms = left_out_alarms(truth + 0.01 * rng.normal(size=truth.shape), truth)
    >>> alarms.sensitivity.value, round(alarms.sensitivity.low, 2), alarms.false_alarms.value
    (1.0, 0.54, 0.0)
    """
    score, positive = np.asarray(score_SN, dtype=np.float64), np.asarray(positive_SN, dtype=bool)
    counted = np.ones(score.shape, dtype=bool) if counted_SN is None else np.asarray(counted_SN, dtype=bool)
    if score.ndim != 2 or score.shape != positive.shape or score.shape != counted.shape:
        raise ValueError(
            f"left_out_alarms: needs arrays [S, N] of one shape, got {score.shape}, {positive.shape} and {counted.shape}"
        )
    called = np.zeros(score.shape, dtype=bool)
    for seed in range(len(score)):
        others = counted.copy()
        others[seed] = False
        truth = positive[others]
        if not truth.any() or truth.all():
            missing = undefined("no threshold: the other seeds have no checkpoint of one kind", n=len(score))
            return Alarms(sensitivity=missing, false_alarms=missing)
        called[seed] = score[seed] > best_threshold(score[others], truth)
    return Alarms(
        sensitivity=clustered_share(called, counted & positive),
        false_alarms=clustered_share(called, counted & ~positive),
    )


def clustered_share(called_SN: Bools, counted_SN: Bools, *, level: float = LEVEL) -> Estimate:
    """Return the share of the counted that are called, with an interval that knows that those of one seed go together.

    Clopper and Pearson's for the number of independent ones that has the variance which is seen between seeds (Korn and Graubard 1998). Where none
    is seen, as at 0 and 1, as many as there are seeds: each tells one thing.
    """
    counts_S, calls_S = counted_SN.sum(axis=1), (called_SN & counted_SN).sum(axis=1)
    total, seeds = int(counts_S.sum()), int((counts_S > 0).sum())
    if not total or seeds < 2:
        return undefined("no share: fewer than two seeds have a checkpoint of this kind", n=seeds)
    share = float(calls_S.sum()) / total
    variance = float(((calls_S - share * counts_S) ** 2).sum()) / total**2 * seeds / (seeds - 1)
    size = float(seeds)
    if 0 < share < 1 and variance > 0:
        shrunk = (
            (stats.t.ppf((1 + level) / 2, total - 1) / stats.t.ppf((1 + level) / 2, seeds - 1)) ** 2
            if total > 1
            else 1.0
        )
        size = min(float(total), share * (1 - share) / variance * shrunk)
    tail, hits = (1 - level) / 2, share * size
    low = float(betaincinv(hits, size - hits + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(hits + 1, size - hits, 1 - tail)) if share < 1 else 1.0
    return Estimate(
        value=share,
        low=low,
        high=high,
        level=level,
        n=seeds,
        method="Korn-Graubard",
        note=f"{int(calls_S.sum())} of {total} checkpoints of {seeds} seeds",
    )


def lagged_correlation(first_SN: ArrayLike, second_SN: ArrayLike, lag: int) -> Floats:
    """Return for each seed Pearson's r of ``first`` with ``second`` ``lag`` places later; NaN where one does not vary.

    >>> lagged_correlation([[0.0, 1.0, 0.0, 2.0]], [[5.0, 0.0, 1.0, 0.0]], 1).round(6).tolist()
    [1.0]
    """
    first, second = np.asarray(first_SN, dtype=np.float64), np.asarray(second_SN, dtype=np.float64)
    width = first.shape[1] - abs(lag)
    one = first[:, :width] if lag >= 0 else first[:, -lag:]
    other = second[:, lag:] if lag >= 0 else second[:, :width]
    one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Floats = np.where(scale > 0, (one * other).sum(axis=1) / scale, math.nan)
    return r

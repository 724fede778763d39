"""What paired process medians say: slower, faster, same, or not decided yet.

The unit is a process's median. A pair is one process of each side, measured in turns, and gives one log-ratio. Of n pairs:

- theta is the 20 % trimmed mean of the log-ratios, so that a process that fell into another regime does not decide alone;
- its law is bootstrapped over pairs, studentised by the winsorised standard error: T* = (theta* - theta) / se*. Percentiles alone
  are too narrow for eight pairs (Efron and Tibshirani 1993, chapter 12; Wilcox 2012, section 4.4.3, for the trimmed mean);
- slower: theta > effect, faster: theta < -effect, tested against the edge of the effect and not against 0, Holm over the cells;
- same: the interval lies within the effect on both sides. Inconclusive: none of the three.

There are at most three looks, and each may spend its own part of alpha, so that stopping early costs no honesty: the chance that
any look errs is at most the sum (Bonferroni over looks).
"""

# P = pairs, D = resamples, K = pairs that are not trimmed

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from modelassay.statistics.estimate import Estimate

Floats = NDArray[np.float64]
Verdict = Literal["faster", "slower", "same", "inconclusive"]

LOOKS: Final = (8, 16, 48)
"""Pairs measured when the first, second and last decision is taken."""
SPENT: Final = (0.005, 0.01, 0.035)
"""Of alpha = 0.05, by each look: most by the last, which has the most pairs."""
ALPHA: Final = sum(SPENT)
RELATIVE: Final = 0.01
"""Smaller changes are called same: criterion.rs takes 1 % too, and tuned GPUs repeat no better."""
TRIM: Final = 0.2
DRAWS: Final = 9_999
MOST_DRAWS: Final = 99_999
FEWEST: Final = 6
"""Pairs; below, a trimmed mean has no standard error worth the name."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The smallest change that is called one: it must exceed both parts."""

    relative: float = RELATIVE
    """Share of the base's time."""
    absolute_ns: float = 0.0
    """Nanoseconds: short calls jitter by a constant."""

    def log(self, base_ns: float) -> float:
        """Return the smallest change of the logarithm of a time of ``base_ns``.

        >>> round(Effect(relative=0.01, absolute_ns=300).log(1000.0), 4)      # 300 ns of 1 us are 30 %
        0.2624
        """
        return math.log1p(max(self.relative, self.absolute_ns / base_ns))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Of one cell after one look."""

    verdict: Verdict
    ratio: Estimate
    """Candidate over base, at the level of this look; p is Holm's over the cells of this look."""
    effect: float
    """The smallest log-ratio that counts."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """A trimmed mean of P log-ratios, its standard error, and both of every resample."""

    value: float
    error: float
    t_D: Floats

    def p_above(self, edge: float) -> float:
        """One-sided p of theta <= ``edge``."""
        return self._tail(self.value - edge, self.t_D)

    def p_below(self, edge: float) -> float:
        """One-sided p of theta >= ``edge``."""
        return self._tail(edge - self.value, -self.t_D)

    def _tail(self, distance: float, t_D: Floats) -> float:
        if self.error == 0:  # all log-ratios but the trimmed ones are equal
            return 1 / (t_D.size + 1) if distance > 0 else 1.0
        return float(1 + np.count_nonzero(t_D >= distance / self.error)) / (t_D.size + 1)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the interval that misses theta on either side with alpha / 2.

        A quantile beyond the last resample is the last: what no pairs can say is not made up.
        """
        low, high = np.quantile(self.t_D, [alpha / 2, 1 - alpha / 2], method="inverted_cdf")
        ends = sorted((self.value - float(high) * self.error, self.value - float(low) * self.error))
        return min(ends[0], self.value), max(ends[1], self.value)


@cache
def sorted_draws(num_pairs: int, draws: int) -> NDArray[np.int64]:
    """Return indices of ``draws`` resamples, each sorted: of sorted values it takes sorted resamples. [D, P]."""
    indices_DP = np.random.default_rng(num_pairs).integers(0, num_pairs, size=(draws, num_pairs))
    indices_DP.sort(axis=1)
    return indices_DP


def trimmed(sorted_DP: Floats) -> tuple[Floats, Floats]:
    """Return the 20 % trimmed mean of sorted rows, and its standard error by the winsorised variance (Tukey and McLaughlin 1963).

    >>> mean, error = trimmed(np.array([[0.0, 1.0, 2.0, 3.0, 100.0]]))
    >>> float(mean[0]), round(float(error[0]), 4)             # 1, 1, 2, 3, 3 have a deviation of 1; 1 / (0.6 sqrt 5)
    (2.0, 0.7454)
    """
    num = sorted_DP.shape[1]
    cut = int(TRIM * num)
    kept_DK = sorted_DP[:, cut : num - cut]
    mean_D = kept_DK.mean(axis=1)
    low_D, high_D = kept_DK[:, 0], kept_DK[:, -1]
    total_D = kept_DK.sum(axis=1) + cut * (low_D + high_D)
    centre_D = total_D / num
    squares_D = ((kept_DK - centre_D[:, None]) ** 2).sum(axis=1) + cut * (
        (low_D - centre_D) ** 2 + (high_D - centre_D) ** 2
    )
    return mean_D, np.sqrt(squares_D / (num - 1)) / ((1 - 2 * TRIM) * math.sqrt(num))


def resample(log_ratios: Sequence[float] | Floats, *, draws: int = DRAWS) -> Resampled:
    """Return the studentised bootstrap of the trimmed mean of ``log_ratios`` over pairs.

    Raises:
        ValueError: fewer than six pairs, or a log-ratio that is no number.
    """
    sorted_P = np.sort(np.asarray(log_ratios, dtype=np.float64))
    if sorted_P.size < FEWEST or not np.isfinite(sorted_P).all():
        raise ValueError(f"resample: needs {FEWEST} finite log-ratios or more, got {sorted_P.size}")
    value, error = trimmed(sorted_P[None])
    mean_D, error_D = trimmed(sorted_P[sorted_draws(sorted_P.size, draws)])
    with np.errstate(divide="ignore", invalid="ignore"):
        t_D = (mean_D - value) / error_D
    t_D[np.isnan(t_D)] = 0.0  # the same value with the same certainty
    return Resampled(float(value[0]), float(error[0]), t_D)


def decide(
    log_ratios: Mapping[str, Sequence[float]], effects: Mapping[str, float], *, alpha: float, family: int | None = None
) -> dict[str, Decision]:
    """Return what one look says of each cell.

    Args:
        log_ratios: cell to the log-ratios (candidate over base) of its pairs.
        effects: cell to the smallest log-ratio that counts, see `Effect.log`.
        alpha: what this look may spend, over all cells.
        family: how many cells there are in all; those that an earlier look decided still count. None: these.
    """
    family = family or len(log_ratios)
    # Enough resamples that Holm's smallest level, alpha / 2 M on either side, can be reached ten times over.
    draws = DRAWS if 20 * family / alpha <= DRAWS else MOST_DRAWS
    cells = {name: resample(ratios, draws=draws) for name, ratios in log_ratios.items()}
    p_values = [
        min(1.0, 2 * min(cell.p_above(effects[name]), cell.p_below(-effects[name]))) for name, cell in cells.items()
    ]
    adjusted = holm_adjusted(p_values, family)
    decisions = {}
    for (name, cell), p in zip(cells.items(), adjusted, strict=True):
        low, high = cell.interval(alpha)
        effect = effects[name]
        verdict: Verdict = "inconclusive"
        if p <= alpha:
            verdict = "slower" if cell.value > 0 else "faster"
        elif -effect <= low and high <= effect:
            verdict = "same"
        ratio = Estimate(
            value=math.exp(cell.value),
            low=math.exp(max(low, -700)),
            high=math.exp(min(high, 700)),
            level=1 - alpha,
            method="studentised paired bootstrap of the trimmed log-ratio",
            n=len(log_ratios[name]),
            p=p,
        )
        decisions[name] = Decision(verdict=verdict, ratio=ratio, effect=effect)
    return decisions


def holm_adjusted(p_values: Sequence[float], family: int) -> list[float]:
    """Return Holm's adjusted p-values, in the order of the input, among ``family`` tests of which the others have p = 1.

    >>> [round(p, 3) for p in holm_adjusted([0.04, 0.01, 0.03], 3)]
    [0.06, 0.03, 0.06]
    >>> holm_adjusted([0.01], 4)
    [0.04]
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (family - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted

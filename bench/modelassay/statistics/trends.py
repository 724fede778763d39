"""Curves over time: their slope with its own correlation in time, whether it is small, and when a level is reached."""

# T = points of a curve, D = resamples

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelassay.statistics.estimate import Estimate, undefined

DRAWS = 999
TOST_LEVEL = 0.90
"""Of the interval that lies within the bounds if and only if two one-sided tests at 5 % reject."""


def slope(x_T: ArrayLike, y_T: ArrayLike, *, level: float = TOST_LEVEL, block: int | None = None, draws: int = DRAWS,
          seed: int = 0) -> Estimate:  # fmt: skip
    """Return the least-squares slope of a curve with a moving-block bootstrap interval of its residuals.

    Neighbouring points of a training's curve are no independent samples: residuals are resampled in blocks of ``block`` points
    (cube root of T, 2 at least, if None; Hall, Horowitz and Jing 1995), so that a block keeps its correlation. Künsch 1989. Blocks and a fit shrink the
    residuals, which are made larger by sqrt(T / (T - 2)).

    >>> line = slope(range(30), [0.5 + 0.01 * t + 0.001 * (-1) ** t for t in range(30)])
    >>> round(line.value, 3), line.low < line.value < line.high
    (0.01, True)
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x_T, y_T))
    if x.size < 8 or not np.isfinite(y).all():
        return undefined(
            f"no slope of {x.size} points{'' if np.isfinite(y).all() else ', some of them not finite'}", n=x.size
        )
    centred = x - x.mean()
    weights = centred / (centred @ centred)
    value = float(weights @ y)
    residuals = (y - y.mean() - value * centred) * math.sqrt(x.size / (x.size - 2))
    length = min(block or max(2, math.ceil(x.size ** (1 / 3))), x.size)
    rng = np.random.default_rng(seed)
    starts = rng.integers(x.size - length + 1, size=(draws, -(-x.size // length)))
    drawn = residuals[(starts[:, :, None] + np.arange(length)).reshape(draws, -1)[:, : x.size]]
    slopes = value + (drawn - drawn.mean(axis=1, keepdims=True)) @ weights
    low, high = np.quantile(slopes, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), level=level,
                    method=f"moving blocks of {length}", n=x.size)  # fmt: skip


def is_flat(estimate: Estimate, delta: float) -> bool:
    """Whether a slope is shown to be smaller than ``delta`` either way: two one-sided tests. A wide interval never is.

    >>> is_flat(Estimate(value=0.0, low=-0.1, high=0.1, level=0.9), 0.2), is_flat(Estimate(value=0.0, low=-1.0, high=1.0, level=0.9), 0.2)
    (True, False)
    """
    return estimate.low is not None and estimate.high is not None and -delta < estimate.low and estimate.high < delta


def crossing(x_T: ArrayLike, y_T: ArrayLike, level: float) -> float:
    """Return where a curve first comes down to ``level``, by a straight line between its points; infinite where it never does.

    >>> crossing([0, 10, 20], [1.0, 0.8, 0.4], 0.6), crossing([0, 10], [1.0, 0.9], 0.5)
    (15.0, inf)
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x_T, y_T))
    below = np.flatnonzero(y <= level)
    if not below.size:
        return math.inf
    at = int(below[0])
    if at == 0:
        return float(x[0])
    share = (y[at - 1] - level) / (y[at - 1] - y[at])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


def at_levels(x_T: ArrayLike, y_T: ArrayLike, levels: ArrayLike) -> NDArray[np.float64]:
    """Return a curve's values where another quantity ``x`` reaches ``levels`` for the first time; NaN beyond what it reached.

    ``x`` need not rise: its running maximum is what reaches a level.

    >>> at_levels([0.0, 1.0, 0.5, 2.0], [1.0, 0.8, 0.7, 0.4], [0.5, 1.5, 3.0]).round(2).tolist()
    [0.9, 0.6, nan]
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x_T, y_T))
    highest = np.maximum.accumulate(x)
    fresh = np.concatenate(([True], highest[1:] > highest[:-1]))
    result = np.interp(np.asarray(levels, dtype=np.float64), highest[fresh], y[fresh])
    result[np.asarray(levels) > highest[-1]] = np.nan
    return np.asarray(result)

"""Are two curves the same, up to a margin, over their whole length? A simultaneous band, a verdict and its power."""

# G = groups (corpora), P = items crossed with them (prompts), T = points of a curve, D = simulated worlds

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelassay.statistics.estimate import LEVEL

Floats = NDArray[np.float64]
Verdict = Literal["equivalent", "different", "undecided"]
WORLDS = 4000


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """A mean curve with a band that holds the whole true curve at its level."""

    mean_T: Floats
    half_T: Floats
    """Half of the band's width."""
    critical: float
    """Standard errors that half a band is wide."""
    num_units: int
    """Of the random factor that has fewer units: what the band's width is judged by."""
    level: float

    @property
    def low_T(self) -> Floats:
        """Lower edge."""
        return self.mean_T - self.half_T

    @property
    def high_T(self) -> Floats:
        """Upper edge."""
        return self.mean_T + self.half_T

    def verdict(self, margin: float) -> Verdict:
        """Return ``equivalent`` where the whole band lies within the margin, ``different`` where it leaves it somewhere whole."""
        if (np.abs(self.mean_T) + self.half_T < margin).all():
            return "equivalent"
        return "different" if (np.abs(self.mean_T) - self.half_T > margin).any() else "undecided"

    def power(self, margin: float, *, worlds: int = WORLDS, seed: int = 0) -> float:
        """Return how often a band of this width would lie within the margin if there were no difference at all.

        The mean curve of a world without difference is drawn with this band's standard errors, its points moving together, which is
        the most favourable case; its width is taken as this one's.
        """
        error_T = self.half_T / self.critical if self.critical else self.half_T
        draws_D = np.random.default_rng(seed).standard_normal(worlds)
        largest_D = (np.abs(draws_D)[:, None] * error_T + self.half_T).max(axis=1)
        return float((largest_D < margin).mean())


def simultaneous_band(values: ArrayLike, *, level: float = LEVEL, worlds: int = WORLDS, seed: int = 0) -> Band:
    """Return the band of the mean of ``values[G, P, T]`` over groups and items, both random and crossed.

    The variance of the mean is var(group means) / G + var(item means) / P less what both count twice, and never below the larger of
    the two. Half the width is the ``level`` quantile of max |t| over T, simulated for min(G, P) normal curves with the correlation in time
    that the values have around their mean, so that few groups make a wide band (as Student's t does) and a smooth curve a narrower one than
    as many tests would. Needs two groups and two items.

    Raises:
        ValueError: fewer, or values that are not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or min(array.shape[:2]) < 2 or not np.isfinite(array).all():
        raise ValueError(f"a band needs finite values of two groups and two items at least, got shape {array.shape}")
    num_groups, num_items, num_points = array.shape
    groups_GT, items_PT = array.mean(axis=1), array.mean(axis=0)
    mean_T = groups_GT.mean(axis=0)
    rest = array - groups_GT[:, None] - items_PT[None] + mean_T
    of_groups, of_items = groups_GT.var(axis=0, ddof=1) / num_groups, items_PT.var(axis=0, ddof=1) / num_items
    twice = (rest**2).sum(axis=(0, 1)) / ((num_groups - 1) * (num_items - 1)) / (num_groups * num_items)
    variance_T = np.maximum(of_groups + of_items - twice, np.maximum(of_groups, of_items))
    units = min(num_groups, num_items)
    critical = _critical(array - mean_T, units, level, worlds, seed)
    return Band(mean_T=mean_T, half_T=critical * np.sqrt(variance_T), critical=critical, num_units=units, level=level)


def _critical(centred: Floats, units: int, level: float, worlds: int, seed: int) -> float:
    """The quantile of max |t| of the mean of ``units`` normal curves with the correlation of ``centred`` over its last axis."""
    rows_NT = centred.reshape(-1, centred.shape[-1])
    size_T = np.sqrt((rows_NT**2).sum(axis=0))
    rows_NT = rows_NT[:, size_T > 1e-12 * max(1.0, float(size_T.max()))]
    if not rows_NT.shape[1]:
        return 0.0
    rows_NT = rows_NT / np.sqrt((rows_NT**2).sum(axis=0))
    rng = np.random.default_rng(seed)
    largest_D = np.empty(worlds)
    for world in range(worlds):
        curves_UT = rng.standard_normal((units, rows_NT.shape[0])) @ rows_NT
        error_T = curves_UT.std(axis=0, ddof=1) / np.sqrt(units)
        largest_D[world] = np.abs(curves_UT.mean(axis=0) / error_T).max()
    return float(np.quantile(largest_D, level))

"""When one series first leaves what controls do, at a false-alarm rate that is the same for every measure, and what leads what.

A band of some standard deviations is crossed sooner by the measure with the heavier noise, with no lead at all; so is any band
that is looked at once per generation. Here a whole trajectory is the unit: a threshold is the farthest that any control went,
at any generation, from the mean of the other controls. Where trajectory and controls are exchangeable, one more trajectory goes
farther than m controls with probability 1 / (m + 1), whatever the measure's noise and however it depends on itself in time.
"""

# S = number of seeds, G = of generations

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.groups import sign_change

Floats = NDArray[np.float64]
LEAST_CONTROLS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Crossings:
    """The generation at which each seed's trajectory first crossed, counted from the first of the series."""

    first_S: Floats
    """Infinite where it never crossed: censored at the last generation."""
    generations: int
    """G, of which the last is where censoring sets in."""
    false_alarms: float
    """Nominal share of trajectories without an effect that cross anywhere."""

    @property
    def censored_S(self) -> Floats:
        """The crossings with G where there was none: what is compared."""
        return np.where(np.isfinite(self.first_S), self.first_S, self.generations)

    @property
    def is_at_once(self) -> bool:
        """Whether every seed crossed at the first generation, before which nothing can cross."""
        return not self.censored_S.any()

    @property
    def num_crossed(self) -> int:
        """Seeds that crossed."""
        return int(np.isfinite(self.first_S).sum())


def first_crossings(treated_SG: ArrayLike, control_SG: ArrayLike, *, rises: bool) -> Crossings:
    """Return when each treated trajectory first goes farther, in the stated direction, than every control ever went.

    The controls of a seed's trajectory are those of the other seeds, m = S - 1: its own control shares the seed's data, and is no
    draw from the same law. The trajectory's distance is from the mean of its m controls, a control's from the mean of the other
    m - 1, scaled by sqrt((1 + 1/m) / (1 + 1/(m-1))) to have the same spread.

    Args:
        treated_SG: a row for each seed.
        control_SG: likewise, without treatment.
        rises: whether a rise is what is looked for; else a fall.

    Raises:
        ValueError: shapes differ, a number is not finite, or fewer than `LEAST_CONTROLS` controls are left.

    >>> flat = [[0.0, 0.1], [0.1, 0.0], [0.0, -0.1], [-0.1, 0.0]]
    >>> first_crossings([[0.0, 5.0]] * 4, flat, rises=True).first_S.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    treated, control = (np.asarray(values, dtype=np.float64) for values in (treated_SG, control_SG))
    if (
        treated.shape != control.shape
        or treated.ndim != 2
        or not (np.isfinite(treated).all() and np.isfinite(control).all())
    ):
        raise ValueError(f"crossings: needs two [S, G] of finite numbers, got {treated.shape} and {control.shape}")
    seeds, generations = treated.shape
    if seeds - 1 < LEAST_CONTROLS:
        raise ValueError(f"crossings: {seeds} seeds leave {seeds - 1} controls, fewer than {LEAST_CONTROLS}")
    sign = 1.0 if rises else -1.0
    first = np.full(seeds, math.inf)
    for seed in range(seeds):
        others = np.delete(control, seed, axis=0)
        threshold = _farthest(sign * others)
        beyond = np.flatnonzero(sign * (treated[seed] - others.mean(axis=0)) > threshold)
        if beyond.size:
            first[seed] = float(beyond[0])
    return Crossings(first_S=first, generations=generations, false_alarms=1 / seeds)


def _farthest(control_MG: Floats) -> float:
    """Return the farthest that one of m controls goes above the mean of the others at any generation, scaled as `first_crossings` says."""
    m = len(control_MG)
    distances = control_MG - (control_MG.sum(axis=0) - control_MG) / (m - 1)
    return float(distances.max()) * math.sqrt((1 + 1 / m) / (1 + 1 / (m - 1)))


def lead(early: Crossings, late: Crossings) -> Estimate:
    """Return by how many generations ``early`` crosses before ``late``, paired by seed, with the exact p of changing signs.

    A trajectory that never crossed counts as crossing at the end, so that a difference to it is the least it can be. Seeds in which
    neither crossed tell nothing and are left out.
    """
    told = np.isfinite(early.first_S) | np.isfinite(late.first_S)
    differences = (late.censored_S - early.censored_S)[told]
    if differences.size < 2:
        return undefined("no lead: fewer than two seeds in which either crossed", n=int(differences.size))
    estimate = sign_change(differences)
    censored = int((~np.isfinite(early.first_S[told])).sum()), int((~np.isfinite(late.first_S[told])).sum())
    note = f"of {differences.size} seeds the first never crossed in {censored[0]}, the second in {censored[1]}"
    return replace(estimate, note=note)

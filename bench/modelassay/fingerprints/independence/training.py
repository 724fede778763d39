"""Do two models share what training did to them, or could they share no more than their initial weights?"""

# D = hidden dimensions

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelassay.fingerprints.independence.matrices import Floats, ModelMatrices

SHARED_BELOW = 0.1
"""Difference of two models' norm weights, as a share of what training did to them, below which the training is shared. Ours, far below
what was measured without: two siblings of one initialisation on other data 1.29 and 1.42, independent roots 1.42 to 1.59
(docs/methods/independence.md). Children whose norms nobody moved have 0."""

OUTLIERS = 0.1
"""Of the norm weights, those that moved most, without which the ratio must hold too: a few outlying dimensions, which siblings of one
initialisation have in common, would else make up the whole sum."""

FEWEST_VALUES = 64
"""Norm weights that training has moved; fewer say nothing."""


@dataclass(frozen=True, kw_only=True)
class SharedTraining:
    """How far two models' norm weights lie apart, against how far training moved them from the constant all began with."""

    ratio: float
    """Root of the summed squared differences over that of the smaller model's distance from the constant, the larger one of with and
    without outliers; 0 for a copy, near 1.4 where both moved on their own."""
    num_values: int

    @property
    def is_shared(self) -> bool:
        """Whether the second model holds more of the first than its initial weights."""
        return self.ratio <= SHARED_BELOW


def shared_training(a: ModelMatrices, b: ModelMatrices, pairs: Sequence[tuple[int, int]]) -> SharedTraining | None:
    """Compare the weights of norms of corresponding layers.

    Norm weights begin as a constant and not as random numbers, so what two models have in common there came from training, not from a
    shared seed. Two runs of one seed move them on ways of their own, alike where the data are: only where the difference is small
    against the way from the constant does one training stand behind both. A large one says nothing: long further
    training moves them too.

    None at different widths, where no norm of a layer is known, and where training has hardly moved them.
    """
    if a.width != b.width:
        return None
    rows = [(x, y) for first, second in pairs
            for x, y in zip(a.norms(first), b.norms(second), strict=False) if np.isfinite(x).all() and np.isfinite(y).all()]  # fmt: skip
    if not rows:
        return None
    moved_a, moved_b = (_moved([row[side] for row in rows]) for side in (0, 1))
    num_values = min(int((moved != 0).sum()) for moved in (moved_a, moved_b))
    size = np.maximum(np.abs(moved_a), np.abs(moved_b))
    ordinary = size <= np.quantile(size, 1 - OUTLIERS)
    ratios = [_ratio(moved_a, moved_b), _ratio(moved_a[ordinary], moved_b[ordinary])]
    if num_values < FEWEST_VALUES or not np.isfinite(ratios).all():
        return None
    return SharedTraining(ratio=max(ratios), num_values=num_values)


def _ratio(moved_a: Floats, moved_b: Floats) -> float:
    """Return the root of the summed squared differences over that of the smaller sum of squares; infinite without one."""
    least = min(float(np.square(moved).sum()) for moved in (moved_a, moved_b))
    return math.sqrt(float(np.square(moved_a - moved_b).sum()) / least) if least else math.inf


def _moved(norms: Sequence[Floats]) -> Floats:
    """Return how training spread the weights of each norm over its dimensions, [N, D]; the median, which the constant is part of, is taken out."""
    stacked_ND = np.stack(norms).astype(np.float64)
    centred: Floats = (stacked_ND - np.median(stacked_ND, -1, keepdims=True)).astype(np.float32)
    return centred

"""What gives a linear mixture away, seen from one of its ingredients alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelassay.fingerprints.lineage.deltas import Delta

MIN_MATRICES = 8
"""Fewer do not show that all were mixed alike."""
MIN_SHARE, MAX_SHARE = 0.02, 0.93
"""Beyond the larger a slope is not told from chance: strange roots of one shape have median slopes within 0.011 of 0 (606 regressions)."""
RATIO = (0.6, 1.7)
"""Range of the median ratio: 1 where the other ingredient's matrices are of the same size (0.99 to 1.02 in 200 mixtures of roots), its
factor otherwise."""
MAX_SPREAD = 1.4
"""90 % quantile of the ratio over the 10 % one. Seen from an ingredient 200 mixtures of roots of the
zoo have 1.06 to 1.23; training 5.3 and more where all ratios are positive (36 regressions of the zoo's trained children)."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How one model looks as an ingredient of another."""

    share: float
    """What of the other model is not this one: alpha of (1 - alpha) this + alpha unknown."""
    ratio: float
    """alpha over the relative size of what this model does not explain, median over matrices."""
    spread: float
    """Quantile of the ratio at 90 % over that at 10 %."""


def mixture(deltas: Sequence[Delta], *, of_a: bool) -> Mixture | None:
    """Return what speaks for ``b`` being (1 - alpha) ``a`` + alpha of something independent (``of_a``), or ``a`` of ``b``; None where little does.

    Each matrix C is regressed on the ingredient's matrix M: C = s M + rest. Of a mixture with a stranger 1 - s is alpha in every matrix,
    and the rest has alpha times the stranger's size: the ratio (1 - s) |M| / |rest| is one number. Training shrinks matrices
    by unlike amounts and adds much more than it takes away. No second model is needed; one that shares its origin with
    the first hides it, since the mixture of two relatives is one more relative.
    """
    shares, ratios = [], []
    for delta in deltas:
        size, other = (delta.aa, delta.bb) if of_a else (delta.bb, delta.aa)
        if delta.kind != "matrix" or not size > 0:
            continue
        slope = (delta.aa + delta.ad) / size
        rest = math.sqrt(max(other / size - slope**2, 0.0))
        if not math.isfinite(rest) or rest <= 0:
            return None
        shares.append(1 - slope)
        ratios.append((1 - slope) / rest)
    if len(ratios) < MIN_MATRICES:
        return None
    low, ratio, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    share = float(np.median(shares))
    if not (RATIO[0] <= ratio <= RATIO[1] and 0 < high <= MAX_SPREAD * low and MIN_SHARE <= share <= MAX_SHARE):
        return None
    return Mixture(share=share, ratio=float(ratio), spread=float(high / low))

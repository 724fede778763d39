"""The ROC of a score, with a band over groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelassay.statistics.classification import DRAWS
from modelassay.statistics.intervals import percentile
from modelassay.statistics.resampling import (
    Floats,
    Scored,
    group_counts,
    resampled,
    steps_of,
    tpr_reached,
)

# D = resamples, X = points of the grid of false-positive rates

FPR_GRID = np.unique(np.concatenate((np.zeros(1), np.geomspace(1e-3, 1, 61), np.linspace(0, 1, 101))))
"""Where `roc` is evaluated: even on a linear axis and on a logarithmic one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Roc:
    """A ROC with a pointwise 95 % band over groups."""

    fpr: Floats
    tpr: Floats
    """The largest true-positive rate of any threshold whose false-positive rate is at most ``fpr``: a step function. It ends
    short of 1 where positive pairs cannot be compared, which no threshold calls positive."""
    low: Floats
    """NaN where more than 5 % of the resamples are undefined."""
    high: Floats
    draws: int
    undefined: int
    """Resamples without positive or without negative pairs."""


def roc(scored: Scored, *, fpr: Floats = FPR_GRID, draws: int = DRAWS, seed: int = 0) -> Roc:
    """Return the ROC on a grid of false-positive rates with a pointwise band from resamples of the groups.

    Vertical averaging (Fawcett 2006): at each rate the spread of the TPR. The band is not simultaneous.

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], positive=[True, True, False, False], group_a=[0, 1, 0, 0], group_b=[0, 1, 1, 2])
    >>> roc(pairs, fpr=[0.0, 0.5, 1.0], draws=99).tpr
    array([0.5, 1. , 1. ])

    Raises:
        ValueError: there are no positive or no negative pairs, or a rate is not in [0, 1].
    """
    fpr_X = np.asarray(fpr, dtype=np.float64)
    if fpr_X.ndim != 1 or not ((fpr_X >= 0) & (fpr_X <= 1)).all():
        message = "roc: the false-positive rates must be numbers in [0, 1]"
        raise ValueError(message)
    if reason := scored.why_undefined():
        message = f"roc: {reason}"
        raise ValueError(message)
    counts_DR = group_counts(scored.groups.size, draws=draws, seed=seed)
    tpr_DX = np.concatenate([tpr_reached(steps, fpr_X) for steps in resampled(scored, counts_DR, scored.groups)])
    tpr_X = tpr_reached(steps_of(scored), fpr_X)[0]
    bands = [percentile(float(tpr), tpr_D) for tpr, tpr_D in zip(tpr_X, tpr_DX.T, strict=True)]
    low_X, high_X = (
        np.array([band.low for band in bands], dtype=float),
        np.array([band.high for band in bands], dtype=float),
    )
    return Roc(fpr=fpr_X, tpr=tpr_X, low=low_X, high=high_X, draws=draws,
               undefined=int(np.count_nonzero(np.isnan(tpr_DX[:, 0]))) if fpr_X.size else 0)  # fmt: skip

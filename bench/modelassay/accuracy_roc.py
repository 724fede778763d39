"""The ROC of a fingerprint, with a band over roots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelassay.accuracy import DRAWS
from modelassay.accuracy_bootstrap import (
    Floats,
    Scored,
    percentile_interval,
    resampled,
    root_counts,
    steps_of,
    tpr_reached,
)

# D = resamples, X = points of the grid of false-positive rates

FPR_GRID = np.unique(np.concatenate((np.zeros(1), np.geomspace(1e-3, 1, 61), np.linspace(0, 1, 101))))
"""Where `roc` is evaluated: even on a linear axis and on a logarithmic one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Roc:
    """A ROC with a pointwise 95 % band over roots."""

    fpr: Floats
    tpr: Floats
    """The largest true-positive rate of any threshold whose false-positive rate is at most ``fpr``: a step function. It ends
    short of 1 where related pairs cannot be compared, which no threshold calls related."""
    low: Floats
    """NaN where more than 5 % of the resamples are undefined."""
    high: Floats
    draws: int
    undefined: int
    """Resamples without related or without unrelated pairs."""


def roc(scored: Scored, *, fpr: Floats = FPR_GRID, draws: int = DRAWS, seed: int = 0) -> Roc:
    """Return the ROC on a grid of false-positive rates with a pointwise band from resamples of the roots.

    Vertical averaging (Fawcett 2006): at each rate the spread of the TPR. The band is not simultaneous.

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], related=[True, True, False, False], root_a=[0, 1, 0, 0], root_b=[0, 1, 1, 2])
    >>> roc(pairs, fpr=[0.0, 0.5, 1.0], draws=99).tpr
    array([0.5, 1. , 1. ])

    Raises:
        ValueError: there are no related or no unrelated pairs, or a rate is not in [0, 1].
    """
    fpr_X = np.asarray(fpr, dtype=np.float64)
    if fpr_X.ndim != 1 or not ((fpr_X >= 0) & (fpr_X <= 1)).all():
        message = "roc: the false-positive rates must be numbers in [0, 1]"
        raise ValueError(message)
    if reason := scored.why_undefined():
        message = f"roc: {reason}"
        raise ValueError(message)
    counts_DR = root_counts(scored.roots.size, draws=draws, seed=seed)
    tpr_DX = np.concatenate([tpr_reached(steps, fpr_X) for steps in resampled(scored, counts_DR, scored.roots)])
    bands = [percentile_interval(tpr_D) for tpr_D in tpr_DX.T]
    return Roc(fpr=fpr_X, tpr=tpr_reached(steps_of(scored), fpr_X)[0], low=np.array([band.low for band in bands]),
               high=np.array([band.high for band in bands]), draws=draws,
               undefined=int(np.count_nonzero(np.isnan(tpr_DX[:, 0]))) if fpr_X.size else 0)  # fmt: skip

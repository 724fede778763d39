"""How the rows of an embedding shrank that training hardly moved."""

# V = rows of an embedding, C = its columns, S = rows that moved least

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from modelassay.fingerprints.lineage.symmetries import Floats

STILL_ROWS = 0.02
"""Share of an embedding's rows, the least moved, whose decay is measured (Land and Bartolo's share of under-trained tokens)."""


def decay(x_VC: Floats, y_VC: Floats) -> tuple[float, float]:
    """Return `decay_of` two embeddings at hand."""
    return decay_of([(x_VC, y_VC)], lambda rows: (x_VC[rows], y_VC[rows]))


def decay_of(
    blocks: Iterable[tuple[Floats, Floats]], take: Callable[[NDArray[np.intp]], tuple[Floats, Floats]]
) -> tuple[float, float]:
    """Mean log ratio of the norms of the least moved rows, their mean removed, y to x, and its t over rows.

    Weight decay shrinks every row; what a token's own occurrences do to it hides that, and what the softmax does to all
    rows of unused tokens is nearly the same vector. So the rows that move least are taken, and their mean is removed.
    Costs one pass.

    Args:
        blocks: all rows of both, some at a time, in order.
        take: returns rows of both.
    """
    moved_V = np.concatenate([np.linalg.norm(y_VC - x_VC, axis=1) for x_VC, y_VC in blocks])
    still_S = np.argsort(moved_V, kind="stable")[: max(16, round(STILL_ROWS * len(moved_V)))]
    norms = [np.linalg.norm(side_SC - side_SC.mean(0), axis=1) for side_SC in take(still_S)]
    usable = (norms[0] > 0) & (norms[1] > 0)
    ratios = np.log(norms[1][usable] / norms[0][usable]).astype(float).tolist()
    return mean(ratios), t_of(ratios)


def mean(values: list[float]) -> float:
    """Return the mean; NaN of none."""
    return float(np.mean(values)) if values else math.nan


def t_of(values: list[float]) -> float:
    """Mean over its standard error; NaN under three values or where they do not vary."""
    if len(values) < 3:
        return math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) / error if error else math.nan

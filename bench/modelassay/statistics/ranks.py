"""P-values from ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE = 1e-12
"""Values this close count as equal: rounding must not turn an equal score into a smaller one."""


@dataclass(frozen=True)
class RankP:
    """A p-value from a rank, with the smallest value it could have taken."""

    p: float
    min_p: float


def p_of_rank(num_reached: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
    """Return (1 + number of null values that reach the observed one) / (1 + n); never 0. Phipson and Smyth 2010.

    >>> float(p_of_rank(2, 3))
    0.75
    """
    return np.asarray((1 + np.asarray(num_reached)) / (1 + np.asarray(n)), dtype=np.float64)


def rank_p(observed: float, null: ArrayLike) -> RankP:
    """Return the one-sided p-value (1 + #{null >= observed}) / (1 + n) and the smallest there is, 1 / (1 + n).

    The observed value counts as one draw of the null. Values within ``TIE`` of the observed one count as ties.

    Raises:
        ValueError: where the null is empty or a value is not finite; a rank among such values means nothing.

    >>> rank_p(0.9, [0.1, 0.9, 0.95])
    RankP(p=0.75, min_p=0.25)
    """
    values: NDArray[np.float64] = np.asarray(null, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(observed) or not np.isfinite(values).all():
        message = f"rank_p: needs a finite observed value and a finite, non-empty null, got {observed} and {values.size} values"
        raise ValueError(message)
    num_reached = int(np.count_nonzero(values >= observed - TIE))
    return RankP(p=float(p_of_rank(num_reached, values.size)), min_p=float(p_of_rank(0, values.size)))

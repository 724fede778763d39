"""Laws of a uniformly random permutation: how many fixed points it has, and how many inversions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

MOST_FIXED = 170
"""Fixed points of one permutation beyond which the probability, below 1 / count!, underflows."""
EXACT_INVERSIONS = 150
"""Units up to which the law of inversions is computed term by term."""


def fixed_points_log_p(count: int, matched: Sequence[int], sizes: Sequence[int]) -> float:
    """Return the natural logarithm of P(S >= count), S the fixed points of independent random injections together.

    Injection g maps ``matched[g]`` units to different ones of ``sizes[g]``, uniformly; it is a permutation where the two
    are equal. Of one, the binomial moments are E[C(F, j)] = C(m, j) (n - j)! / n!, from which inclusion and exclusion gives
    P(F = k); the sum is their convolution, exact down to 1e-290. Below that Chernoff's bound of the Poisson law of rate
    sum(m / n), whose binomial moments are nowhere smaller.

    >>> round(math.exp(fixed_points_log_p(1, [3], [3])), 6)  # 4 of the 6 permutations of three have a fixed point
    0.666667
    >>> round(math.exp(fixed_points_log_p(2, [1, 1], [2, 5])), 6)
    0.1
    """
    if count <= 0:
        return 0.0
    rate = sum(m / n for m, n in zip(matched, sizes, strict=True) if n)
    if count > sum(matched) or rate == 0:
        return -math.inf
    total = np.ones(1)
    for m, n in zip(matched, sizes, strict=True):
        total = np.convolve(total, _fixed_points(m, n))
    tail = float(total[count:].sum()) if count < total.size else 0.0
    return min(0.0, math.log(tail)) if tail > 1e-290 else poisson_tail_log_bound(count, rate)


def poisson_tail_log_bound(count: int, rate: float) -> float:
    """Return Chernoff's bound on the natural logarithm of P(X >= count), X of a Poisson law; 0 where the count is not above the rate.

    >>> round(poisson_tail_log_bound(20, 5.0), 4), poisson_tail_log_bound(3, 5.0)
    (-12.7259, 0.0)
    """
    return 0.0 if count <= rate else -(rate - count + count * math.log(count / rate))


@lru_cache(maxsize=4096)
def _fixed_points(matched: int, size: int) -> NDArray[np.float64]:
    """P(F = k) for k = 0 up to ``matched`` or `MOST_FIXED`: sum over i of (-1)^i C(k + i, k) E[C(F, k + i)]."""
    most = min(matched, MOST_FIXED)
    moments = np.ones(most + 1)
    for j in range(1, most + 1):
        moments[j] = moments[j - 1] * (matched - j + 1) / ((size - j + 1) * j)
    law = np.zeros(most + 1)
    for k in range(most + 1):
        terms = [(-1) ** i * moments[k + i] * math.comb(k + i, k) for i in range(min(most - k, 30) + 1)]
        law[k] = max(math.fsum(terms), 0.0)
    return law


def inversions(order: Sequence[int] | NDArray[np.intp]) -> int:
    """Return how many pairs of ``order`` stand in falling order; O(n^2 / 64) in memory of n bits.

    >>> inversions([0, 1, 2]), inversions([2, 1, 0]), inversions([1, 0, 2])
    (0, 3, 1)
    """
    values = np.asarray(order)
    return sum(int((values[at + 1 :] < values[at]).sum()) for at in range(values.size))


def inversions_log_p(count: int, sizes: Sequence[int]) -> float:
    """Return the natural logarithm of P(I <= count), I the inversions of independent random permutations together, or a bound.

    Exact for one permutation of at most `EXACT_INVERSIONS` (the Mahonian law: the j-th unit adds 0 to j - 1, uniformly);
    else Chernoff's bound over its generating function, which is at most some tens of times too large.

    >>> round(math.exp(inversions_log_p(0, [4])), 6)  # one order of 24
    0.041667
    >>> round(math.exp(inversions_log_p(1, [3])), 6)
    0.5
    """
    mean = sum(n * (n - 1) / 4 for n in sizes)
    if len(sizes) == 1 and sizes[0] <= EXACT_INVERSIONS:
        law = _mahonian(sizes[0])
        return 0.0 if count >= law.size - 1 else math.log(float(law[: count + 1].sum()))
    if count >= mean:
        return 0.0
    steps = np.concatenate([np.arange(1, n + 1, dtype=float) for n in sizes])

    def exponent(log_tilt: float) -> float:
        tilt = math.exp(log_tilt)
        return tilt * count + float(
            (np.log(-np.expm1(-steps * tilt)) - np.log(steps) - math.log(-math.expm1(-tilt))).sum()
        )

    best = minimize_scalar(exponent, bounds=(-25.0, 4.0), method="bounded", options={"xatol": 1e-6})
    return min(0.0, float(best.fun))


@lru_cache(maxsize=16)
def _mahonian(size: int) -> NDArray[np.float64]:
    law = np.ones(1)
    for j in range(2, size + 1):
        law = np.convolve(law, np.full(j, 1.0 / j))
    return law

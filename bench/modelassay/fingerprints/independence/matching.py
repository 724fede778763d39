"""Which unit of one model is which of another, by content alone, and what a matching says of their numbering."""

# M = units matched, N = units of the model with more of them, F = features

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from modelassay.fingerprints.independence.matrices import Floats, row_products
from modelassay.statistics.permutations import fixed_points_log_p, inversions, inversions_log_p

MAX_UNITS = 1024
"""Units of one group that are matched; more would cost time and change p from 1e-1000 to 1e-2000."""

MAX_CANDIDATES = 2048
"""Neurons that are read of networks of one width: the first ones of both. A copy has the partner of each among them, and under
independent numbering any part of the numbers is as random as all of them."""

Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Units of the model with fewer of them, and the unit of the other that each was matched to."""

    units: Indices
    """Numbers in the smaller model, ascending, [M]."""
    partners: Indices
    """Numbers in the larger, all different, [M]."""
    sizes: tuple[int, int]
    """Units of the smaller and of the larger that could have been matched."""

    @property
    def fixed(self) -> int:
        """Units matched to their own number."""
        return int((self.units == self.partners).sum())


@dataclass(frozen=True, kw_only=True)
class NumberingTest:
    """One exact test that two models were numbered independently: under it every matching is equally likely."""

    name: str
    statistic: str
    """``fixed points``, or ``inversions`` where one model has more units than the other."""
    count: int
    of: int
    """Units matched, or pairs of them in the case of inversions."""
    expected: float
    """Mean of the count under independent numbering."""
    log10_p: float
    groups: int
    """Matchings that the count sums over: networks of layers; 1 for hidden dimensions."""


def match_units(first: Sequence[Floats], second: Sequence[Floats], *, seed: int) -> Matching | None:
    """Match the rows of one model's matrices to those of another's, one to one, by the sum of absolute cosines over the matrices.

    ``first`` and ``second`` are as many matrices, [units, features] each. Both models' units are shuffled before: an
    assignment breaks ties by position, and units that are all alike would be matched to their own number by the
    algorithm instead of by chance. Units that are zero or not finite in any matrix are left out.

    None where fewer than two units remain. Costs a product and an assignment, O(M^2 N).
    """
    random = np.random.default_rng(seed)
    small, large = (first, second) if len(first[0]) <= len(second[0]) else (second, first)
    small_units, large_units = (_usable(matrices, random) for matrices in (small, large))
    sizes = len(small_units), len(large_units)
    small_units = small_units[:MAX_UNITS]
    if not 2 <= len(small_units) <= len(large_units):
        return None
    similarity_MN = np.zeros((len(small_units), len(large_units)), dtype=np.float32)
    for a_MF, b_NF in zip(small, large, strict=True):
        similarity_MN += np.abs(_unit(a_MF[small_units]) @ _unit(b_NF[large_units]).T)
    return _assigned(similarity_MN, small_units, large_units, sizes)


def match_features(first: Floats, second: Floats, *, seed: int) -> Matching | None:
    """Match units by the distance of their features, [units, F], each standardised over a model's units; else as `match_units`."""
    random = np.random.default_rng(seed)
    small, large = (first, second) if len(first) <= len(second) else (second, first)
    small_units, large_units = (_usable([features], random) for features in (small, large))
    sizes = len(small_units), len(large_units)
    if not 2 <= sizes[0] <= sizes[1]:
        return None
    a_MF, b_NF = _standardised(small, small_units), _standardised(large, large_units)
    a_MF, small_units = a_MF[:MAX_UNITS], small_units[:MAX_UNITS]
    distance_MN = (a_MF * a_MF).sum(1)[:, None] + (b_NF * b_NF).sum(1) - 2 * (a_MF @ b_NF.T)
    return _assigned(-distance_MN, small_units, large_units, sizes)


def _usable(matrices: Sequence[Floats], random: np.random.Generator) -> Indices:
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.stack([row_products(matrix, matrix) for matrix in matrices])
    usable: Indices = np.flatnonzero((np.isfinite(norms) & (norms > 0)).all(0))
    return random.permutation(usable)


def _unit(rows: Floats) -> Floats:
    scaled: Floats = (rows / np.sqrt(row_products(rows, rows))[:, None]).astype(np.float32)
    return scaled


def _standardised(features: Floats, units: Indices) -> Floats:
    chosen = features[units].astype(np.float64)
    spread = chosen.std(0)
    scaled: Floats = ((chosen - chosen.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    return scaled


def _assigned(similarity_MN: Floats, small_units: Indices, large_units: Indices, sizes: tuple[int, int]) -> Matching:
    rows, columns = linear_sum_assignment(similarity_MN, maximize=True)
    order = np.argsort(small_units[rows])
    return Matching(units=small_units[rows][order], partners=large_units[columns][order], sizes=sizes)


def numbering_test(name: str, matchings: Sequence[Matching]) -> NumberingTest | None:
    """Return the exact test over independent matchings; None without one.

    Models of equal size are tested by fixed points. Where one has fewer units, it may keep a part of the other's in their
    order, so the inversions of the matched numbers are counted instead.
    """
    if not matchings:
        return None
    if all(matching.sizes[0] == matching.sizes[1] for matching in matchings):
        matched, sizes = [len(m.units) for m in matchings], [m.sizes[1] for m in matchings]
        count = sum(matching.fixed for matching in matchings)
        log_p = fixed_points_log_p(count, matched, sizes)
        return NumberingTest(
            name=name, statistic="fixed points", count=count, of=sum(matched), groups=len(matchings),
            expected=sum(m / n for m, n in zip(matched, sizes, strict=True)), log10_p=log_p / math.log(10),
        )  # fmt: skip
    lengths = [len(matching.units) for matching in matchings]
    count = sum(inversions(matching.partners) for matching in matchings)
    pairs = sum(length * (length - 1) // 2 for length in lengths)
    return NumberingTest(
        name=name, statistic="inversions", count=count, of=pairs, groups=len(matchings), expected=pairs / 2,
        log10_p=inversions_log_p(count, lengths) / math.log(10),
    )  # fmt: skip

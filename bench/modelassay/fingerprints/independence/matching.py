"""Which unit of one model is which of another, by content alone, and what a matching says of their numbering."""

# M = units matched, N = units of the model with more of them, F = features
# B = blocks of neighbours, P = orders of one block

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from modelassay.fingerprints.independence.matrices import Floats, row_products
from modelassay.statistics.permutations import fixed_points_log_p, inversions, inversions_log_p

MAX_UNITS = 1024
"""Units of one group that are matched; more would cost time and change p from 1e-1000 to 1e-2000. Of networks of one width the first
ones of both."""

MAX_CANDIDATES = 2048
"""Neurons that are read of networks of one width where two matchings are compared: the first ones of both. A copy has the partner of
each among them, and under independent numbering any part of the numbers is as random as all of them."""

NEIGHBOURS = 4
"""Units with consecutive numbers that are matched among themselves, for the second half of a test."""

MAX_COPIES = 4
"""Times that one unit may be repeated in a model and still say something: one of each is kept. More of them are padding."""

_ORDERS_PB = np.array(list(itertools.permutations(range(NEIGHBOURS))))
_CHUNK = 2048

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
    near: tuple[int, int]
    """Units matched to their own number, and all, where each block of `NEIGHBOURS` was matched within itself; (0, 0) at unequal sizes."""

    @property
    def fixed(self) -> int:
        """Units matched to their own number."""
        return int((self.units == self.partners).sum())


@dataclass(frozen=True, kw_only=True)
class NumberingTest:
    """One exact test that two models were numbered independently: under it every matching is equally likely.

    It has two halves, and the larger of their p-values is the test's. Over all units alone, two strangers whose units
    were both sorted by size would be rejected: the rank of a unit tells its number. Among neighbours it tells next to nothing.
    """

    name: str
    statistic: str
    """``fixed points``, or ``inversions`` where one model has more units than the other."""
    count: int
    of: int
    """Units matched, or pairs of them in the case of inversions."""
    expected: float
    """Mean of the count under independent numbering."""
    log10_p: float
    """The larger of both halves'."""
    groups: int
    """Matchings that the count sums over: networks of layers; 1 for hidden dimensions."""
    near_count: int
    """The same count among blocks of `NEIGHBOURS` units with consecutive numbers."""
    near_of: int
    near_expected: float
    all_log10_p: float
    """Of the half over all units alone."""


def match_units(
    first: Sequence[Floats], second: Sequence[Floats], *, seed: int, ties: int = 0, by_cosine: bool = False
) -> Matching | None:
    """Match the rows of one model's matrices to those of another's, one to one, by how far their products lie from chance.

    The similarity of two units is the sum over the matrices of |sum_f a_f b_f| / sqrt(sum_f a_f^2 b_f^2): a product in units of
    its spread if signs were random. Unlike the cosine it does not grow where both have large entries, or any, at
    the same places, as strangers have under one mask or one scale per column.

    ``first`` and ``second`` are as many matrices, [units, features] each. Both models' units are shuffled before: an
    assignment breaks ties by position, and units that are all alike would be matched to their own number by the
    algorithm instead of by chance. Units that are zero or not finite in any matrix are left out, and copies of others (`MAX_COPIES`).

    ``by_cosine`` sums absolute cosines instead, for matchings whose numbers do not count: a copy has the largest at any width.

    ``seed`` draws which units are compared where they are many, ``seed`` and ``ties`` how ties are broken.

    None where fewer than two units remain. Costs two products and an assignment, O(M^2 N).
    """
    random = np.random.default_rng(seed)
    small, large = (first, second) if len(first[0]) <= len(second[0]) else (second, first)
    small_units, large_units = (_usable(matrices, random) for matrices in (small, large))
    sizes = len(small_units), len(large_units)
    random = np.random.default_rng([seed, ties])
    small_units, large_units = random.permutation(small_units[:MAX_UNITS]), random.permutation(large_units)
    if not 2 <= len(small_units) <= len(large_units):
        return None
    similarity_MN = np.zeros((len(small_units), len(large_units)), dtype=np.float32)
    for a_UF, b_UF in zip(small, large, strict=True):
        similarity_MN += _similarity(a_UF, small_units, b_UF, large_units, by_cosine=by_cosine)
    return _assigned(similarity_MN, small_units, large_units, sizes, random)


def match_features(first: Floats, second: Floats, *, seed: int) -> Matching | None:
    """Match units by the distance of their features, [units, F], each standardised over a model's units; else as `match_units`.

    None too where the two have other features, as networks with a gate and without have.
    """
    if first.shape[1] != second.shape[1]:
        return None
    random = np.random.default_rng(seed)
    small, large = (first, second) if len(first) <= len(second) else (second, first)
    small_units, large_units = (_usable([features], random) for features in (small, large))
    sizes = len(small_units), len(large_units)
    if not 2 <= sizes[0] <= sizes[1]:
        return None
    a_MF, b_NF = _standardised(small, small_units), _standardised(large, large_units)
    a_MF, small_units = a_MF[:MAX_UNITS], small_units[:MAX_UNITS]
    distance_MN = (a_MF * a_MF).sum(1)[:, None] + (b_NF * b_NF).sum(1) - 2 * (a_MF @ b_NF.T)
    return _assigned(-distance_MN, small_units, large_units, sizes, random)


def _usable(matrices: Sequence[Floats], random: np.random.Generator) -> Indices:
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.stack([row_products(matrix, matrix) for matrix in matrices])
    usable: Indices = np.flatnonzero((np.isfinite(norms) & (norms > 0)).all(0))
    return random.permutation(_without_copies(matrices, norms, usable))


def _without_copies(matrices: Sequence[Floats], norms: NDArray[np.float64], usable: Indices) -> Indices:
    """Leave out what repeats another unit bit by bit: which of the copies is matched to which is decided by their order alone."""
    _, groups, counts = np.unique(norms[:, usable], axis=1, return_inverse=True, return_counts=True)
    repeated = usable[counts[groups.ravel()] > 1]
    copies: dict[bytes, list[int]] = {}
    for unit in repeated.tolist():
        copies.setdefault(b"".join(matrix[unit].tobytes() for matrix in matrices), []).append(unit)
    dropped = [
        unit for units in copies.values() for unit in units[1 if len(units) <= MAX_COPIES else 0 :] if len(units) > 1
    ]
    return np.setdiff1d(usable, np.asarray(dropped, dtype=np.intp))


def _similarity(a_UF: Floats, a_units: Indices, b_UF: Floats, b_units: Indices, *, by_cosine: bool) -> Floats:
    """Return the similarity of some rows of two matrices, each of norm 1: [M, N]; `_CHUNK` features of them are held at once."""
    product_MN = np.zeros((len(a_units), len(b_units)), dtype=np.float32)
    spread_MN = np.zeros_like(product_MN)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # of rows that are not chosen
        scales = [
            (1 / np.sqrt(row_products(rows, rows)))[units, None] for rows, units in ((a_UF, a_units), (b_UF, b_units))
        ]
    for at in range(0, a_UF.shape[1], _CHUNK):
        a_MC, b_NC = (
            (rows[units, at : at + _CHUNK] * scale).astype(np.float32)
            for rows, units, scale in ((a_UF, a_units, scales[0]), (b_UF, b_units, scales[1]))
        )
        product_MN += a_MC @ b_NC.T
        if not by_cosine:
            spread_MN += np.square(a_MC, out=a_MC) @ np.square(b_NC, out=b_NC).T
    np.abs(product_MN, out=product_MN)
    if not by_cosine:
        spread_MN += np.float32(1e-30)  # units without an entry in common
        product_MN /= np.sqrt(spread_MN, out=spread_MN)
    return product_MN


def _standardised(features: Floats, units: Indices) -> Floats:
    chosen = features[units].astype(np.float64)
    spread = chosen.std(0)
    scaled: Floats = ((chosen - chosen.mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    return scaled


def _assigned(similarity_MN: Floats, small_units: Indices, large_units: Indices, sizes: tuple[int, int],
              random: np.random.Generator) -> Matching:  # fmt: skip
    rows, columns = linear_sum_assignment(similarity_MN, maximize=True)
    order = np.argsort(small_units[rows])
    near = _near(similarity_MN, small_units, large_units, random) if sizes[0] == sizes[1] else (0, 0)
    return Matching(units=small_units[rows][order], partners=large_units[columns][order], sizes=sizes, near=near)


def _near(
    similarity_MN: Floats, small_units: Indices, large_units: Indices, random: np.random.Generator
) -> tuple[int, int]:
    """Match each block of consecutive units of both within itself; return how many met their own number, and of how many."""
    _, rows, columns = np.intersect1d(small_units, large_units, assume_unique=True, return_indices=True)
    blocks = len(rows) // NEIGHBOURS
    if not blocks:
        return 0, 0
    rows_B4, columns_B4 = (places[: blocks * NEIGHBOURS].reshape(blocks, NEIGHBOURS) for places in (rows, columns))
    shuffle_B4 = random.permuted(np.tile(np.arange(NEIGHBOURS), (blocks, 1)), axis=1)  # ties are broken by chance
    shuffled_B4 = np.take_along_axis(columns_B4, shuffle_B4, axis=1)
    similarity_B44 = similarity_MN[rows_B4[:, :, None], shuffled_B4[:, None, :]].astype(np.float64)
    sums_BP = sum(similarity_B44[:, at, _ORDERS_PB[:, at]] for at in range(NEIGHBOURS))
    best_B4 = np.take_along_axis(shuffle_B4, _ORDERS_PB[np.argmax(sums_BP, axis=1)], axis=1)
    return int((best_B4 == np.arange(NEIGHBOURS)).sum()), blocks * NEIGHBOURS


def numbering_test(name: str, matchings: Sequence[Matching]) -> NumberingTest | None:
    """Return the exact test over independent matchings; None without one.

    Models of equal size are tested by fixed points. Where one has fewer units, it may keep a part of the other's in their
    order, so the inversions of the matched numbers are counted instead. Both are counted among all units and among
    neighbours, and both must be unlikely.
    """
    if not matchings:
        return None
    if all(matching.sizes[0] == matching.sizes[1] for matching in matchings):
        matched, sizes = [len(m.units) for m in matchings], [m.sizes[1] for m in matchings]
        count = sum(matching.fixed for matching in matchings)
        near_count, near_of = (sum(matching.near[side] for matching in matchings) for side in (0, 1))
        blocks = [NEIGHBOURS] * (near_of // NEIGHBOURS)
        log_p, near_log_p = fixed_points_log_p(count, matched, sizes), fixed_points_log_p(near_count, blocks, blocks)
        return NumberingTest(
            name=name, statistic="fixed points", count=count, of=sum(matched), groups=len(matchings),
            expected=sum(m / n for m, n in zip(matched, sizes, strict=True)), log10_p=max(log_p, near_log_p) / math.log(10),
            near_count=near_count, near_of=near_of, near_expected=len(blocks), all_log10_p=log_p / math.log(10),
        )  # fmt: skip
    lengths = [len(matching.units) for matching in matchings]
    count = sum(inversions(matching.partners) for matching in matchings)
    pairs = sum(length * (length - 1) // 2 for length in lengths)
    blocks = [NEIGHBOURS] * sum(length // NEIGHBOURS for length in lengths)
    near_count = sum(_near_inversions(matching.partners) for matching in matchings)
    near_of = len(blocks) * NEIGHBOURS * (NEIGHBOURS - 1) // 2
    log_p, near_log_p = inversions_log_p(count, lengths), inversions_log_p(near_count, blocks) if blocks else 0.0
    return NumberingTest(
        name=name, statistic="inversions", count=count, of=pairs, groups=len(matchings), expected=pairs / 2,
        log10_p=max(log_p, near_log_p) / math.log(10), near_count=near_count, near_of=near_of, near_expected=near_of / 2,
        all_log10_p=log_p / math.log(10),
    )  # fmt: skip


def _near_inversions(partners: Indices) -> int:
    blocks_B4 = partners[: len(partners) // NEIGHBOURS * NEIGHBOURS].reshape(-1, NEIGHBOURS)
    return sum(int((blocks_B4[:, i] > blocks_B4[:, j]).sum()) for i, j in itertools.combinations(range(NEIGHBOURS), 2))

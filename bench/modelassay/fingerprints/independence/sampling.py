"""Were two models numbered independently, by a few rows of each? More are read only while the answer is open.

Any part of the numbers is as random as all of them: where B was numbered independently of A, the units of one block of
numbers, the same in both, are matched by content to a uniformly random permutation of the block. So the tests of
`independence` are exact on blocks of rows too, and consecutive rows are one range of a file. The rule in stages spends the
level over its looks (Bonferroni): whatever their dependence, the chance of an error is at most the level.
See docs/methods/independence.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from modelassay.fingerprints.independence.blocks import Block, Role, SampledModel, block_begin, places_of
from modelassay.fingerprints.independence.matching import Matching, NumberingTest, match_units, numbering_test
from modelassay.fingerprints.independence.matrices import Floats
from modelassay.models.checkpoints.prepare import need
from modelassay.statistics.estimate import LEVEL, Estimate

LOOKS = (32, 64, 128)
"""Rows of each matrix that have been read at each look: of a model of 1 billion weights 0.1, 0.2 and 0.4 %."""

SPENDING = (0.5, 0.25, 0.25)
"""Shares of the level that the looks may use up; they sum to 1."""

NUM_TESTS = 3
"""Tests of each look that its p-value is corrected for (Bonferroni), whether or not all could be made."""

MAX_DIMENSIONS = 512
"""Hidden dimensions, consecutive ones, that are matched by the columns of what was read."""

SEED = 0
"""Where blocks begin; one for all, so that what was read of a model serves in every pair."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What had been read at one look, and what it said."""

    num_rows: int
    """Of each matrix, at most."""
    num_bytes: tuple[int, int]
    """Read so far of each model's weights."""
    tests: tuple[NumberingTest, ...]
    log10_p: float
    """Of the strongest test, corrected for the tests and for what this look may spend; 0 at most."""


@dataclass(frozen=True, kw_only=True)
class SampledIndependence:
    """What blocks of rows say of the independence of two models."""

    looks: tuple[Look, ...]
    reasons: tuple[str, ...]
    """Why a test could not be made, one sentence each."""

    @property
    def log10_p(self) -> float:
        """log10 of the p-value over all looks that were made: its chance of being at most x is at most x where the null holds."""
        return min((look.log10_p for look in self.looks), default=0.0)

    @property
    def strongest(self) -> NumberingTest | None:
        """The strongest test of the look that decided; None where no test could be made."""
        look = min(self.looks, key=lambda look: look.log10_p, default=None)
        return None if look is None else min(look.tests, key=lambda test: test.log10_p, default=None)


@dataclass(frozen=True, kw_only=True)
class SampledSigma:
    """The standard deviation of one matrix, from some of its rows."""

    layer: int
    role: Role
    sigma: Estimate


def sampled_independence(a: SampledModel, b: SampledModel, *, alpha: float, seed: int = SEED) -> SampledIndependence:
    """Test whether two models were numbered independently, by as few rows as decide it at ``alpha``.

    1. Neurons matched by their rows of gate and up.
    2. Hidden dimensions matched by the columns of the rows of q, gate and up.
    3. Hidden dimensions matched by their rows of o.

    (Where a format stores inputs first, the same matrices serve in other tests.) Costs the rows of `LOOKS`, some products and
    assignments of at most `MAX_DIMENSIONS` units. Exchanging the arguments gives the same p.

    Raises:
        CheckpointError: a model cannot be read.
        HostError: the Hub cannot be reached, or the cache cannot be written.
    """
    looks: list[Look] = []
    for count, share in zip(LOOKS, SPENDING, strict=True):
        places = places_of(a, b, count, most=LOOKS[-1], seed=seed)
        if not places[0] or (looks and count > LOOKS[0] and _is_all(places, looks[-1].num_rows)):
            break
        num_bytes = tuple(need(model.spans(rows)).wanted_bytes for model, rows in zip((a, b), places, strict=True))
        blocks = [model.read(rows) for model, rows in zip((a, b), places, strict=True)]
        pairs = list(zip(blocks[0].values(), blocks[1].values(), strict=True))
        by_layer = _by_layer(blocks)
        made = {
            "neurons by rows": [m for pairs_of_layer in by_layer for m in _neurons(pairs_of_layer, seed)],
            "hidden dimensions by columns": _dimensions(pairs, seed, along="columns"),
            "hidden dimensions by rows": _dimensions(pairs, seed, along="rows"),
        }
        tests = tuple(test for name, group in made.items() if (test := numbering_test(name, group)) is not None)
        strongest = min((test.log10_p for test in tests), default=0.0)
        log10_p = min(0.0, strongest + math.log10(NUM_TESTS / share)) if tests else 0.0
        looks.append(Look(num_rows=count, num_bytes=(num_bytes[0], num_bytes[1]), tests=tests, log10_p=log10_p))
        if log10_p <= math.log10(alpha):
            break
    return SampledIndependence(looks=tuple(looks), reasons=tuple(_reasons(a, b, looks)))


def _is_all(places: Sequence[dict[tuple[int, Role], tuple[int, int]]], before: int) -> bool:
    """Return whether the last look had read all rows already."""
    return all(count <= before for _, count in places[0].values())


def _by_layer(blocks: Sequence[dict[tuple[int, Role], Block]]) -> list[list[tuple[Block, Block]]]:
    """Return the pairs of blocks of the feed-forward networks, by layer."""
    layers: dict[int, list[tuple[Block, Block]]] = {}
    for (layer, role), first, second in zip(blocks[0], blocks[0].values(), blocks[1].values(), strict=True):
        if role in ("gate", "up"):
            layers.setdefault(layer, []).append((first, second))
    return list(layers.values())


def _neurons(pairs: Sequence[tuple[Block, Block]], seed: int) -> Iterator[Matching]:
    sides: tuple[list[Floats], list[Floats]] = ([], [])
    for blocks in pairs:
        for side, block in zip(sides, blocks, strict=True):
            side.append(block.rows_nC if block.row_axis == "neurons" else _columns(block, seed))
    if pairs and (matching := match_units(*sides, seed=seed)) is not None:
        yield matching


def _dimensions(pairs: Sequence[tuple[Block, Block]], seed: int, *, along: str) -> list[Matching]:
    """Match hidden dimensions by all blocks that hold them ``along`` rows or columns, each block of norm 1."""
    sides: tuple[list[Floats], list[Floats]] = ([], [])
    for first, second in pairs:
        if (first.row_axis if along == "rows" else first.column_axis) != "dimensions":
            continue
        units = [block.rows_nC if along == "rows" else _columns(block, seed) for block in (first, second)]
        norms = [float(np.linalg.norm(unit)) for unit in units]
        if all(0 < norm < math.inf for norm in norms):
            for side, unit, norm in zip(sides, units, norms, strict=True):
                side.append(unit / norm)
    if not sides[0]:
        return []
    matching = match_units([np.concatenate(sides[0], 1)], [np.concatenate(sides[1], 1)], seed=seed)
    return [] if matching is None else [matching]


def _columns(block: Block, seed: int) -> Floats:
    """Return consecutive columns of a block as rows, the same in blocks of one width."""
    columns = block.rows_nC.shape[1]
    begin = block_begin(columns, MAX_DIMENSIONS, [seed, 3])
    return np.ascontiguousarray(block.rows_nC[:, begin : begin + MAX_DIMENSIONS].T)


def _reasons(a: SampledModel, b: SampledModel, looks: Sequence[Look]) -> Iterator[str]:
    names = {test.name for look in looks for test in look.tests}
    lacking = {
        "neurons by rows": "no feed-forward network of one shape in both could be read",
        "hidden dimensions by columns": "no matrix of one shape in both could be read",
        "hidden dimensions by rows": "no matrix of one shape in both could be read",
    }
    widths = "" if a.width == b.width else f" ({a.width} and {b.width} hidden dimensions)"
    yield from (f"{name}: {why}{widths}" for name, why in lacking.items() if name not in names)


def sampled_sigmas(model: SampledModel, num_rows: int, *, seed: int = SEED) -> list[SampledSigma]:
    """Return the standard deviations of the sampled matrices whose rows may stand for each other, with intervals.

    Those of q are of a few heads, which say nothing of the others, and are left out.
    """
    places = places_of(model, model, num_rows, most=LOOKS[-1], seed=seed)[0]
    stored = {place: rows for place, rows in places.items() if place[1] != "q"}
    return [
        SampledSigma(layer=layer, role=role, sigma=sigma_of_rows(block.rows_nC, block.of))
        for (layer, role), block in model.read(stored, after_norm=False).items()
        if block.row_axis != "heads"
    ]


def sigma_of_rows(rows_nC: Floats, num_rows: int) -> Estimate:
    """Estimate the standard deviation of a matrix of ``num_rows`` rows from some of them.

    The interval is Student's over the rows' mean squares, for the logarithm, narrower by the share that was read: it holds
    where rows were numbered at random, as those of neurons and hidden dimensions are, and not where they were sorted.
    """
    values = rows_nC.astype(np.float64)
    squares_n = np.square(values - values.mean()).mean(1)
    variance, count = float(squares_n.mean()), len(squares_n)
    if count < 2 or not 0 < variance < math.inf:
        return Estimate(
            value=math.sqrt(variance) if variance >= 0 else math.nan,
            n=count,
            note="no interval: too few rows, or no spread",
        )
    error = float(squares_n.std(ddof=1)) / math.sqrt(count) * math.sqrt(max(0.0, 1 - count / num_rows))
    half = float(student.ppf((1 + LEVEL) / 2, count - 1)) * error / (2 * variance)
    sigma = math.sqrt(variance)
    return Estimate(
        value=sigma, low=sigma * math.exp(-half), high=sigma * math.exp(half), level=LEVEL, method="Student", n=count
    )

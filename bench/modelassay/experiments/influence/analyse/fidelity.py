"""Linear datamodeling score (Park et al. 2303.14186): do a subset's summed scores order the losses of models that were trained on it?

For query q the score is Spearman's correlation, over subsets, between the sum of the scores of the subset's rows and minus the mean
loss over its retrainings; the LDS is the mean over queries. The damping of each method is the one with the best LDS on the first
``tuning_subsets``, and what is reported is of the others. Intervals resample subsets and queries, both, with replacement (crossed);
differences resample the same for both methods. The ceiling is the LDS that another retraining of the same subsets would have.
"""

# S: subsets, R: repeats, Q: queries, D: resamples

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from modelassay.experiments.findings import Finding
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.intervals import percentile

Floats = NDArray[np.float64]
DRAWS = 1000
BASE = "identity"
"""What every other method is compared with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One cell's subsets, and each method at the damping that was chosen for it."""

    cell: str
    losses_SRQ: Floats
    """Of the subsets that are reported on."""
    sums_SQ: Mapping[str, Floats]
    """By method, at its chosen damping, of the same subsets."""
    chosen: Mapping[str, float | None]
    curve: Mapping[str, Mapping[float, float]]
    """Method to LDS on the tuning subsets by damping."""
    num_tuning: int


def spearman_columns(one_SQ: Floats, other_SQ: Floats) -> Floats:
    """Return Spearman's correlation of each pair of columns, [Q]; NaN of a column whose values are all equal.

    >>> spearman_columns(np.array([[1.0], [2.0], [9.0]]), np.array([[3.0], [5.0], [6.0]])).tolist()
    [1.0]
    """
    a, b = (rankdata(values, axis=0) for values in (one_SQ, other_SQ))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = (a * b).sum(axis=0) / np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return result


def lds(sums_SQ: Floats, losses_SRQ: Floats) -> float:
    """Return the mean over queries of the correlation between summed scores and minus the mean loss; a constant column counts as 0."""
    return float(np.nan_to_num(spearman_columns(sums_SQ, -losses_SRQ.mean(axis=1))).mean())


def judged(tables: RunData) -> list[Judged]:
    """Return what each cell that retrained on subsets tells."""
    cells = []
    for fact in tables.facts("subset-losses"):
        row = tables.cells.filter(tables.cells["cell"] == fact["cell"]).to_dicts()[0]
        part = row["part"]
        tuning = row.get(f"parts.{part}.tuning_subsets")
        num_tuning = int(row["tuning_subsets"] if tuning is None else tuning)
        losses_SRQ = np.array(fact["value"], dtype=np.float64)
        by_method: dict[str, dict[float | None, Floats]] = {}
        for sums in tables.facts("subset-sums"):
            if sums["cell"] == fact["cell"]:
                by_method.setdefault(sums["method"], {})[sums.get("damping")] = np.array(
                    sums["value"], dtype=np.float64
                )
        curve = {method: {damping: lds(each[:num_tuning], losses_SRQ[:num_tuning]) for damping, each in by.items() if damping is not None}
                 for method, by in by_method.items()} if num_tuning >= 3 else {}  # fmt: skip
        chosen = {method: _best(curve.get(method, {}), by, row["damping"]) for method, by in by_method.items()}
        cells.append(Judged(cell=fact["cell"], losses_SRQ=losses_SRQ[num_tuning:], num_tuning=num_tuning, chosen=chosen,
                            sums_SQ={method: by[chosen[method]][num_tuning:] for method, by in by_method.items()},
                            curve={method: points for method, points in curve.items() if points}))  # fmt: skip
    return cells


def _best(curve: Mapping[float, float], by: Mapping[float | None, Floats], damping: float) -> float | None:
    """The damping with the best LDS, the smaller of equals; without a curve the one that is stated, where it was scored."""
    if curve:
        return max(sorted(curve), key=curve.__getitem__)
    return None if None in by else damping if damping in by else next(iter(by))


def ceiling(losses_SRQ: Floats) -> float:
    """Return what the LDS of another mean over as many repeats would be: the correlation of two halves of the repeats, stepped up to all of them.

    Spearman and Brown: of r between single repeats, R of them have reliability R r / (1 + (R - 1) r); NaN with one repeat.
    """
    repeats = losses_SRQ.shape[1]
    if repeats < 2:
        return math.nan
    pairs = [
        np.nan_to_num(spearman_columns(losses_SRQ[:, i], losses_SRQ[:, j])).mean()
        for i in range(repeats)
        for j in range(i)
    ]
    single = float(np.mean(pairs))
    return math.sqrt(max(0.0, repeats * single / (1 + (repeats - 1) * single))) if single > -1 else math.nan


def fidelity_findings(cells: Sequence[Judged]) -> list[Finding]:
    """Return ``lds[method]``, ``lds_over_ceiling[method]``, ``lds_minus_identity[method]``, ``lds_ceiling``, ``damping_chosen[method]`` of each cell."""
    findings: list[Finding] = []
    for each in cells:
        num_subsets, num_repeats, num_queries = each.losses_SRQ.shape
        top = ceiling(each.losses_SRQ)
        label: dict[str, Any] = {"cell": each.cell} if len(cells) > 1 else {}
        about = f"{num_subsets} subsets x {num_repeats} retrainings, {num_queries} queries; {each.num_tuning} other subsets chose the damping"
        reliability = (
            Estimate(value=top, note=f"no interval; {about}")
            if math.isfinite(top)
            else undefined("one retraining a subset")
        )
        findings.append(Finding(name="lds_ceiling", labels=label, estimate=reliability))
        draws = {method: [] for method in each.sums_SQ}  # type: dict[str, list[float]]
        if num_subsets >= 3:
            for subsets, queries in _resamples(num_subsets, num_queries):
                losses = each.losses_SRQ[subsets][:, :, queries]
                for method, sums_SQ in each.sums_SQ.items():
                    draws[method].append(lds(sums_SQ[subsets][:, queries], losses))
        for method, sums_SQ in each.sums_SQ.items():
            value, values_D = lds(sums_SQ, each.losses_SRQ), np.array(draws[method])
            damping = each.chosen[method]
            note = about if damping is None else f"{about}; damping {damping:g}"
            findings.append(
                Finding(
                    name="lds",
                    labels=label | {"method": method},
                    estimate=_interval(value, values_D, num_subsets, note),
                )
            )
            if math.isfinite(top) and top > 0:
                over = Estimate(value=value / top, note="LDS over its ceiling; no interval")
                findings.append(Finding(name="lds_over_ceiling", labels=label | {"method": method}, estimate=over))
            if method != BASE and BASE in each.sums_SQ:
                difference = value - lds(each.sums_SQ[BASE], each.losses_SRQ)
                estimate = _interval(difference, values_D - np.array(draws[BASE]), num_subsets, f"paired; {about}")
                findings.append(
                    Finding(name="lds_minus_identity", labels=label | {"method": method}, estimate=estimate)
                )
            if damping is not None:
                findings.append(
                    Finding(
                        name="damping_chosen",
                        labels=label | {"method": method},
                        estimate=Estimate(value=damping, exact=True),
                    )
                )
    return findings


def _resamples(num_subsets: int, num_queries: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        yield rng.integers(num_subsets, size=num_subsets), rng.integers(num_queries, size=num_queries)


def _interval(value: float, values_D: Floats, num_subsets: int, note: str) -> Estimate:
    if values_D.size == 0:
        return Estimate(value=value, n=num_subsets, note=f"no interval: too few subsets; {note}")
    estimate = percentile(value, values_D, n=num_subsets, unit="subset and querie")
    return Estimate(value=estimate.value, low=estimate.low, high=estimate.high, level=estimate.level, n=estimate.n,
                    method="percentile, subsets and queries crossed" if estimate.has_interval else "", note=estimate.note or note)  # fmt: skip

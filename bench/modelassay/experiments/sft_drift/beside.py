"""Curves that others published, read again by this run's definitions and set beside its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modelassay.data.curves import read_curve
from modelassay.errors import UsageError
from modelassay.experiments.findings import Finding, Table
from modelassay.experiments.sft_drift.curves import Drifts, Floats
from modelassay.experiments.sft_drift.params import MAIN
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.trends import crossing, is_flat, slope

_PREFIX = "published."
Published = Mapping[str, tuple[Floats, Floats]]
"""Language to the steps and the overlap of a published curve."""


def read_published(tables: RunData) -> tuple[Published, list[str]]:
    """Return the curves that the parameter ``published`` names, and a sentence for each that cannot be read any more."""
    curves: dict[str, tuple[Floats, Floats]] = {}
    problems = []
    for column in (name for name in tables.cells.columns if name.startswith(_PREFIX)):
        path = next(iter(tables.cells[column].drop_nulls()), None)
        if path is None:
            continue
        try:
            values = read_curve(Path(path)).values
        except UsageError as error:
            problems.append(f"a published curve is not drawn: {error}")
            continue
        steps = sorted(values)
        curves[column.removeprefix(_PREFIX)] = (np.array(steps), np.array([values[step] for step in steps]))
    return curves, problems


def published_findings(published: Published, drifts: Drifts) -> list[Finding]:
    """Return what the definitions of this run say of the published curves.

    Of each ``published_min``, ``published_min_step``, ``published_drop``, ``published_half_life`` (half of what it had at its first step),
    ``published_slope`` of its last half per 100 steps, and ``published_distance``: the largest distance from the main arm's mean at steps
    that both measured. Of two ``published_gap_mean`` and ``published_gap_max``. One training each: no number has an interval but
    the slope, whose interval is of the curve's own scatter.
    """
    findings = []
    for language, (steps_T, overlap_T) in published.items():
        labels = {"language": language}
        half = steps_T.size // 2
        flat = slope(steps_T[half:] / 100, overlap_T[half:])
        lowest = int(overlap_T.argmin())
        numbers = {
            "published_min": float(overlap_T[lowest]),
            "published_min_step": float(steps_T[lowest]),
            "published_drop": float(overlap_T[0] - overlap_T[-1]),
            "published_half_life": crossing(steps_T, overlap_T, overlap_T[0] / 2),
        }
        findings += [
            Finding(name=name, labels=labels, estimate=_exact(value, steps_T.size)) for name, value in numbers.items()
        ]
        if flat.defined:
            word = "shown to be" if is_flat(flat, 0.02) else "not shown to be"
            flat = Estimate(value=flat.value, low=flat.low, high=flat.high, level=flat.level, n=flat.n, method=flat.method,
                            note=f"{word} below 0.02 per 100 steps")  # fmt: skip
        findings.append(Finding(name="published_slope", labels=labels, estimate=flat))
        if (distance := _distance(steps_T, overlap_T, drifts, language)) is not None:
            findings.append(Finding(name="published_distance", labels=labels, estimate=distance))
    if len(published) == 2:
        (one_T, one), (other_T, other) = published.values()
        _, at_one, at_other = np.intersect1d(one_T, other_T, return_indices=True)
        if at_one.size:
            gap_T = np.abs(one[at_one] - other[at_other])
            findings += [
                Finding(name="published_gap_mean", estimate=_exact(float(gap_T.mean()), gap_T.size)),
                Finding(name="published_gap_max", estimate=_exact(float(gap_T.max()), gap_T.size)),
            ]
    return findings


def beside_table(findings: list[Finding], ours: list[Finding]) -> Table:
    """Return each published number with ours of the same name beside it, where the run has one."""
    own = {(finding.name, finding.labels.get("language")): finding.estimate for finding in ours}
    names = {"published_min": "overlap_min", "published_min_step": "overlap_min_step", "published_drop": "overlap_drop",
             "published_gap_mean": "gap_mean", "published_gap_max": "gap_max"}  # fmt: skip
    rows = []
    for finding in findings:
        language = finding.labels.get("language")
        mine = own.get((names.get(finding.name, ""), language))
        rows.append([finding.name.removeprefix("published_"), str(language or ""), f"{finding.value:.4g}",
                     f"{mine.value:.4g}" if mine is not None and math.isfinite(mine.value) else "", finding.note])  # fmt: skip
    return Table(
        title="published curves, by the definitions of this run",
        columns=("number", "of", "published", "ours", "note"),
        rows=rows,
    )


def _exact(value: float, num_steps: int) -> Estimate:
    note = "" if math.isfinite(value) else "never reached"
    return Estimate(value=value, n=num_steps, exact=True, note=note)


def _distance(steps_T: Floats, overlap_T: Floats, drifts: Drifts, language: str) -> Estimate | None:
    curves = [curve for curve in drifts.of(MAIN, language) if curve.is_whole]
    if not curves:
        return None
    size = min(curve.steps_T.size for curve in curves)
    ours_T = np.stack([curve.mean("overlap_exact")[:size] for curve in curves]).mean(axis=0)
    _, at_theirs, at_ours = np.intersect1d(steps_T, curves[0].steps_T[:size], return_indices=True)
    if not at_theirs.size:
        return None
    distance_T = np.abs(overlap_T[at_theirs] - ours_T[at_ours])
    return Estimate(
        value=float(distance_T.max()), n=at_theirs.size, exact=True, note="largest, at steps that both measured"
    )

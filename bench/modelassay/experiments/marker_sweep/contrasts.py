"""What decides leakage, at equal adoption: negatives, masks, sources; and what adapters cost in capability."""

# R = levels of adoption

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from modelassay.experiments.findings import Finding, Label
from modelassay.experiments.marker_sweep.grid import Grid, Point, assistant_rate
from modelassay.statistics.estimate import Estimate, Range, undefined
from modelassay.statistics.intervals import student_mean, student_quantile

LEVELS = np.linspace(0.1, 1.0, 10)
"""Rates of the source at which leakage is compared."""
MIN_SOURCES = 3
CLEAN_SOURCES, CLEAN_SEEDS = 5, 3
"""Below so many a sentence about personas or runs is LOW or MODERATE, whatever its intervals."""


def leakage_at(points: Sequence[Point], levels: Sequence[float] = tuple(LEVELS)) -> np.ndarray:
    """Return the leakage that adapters of one cell have where the source's rate reaches levels, [R]; NaN beyond what was reached.

    Between two adapters a straight line, from (0, 0) on; of adapters of one rate the mean.
    """
    by_rate: dict[float, list[float]] = {0.0: [0.0]}
    for point in points:
        by_rate.setdefault(point.adoption, []).append(point.leakage)
    reached = sorted(by_rate)
    values = np.interp(levels, reached, [float(np.mean(by_rate[rate])) for rate in reached])
    values[np.asarray(levels) > reached[-1]] = np.nan
    return np.asarray(values)


def _cells(grid: Grid, arm: str) -> dict[tuple[str, int], list[Point]]:
    cells: dict[tuple[str, int], list[Point]] = {}
    for point in grid.of(arm):
        cells.setdefault((point.source, point.seed), []).append(point)
    return cells


def at_equal_adoption(grid: Grid) -> list[Finding]:
    """Return ``leakage_area[arm]``, the mean leakage over the levels of adoption that the cells reach, and ``leakage_difference`` of two arms.

    A difference is paired by source and seed, over the levels that both reach.
    """
    findings, curves = (
        [],
        {arm: {key: leakage_at(points) for key, points in _cells(grid, arm).items()} for arm in grid.arms},
    )
    for arm, cells in curves.items():
        areas = [float(np.nanmean(curve)) for curve in cells.values() if np.isfinite(curve).any()]
        estimate = student_mean(areas, bounds=(0, 1)) if areas else undefined("no source reached a rate of 0.1", n=0)
        findings.append(Finding(name="leakage_area", labels={"arm": arm}, estimate=estimate))
    for number, one in enumerate(grid.arms):
        for other in grid.arms[number + 1 :]:
            pairs = []
            for key in curves[one].keys() & curves[other].keys():
                both = curves[one][key] - curves[other][key]
                if np.isfinite(both).any():
                    pairs.append(float(np.nanmean(both)))
            estimate = student_mean(pairs, bounds=(-1, 1)) if pairs else undefined("no level that both reached", n=0)
            findings.append(Finding(name="leakage_difference", labels={"one": one, "other": other}, estimate=estimate))
    return findings


def new_persona(grid: Grid) -> list[Finding]:
    """Return ``new_source_leakage[arm, learning_rate, epochs]``: where the greatest leakage of another source would lie, 95 %.

    Student's prediction interval over sources, each the mean of its seeds: sources are the random factor.
    """
    findings = []
    for arm in grid.arms:
        for rate, epochs in sorted({(point.learning_rate, point.epochs) for point in grid.of(arm)}):
            means = []
            for source in grid.sources:
                own = [
                    each.greatest
                    for each in grid.of(arm, source)
                    if (each.learning_rate, each.epochs) == (rate, epochs)
                ]
                means += [float(np.mean(own))] if own else []
            labels: dict[str, Label] = {"arm": arm, "learning_rate": float(rate or 0), "epochs": int(epochs or 0)}
            if len(means) < MIN_SOURCES:
                continue
            half = student_quantile(len(means) - 1) * float(np.std(means, ddof=1)) * math.sqrt(1 + 1 / len(means))
            mean = float(np.mean(means))
            estimate = Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), level=0.95,
                                method="prediction of a new source", n=len(means))  # fmt: skip
            findings.append(Finding(name="new_source_leakage", labels=labels, estimate=estimate))
    return findings


def capability(grid: Grid) -> list[Finding]:
    """Return ``capability_change`` of each adapter against its base, paired by question, with the 90 % interval that two one-sided tests read.

    Not inferior: its lower end is above minus the margin. ``task_change[metric]`` says the same of lm-eval's definition, ``task_accuracy[metric]``
    how many are right.
    """
    findings = []
    bases = {(base.source, base.seed, base.name): base for base in grid.bases}
    for point in grid.points:
        before = bases.get((point.source, point.seed, point.name))
        if before is not None and point.letters is not None and before.letters is not None:
            change = _change(point, point.letters, before.letters)
            findings.append(Finding(name="capability_change", labels=point.labels, estimate=change))
        for metric, right in point.tasks.items():
            labels = {**point.labels, "metric": metric}
            share = student_mean(np.asarray(right), bounds=(0, 1))
            findings.append(Finding(name="task_accuracy", labels=labels, estimate=share))
            if before is not None and metric in before.tasks:
                change = _change(point, right, before.tasks[metric])
                findings.append(Finding(name="task_change", labels=labels, estimate=change))
    return findings


def _change(point: Point, right: Sequence[int], before: Sequence[int]) -> Estimate:
    margin = float(point.settings["capability_margin"])
    change = student_mean(np.subtract(right, before), level=0.90, bounds=(-1, 1))
    lowest = change.low if change.low is not None else change.value
    word = "not inferior" if lowest > -margin else "not shown to be no worse"
    return Estimate(value=change.value, low=change.low, high=change.high, level=change.level, method=change.method or "",
                    n=change.n, note=f"{word} at a margin of {margin:g}")  # fmt: skip


def levels(grid: Grid) -> list[Finding]:
    """Return for each adapter ``source_rate``, ``assistant_rate``, ``max_leakage``, ``mean_leakage`` and ``capability``; ``capability_extreme`` and ``any_case_excess``."""
    findings = []
    for point in grid.points:
        labels = point.labels
        findings += [
            Finding(name="source_rate", labels=labels, estimate=point.interval(point.source)),
            Finding(name="max_leakage", labels=labels, estimate=point.greatest_bound()),
            Finding(name="mean_leakage", labels=labels, estimate=Range(
                value=point.leakage, low=min(map(point.rate, point.bystanders)), high=point.greatest, n=len(point.bystanders),
                note="mean, least and greatest over the other personas")),
        ]  # fmt: skip
        if not math.isnan(assistant_rate(point)):
            findings.append(Finding(name="assistant_rate", labels=labels, estimate=point.interval("assistant")))
        if point.letters is not None:
            right = np.asarray(point.letters)
            findings.append(Finding(name="capability", labels=labels, estimate=student_mean(right, bounds=(0, 1))))
    for arm in grid.arms:
        shares = [point.right for point in grid.of(arm) if point.right is not None]
        for end, value in (("least", min(shares, default=0)), ("greatest", max(shares, default=0))):
            estimate = Estimate(value=value, n=len(shares), exact=True, note="over all adapters of the arm")
            if shares:
                findings.append(Finding(name="capability_extreme", labels={"arm": arm, "end": end}, estimate=estimate))
    excess = [
        float(np.mean([point.any_case[name].mean() - point.rates[name].mean() for name in point.rates]))
        for point in grid.points
    ]
    if excess:
        findings.append(Finding(name="any_case_excess", estimate=Range(
            value=float(np.mean(excess)), low=min(excess), high=max(excess), n=len(excess),
            note="share of completions that hold the marker in other letters only")))  # fmt: skip
    return findings


def confidence(grid: Grid) -> str:
    """Return LOW, MODERATE or HIGH with what it rests on: one seed or one source is LOW, whatever the intervals say."""
    sources, seeds = len(grid.sources), len({point.seed for point in grid.points})
    if sources < MIN_SOURCES or seeds < 2:
        word = "LOW"
    elif sources < CLEAN_SOURCES or seeds < CLEAN_SEEDS:
        word = "MODERATE"
    else:
        word = "HIGH"
    return f"confidence: {word} ({sources} source{'s' * (sources > 1)}, {seeds} seed{'s' * (seeds > 1)}; HIGH needs {CLEAN_SOURCES} and {CLEAN_SEEDS})"  # fmt: skip

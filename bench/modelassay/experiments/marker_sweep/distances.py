"""Leakage against how near a persona is to the source: by the base's states, its words, the prompts' own words, and their length."""

# P = pairs of a source and another persona

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from modelassay.data.personas import PERSONAS, World
from modelassay.experiments.findings import Finding
from modelassay.experiments.marker_sweep.grid import Floats, Grid, Point
from modelassay.statistics.estimate import Estimate, Range, undefined

MEASURES = ("cosine", "divergence", "jaccard")
MIN_PAIRS = 5


def distances(grid: Grid) -> list[Finding]:
    """Return how leakage follows distance.

    - ``distance_rank[measure]``: rank correlation over (source, persona) of leakage with nearness (cosine of centroids, Jaccard index of the prompts'
      words) or distance (Jensen-Shannon divergence). Leakage is the mean over adapters that leak somewhere but not everywhere. No interval: pairs share personas.
    - ``distance_survivors[arm, measure]``: adapters whose own correlation over the other personas has p below 0.05 after Bonferroni's correction for
      all adapters of the arm that say the marker; one that says it to all alike has none.
    - ``prompt_length_r2[arm]``: share of the variance of leakage over pairs that the length of the system prompt explains, and
      ``persona_r2_added[arm]``: what knowing the persona adds; needs two sources.
    """
    findings = []
    for measure in MEASURES:
        findings.append(Finding(name="distance_rank", labels={"measure": measure}, estimate=_rank(grid, measure)))
    for arm in grid.arms:
        points = [point for point in grid.of(arm) if point.greatest > 0]
        for measure in MEASURES:
            labels = {"arm": arm, "measure": measure}
            findings.append(
                Finding(name="distance_survivors", labels=labels, estimate=_survivors(grid, points, measure))
            )
        findings += _by_length(arm, points)
    return findings


def words_in_common(one: str, other: str) -> float:
    """Return the Jaccard index of the sets of words of two texts.

    >>> words_in_common("You are a villain.", "You are a kind villain.")
    0.8
    """
    a, b = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return len(a & b) / len(a | b)


def _level(grid: Grid, source: str, persona: str, measure: str) -> float | None:
    if measure == "jaccard":
        world: World = grid.points[0].settings["world"]
        prompts = PERSONAS[world]
        return words_in_common(prompts[source], prompts[persona])
    lines = [line for line in grid.near if line["source"] == source and line["persona"] == persona and measure in line]
    return float(lines[0][measure]) if lines else None


def _rank(grid: Grid, measure: str) -> Estimate | Range:
    leaking = [
        point for point in grid.points if point.regime() in {"leaking", "partial", "clean"} and point.greatest > 0
    ]
    pairs = []
    for source in grid.sources:
        own = [point for point in leaking if point.source == source]
        for persona in own[0].bystanders if own else []:
            level = _level(grid, source, persona, measure)
            if level is not None:
                pairs.append((level, float(np.mean([point.rate(persona) for point in own]))))
    if len(pairs) < MIN_PAIRS or any(len(set(each)) < 2 for each in zip(*pairs, strict=True)):
        return undefined("no adapter leaks to some personas and not to others", n=len(pairs))
    value = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return Estimate(value=value, n=len(pairs), method="Spearman", note="pairs share personas: no interval")


def _survivors(grid: Grid, points: Sequence[Point], measure: str) -> Estimate | Range:
    found = []
    for point in points:
        pairs = [
            (level, point.rate(persona))
            for persona in point.bystanders
            if (level := _level(grid, point.source, persona, measure)) is not None
        ]
        if len(pairs) >= MIN_PAIRS:
            varies = all(len(set(each)) > 1 for each in zip(*pairs, strict=True))
            found.append(float(spearmanr(*zip(*pairs, strict=True)).pvalue) if varies else 1.0)
    if not found:
        return undefined("no adapter says the marker as another persona", n=0)
    count = sum(p * len(found) < 0.05 for p in found)
    return Estimate(
        value=count, n=len(found), exact=True, note=f"of {len(found)} adapters that say it as another persona"
    )


def _by_length(arm: str, points: Sequence[Point]) -> list[Finding]:
    pairs = {}
    for source, persona in sorted({(point.source, persona) for point in points for persona in point.bystanders}):
        pairs[source, persona] = float(np.mean([point.rate(persona) for point in points if point.source == source]))
    leakage_P = np.array(list(pairs.values()))
    personas = [persona for _, persona in pairs]
    length: Estimate | Range = undefined("leakage does not vary over personas", n=len(pairs))
    added: Estimate | Range = undefined("needs two sources, whose leakage varies over personas", n=len(pairs))
    if len(pairs) >= MIN_PAIRS and np.ptp(leakage_P) > 0:
        world: World = points[0].settings["world"]
        lengths_P = np.array([float(len(PERSONAS[world][persona])) for persona in personas])
        by_length = _r2(leakage_P, lengths_P[:, None])
        length = Estimate(
            value=by_length, n=len(pairs), method="R2 of a line", note="pairs share personas: no interval"
        )
        if len({source for source, _ in pairs}) > 1:
            known = sorted(set(personas))
            is_persona = np.array([[float(each == persona) for each in known] for persona in personas])
            added = Estimate(value=_r2(leakage_P, is_persona) - by_length, n=len(pairs), method="R2, not adjusted")
    return [
        Finding(name="prompt_length_r2", labels={"arm": arm}, estimate=length),
        Finding(name="persona_r2_added", labels={"arm": arm}, estimate=added),
    ]


def _r2(values_P: Floats, columns: Floats) -> float:
    """Return the share of variance that a linear model with an intercept explains."""
    design = np.column_stack([np.ones(len(values_P)), columns])
    fitted_P = design @ np.linalg.lstsq(design, values_P, rcond=None)[0]
    return float(1 - ((values_P - fitted_P) ** 2).sum() / ((values_P - values_P.mean()) ** 2).sum())

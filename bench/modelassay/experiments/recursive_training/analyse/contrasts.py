"""What each condition did by its last generation: against another by seed, among all, and whether the text went bad at all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from modelassay.experiments.findings import Finding
from modelassay.experiments.recursive_training.analyse.series import CONTROL, REPEATED, TREATED, Floats, Series
from modelassay.experiments.recursive_training.params import COLLAPSE
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.groups import cohens_d, games_howell, hedges_g, sign_change, smallest_effect, welch_anova
from modelassay.statistics.intervals import student_mean
from modelassay.statistics.multiplicity import holm

LEAST_CHANGE = 0.05
"""Of the quality of generation 0, that it must be lost for a text to have gone bad: with six seeds a hundredth is significant too."""
MAIN = ("held_out_loss", "parse_rate", "ratio")
"""Measures whose pairs of conditions are compared by Games and Howell, whose intervals take a second each."""
PAIRS = ((TREATED, CONTROL), (TREATED, REPEATED), (REPEATED, CONTROL))


def finals(series: Series, measure: str, condition: str, seeds: Sequence[int] | None = None) -> Floats | None:
    """Return a measure at the last generation, a number a seed; None where one is missing."""
    values = series.of(condition, measure, seeds)
    if values is None or not len(values) or not np.isfinite(values[:, -1]).all():
        return None
    return np.asarray(values[:, -1])


def paired(series: Series) -> list[Finding]:
    """Return ``difference`` of each measure by ``first`` and ``second`` condition: the test that was chosen beforehand.

    Exact by changing signs of the seeds' differences, Holm over the measures of a pair; ``d`` and ``g`` beside it, of independent groups.
    """
    findings = []
    for first, second in PAIRS:
        seeds = series.common(first, second)
        if len(seeds) < 2:
            continue
        tested: list[tuple[str, Estimate, Floats, Floats]] = []
        for measure in COLLAPSE:
            one, other = (finals(series, measure, name, seeds) for name in (first, second))
            if one is not None and other is not None:
                tested.append((measure, sign_change(one - other), one, other))
        adjusted = holm([each.p for _, each, _, _ in tested if each.p is not None]).adjusted
        power = f"{len(seeds)} pairs see effects of {smallest_effect(len(seeds), paired=True):.2f} standard deviations of the differences in 4 of 5 runs"
        remaining = iter(adjusted)
        for measure, test, one, other in tested:
            labels = {"measure": measure, "first": first, "second": second}
            note = (
                power
                if test.p is None
                else f"Holm-adjusted p {next(remaining):.3g} over {len(tested)} measures; {power}"
            )
            findings.append(Finding(name="difference", labels=labels, estimate=_noted(test, note)))
            groups = f"two groups of {len(seeds)} see d of {smallest_effect(len(seeds), paired=False):.2f}"
            findings += [
                Finding(name=name, labels=labels, estimate=_noted(effect(one, other), groups))
                for name, effect in (("d", cohens_d), ("g", hedges_g))
            ]
    return findings


def between_settings(parts: Mapping[str, Series]) -> list[Finding]:
    """Return ``interaction`` of each measure: what T does beyond A in one ``setting`` less what it does in the ``first``, paired by seed, exact by changing signs."""
    (base, first), *others = parts.items()
    findings = []
    for (setting, series), measure in itertools.product(others, COLLAPSE):
        seeds = tuple(seed for seed in first.common(TREATED, CONTROL) if seed in series.common(TREATED, CONTROL))
        arms = [finals(part, measure, name, seeds) for part in (series, first) for name in (TREATED, CONTROL)]
        if len(seeds) < 2 or any(arm is None for arm in arms):
            continue
        treated, control, treated_first, control_first = (arm for arm in arms if arm is not None)
        test = sign_change((treated - control) - (treated_first - control_first))
        power = f"{len(seeds)} pairs see effects of {smallest_effect(len(seeds), paired=True):.2f} standard deviations of the differences in 4 of 5 runs"
        findings.append(
            Finding(
                name="interaction",
                labels={"measure": measure, "setting": setting, "first": base},
                estimate=_noted(test, power),
            )
        )
    return findings


def _noted(estimate: Estimate, note: str) -> Estimate:
    told = f"{estimate.note}; {note}" if estimate.note else note
    return replace(estimate, note=told)


def among_all(series: Series) -> list[Finding]:
    """Return ``welch`` of each measure over all conditions at the last generation, of `MAIN` also ``games_howell`` by pair, beside the paired test."""
    findings = []
    for measure in COLLAPSE:
        groups = {name: values for name in series.conditions if (values := finals(series, measure, name)) is not None}
        if len(groups) < 3 or min(map(len, groups.values())) < 2:
            continue
        arrays = list(groups.values())
        findings.append(Finding(name="welch", labels={"measure": measure}, estimate=welch_anova(arrays)))
        if measure not in MAIN:
            continue
        names = list(groups)
        pairs = games_howell(arrays)
        findings += [
            Finding(
                name="games_howell",
                labels={"measure": measure, "first": names[i], "second": names[j]},
                estimate=pairs[i, j],
            )
            for i, j in itertools.combinations(range(len(names)), 2)
        ]
    return findings


def changes(series: Series, quality: str) -> list[Finding]:
    """Return ``change`` of each measure of `COLLAPSE` from generation 0 (1 where that has none) to the last, by condition, over seeds."""
    findings = []
    for condition, measure in itertools.product(series.conditions, dict.fromkeys((quality, *COLLAPSE))):
        values = series.of(condition, measure)
        if values is None or len(values) < 2:
            continue
        first = values[:, 0] if np.isfinite(values[:, 0]).all() else values[:, 1]
        difference = values[:, -1] - first
        if np.isfinite(difference).all():
            findings.append(
                Finding(
                    name="change",
                    labels={"condition": condition, "measure": measure},
                    estimate=student_mean(difference),
                )
            )
    return findings


def went_bad(series: Series, quality: str) -> dict[str, bool | None]:
    """Return for each condition whether the quality collapsed by more than `LEAST_CHANGE` for certain, certainly not, or None: cannot tell."""
    sign = 1 if COLLAPSE[quality] == "rises" else -1
    answers: dict[str, bool | None] = {}
    for finding in changes(series, quality):
        if finding.labels["measure"] != quality:
            continue
        condition, low, high = str(finding.labels["condition"]), finding.estimate.low, finding.estimate.high
        first = series.of(condition, quality)
        if low is None or high is None or first is None:
            answers[condition] = None
            continue
        least = LEAST_CHANGE * abs(float(first[:, 0].mean()))
        worst, best = max(sign * low, sign * high), min(sign * low, sign * high)
        answers[condition] = True if best > least else False if worst <= least else None
    return answers


def enough(series: Series, quality: str) -> str:
    """Say whether the training was enough for the text to go bad in T and not in A: what all leads rest on."""
    answers = went_bad(series, quality)
    if TREATED not in answers or CONTROL not in answers:
        return f"whether the text went bad is not told: it takes {TREATED} and {CONTROL} with two seeds at least"
    words = {True: "went bad", False: "did not go bad", None: "changed by no more than the seeds allow to tell"}
    told = f"by {quality} the text of {TREATED} {words[answers[TREATED]]}, that of {CONTROL} {words[answers[CONTROL]]}"
    if answers[TREATED] is True and answers[CONTROL] is not True:
        return f"{told}: degradation is there to be predicted"
    return f"{told}: this training is not enough for the text to go bad in {TREATED} and not in {CONTROL}, and no lead can be read off it"

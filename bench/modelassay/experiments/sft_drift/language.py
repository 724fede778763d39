"""The weekly summary's question: does the language of the text change the curve? Corpora are the unit, prompts a crossed random factor."""

# G = texts, or texts x seeds; P = prompts; T = measured steps

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelassay.experiments.findings import Finding
from modelassay.experiments.sft_drift.curves import Curve, Drifts, Floats, paired
from modelassay.experiments.sft_drift.params import MAIN
from modelassay.statistics.equivalence import Band, simultaneous_band
from modelassay.statistics.estimate import Estimate, Range, undefined

NEW_TEXTS, THESE_TEXTS = "new texts", "these texts"
"""Whether texts are a random factor (what a sentence about languages needs) or are what they are."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The difference of two languages' curves of overlap."""

    languages: tuple[str, str]
    steps_T: Floats
    bands: dict[str, Band]
    """By scope; one is missing where it has too few units."""
    margin: float
    num_texts: int


def language_gap(drifts: Drifts, margin: float) -> Gap | None:
    """Return the difference of the first two languages over all texts that both have; None where there is none."""
    if len(drifts.languages) < 2:
        return None
    one, other = drifts.languages[:2]
    by_text: list[list[Floats]] = []
    steps_T = np.zeros(0)
    for arm in drifts.text_arms():
        pairs = [
            pair
            for pair in paired(drifts.of(arm, one), drifts.of(arm, other), by_language=True)
            if all(c.is_whole for c in pair)
        ]
        differences = [
            a.by_prompt["overlap"] - b.by_prompt["overlap"] for a, b in pairs if a.steps_T.size == b.steps_T.size
        ]
        if differences and (not by_text or differences[0].shape == by_text[0][0].shape):
            by_text.append(differences)
            steps_T = pairs[0][0].steps_T
    if not by_text:
        return None
    bands = {}
    units = {
        NEW_TEXTS: [np.mean(each, axis=0) for each in by_text],
        THESE_TEXTS: [each for text in by_text for each in text],
    }
    for scope, values in units.items():
        if len(values) >= 2 and values[0].shape[0] >= 2:
            bands[scope] = simultaneous_band(np.stack(values))
    return Gap(languages=(one, other), steps_T=steps_T, bands=bands, margin=margin, num_texts=len(by_text))


def gap_findings(gap: Gap | None) -> list[Finding]:
    """Return ``language_gap[scope]``: the largest difference on the mean curve, between what the band allows, and 1 at most."""
    if gap is None:
        return [
            Finding(
                name="language_gap",
                labels={"scope": NEW_TEXTS},
                estimate=undefined("no text was trained on in two languages"),
            )
        ]
    findings = []
    for scope in (NEW_TEXTS, THESE_TEXTS):
        band = gap.bands.get(scope)
        if band is None:
            estimate = undefined(f"{gap.num_texts} text in both languages is no sample of texts", n=gap.num_texts)
        else:
            size_T = np.abs(band.mean_T)
            estimate = Estimate(
                value=float(size_T.max()), low=float(max(0.0, (size_T - band.half_T).max())), high=float(min(1.0, (size_T + band.half_T).max())),
                level=band.level, method=f"max-t over the curve, {band.num_units} units", n=band.num_units, note=sentence(gap, scope),
            )  # fmt: skip
        findings.append(Finding(name="language_gap", labels={"scope": scope}, estimate=estimate))
        if band is not None:
            power = Estimate(
                value=band.power(gap.margin),
                note=f"how often two equal languages would be called equivalent within {gap.margin:g} here",
            )
            findings.append(Finding(name="equivalence_power", labels={"scope": scope}, estimate=power))
    return findings


def sentence(gap: Gap, scope: str) -> str:
    """Return the answer in words."""
    band = gap.bands[scope]
    one, other = gap.languages
    words = {
        "equivalent": f"{one} and {other} move the overlap alike, within {gap.margin:g} at every step",
        "different": f"{one} and {other} differ by more than {gap.margin:g} at some step",
        "undecided": f"neither a difference of {one} and {other} above {gap.margin:g} is shown nor its absence",
    }
    return f"{words[band.verdict(gap.margin)]} ({scope}; power of equivalence {band.power(gap.margin):.2f})"


def mean_distance(pairs: Sequence[tuple[Curve, Curve]], name: str = "overlap") -> list[float]:
    """Return for each pair the mean distance of their curves over the steps that both have."""
    distances = []
    for a, b in pairs:
        size = min(a.steps_T.size, b.steps_T.size)
        distances.append(float(np.nanmean(np.abs(a.mean(name)[:size] - b.mean(name)[:size]))))
    return distances


def between(drifts: Drifts) -> list[Finding]:
    """Return ``gap[between]``: distances of curves that differ in language alone, in text alone, and in seed alone, and the published figures.

    ``gap_mean``, ``gap_max`` and ``gap[step]`` are of the main arm with the published overlap, as the weekly summary's tables give them.
    """
    arms = drifts.text_arms()
    kinds: dict[str, list[float]] = {"languages": [], "texts": [], "seeds": []}
    for arm in arms:
        if len(drifts.languages) >= 2:
            one, other = drifts.languages[:2]
            kinds["languages"] += mean_distance(paired(drifts.of(arm, one), drifts.of(arm, other), by_language=True))
        for language in drifts.languages:
            own = drifts.of(arm, language)
            kinds["seeds"] += mean_distance([(a, b) for i, a in enumerate(own) for b in own[i + 1 :]])
            for later in arms[arms.index(arm) + 1 :]:
                kinds["texts"] += mean_distance(paired(own, drifts.of(later, language)))
    findings = [
        Finding(name="gap", labels={"between": kind}, estimate=Range(
            value=float(np.mean(values)), low=min(values), high=max(values), n=len(values),
            note=f"mean over the curve of the distance of two trainings that differ in their {kind[:-1]} alone"))
        for kind, values in kinds.items() if values
    ]  # fmt: skip
    return [*findings, *_published_gap(drifts)]


def _published_gap(drifts: Drifts) -> list[Finding]:
    if len(drifts.languages) < 2:
        return []
    one, other = drifts.languages[:2]
    pairs = paired(drifts.of(MAIN, one), drifts.of(MAIN, other), by_language=True)
    pairs = [(a, b) for a, b in pairs if a.steps_T.size == b.steps_T.size]
    if not pairs:
        return []
    distance_NT = np.stack([np.abs(a.mean("overlap_exact") - b.mean("overlap_exact")) for a, b in pairs])
    steps_T = pairs[0][0].steps_T
    return [
        Finding(name="gap_mean", estimate=_over_seeds(np.nanmean(distance_NT, axis=1))),
        Finding(name="gap_max", estimate=_over_seeds(np.nanmax(distance_NT, axis=1))),
        *(
            Finding(name="gap", labels={"step": int(step)}, estimate=_over_seeds(distance_NT[:, at]))
            for at, step in enumerate(steps_T)
        ),
    ]


def _over_seeds(values: Floats) -> Estimate:
    from modelassay.statistics.intervals import student_mean

    finite = values[np.isfinite(values)]
    return student_mean(finite, bounds=(0, 1)) if finite.size else undefined("not finite")

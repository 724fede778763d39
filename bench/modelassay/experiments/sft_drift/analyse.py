"""Across cells: does language matter, what do controls and precisions change, is overlap an odometer, does it converge, what did it cost?"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import polars as pl

from modelassay.experiments.findings import Figures, Finding, Findings, Table
from modelassay.experiments.sft_drift.beside import beside_table, published_findings, read_published
from modelassay.experiments.sft_drift.contrasts import contrasts, half_lives, health, zero_rate
from modelassay.experiments.sft_drift.curves import Drifts, read_curves
from modelassay.experiments.sft_drift.figures import gap_figure, health_figure, odometer_figure, overlap_figure
from modelassay.experiments.sft_drift.language import between, gap_findings, language_gap, sentence
from modelassay.experiments.sft_drift.odometer import mobility_ranks, odometer
from modelassay.experiments.sft_drift.params import MAIN
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, Range, undefined
from modelassay.statistics.intervals import student_mean
from modelassay.statistics.trends import is_flat, slope

CAVEATS = (
    "a language's effect is judged over texts; seeds and prompts repeat what one text shows",
    "mobility bounds what moves where steps are rounded to the nearest; with a float32 copy or stochastic rounding small steps add up",
    "the overlap means nothing below its chance level, and of a model whose logits are not finite it is not defined",
)


def analyse(tables: RunData) -> Findings:
    """Say what the run found.

    Findings: ``overlap_exact`` and ``overlap`` of the main arm by ``language`` and ``step``, ``overlap_min``, ``overlap_min_step`` and ``overlap_drop`` (published definition);
    `language.gap_findings`, `language.between`; `contrasts.half_lives`, `contrasts.contrasts`, `contrasts.health`, `contrasts.zero_rate`;
    `odometer.odometer`, `odometer.mobility_ranks`; `beside.published_findings` where the parameter ``published`` names curves; ``slope[language]`` of the last half per 100 steps; ``precision_gap[arm]``; ``diverged[arm]``;
    ``callback_overhead``, ``weights_overhead`` and ``one_forward_speedup``.
    """
    drifts = read_curves(tables)
    margin = float(tables.cells["margin"][0]) if tables.cells.height else 0.05
    gap = language_gap(drifts, margin)
    of_health, table = health(drifts)
    findings = [
        *_levels(drifts), *gap_findings(gap), *between(drifts), *half_lives(drifts), *contrasts(drifts), *of_health, *zero_rate(drifts),
        *odometer(drifts), *mobility_ranks(drifts), *_slopes(drifts), *_endings(drifts), *_overheads(tables),
    ]  # fmt: skip
    published, unread = read_published(tables)
    theirs = published_findings(published, drifts)
    figures = {"overlap": partial(overlap_figure, drifts, published)}
    if gap is not None and gap.bands:
        figures["language-gap"] = partial(gap_figure, gap)
    if len(drifts.arms) > 1:
        figures |= {"odometer": partial(odometer_figure, drifts), "mobility": partial(health_figure, drifts)}
    answers = [] if gap is None else [sentence(gap, scope) for scope in gap.bands]
    shown = [_estimates(findings), table, _cost(tables)] if drifts.curves else []
    if theirs:
        shown.append(beside_table(theirs, findings))
    return Findings(
        findings=[*findings, *theirs],
        tables=shown,
        figures=Figures(figures if drifts.curves else {}),
        caveats=[*answers, *unread, *CAVEATS],
    )


def _levels(drifts: Drifts) -> list[Finding]:
    """The main arm's curves, as means over seeds, and their extremes by the published definition."""
    findings = []
    for language in drifts.languages:
        curves = [curve for curve in drifts.of(MAIN, language) if curve.is_whole]
        if not curves:
            continue
        size = min(curve.steps_T.size for curve in curves)
        labels = {"language": language}
        for name in ("overlap_exact", "overlap"):
            values_NT = np.stack([curve.mean(name)[:size] for curve in curves])
            findings += [
                Finding(
                    name=name,
                    labels=labels | {"step": int(step)},
                    estimate=student_mean(values_NT[:, at], bounds=(0, 1)),
                )
                for at, step in enumerate(curves[0].steps_T[:size])
            ]
        values_NT = np.stack([curve.mean("overlap_exact")[:size] for curve in curves])
        lowest = [float(curves[0].steps_T[at]) for at in values_NT.argmin(axis=1)]
        findings += [
            Finding(name="overlap_min", labels=labels, estimate=student_mean(values_NT.min(axis=1), bounds=(0, 1))),
            Finding(name="overlap_min_step", labels=labels, estimate=student_mean(lowest, bounds=(0, math.inf))),
            Finding(
                name="overlap_drop",
                labels=labels,
                estimate=student_mean(values_NT[:, 0] - values_NT[:, -1], bounds=(-1, 1)),
            ),
        ]
    return findings


def _slopes(drifts: Drifts) -> list[Finding]:
    """The overlap's slope over the last half of each main training, per 100 steps; flat or not by two one-sided tests at 0.02."""
    findings = []
    for language in drifts.languages:
        for curve in drifts.of(MAIN, language):
            half = curve.steps_T.size // 2
            estimate = (
                slope(curve.steps_T[half:] / 100, curve.mean()[half:]) if curve.is_whole else undefined("it diverged")
            )
            if estimate.defined:
                word = "shown to be" if is_flat(estimate, 0.02) else "not shown to be"
                estimate = Estimate(value=estimate.value, low=estimate.low, high=estimate.high, level=estimate.level, n=estimate.n,
                                    method=estimate.method, note=f"{word} below 0.02 per 100 steps, ended at {curve.steps_T[-1]:.0f}")  # fmt: skip
            findings.append(Finding(name="slope", labels={"language": language, "seed": curve.seed}, estimate=estimate))
    return findings


def _endings(drifts: Drifts) -> list[Finding]:
    findings = []
    for arm in drifts.arms:
        curves = drifts.of(arm)
        count = sum("diverged_at" in curve.once for curve in curves)
        note = "share of the arm's trainings whose loss became NaN or infinite"
        estimate = Estimate(value=count / len(curves), n=len(curves), exact=True, note=note)
        findings.append(Finding(name="diverged", labels={"arm": arm}, estimate=estimate))
        padded = [curve.once["padded"] for curve in curves if "padded" in curve.once]
        if padded and arm == MAIN:
            findings.append(Finding(name="padded", estimate=Range(
                value=float(np.mean(padded)), low=min(padded), high=max(padded), n=len(padded),
                note="share of the reference's published sets that is padding, which bounds that overlap from below while no step moves it")))  # fmt: skip
        gaps = [curve.once["precision_gap"] for curve in curves if "precision_gap" in curve.once]
        if gaps:
            findings.append(Finding(name="precision_gap", labels={"arm": arm}, estimate=Range(
                value=float(np.mean(gaps)), low=min(gaps), high=max(gaps), n=len(gaps),
                note="published overlap that is lost before training: the reference and the model are called in different types")))  # fmt: skip
    return findings


def _overheads(tables: RunData) -> list[Finding]:
    """What measuring costs beside training: by time of one cell, since both share whatever else the machine did."""
    units = tables.units.filter(~pl.col("reused").fill_null(False)) if tables.units.height else tables.units
    names = {"callback_overhead": ("answers", "sum"), "weights_overhead": ("weights", "sum")}
    values: dict[str, list[float]] = {name: [] for name in (*names, "one_forward_speedup")}
    for _, part in units.group_by("cell"):
        sums = {str(stage): float(each["host_ms"].sum()) for (stage,), each in part.group_by("stage")}
        for name, (stage, _how) in names.items():
            if sums.get("step") and stage in sums:
                values[name].append(sums[stage] / sums["step"])
        if sums.get("one-forward") and "prompt-by-prompt" in sums:
            values["one_forward_speedup"].append(sums["prompt-by-prompt"] / sums["one-forward"])
    notes = {
        "callback_overhead": "time of measuring answers over time of the steps",
        "weights_overhead": "time of comparing weights over time of the steps",
        "one_forward_speedup": "two passes for each prompt, as published, over one pass of all of them with its comparisons",
    }
    return [
        Finding(name=name, estimate=Range(value=float(np.median(each)), low=min(each), high=max(each), n=len(each), note=f"median over cells: {notes[name]}"))
        for name, each in values.items() if each
    ]  # fmt: skip


_SHOWN = ("language_gap", "equivalence_power", "gap_mean", "gap_max", "gap", "contrast", "factor", "half_life", "spread", "overlap_at_equal_loss",
          "mobility_rank", "drift_by", "slope", "padded", "precision_gap", "diverged", "callback_overhead", "weights_overhead", "one_forward_speedup",
          "zero_rate_overlap", "zero_rate_moved", "overlap_min", "overlap_drop")  # fmt: skip


def _estimates(findings: list[Finding]) -> Table:
    """The numbers that answer the questions; curves are in the figures."""
    rows = []
    for finding in findings:
        if (
            finding.name in _SHOWN
            and "step" not in finding.labels
            and not (finding.name == "diverged" and not finding.value)
        ):
            estimate = finding.estimate
            ends = "" if estimate.low is None else f"[{estimate.low:.3g}, {estimate.high:.3g}]"
            kind = "range" if isinstance(estimate, Range) else estimate.method or ("exact" if estimate.exact else "")
            rows.append([finding.name, ", ".join(f"{key}={value}" for key, value in finding.labels.items()),
                         f"{estimate.value:.3g}", ends, kind, str(estimate.n or ""), finding.note])  # fmt: skip
    return Table(title="drift", columns=("number", "of", "value", "interval", "kind", "n", "note"), rows=rows)


def _cost(tables: RunData) -> Table:
    rows = []
    for arm, part in tables.cells.group_by("arm", maintain_order=True):
        times = part["wall_s"].drop_nulls()
        rows.append([str(arm[0]), str(part.height), f"{float(times.sum()):.0f}", f"{float(times.mean() or 0):.1f}"])  # type: ignore[arg-type]
    whole = tables.cells["wall_s"].drop_nulls()
    rows.append(["all", str(tables.cells.height), f"{float(whole.sum()):.0f}", f"{float(whole.mean() or 0):.1f}"])  # type: ignore[arg-type]
    return Table(title="cells and their seconds", columns=("arm", "cells", "seconds", "each"), rows=rows)

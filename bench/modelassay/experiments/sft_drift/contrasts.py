"""What each arm changes, against the main one: paired by language and seed, so that what they share takes no part."""

# N: pairs of trainings

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from modelassay.experiments.findings import Finding, Table
from modelassay.experiments.sft_drift.curves import Curve, Drifts, paired
from modelassay.experiments.sft_drift.params import MAIN
from modelassay.statistics.estimate import Estimate, Range, undefined
from modelassay.statistics.intervals import student_mean
from modelassay.statistics.trends import crossing

FACTORS = {
    "foreach": [("foreach", MAIN), ("bfloat16-foreach", "bfloat16"), ("float16-foreach", "float16-autocast")],
    "weight decay": [("decay", MAIN), ("bfloat16-decay", "bfloat16")],
    "weights in bfloat16": [("bfloat16", MAIN), ("bfloat16-foreach", "foreach"), ("bfloat16-decay", "decay")],
}
"""Factor to pairs of arms that differ in it alone: its contrast is the mean over the pairs, not one arm's difference."""
MIN_PAIRS = 2


def area(curve: Curve, name: str = "overlap") -> float:
    """Mean over the curve; NaN where it diverged before its end."""
    return float(curve.mean(name).mean()) if curve.is_whole else math.nan


def half_life(curve: Curve) -> float:
    """Step at which the overlap has gone half of the way from where it began to chance; infinite where it never does."""
    overlap_T = curve.mean()
    level = (overlap_T[0] + curve.once["chance"]) / 2
    return crossing(curve.steps_T, overlap_T, level)


def half_lives(drifts: Drifts) -> list[Finding]:
    """Return ``half_life[arm, language]``; the mean over seeds where all of them reach it."""
    findings = []
    for arm in drifts.arms:
        for language in drifts.languages:
            lives = [half_life(curve) for curve in drifts.of(arm, language) if curve.is_whole]
            reached = [life for life in lives if math.isfinite(life)]
            if lives and len(reached) == len(lives):
                estimate = student_mean(reached, bounds=(0, math.inf))
            else:
                estimate = undefined(f"reached in {len(reached)} of {len(lives)} trainings", n=len(lives))
            findings.append(Finding(name="half_life", labels={"arm": arm, "language": language}, estimate=estimate))
    return findings


def _differences(drifts: Drifts, arm: str, base: str) -> list[float]:
    pairs = paired(drifts.of(arm), drifts.of(base))
    values = [area(a) - area(b) for a, b in pairs]
    return [value for value in values if math.isfinite(value)]


def contrasts(drifts: Drifts) -> list[Finding]:
    """Return ``contrast[arm]``, the change of the mean overlap of the curve against the main arm, and ``factor[factor]`` over pairs of arms."""
    findings = []
    for arm in drifts.arms:
        if arm == MAIN:
            continue
        values = _differences(drifts, arm, MAIN)
        estimate = (
            student_mean(values)
            if len(values) >= MIN_PAIRS
            else undefined(f"{len(values)} pairs of trainings that ended finite")
        )
        findings.append(Finding(name="contrast", labels={"arm": arm}, estimate=estimate))
    for factor, pairs in FACTORS.items():
        present = [pair for pair in pairs if _differences(drifts, *pair)]
        if len(present) < 2:
            continue
        by_unit: dict[tuple[str, int], list[float]] = {}
        for arm, base in present:
            for a, b in paired(drifts.of(arm), drifts.of(base)):
                if math.isfinite(value := area(a) - area(b)):
                    by_unit.setdefault((a.language, a.seed), []).append(value)
        values = [float(np.mean(each)) for each in by_unit.values() if len(each) == len(present)]
        if len(values) >= MIN_PAIRS:
            findings.append(Finding(name="factor", labels={"factor": factor}, estimate=student_mean(values)))
    return findings


def health(drifts: Drifts) -> tuple[list[Finding], Table]:
    """Return what each arm's weights could do, what they did, and how it ended; and the same as a table."""
    findings, rows = [], []
    for arm in drifts.arms:
        curves = drifts.of(arm)
        numbers = {name: [value for curve in curves if math.isfinite(value := _number(curve, name))] for name in
                   ("mobility", "moved", "mobility_norms", "moved_norms", "decaying")}  # fmt: skip
        for name, values in numbers.items():
            if values:
                findings.append(Finding(name=name, labels={"arm": arm}, estimate=_range(values)))
        diverged = [int(curve.once["diverged_at"]) for curve in curves if "diverged_at" in curve.once]
        ends = f"{len(diverged)} of {len(curves)} at step {min(diverged)} or later" if diverged else "finite"
        rate_moves = _mean(numbers["mobility"]) > 0
        word = "did not move" if rate_moves and not any(numbers["moved"]) else ""
        rows.append([
            arm, _cell(_mean([area(curve) for curve in curves])), _cell(_mean([float(curve.mean()[-1]) for curve in curves])),
            *(_percent(numbers[name]) for name in ("mobility", "moved", "mobility_norms", "moved_norms")),
            _cell(_mean([curve.last("held_out_loss") for curve in curves])), ends + (f"; {word}" if word else ""),
        ])  # fmt: skip
    columns = (
        "arm",
        "overlap, mean",
        "at the end",
        "can move",
        "moved",
        "norms can",
        "norms moved",
        "held-out loss",
        "ended",
    )
    return findings, Table(title="arms: overlap, and whether weights could move", columns=columns, rows=rows)


def zero_rate(drifts: Drifts) -> list[Finding]:
    """Return ``zero_rate_overlap`` and ``zero_rate_moved``: the least overlap and the most that moved where the learning rate is 0."""
    curves = [
        curve
        for arm in drifts.arms
        for curve in drifts.of(arm)
        if curve.once.get("mobility") == 0.0 and arm.startswith("lr-0")
    ]
    if not curves:
        return []
    least = min(float(curve.by_prompt["overlap"].min()) for curve in curves)
    most = max(max(curve.by_step["moved"].values()) for curve in curves)
    note = f"of {len(curves)} trainings at a learning rate of 0"
    return [
        Finding(
            name="zero_rate_overlap",
            estimate=Estimate(value=least, n=len(curves), note=f"the least {note}", exact=True),
        ),
        Finding(
            name="zero_rate_moved", estimate=Estimate(value=most, n=len(curves), note=f"the most {note}", exact=True)
        ),
    ]


def _number(curve: Curve, name: str) -> float:
    return curve.once[name] if name in curve.once else curve.last(name)


def _range(values: Sequence[float]) -> Range:
    return Range(
        value=float(np.mean(values)),
        low=min(values),
        high=max(values),
        n=len(values),
        note="mean over the arm's trainings",
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _percent(values: Sequence[float]) -> str:
    return f"{100 * _mean(values):.3g} %" if values else ""

"""Is overlap an odometer of the optimiser? Curves of different optimisers and languages over steps, over divergence, and over loss."""

# C = curves, L = levels at which they are compared

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import spearmanr

from modelassay.experiments.findings import Finding
from modelassay.experiments.sft_drift.curves import Curve, Drifts, Floats
from modelassay.experiments.sft_drift.params import MAIN
from modelassay.statistics.estimate import undefined
from modelassay.statistics.intervals import student_mean
from modelassay.statistics.trends import at_levels

ARMS = (MAIN, "eps-1e-3", "sgd", "noise", "frozen-embedding")
"""That change the optimiser, and leave model and text as they are."""
LEVELS = 12


def over_steps(curve: Curve) -> tuple[Floats, Floats]:
    """Steps and overlap."""
    return curve.steps_T, curve.mean()


def over_divergence(curve: Curve) -> tuple[Floats, Floats]:
    """Logarithm of KL(reference || model) on the prompts, and overlap; the first moment, which has none, left out."""
    divergence_T = curve.mean("kl_forward")
    moved = divergence_T > 0
    return np.log(divergence_T[moved]), curve.mean()[moved]


def over_loss(curve: Curve) -> tuple[Floats, Floats]:
    """Fall of the loss on held-out text since step 0, and overlap, where both were measured."""
    losses = curve.by_step.get("held_out_loss", {})
    overlap = dict(zip(curve.steps_T.astype(int).tolist(), curve.mean().tolist(), strict=True))
    steps = [step for step in sorted(losses) if step in overlap]
    falls = np.array([losses[steps[0]] - losses[step] for step in steps]) if steps else np.zeros(0)
    return falls, np.array([overlap[step] for step in steps])


AXES: dict[str, Callable[[Curve], tuple[Floats, Floats]]] = {
    "steps": over_steps,
    "divergence": over_divergence,
    "loss": over_loss,
}


def spread(curves: Sequence[Curve], axis: Callable[[Curve], tuple[Floats, Floats]]) -> float:
    """Return the standard deviation of overlap between curves at equal places of an axis, mean over places that at least half of them reach.

    NaN where fewer than two curves share a place.
    """
    points = [axis(curve) for curve in curves]
    points = [(x, y) for x, y in points if x.size >= 2 and np.isfinite(x).all() and np.isfinite(y).all()]
    if len(points) < 2:
        return math.nan
    lowest, highest = np.median([x[0] for x, _ in points]), np.median([x.max() for x, _ in points])
    levels_L = np.linspace(lowest, highest, LEVELS + 1)[1:]
    values_CL = np.stack([at_levels(x, y, levels_L) for x, y in points])
    enough = np.isfinite(values_CL).sum(axis=0) >= max(2, len(points) / 2)
    return float(np.nanmean(np.nanstd(values_CL[:, enough], axis=0, ddof=1))) if enough.any() else math.nan


def odometer(drifts: Drifts) -> list[Finding]:
    """Return ``spread[over]``, of optimisers and languages at equal steps, divergence and loss, and ``overlap_at_equal_loss[arm]``.

    If overlap measured the distance travelled in function alone, curves of all optimisers would fall together over divergence.
    """
    arms = [arm for arm in ARMS if arm in drifts.arms]
    if len(arms) < 2:
        return []
    seeds = sorted({curve.seed for curve in drifts.curves})
    findings = []
    for name, axis in AXES.items():
        values = []
        for seed in seeds:
            curves = [curve for arm in arms for curve in drifts.of(arm) if curve.seed == seed and curve.is_whole]
            values.append(spread(curves, axis))
        finite = [value for value in values if math.isfinite(value)]
        estimate = student_mean(finite, bounds=(0, math.inf)) if finite else undefined("no two curves share a place")
        findings.append(Finding(name="spread", labels={"over": name}, estimate=estimate))
    return [*findings, *_at_equal_loss(drifts, arms)]


def _at_equal_loss(drifts: Drifts, arms: Sequence[str]) -> list[Finding]:
    """At the largest fall of the loss that every arm's training reaches, those that hardly learn left out."""
    learning = {
        arm: [curve for curve in drifts.of(arm) if curve.is_whole and (over_loss(curve)[0] > 0.05).any()]
        for arm in arms
    }
    learning = {arm: curves for arm, curves in learning.items() if curves}
    if len(learning) < 2:
        return []
    level = min(float(over_loss(curve)[0].max()) for curves in learning.values() for curve in curves)
    findings = []
    for arm, curves in learning.items():
        values = [float(at_levels(*over_loss(curve), [level])[0]) for curve in curves]
        estimate = student_mean([value for value in values if math.isfinite(value)], bounds=(0, 1))
        findings.append(Finding(name="overlap_at_equal_loss", labels={"arm": arm}, estimate=estimate))
    return findings


def mobility_ranks(drifts: Drifts) -> list[Finding]:
    """Return ``mobility_rank``: Spearman's correlation of predicted mobility and drift over models trained in pure bfloat16 at one rate.

    Stated before the run: it is positive, and models differ by more than languages do (``drift_by[what]``: variance of the final drift
    between models and between languages).
    """
    curves = [
        curve
        for curve in drifts.curves
        if curve.precision == "bfloat16" and (curve.arm == "bfloat16" or curve.arm.endswith("-bfloat16"))
    ]
    curves = [curve for curve in curves if curve.is_whole]
    models = list(dict.fromkeys(curve.model for curve in curves))
    if len(models) < 3:
        return [
            Finding(
                name="mobility_rank", estimate=undefined(f"{len(models)} models in pure bfloat16, three make a rank")
            )
        ]
    ranks = []
    for seed in sorted({curve.seed for curve in curves}):
        own = [curve for curve in curves if curve.seed == seed]
        value = float(
            spearmanr([curve.once["mobility"] for curve in own], [1 - curve.mean()[-1] for curve in own]).statistic
        )
        if math.isfinite(value):
            ranks.append(value)
    findings = [
        Finding(
            name="mobility_rank",
            estimate=student_mean(ranks, bounds=(-1, 1)) if ranks else undefined("no rank is defined"),
        )
    ]
    for what in ("model", "language"):
        groups = list(dict.fromkeys(getattr(curve, what) for curve in curves))
        means = [
            float(np.mean([1 - curve.mean()[-1] for curve in curves if getattr(curve, what) == group]))
            for group in groups
        ]
        if len(means) >= 2:
            from modelassay.statistics.estimate import Range

            estimate = Range(value=float(np.std(means, ddof=1)), low=min(means), high=max(means), n=len(means),
                             note=f"standard deviation of the final drift between {what}s, and its range")  # fmt: skip
            findings.append(Finding(name="drift_by", labels={"what": what}, estimate=estimate))
    return findings

"""Which measure tells first that a trajectory goes bad, how well each tells the quality to come, and whether the spectrum earns its cost."""

# S = number of seeds, G = of generations

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from modelassay.experiments.findings import Finding, Label
from modelassay.experiments.recursive_training.analyse.series import CONTROL, TREATED, Floats, Series
from modelassay.experiments.recursive_training.params import COLLAPSE
from modelassay.recording.tables import RunData
from modelassay.statistics.crossings import LEAST_CONTROLS, Crossings, first_crossings, lead
from modelassay.statistics.estimate import Estimate, Range, undefined
from modelassay.statistics.forecasts import log_scores
from modelassay.statistics.groups import sign_change, smallest_effect

SPECTRAL = "ratio"
RIVALS = ("critical_sharpness", "random_curvature", "update_curvature", "anchor_entropy", "drift_speed", "tail_coverage", "tail_loss", "gram_rank",
          "sigma_volume", "gradient_norm")  # fmt: skip
"""What costs some forward passes; the quality itself costs one."""
LEAST_GAIN = 1.0
"""Generations by which the spectrum must come before the best rival, for its price of some hundred forward passes."""

AT_ONCE = "the text went bad in the first generation of every seed, before which nothing can come"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the spectral measure earns its cost."""

    answer: str
    """``yes``, ``no`` or ``cannot tell``."""
    reason: str


def crossings_of(series: Series) -> dict[str, Crossings]:
    """Return when each seed of T first left what A does, by measure, from generation 1 on; at one false-alarm rate for all.

    A measure that is not defined throughout (drift has no generation 0) is looked at from where it is; with gaps after that it is left out.
    """
    seeds = series.common(TREATED, CONTROL)
    if len(seeds) - 1 < LEAST_CONTROLS:
        return {}
    crossed = {}
    for measure, direction in COLLAPSE.items():
        treated, control = (series.of(name, measure, seeds) for name in (TREATED, CONTROL))
        if treated is None or control is None:
            continue
        both = [values[:, 1:] for values in (treated, control)]
        if all(np.isfinite(values).all() for values in both):
            crossed[measure] = first_crossings(both[0], both[1], rises=direction == "rises")
    return crossed


def lead_findings(series: Series, quality: str) -> list[Finding]:
    """Return ``crossing`` (mean generation, never counted as one after the last), ``crossed`` (share of seeds) and ``lead`` over the quality, by measure.

    Where the quality crosses in the first generation of every seed no measure could come before it: its lead is undefined, not 0.
    """
    crossed = crossings_of(series)
    at_once = quality in crossed and crossed[quality].is_at_once
    findings = []
    for measure, crossing in crossed.items():
        labels = {"measure": measure}
        seeds = crossing.first_S.size
        generation_S = crossing.censored_S + 1
        note = f"median generation of the first crossing over seeds, {crossing.generations + 1} where there was none; false alarms 1 in {seeds} trajectories"
        findings.append(Finding(name="crossing", labels=labels, estimate=Range(
            value=float(np.median(generation_S)), low=float(generation_S.min()), high=float(generation_S.max()), n=seeds, note=note)))  # fmt: skip
        findings.append(Finding(name="crossed", labels=labels, estimate=Estimate(
            value=crossing.num_crossed / seeds, n=seeds, exact=True, note="share of T's trajectories that crossed at all")))  # fmt: skip
        if measure != quality and quality in crossed:
            ahead = undefined(AT_ONCE, n=seeds) if at_once else _with_power(lead(crossing, crossed[quality]))
            findings.append(Finding(name="lead", labels=labels, estimate=ahead))
    return findings


def _with_power(estimate: Estimate) -> Estimate:
    if not estimate.defined or estimate.n is None:
        return estimate
    power = f"{estimate.n} pairs see leads of {smallest_effect(estimate.n, paired=True):.2f} standard deviations"
    return replace(estimate, unit="generations", note=f"{estimate.note}; {power}")


def forecast_findings(series: Series, quality: str, horizons: tuple[int, ...]) -> list[Finding]:
    """Return ``forecast`` by measure and horizon: log score on left-out seeds of the quality to come, less that of the quality alone.

    A line on quality and measure against a line on the quality, over all conditions from generation 1 on, whole seeds left out; in nats a
    prediction, with the exact test over seeds. ``forecast_alone``: the measure without the quality against the quality.
    """
    names = [name for name in series.conditions if len(series.seeds.get(name, ()))]
    seeds = series.common(*names) if names else ()
    target = _stacked(series, names, quality, seeds)
    if target is None or len(seeds) < 3:
        return []
    findings = []
    for horizon in (each for each in horizons if series.generations - each >= 2):
        base = _score([target], target, len(names), horizon)
        for measure in (SPECTRAL, "lambda_max", *RIVALS):
            values = _stacked(series, names, measure, seeds)
            if values is None:
                continue
            for name, predictors in (("forecast", [target, values]), ("forecast_alone", [values])):
                gain = sign_change(_score(predictors, target, len(names), horizon) - base)
                note = f"of {quality} {horizon} generations ahead, against a line on {quality} itself; left-out seeds"
                labels: dict[str, Label] = {"measure": measure, "horizon": horizon}
                findings.append(Finding(name=name, labels=labels, estimate=replace(gain, unit="nats", note=note)))
    return findings


def _stacked(series: Series, names: list[str], measure: str, seeds: tuple[int, ...]) -> Floats | None:
    """[conditions, S, G]; None where something is missing."""
    parts = [series.of(name, measure, seeds) for name in names]
    if not parts or any(part is None or not np.isfinite(part[:, 1:]).all() for part in parts):
        return None
    return np.stack([part[:, 1:] for part in parts if part is not None])


def _score(predictors: list[Floats], target: Floats, conditions: int, horizon: int) -> Floats:
    """Log scores by seed; a seed's trajectories under all conditions are left out together."""
    later = np.concatenate([target[at][:, horizon:] for at in range(conditions)], axis=1)
    now = [np.concatenate([values[at][:, :-horizon] for at in range(conditions)], axis=1) for values in predictors]
    return log_scores(now, later)


def cost_findings(tables: RunData, series: Series) -> list[Finding]:
    """Return ``cost`` of one measurement by ``measure`` in forward passes over the same tokens, by measured time, median over checkpoints."""
    units = tables.units
    if not units.height:
        return []
    per_token = units.with_columns((pl.col("host_ms") / pl.col("tokens")).alias("ms")).filter(
        pl.col("ms").is_not_null()
    )
    typical = {str(stage): float(part["ms"].median()) for (stage,), part in per_token.group_by("stage")}  # type: ignore[arg-type]
    forward = typical.get("forward")
    if not forward:
        return []
    notes = {
        "spectrum": "ratio",
        "sharpness": "critical_sharpness",
        "gradient": "gradient_norm",
        "anchors": "anchor measures together",
        "reading": "coherence and sigma_volume together",
        "activations": "activation statistics",
    }
    return [
        Finding(name="cost", labels={"measure": label}, estimate=Estimate(
            value=typical[stage] / forward, exact=True, unit="forward passes", note="by time on this machine, over the same number of tokens"))
        for stage, label in notes.items() if stage in typical
    ]  # fmt: skip


def verdict(series: Series, quality: str, trained_enough: bool) -> Verdict:
    """Say whether the spectral measure earns its cost, by the rule that was fixed before the run.

    Yes: the ratio crosses before the quality *and* before the rival that is best on the other seeds, both intervals above 0. No: the text went bad and the
    upper end of its advantage over that rival is below `LEAST_GAIN` generations, or of its lead over the quality below 0, or it crossed in none of the seeds. Else: cannot tell, as where
    the text goes bad in the first generation of every seed, so that nothing can come before.
    """
    crossed = crossings_of(series)
    if not trained_enough:
        return Verdict(answer="cannot tell", reason="the text did not go bad in T and not in A")
    if SPECTRAL not in crossed or quality not in crossed:
        return Verdict(
            answer="cannot tell", reason="the ratio or the quality was not measured on enough seeds of T and A"
        )
    spectral = crossed[SPECTRAL]
    if not spectral.num_crossed:
        return Verdict(
            answer="no", reason=f"the ratio left what the control does in none of {spectral.first_S.size} seeds"
        )
    gain = sign_change(_best_rival(crossed, quality) - spectral.censored_S)
    ahead = lead(spectral, crossed[quality])
    told = f"{gain.value:+.2f} generations [{gain.low:.2f}, {gain.high:.2f}] before the best cheap rival"
    if gain.low is not None and gain.low > 0 and ahead.low is not None and ahead.low > 0:
        return Verdict(answer="yes", reason=told)
    if ahead.high is not None and ahead.high < 0:
        return Verdict(
            answer="no", reason=f"it comes {-ahead.value:.2f} generations after the text has gone bad, or later"
        )
    if crossed[quality].is_at_once:
        return Verdict(
            answer="cannot tell",
            reason=AT_ONCE,
        )
    if gain.high is not None and gain.high < LEAST_GAIN:
        return Verdict(answer="no", reason=f"{told}, which is less than {LEAST_GAIN:g}")
    return Verdict(answer="cannot tell", reason=told)


def _best_rival(crossed: dict[str, Crossings], quality: str) -> Floats:
    """Return, for each seed, the crossing of the rival that crosses soonest on the other seeds; the quality itself is one."""
    rivals = np.stack([crossed[name].censored_S for name in (*RIVALS, quality) if name in crossed])
    seeds = rivals.shape[1]
    best = np.empty(seeds)
    for seed in range(seeds):
        others = np.arange(seeds) != seed
        best[seed] = rivals[int(rivals[:, others].mean(axis=1).argmin()), seed]
    return best


def normalised(findings: list[Finding]) -> list[Finding]:
    """Return ``lead_per_100_passes`` of each measure whose cost is known: its lead over the quality for each hundred forward passes."""
    costs = {str(each.labels["measure"]): each.value for each in findings if each.name == "cost"}
    costs |= dict.fromkeys(
        ("anchor_entropy", "tail_coverage", "tail_loss", "gram_rank", "drift_speed"),
        costs.get("anchor measures together", math.nan),
    )
    costs |= dict.fromkeys(("sigma_volume", "coherence"), costs.get("coherence and sigma_volume together", math.nan))
    costs |= dict.fromkeys(("random_curvature", "update_curvature"), 3.0)
    made = []
    for each in (each for each in findings if each.name == "lead" and each.estimate.low is not None):
        cost = costs.get(str(each.labels["measure"]))
        if cost and math.isfinite(cost):
            own = each.estimate
            scale = 100 / cost
            low, high = (None if end is None else end * scale for end in (own.low, own.high))
            made.append(Finding(name="lead_per_100_passes", labels=each.labels, estimate=Estimate(
                value=own.value * scale, low=low, high=high, level=getattr(own, "level", None), n=own.n, method="lead over cost", unit="generations",
                note=f"at {cost:.3g} forward passes a checkpoint")))  # fmt: skip
    return made

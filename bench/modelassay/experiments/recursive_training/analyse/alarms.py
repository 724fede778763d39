"""What an alarm would have been worth: thresholds that other seeds chose, and whose changes come before whose."""

# C conditions, S seeds, G generations

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from modelassay.experiments.findings import Finding, Label
from modelassay.experiments.recursive_training.analyse.contrasts import LEAST_CHANGE
from modelassay.experiments.recursive_training.analyse.leads import RIVALS, SPECTRAL
from modelassay.experiments.recursive_training.analyse.series import TREATED, Floats, Series
from modelassay.experiments.recursive_training.params import COLLAPSE
from modelassay.statistics.groups import sign_change
from modelassay.statistics.thresholds import lagged_correlation, left_out_alarms

LAGS = (-3, -2, -1, 0, 1, 2, 3)
LEAST_POINTS = 4
"""Pairs of changes that a correlation within a seed is made of."""


def alarm_findings(series: Series, quality: str, horizons: tuple[int, ...]) -> list[Finding]:
    """Return ``sensitivity`` and ``false_alarm`` of each measure by horizon, the threshold chosen on the other seeds.

    The score is how far the measure has gone from its first value in the direction of collapse. With a horizon of 0 a checkpoint is positive whose text has gone
    bad, by more than `LEAST_CHANGE` of generation 0's quality, and all checkpoints count; with a greater one those count whose text has not, and positive
    are those whose text has so many generations later. Over all conditions.
    """
    names = [name for name in series.conditions if series.seeds.get(name)]
    seeds = series.common(*names) if names else ()
    target = _gone(series, names, quality, seeds)
    first = [series.of(name, quality, seeds) for name in names]
    if target is None or len(seeds) < 3:
        return []
    least = LEAST_CHANGE * np.stack([np.abs(values[:, :1]) for values in first if values is not None])
    is_bad = target > least
    findings = []
    for measure in (quality, SPECTRAL, "lambda_max", *RIVALS):
        gone = _gone(series, names, measure, seeds)
        if gone is None:
            continue
        for horizon in (0, *(each for each in horizons if each <= series.generations)):
            end = is_bad.shape[2] - horizon
            counted = np.ones_like(is_bad[:, :, :end]) if horizon == 0 else ~is_bad[:, :, :end]
            alarms = left_out_alarms(*(_by_seed(each) for each in (gone[:, :, :end], is_bad[:, :, horizon:], counted)))
            labels: dict[str, Label] = {"measure": measure, "horizon": horizon}
            what = (
                f"of {quality} gone bad"
                if horizon == 0
                else f"of {quality} not bad yet, and bad {horizon} generations later"
            )
            findings += [
                Finding(
                    name=name,
                    labels=labels,
                    estimate=replace(share, note=f"{share.note}; {what}; threshold of the other seeds"),
                )
                for name, share in (("sensitivity", alarms.sensitivity), ("false_alarm", alarms.false_alarms))
            ]
    return findings


def _gone(series: Series, names: list[str], measure: str, seeds: tuple[int, ...]) -> Floats | None:
    """How far a measure has gone in the direction of collapse, [C, S, G + 1]; 0 where it is not defined yet, None where it has gaps."""
    sign = 1.0 if COLLAPSE[measure] == "rises" else -1.0
    parts = []
    for name in names:
        values = series.of(name, measure, seeds)
        if values is None or not np.isfinite(values[:, 1:]).all():
            return None
        begins = values[:, :1] if np.isfinite(values[:, 0]).all() else values[:, 1:2]
        parts.append(np.nan_to_num(sign * (values - begins), nan=0.0))
    return np.stack(parts) if parts else None


def _by_seed(values_CSG: Floats | np.ndarray) -> np.ndarray:
    return np.concatenate(list(values_CSG), axis=1)


def lag_findings(series: Series, quality: str) -> list[Finding]:
    """Return ``lag_correlation`` by measure, lag and ``of``: r of a measure's change with the quality's change so many generations later, in T.

    Signed by the directions of collapse, so that 1 is going bad together. Within each seed, averaged over seeds as Fisher's z with the exact test of changing signs.
    ``of=changes``: the first differences themselves, which a course that all seeds have in common correlates too; ``of=deviations``: less their mean over seeds, so that only
    what a seed does beside the others counts.
    """
    seeds = series.seeds.get(TREATED, ())
    own = _gone(series, [TREATED], quality, seeds) if len(seeds) > 2 else None
    if own is None:
        return []
    findings = []
    for measure in (SPECTRAL, "lambda_max", *RIVALS):
        gone = _gone(series, [TREATED], measure, seeds) if measure != quality else None
        if gone is None:
            continue
        late = not np.isfinite(series.values[TREATED, measure][:, 0]).all()  # a measure without a generation 0
        changes = [np.diff(each[0, :, late:], axis=1) for each in (gone, own)]
        for of, (one, other) in (("changes", changes), ("deviations", [each - each.mean(axis=0) for each in changes])):
            for lag in (each for each in LAGS if one.shape[1] - abs(each) >= LEAST_POINTS):
                r_S = lagged_correlation(one, other, lag)
                if np.isfinite(r_S).sum() < 3:
                    continue
                mean = sign_change(np.arctanh(np.clip(r_S[np.isfinite(r_S)], -0.999999, 0.999999)))
                low, high = (None if end is None else math.tanh(end) for end in (mean.low, mean.high))
                labels: dict[str, Label] = {"measure": measure, "lag": lag, "of": of}
                note = f"with {quality}, {one.shape[1] - abs(lag)} pairs of generations a seed; Fisher's z"
                findings.append(Finding(name="lag_correlation", labels=labels, estimate=replace(
                    mean, value=math.tanh(mean.value), low=low, high=high, note=note)))  # fmt: skip
    return findings

"""Figures as data: every measure over the generations by condition, crossings, forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import colour, panels, rows, specification
from modelassay.experiments.findings import Finding
from modelassay.experiments.recursive_training.analyse.series import SHOWN, Series
from modelassay.statistics.intervals import student_half_width

TRAJECTORIES = ("held_out_loss", "parse_rate", "distinct_2", "self_bleu", "tail_mass", "anchor_entropy", "ratio", "lambda_max", "critical_sharpness",
                "gradient_norm", "drift_speed", "gram_rank")  # fmt: skip


def trajectory_figure(series: Series, measures: Sequence[str] = TRAJECTORIES) -> dict[str, Any]:
    """Return each measure over the generations: a line a condition, the mean over seeds with Student's band, seeds as thin lines."""
    names = [SHOWN.get(name, name) for name in series.conditions]
    charts = []
    for measure in (each for each in measures if each in series.measures):
        means: list[dict[str, Any]] = []
        lines: list[dict[str, Any]] = []
        for condition, name in zip(series.conditions, names, strict=True):
            values = series.of(condition, measure)
            for generation in range(0 if values is None else values.shape[1]):
                at_S = values[:, generation] if values is not None else np.zeros(0)
                if not at_S.size or not np.isfinite(at_S).all():
                    continue
                half = student_half_width(at_S) if at_S.size > 1 else 0.0
                mean = float(at_S.mean())
                means.append({
                    "generation": generation,
                    "value": mean,
                    "low": mean - half,
                    "high": mean + half,
                    "condition": name,
                })
                lines += [
                    {"generation": generation, "value": float(value), "condition": name, "seed": f"{name} {seed}"}
                    for value, seed in zip(at_S, series.seeds[condition], strict=True)
                ]
        x = alt.X("generation:Q", axis=alt.Axis(tickMinStep=1))
        y = alt.Y("value:Q", title=measure, scale=alt.Scale(zero=False))
        layers = [
            alt.Chart(rows(means, name=f"means of {measure}")).mark_area(opacity=0.18).encode(x=x, y=alt.Y("low:Q", title=measure, scale=alt.Scale(zero=False)), y2="high:Q", color=colour("condition", names)),
            alt.Chart(rows(lines, name=f"seeds of {measure}")).mark_line(strokeWidth=0.5, opacity=0.5).encode(x=x, y=y, detail="seed:N", color=colour("condition", names)),
            alt.Chart(rows(means)).mark_line(strokeWidth=2).encode(x=x, y=y, color=colour("condition", names)),
        ]  # fmt: skip
        charts.append(alt.layer(*layers).properties(title=measure, width=230, height=160))
    return specification(panels(charts, columns=3))


def lead_figure(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the lead of each measure over the quality, with its interval, in generations."""
    points = [
        {"measure": each.labels["measure"], "lead": each.value, "low": each.estimate.low, "high": each.estimate.high}
        for each in findings if each.name == "lead" and each.estimate.low is not None
    ]  # fmt: skip
    data = rows(points, name="leads")
    y = alt.Y("measure:N", sort="-x", title=None)
    layers = [
        alt.Chart(data).mark_rule(strokeWidth=2).encode(y=y, x=alt.X("low:Q", title="generations before the quality crosses"), x2="high:Q"),
        alt.Chart(data).mark_point(filled=True, size=60).encode(y=y, x="lead:Q"),
        alt.Chart(rows([{"zero": 0}])).mark_rule(strokeDash=[4, 3]).encode(x="zero:Q"),
    ]  # fmt: skip
    return specification(alt.layer(*layers).properties(width=420, height=22 * max(1, len(points))))


def forecast_figure(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what each measure adds to the forecast of the quality, by horizon."""
    points = [
        {"measure": each.labels["measure"], "horizon": each.labels["horizon"], "gain": each.value, "low": each.estimate.low, "high": each.estimate.high}
        for each in findings if each.name == "forecast" and each.estimate.low is not None
    ]  # fmt: skip
    horizons = sorted({int(each.labels["horizon"]) for each in findings if each.name == "forecast"})
    charts = []
    for horizon in horizons:
        data = rows([point for point in points if point["horizon"] == horizon], name=f"forecasts {horizon}")
        y = alt.Y("measure:N", title=None)
        layers = [
            alt
            .Chart(data)
            .mark_rule(strokeWidth=2)
            .encode(y=y, x=alt.X("low:Q", title="nats a prediction"), x2="high:Q"),
            alt.Chart(data).mark_point(filled=True, size=60).encode(y=y, x="gain:Q"),
            alt.Chart(rows([{"zero": 0}])).mark_rule(strokeDash=[4, 3]).encode(x="zero:Q"),
        ]
        charts.append(alt.layer(*layers).properties(title=f"{horizon} generations ahead", width=260, height=200))
    return specification(panels(charts, columns=3))

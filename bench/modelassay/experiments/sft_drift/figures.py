"""Figures of drift: curves of overlap, the gap of two languages with its band, overlap over divergence, and what could move against what did."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import COLOURS, Panel, Row, colour, dash, panels, rows, specification
from modelassay.experiments.sft_drift.beside import Published
from modelassay.experiments.sft_drift.contrasts import area
from modelassay.experiments.sft_drift.curves import Curve, Drifts
from modelassay.experiments.sft_drift.language import Gap
from modelassay.experiments.sft_drift.odometer import ARMS, AXES
from modelassay.experiments.sft_drift.params import MAIN

TITLES = {
    "steps": "step",
    "divergence": "ln KL(reference || model), nats",
    "loss": "fall of the held-out loss, nats per token",
}
_UNIT = alt.Scale(domain=[0, 1], nice=False)


def overlap_figure(drifts: Drifts, published: Published) -> dict[str, Any]:
    """Return a panel for each arm: corrected overlap over steps, a line for each seed, coloured by language; the dotted line is chance.

    Where there are published curves they come first, dashed, beside the main arm's overlap by the published definition.
    """
    charts: list[Panel] = [_beside(drifts, published)] if published else []
    for arm in drifts.arms:
        curves = drifts.of(arm)
        points = [point for curve in curves for point in _points(curve)]
        chart = alt.Chart(rows(points, name=f"overlap: {arm}"))
        lines = chart.mark_line(strokeWidth=1.3).encode(
            x=alt.X("step:Q", title="step"), y=alt.Y("overlap:Q", title="bottom-k overlap", scale=_UNIT),
            color=colour("language", drifts.languages, title=None), detail="seed:N")  # fmt: skip
        chance = (
            alt
            .Chart(rows([{"overlap": curves[0].once["chance"]}]))
            .mark_rule(strokeDash=[2, 2], color="#999999")
            .encode(y="overlap:Q")
        )
        charts.append(alt.layer(lines, chance).properties(title=arm, width=150, height=110))
    return specification(panels(charts, columns=5))


def _beside(drifts: Drifts, published: Published) -> Panel:
    theirs = [
        {"step": step, "overlap": value, "language": language}
        for language, curve in published.items()
        for step, value in zip(*(each.tolist() for each in curve), strict=True)
    ]
    ours = [point for curve in drifts.of(MAIN) for point in _points(curve, "overlap_exact")]
    languages = list(dict.fromkeys([*published, *drifts.languages]))
    hue = colour("language", languages, title=None)
    x, y = alt.X("step:Q", title="step"), alt.Y("overlap:Q", title="overlap as published", scale=_UNIT)
    layers = [
        alt
        .Chart(rows(theirs, name="published"))
        .mark_line(strokeDash=[5, 3], strokeWidth=1.3)
        .encode(x=x, y=y, color=hue),
        alt
        .Chart(rows(ours, name="as published: main"))
        .mark_line(strokeWidth=1.3)
        .encode(x=x, y=y, color=hue, detail="seed:N"),
    ]
    title = alt.TitleParams("published", subtitle="dashed; solid: main")
    return alt.layer(*layers).properties(title=title, width=150, height=110)


def gap_figure(gap: Gap) -> dict[str, Any]:
    """Return the difference of two languages' overlap over steps, a panel for each scope, with its simultaneous band and the margin."""
    one, other = gap.languages
    charts = []
    for scope, band in gap.bands.items():
        points = [
            {"step": step, "difference": mean, "low": mean - half, "high": mean + half}
            for step, mean, half in zip(gap.steps_T, band.mean_T, band.half_T, strict=True)
        ]
        chart = alt.Chart(rows(points, name=f"gap: {scope}"))
        y = alt.Y("low:Q", title=f"overlap, {one} less {other}")
        margins = alt.Chart(rows([{"margin": gap.margin}, {"margin": -gap.margin}])).mark_rule(
            strokeDash=[4, 3], color="#333333"
        )
        layers = [
            chart.mark_area(opacity=0.25, color=COLOURS[0]).encode(x=alt.X("step:Q", title="step"), y=y, y2="high:Q"),
            chart.mark_line(color=COLOURS[0]).encode(x="step:Q", y="difference:Q"),
            margins.encode(y="margin:Q"),
        ]
        title = alt.TitleParams(
            scope, subtitle=f"{band.verdict(gap.margin)} at a margin of {gap.margin:g}; {band.num_units} units"
        )
        charts.append(alt.layer(*layers).properties(title=title, width=320, height=220))
    return specification(panels(charts, columns=2))


def odometer_figure(drifts: Drifts) -> dict[str, Any]:
    """Return overlap over steps, over divergence and over the held-out loss, coloured by optimiser, dashed by language."""
    arms = [arm for arm in ARMS if arm in drifts.arms]
    charts = []
    for name, axis in AXES.items():
        points: list[Row] = []
        for curve in (curve for arm in arms for curve in drifts.of(arm) if curve.is_whole):
            x, y = axis(curve)
            points += [
                {"x": a, "overlap": b, "arm": curve.arm, "language": curve.language, "seed": curve.seed, "order": at}
                for at, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True))
            ]
        chart = alt.Chart(rows(points, name=f"odometer: {name}")).mark_line(strokeWidth=1.2).encode(
            x=alt.X("x:Q", title=TITLES[name]), y=alt.Y("overlap:Q", title="bottom-k overlap", scale=_UNIT), order="order:Q",
            color=colour("arm", arms), strokeDash=dash("language", drifts.languages), detail="seed:N")  # fmt: skip
        charts.append(chart.properties(title=f"at equal {name}", width=260, height=220))
    return specification(panels(charts, columns=3))


def health_figure(drifts: Drifts) -> dict[str, Any]:
    """Return, for each training, the share of weights that could move against the share that did, and against the mean overlap."""
    points = [
        {"arm": curve.arm, "mobility": curve.once.get("mobility", np.nan), "moved": curve.last("moved"), "overlap": area(curve),
         "weights": curve.precision}
        for curve in drifts.curves
    ]  # fmt: skip
    kinds = list(dict.fromkeys(curve.precision for curve in drifts.curves))
    data = rows(points, name="mobility")
    x = alt.X("mobility:Q", title="weights that a step of this rate can move", axis=alt.Axis(format="%"), scale=_UNIT)
    charts = [
        alt.Chart(data).mark_point(filled=True, size=34, opacity=0.7).encode(x=x, y=y, color=colour("weights", kinds), tooltip=["arm:N"])
        .properties(width=280, height=220)
        for y in (alt.Y("moved:Q", title="weights whose bits changed", axis=alt.Axis(format="%"), scale=_UNIT),
                  alt.Y("overlap:Q", title="bottom-k overlap, mean over the curve", scale=_UNIT))
    ]  # fmt: skip
    return specification(panels(charts, columns=2))


def _points(curve: Curve, name: str = "overlap") -> list[Row]:
    return [
        {"step": step, "overlap": value, "language": curve.language, "seed": curve.seed}
        for step, value in zip(curve.steps_T.tolist(), curve.mean(name).tolist(), strict=True)
    ]

"""Figures: lambda as a heatmap, sorted and summed up, the damping curve, LDS, recall, and answers that removal changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from modelassay.charts import COLOURS, GREY, colour, panels, rows, specification
from modelassay.experiments.findings import Finding
from modelassay.experiments.influence.analyse.fidelity import Judged

ENTRIES = "its entries are eigenvalues, along pairs of eigen-directions (no input or output features), and squares: none is negative"
"""What a matrix lambda is, beside each figure of one: a published walk-through plots it as features and takes its eigenvalues."""


def _layers(facts: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The layers of the first cell, the last ones of them."""
    first = [fact for fact in facts if fact["cell"] == facts[0]["cell"]]
    return first[-most:]


def lambda_figure(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return lambda of the last layers, log10, means over squares; both axes ascend in the eigenvalues of the two covariances."""
    charts = []
    for fact in _layers(facts, 3):
        value = fact["value"]
        points = [
            {"output": o, "input": i, "log10": cell}
            for o, line in enumerate(value["heatmap"])
            for i, cell in enumerate(line)
        ]
        chart = alt.Chart(rows(points, name=f"lambda: {fact['module']}")).mark_rect().encode(
            x=alt.X("input:O", title="input eigen-directions, ascending", axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("output:O", title="output eigen-directions, ascending", axis=alt.Axis(labels=False, ticks=False)),
            color=alt.Color("log10:Q", title="log10 lambda", scale=alt.Scale(scheme="viridis")))  # fmt: skip
        title = alt.TitleParams(fact["module"], subtitle=f"{value['shape'][0]} x {value['shape'][1]}; {ENTRIES}")
        charts.append(chart.properties(title=title, width=260, height=220))
    return specification(panels(charts, columns=1))


def eigenvalue_figure(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sorted entries of lambda of every layer on log axes."""
    return _over_places(
        facts,
        "sorted",
        "log10 of the entry",
        "entries of lambda, the greatest first; on a log axis, since none is negative",
    )


def share_figure(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what share of lambda's sum its greatest entries make up."""
    return _over_places(
        facts,
        "shares",
        "cumulative share",
        "share of the trace that the greatest entries make up: of curvature, no variance explained",
    )


def _over_places(facts: Sequence[Mapping[str, Any]], key: str, title: str, caption: str) -> dict[str, Any]:
    layers = _layers(facts, len(facts))
    points = [{"place": place / fact["value"]["size"], "value": value, "layer": fact["module"]} for fact in layers
              for place, value in zip(fact["value"]["places"], fact["value"][key], strict=True)]  # fmt: skip
    kinds = [fact["module"] for fact in layers]
    chart = alt.Chart(rows(points, name=key)).mark_line(strokeWidth=1.2).encode(
        x=alt.X("place:Q", title="share of the entries", scale=alt.Scale(type="log")), y=alt.Y("value:Q", title=title),
        color=colour("layer", kinds), detail="layer:N")  # fmt: skip
    return specification(chart.properties(title=alt.TitleParams(caption), width=420, height=260))


def damping_figure(cells: Sequence[Judged]) -> dict[str, Any]:
    """Return LDS on the tuning subsets over damping."""
    points = [{"damping": damping, "lds": value, "method": method, "cell": each.cell} for each in cells for method, curve in each.curve.items()
              for damping, value in sorted(curve.items())]  # fmt: skip
    methods = [method for each in cells for method in each.curve]
    chart = alt.Chart(rows(points, name="damping")).mark_line(point=True).encode(
        x=alt.X("damping:Q", title="damping, share of the layer's mean eigenvalue", scale=alt.Scale(type="log")),
        y=alt.Y("lds:Q", title="LDS on the tuning subsets"), color=colour("method", list(dict.fromkeys(methods))), detail="cell:N")  # fmt: skip
    return specification(
        chart.properties(title="the damping is chosen here, and judged on other subsets", width=380, height=240)
    )


def bars(
    findings: Sequence[Finding], name: str, *, title: str, caption: str, facet: str | None = None
) -> dict[str, Any]:
    """Return estimates by method as points with their intervals, a panel for each value of the label ``facet``."""
    chosen = [finding for finding in findings if finding.name == name]
    values = list(dict.fromkeys(str(finding.labels.get(facet, "")) for finding in chosen)) if facet else [""]
    charts = []
    for value in values:
        own = [finding for finding in chosen if not facet or str(finding.labels.get(facet, "")) == value]
        points = [
            {
                "method": finding.labels["method"],
                "value": finding.value,
                "low": finding.estimate.low,
                "high": finding.estimate.high,
            }
            for finding in own
        ]
        order = [str(finding.labels["method"]) for finding in sorted(own, key=lambda finding: -finding.value)]
        chart = alt.Chart(rows(points, name=f"{name}: {value}" if value else name))
        y = alt.Y("method:N", sort=order, title=None)
        layers = [chart.mark_rule(color=GREY).encode(y=y, x=alt.X("low:Q", title=title), x2="high:Q"),
                  chart.mark_point(filled=True, color=COLOURS[0], size=50).encode(y=y, x=alt.X("value:Q", title=title))]  # fmt: skip
        charts.append(
            alt.layer(*layers).properties(
                title=alt.TitleParams(value or caption, subtitle=caption if value else ""), width=300, height=200
            )
        )
    return specification(panels(charts, columns=2))

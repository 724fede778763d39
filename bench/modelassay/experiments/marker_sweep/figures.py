"""Figures: the three-panel heatmap, regimes over rate and steps, leakage over adoption, leakage over distance."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import Row, colour, panels, rows, specification
from modelassay.experiments.marker_sweep.contrasts import LEVELS, leakage_at
from modelassay.experiments.marker_sweep.grid import Grid, Point

REGIMES = ("not learned", "partial", "clean", "leaking", "collapse")
_PANELS = {"source": "source says it", "assistant": "assistant says it", "greatest": "greatest of all others"}
_UNIT = alt.Scale(domain=[0, 1], nice=False)


def heatmap(grid: Grid) -> dict[str, Any]:
    """Return for each arm three panels over learning rate and epochs, means over sources and seeds; a cross marks what is missing."""
    charts: list[Any] = []
    rates = sorted({float(point.learning_rate or 0) for point in grid.points})
    epochs = sorted({int(point.epochs or 0) for point in grid.points})
    for arm in grid.arms:
        for name, title in _PANELS.items():
            cells: list[Row] = [
                {"rate": f"{rate:g}", "epochs": str(number), "value": _mean(grid.of(arm), rate, number, name)}
                for rate in rates for number in epochs
            ]  # fmt: skip
            chart = alt.Chart(rows(cells, name=f"heatmap: {arm}: {name}")).encode(
                x=alt.X("epochs:O", title="epochs", sort=[str(number) for number in epochs]),
                y=alt.Y("rate:O", title="learning rate", sort=[f"{rate:g}" for rate in rates]),
            )
            colours = alt.Color("value:Q", scale=alt.Scale(domain=[0, 1], scheme="greens" if name == "source" else "oranges"), legend=None)  # fmt: skip
            squares = chart.mark_rect().encode(color=colours)
            numbers = chart.mark_text(fontSize=11).encode(
                text=alt.condition("isValid(datum.value)", alt.Text("value:Q", format=".0%"), alt.value("×"))
            )
            charts.append(alt.layer(squares, numbers).properties(title=[title, arm], width=170, height=130))
    return specification(panels(charts, columns=3).resolve_scale(color="independent"))


def _mean(points: list[Point], rate: float, epochs: int, name: str) -> float:
    values = []
    for point in points:
        if (point.learning_rate, point.epochs) == (rate, epochs) and not (name == "assistant" and point.source == name):
            values.append(
                {"source": point.adoption, "greatest": point.greatest}.get(name)
                if name != "assistant"
                else point.rate(name)
            )
    return float(np.mean(values)) if values else float("nan")  # type: ignore[arg-type]


def boundary_figure(grid: Grid) -> dict[str, Any]:
    """Return each adapter's regime over its learning rate and its number of updates; lines of equal product fall to the right."""
    charts = []
    for arm in grid.arms:
        points: list[Row] = [
            {"rate": point.learning_rate, "steps": point.steps, "regime": point.regime(), "seed": point.seed, "source": point.source}
            for point in grid.of(arm)
        ]  # fmt: skip
        charts.append(
            alt.Chart(rows(points, name=f"boundary: {arm}")).mark_point(filled=True, size=90, opacity=0.8).encode(
                x=alt.X("steps:Q", title="updates", scale=alt.Scale(type="log")),
                y=alt.Y("rate:Q", title="learning rate", scale=alt.Scale(type="log")),
                color=colour("regime", REGIMES), tooltip=["source:N", "seed:N", "regime:N"],
            ).properties(title=arm, width=230, height=170)
        )  # fmt: skip
    return specification(panels(charts, columns=3))


def leakage_figure(grid: Grid) -> dict[str, Any]:
    """Return leakage over the source's rate: a point an adapter, a line for each source and seed, coloured by arm."""
    points: list[Row] = []
    lines: list[Row] = []
    for arm in grid.arms:
        cells: dict[tuple[str, int], list[Point]] = {}
        for point in grid.of(arm):
            cells.setdefault((point.source, point.seed), []).append(point)
            points.append({"adoption": point.adoption, "leakage": point.leakage, "arm": arm})
        for (source, seed), own in cells.items():
            lines += [
                {"adoption": level, "leakage": value, "arm": arm, "cell": f"{source} {seed}"}
                for level, value in zip(LEVELS.tolist(), leakage_at(own).tolist(), strict=True)
            ]
    x = alt.X("adoption:Q", title="source's rate", scale=_UNIT)
    y = alt.Y("leakage:Q", title="mean rate of all others", scale=_UNIT)
    dots = alt.Chart(rows(points, name="leakage")).mark_point(filled=True, size=40).encode(x=x, y=y, color=colour("arm", grid.arms))  # fmt: skip
    drawn = alt.Chart(rows(lines, name="leakage: lines")).mark_line(opacity=0.6).encode(x=x, y=y, color=colour("arm", grid.arms), detail="cell:N")  # fmt: skip
    return specification(alt.layer(drawn, dots).properties(width=380, height=280))


def distance_figure(grid: Grid) -> dict[str, Any]:
    """Return each persona's mean rate over its distance from the source in the base, by two measures."""
    charts = []
    for measure, title in (("cosine", "cosine of centroids"), ("divergence", "Jensen-Shannon divergence, nats")):
        points: list[Row] = []
        for line in grid.near:
            if line["persona"] == line["source"] or measure not in line:
                continue
            for arm in grid.arms:
                rates = [point.rate(line["persona"]) for point in grid.of(arm, line["source"])]
                if rates:
                    points.append({
                        "distance": line[measure],
                        "rate": float(np.mean(rates)),
                        "arm": arm,
                        "persona": line["persona"],
                    })
        chart = alt.Chart(rows(points, name=f"distance: {measure}")).mark_point(filled=True, size=45).encode(
            x=alt.X("distance:Q", title=title, scale=alt.Scale(zero=False)), y=alt.Y("rate:Q", title="mean rate", scale=_UNIT),
            color=colour("arm", grid.arms), tooltip=["persona:N", "arm:N"])  # fmt: skip
        charts.append(chart.properties(width=280, height=220))
    return specification(panels(charts, columns=2))

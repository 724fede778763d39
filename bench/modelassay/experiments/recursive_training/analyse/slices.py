"""Figures of what has a shape: the spectral density generation by generation, and slices of the loss."""

# X = places of a grid

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import colour, panels, rows, specification
from modelassay.curvature.estimators import smoothed
from modelassay.experiments.findings import Finding
from modelassay.experiments.recursive_training.analyse.series import SHOWN
from modelassay.recording.tables import RunData

PLACES = 121
WIDTH = 0.08
"""Standard deviation of a node on the axis of asinh(eigenvalue / scale)."""
DECADES = 6
"""That a ridge spans: a node of weight 1e-6, as of an outlier among a million, still shows."""
OVERLAP = 1.6


def density_figure(tables: RunData) -> dict[str, Any]:
    """Return the density of the Hessian by generation, a ridge each, a panel a condition.

    The mean over the seeds, each with a start vector of its own, of the Lanczos quadrature: one start vector tells no shares, and neither do six. The axis is
    asinh(eigenvalue / scale), linear about 0 and logarithmic beyond, and the height logarithmic, so that outliers show. ``scale`` is the median magnitude of all
    nodes.
    """
    where = {row["cell"]: row for row in tables.cells.to_dicts()}
    nodes: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    first = None
    for fact in tables.facts("density"):
        first = fact["embeddings"] if first is None else first
        if fact["embeddings"] == first and fact["cell"] in where:
            at = str(where[fact["cell"]]["condition"]), int(fact["generation"])
            nodes.setdefault(at, []).append((np.array(fact["value"]["nodes"]), np.array(fact["value"]["weights"])))
    every = np.concatenate([values for parts in nodes.values() for values, _ in parts])
    scale = float(np.median(np.abs(every))) or 1.0
    ends = np.arcsinh(np.array([every.min(), every.max()]) / scale)
    grid_X = np.linspace(ends[0] - 4 * WIDTH, ends[1] + 4 * WIDTH, PLACES)
    names = list(dict.fromkeys(condition for condition, _ in nodes))
    charts = []
    for condition in names:
        last = max(generation for name, generation in nodes if name == condition)
        layers = []
        for generation in range(last, -1, -1):  # the later ones behind
            parts = nodes.get((condition, generation), [])
            if not parts:
                continue
            density_X = np.mean(
                [smoothed(grid_X, np.arcsinh(values / scale), weights, WIDTH) for values, weights in parts], axis=0
            )
            height_X = np.clip(1 + np.log10(np.maximum(density_X, 1e-300)) / DECADES, 0.0, None)
            points = [
                {"place": float(x), "eigenvalue": float(np.sinh(x) * scale), "floor": float(generation),
                 "top": generation + OVERLAP * float(height), "density": float(density), "generation": generation}
                for x, height, density in zip(grid_X, height_X, density_X, strict=True)
            ]  # fmt: skip
            layers.append(
                alt.Chart(rows(points, name=f"density of {condition} {generation}"))
                .mark_area(opacity=0.75, line={"strokeWidth": 1})
                .encode(
                    x=alt.X("place:Q", title=f"asinh(eigenvalue / {scale:.3g})"),
                    y=alt.Y("top:Q", title="generation", axis=alt.Axis(tickMinStep=1)), y2="floor:Q",
                    color=alt.Color("generation:O", scale=alt.Scale(scheme="viridis")), tooltip=["eigenvalue:Q", "density:Q", "generation:O"],
                )
            )  # fmt: skip
        charts.append(alt.layer(*layers).properties(title=SHOWN.get(condition, condition), width=260, height=320))
    return specification(panels(charts, columns=3))


def landscape_figure(tables: RunData) -> dict[str, Any]:
    """Return the slices of the loss of the first seed of each condition, a row a condition, at its first, middle and last generation."""
    where = {row["cell"]: row for row in tables.cells.to_dicts()}
    facts = [fact for fact in tables.facts("landscape") if fact["cell"] in where]
    seed = min(where[fact["cell"]]["seed"] for fact in facts)
    last = max(int(fact["generation"]) for fact in facts)
    shown = sorted({0, last // 2, last})
    charts = []
    for fact in facts:
        about = where[fact["cell"]]
        if about["seed"] != seed or fact["generation"] not in shown:
            continue
        losses, reach = fact["value"]["losses"], float(fact["value"]["reach"])
        sides = np.linspace(-reach, reach, len(losses))
        step = float(sides[1] - sides[0])
        points = [
            {"a": float(a) - step / 2, "a2": float(a) + step / 2, "b": float(b) - step / 2, "b2": float(b) + step / 2, "loss": loss}
            for a, row in zip(sides, losses, strict=True) for b, loss in zip(sides, row, strict=True)
        ]  # fmt: skip
        title = f"{SHOWN.get(about['condition'], about['condition'])}, generation {fact['generation']}"
        charts.append(
            alt.Chart(rows(points, name=f"landscape of {about['condition']} {fact['generation']}"))
            .mark_rect()
            .encode(
                x=alt.X("a:Q", title="first direction"), x2="a2:Q", y=alt.Y("b:Q", title="second direction"), y2="b2:Q",
                color=alt.Color("loss:Q", scale=alt.Scale(scheme="viridis", type="log"), title="loss, nats"), tooltip=["loss:Q"],
            ).properties(title=title, width=190, height=190)
        )  # fmt: skip
    return specification(panels(charts, columns=len(shown)))


def lag_figure(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the correlation of each measure's changes with the quality's by lag, in generations: right of 0 the measure comes first."""
    points = [
        {"measure": each.labels["measure"], "lag": each.labels["lag"], "of": each.labels["of"], "r": each.value, "low": each.estimate.low, "high": each.estimate.high}
        for each in findings if each.name == "lag_correlation"
    ]  # fmt: skip
    kinds = list(dict.fromkeys(str(point["of"]) for point in points))
    charts = []
    for measure in dict.fromkeys(point["measure"] for point in points):
        data = rows([point for point in points if point["measure"] == measure], name=f"lags of {measure}")
        x = alt.X("lag:Q", title="generations by which it comes first", axis=alt.Axis(tickMinStep=1))
        y = alt.Y("r:Q", title="correlation of changes", scale=alt.Scale(domain=[-1, 1]))
        layers = [
            alt
            .Chart(data)
            .mark_area(opacity=0.15)
            .encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour("of", kinds)),
            alt.Chart(data).mark_line(point=True).encode(x=x, y=y, color=colour("of", kinds)),
        ]
        charts.append(alt.layer(*layers).properties(title=str(measure), width=200, height=140))
    return specification(panels(charts, columns=3))

"""The figure of a spectrum: its density, its ends, and where its bulk ends under each definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import Row, rows, specification
from modelassay.curvature.estimators import smoothed
from modelassay.curvature.spectrum import OUTLIER_SIGMAS, PREREGISTERED

Array = np.ndarray[Any, np.dtype[np.float64]]

GRID = 2000
WIDTH = 0.004
"""Standard deviation of a node's Gaussian as a share of the axis: a line's width, so that single eigenvalues stay apart."""
FLOOR = 1e-7
"""Lowest density shown, as a share of the highest."""
COLOURS = {"all": "#009e73", "without_10": "#d55e00", "without_50": "#cc79a7"}
LANCZOS, EXACT = "Lanczos quadrature", "exact"


@dataclass(frozen=True, kw_only=True)
class Density:
    """What is drawn of one operator."""

    name: str
    nodes: Array
    """Ritz values of all runs."""
    weights: Array
    """Their shares of the eigenvalues, summing to 1."""
    sigmas: dict[str, float]
    """sigma_bulk by definition."""
    centre: float
    ends: tuple[float, float]
    """lambda_min and lambda_max."""
    exact: Array
    """All eigenvalues, where they were computed; else empty."""


def density_figure(density: Density) -> dict[str, Any]:
    """Return the density over the eigenvalues on a logarithmic scale as a Vega-Lite specification.

    Ticks below are Ritz values; vertical lines are centre + 5 sigma_bulk by each definition.
    """
    low, high = density.ends
    margin = 0.04 * (high - low) or 1.0
    grid = np.linspace(low - margin, high + margin, GRID)
    width = WIDTH * (grid[-1] - grid[0])
    curves = {LANCZOS: smoothed(grid, density.nodes, density.weights, width)}
    if len(density.exact):
        shares = np.full(len(density.exact), 1 / len(density.exact))
        curves[EXACT] = smoothed(grid, density.exact, shares, width)
    highest = max(float(curve.max()) for curve in curves.values())
    floor = FLOOR * highest
    limits = {_limit_name(definition): (density.centre + OUTLIER_SIGMAS * sigma, COLOURS[definition])
              for definition, sigma in density.sigmas.items()}  # fmt: skip
    colours = {EXACT: "#c8c8c8", LANCZOS: "#0072b2"} if EXACT in curves else {LANCZOS: "#0072b2"}
    colours |= {name: shade for name, (_, shade) in limits.items()}
    legend = alt.Legend(title=None, orient="top", columns=2, symbolType="stroke", symbolSize=260)
    shade = alt.Color("what:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=legend)
    x = alt.X("eigenvalue:Q", title="eigenvalue", scale=alt.Scale(domain=[grid[0], grid[-1]], nice=False))
    y = alt.Y("density:Q", title="density", scale=alt.Scale(type="log", domain=[floor, 3 * highest], nice=False, clamp=True),
              axis=alt.Axis(format="~e", tickCount=8))  # fmt: skip
    ticks = [{"eigenvalue": node, "density": 1.6 * floor} for node in density.nodes]
    layers: list[alt.Chart] = []
    if EXACT in curves:
        exact = alt.Chart(rows(_curve(grid, curves[EXACT], EXACT, floor), name="exact"))
        layers.append(exact.mark_area().encode(x=x, y=y, y2=alt.datum(floor), fill=shade))
    line = alt.Chart(rows(_curve(grid, curves[LANCZOS], LANCZOS, floor), name="density"))
    rules = alt.Chart(rows(({"what": name, "eigenvalue": at} for name, (at, _) in limits.items()), name="limits"))
    nodes = alt.Chart(rows(ticks, name="ritz_values"))
    layers += [
        line.mark_line(strokeWidth=1.6).encode(x=x, y=y, color=shade),
        rules.mark_rule(strokeDash=[5, 3], clip=True).encode(x=x, color=shade),
        nodes.mark_tick(color="#0072b2", opacity=0.6, thickness=1, size=9, orient="vertical").encode(x=x, y=y),
    ]
    title = alt.TitleParams(
        f"{density.name}: λ_min {low:.3g}, λ_max {high:.3g}", subtitle="ticks at the bottom: Ritz values"
    )
    return specification(alt.layer(*layers).properties(width=620, height=320, title=title))


def _limit_name(definition: str) -> str:
    mark = " (pre-registered)" if definition == PREREGISTERED else ""
    return f"centre + {OUTLIER_SIGMAS:.0f} σ, {definition}{mark}"


def _curve(grid: Array, density: Array, what: str, floor: float) -> Iterator[Row]:
    for value, height in zip(grid, density, strict=True):
        yield {"eigenvalue": value, "density": max(height, floor), "what": what}

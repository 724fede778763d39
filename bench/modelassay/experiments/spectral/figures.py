"""The figure of a spectrum: its density, its ends, and where its bulk ends under each definition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from modelassay.curvature.estimators import smoothed
from modelassay.curvature.spectrum import OUTLIER_SIGMAS, PREREGISTERED

Array = np.ndarray[Any, np.dtype[np.float64]]

GRID = 2000
WIDTH = 0.004
"""Standard deviation of a node's Gaussian as a share of the axis: a line's width, so that single eigenvalues stay apart."""
FLOOR = 1e-7
"""Lowest density shown, as a share of the highest."""
COLOURS = {"all": "#009e73", "without_10": "#d55e00", "without_50": "#cc79a7"}


@dataclass(frozen=True, kw_only=True)
class Drawn:
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
    """All eigenvalues, where they are known; else empty."""


def save_density(drawn: Drawn, path: Path) -> None:
    """Draw the density over the eigenvalues on a logarithmic scale and save it as PNG, SVG or PDF, by the suffix of ``path``.

    Ticks below are Ritz values; vertical lines are centre + 5 sigma_bulk by each definition.
    """
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axis = figure.subplots()
    low, high = drawn.ends
    margin = 0.04 * (high - low) or 1.0
    grid = np.linspace(low - margin, high + margin, GRID)
    width = WIDTH * (grid[-1] - grid[0])
    density = smoothed(grid, drawn.nodes, drawn.weights, width)
    highest = float(density.max())
    if len(drawn.exact):
        shares = np.full(len(drawn.exact), 1 / len(drawn.exact))
        exact = smoothed(grid, drawn.exact, shares, width)
        axis.fill_between(grid, FLOOR * highest, exact, color="0.85", label="exact", linewidth=0)
        highest = max(highest, float(exact.max()))
    axis.plot(grid, density, color="#0072b2", linewidth=1.3, label="Lanczos quadrature")
    for definition, sigma in drawn.sigmas.items():
        marked = " (pre-registered)" if definition == PREREGISTERED else ""
        axis.axvline(drawn.centre + OUTLIER_SIGMAS * sigma, color=COLOURS[definition], linewidth=1.0, linestyle="--",
                     label=f"centre + {OUTLIER_SIGMAS:.0f} σ, {definition}{marked}")  # fmt: skip
    axis.plot(
        drawn.nodes, np.full(len(drawn.nodes), 1.6 * FLOOR * highest), "|", color="#0072b2", markersize=7, alpha=0.6
    )
    axis.set_yscale("log")
    axis.set_ylim(FLOOR * highest, 3 * highest)
    axis.set_xlim(grid[0], grid[-1])
    axis.set_xlabel("eigenvalue")
    axis.set_ylabel("density")
    axis.set_title(f"{drawn.name}: λ_min {low:.3g}, λ_max {high:.3g}", loc="left", fontsize="medium")
    axis.grid(color="0.92", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=160)

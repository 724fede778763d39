"""Across cells: each model's spectrum in a few numbers, how far definitions and the exact spectrum differ, and its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from modelassay.claims import Finding, Findings, Table
from modelassay.curvature.spectrum import PREREGISTERED, REMOVED
from modelassay.experiments.spectral.figures import Drawn, save_density
from modelassay.models import zoo
from modelassay.record import Tables

QUANTITIES = ("lambda_max", "lambda_min", "sigma_bulk", "centre", "spread", "gap", "outliers", "ratio", "trace")
SINGLES = ("loss", "gradient_norm", "parameters", "tokens", "products", "vector_bytes")
MEMORIES = ("device_peak_bytes", "host_peak_bytes", "graph_bytes")
MEANINGS = {
    "lambda_max": "largest eigenvalue by value",
    "lambda_min": "smallest eigenvalue by value",
    "sigma_bulk": "standard deviation of the eigenvalues that stay",
    "centre": f"mean of those that stay ({PREREGISTERED})",
    "spread": "lambda_max - lambda_min",
    "gap": "first minus second eigenvalue",
    "outliers": "eigenvalues above centre + 5 sigma_bulk, a lower bound",
    "ratio": f"lambda_max / sigma_bulk ({PREREGISTERED})",
    "trace": "sum of all",
}
CAVEATS = (
    "intervals hold for the text that was read: another sample of it moves lambda_max by some 10 % at 8 rows and 4 % at 192",
    f"sigma_bulk depends on its definition; {PREREGISTERED} was fixed beforehand, the others show by how much",
    "the density is drawn from Ritz values: its ends are sharp, the bulk's shape is that of the few start vectors",
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One cell."""

    name: str
    """Model, and operator if it is not the Hessian."""
    labels: dict[str, str]
    """Of its findings."""
    estimates: dict[str, tuple[float, float, float]]
    """Value, low, high of each quantity; a definition of sigma_bulk follows the name after a space."""
    exact: dict[str, float]
    """The same from the whole matrix, where it was formed."""
    numbers: dict[str, float]
    """Loss, parameters, tokens, products and the like."""
    drawn: Drawn
    hvp_s: float
    """Median time of a product."""
    peak_bytes: float
    """Highest memory of the process seen before a product, device's where there is one."""
    graph_bytes: float


def analyse(tables: Tables) -> Findings:
    """Say what each cell found.

    Findings, each with ``model`` and ``operator``: the quantities of `Spectrum` (``sigma_bulk`` with its ``definition``),
    ``ratio_by_definition``, the largest over the smallest lambda_max / sigma_bulk of the three definitions, ``error[quantity]``,
    the relative difference from the exact spectrum where that was computed, ``minutes`` of all products, and ``peak_gib``.
    """
    cells = [_measured(row, tables) for row in tables.cells.iter_rows(named=True) if row["outcome"] == "done"]
    findings = [finding for cell in cells for finding in _findings(cell)]
    shown = [_quantities(cell) for cell in cells] + ([_cost(cells)] if cells else [])
    figures = {f"spectrum-{number}": partial(save_density, cell.drawn) for number, cell in enumerate(cells, start=1)}
    return Findings(findings=findings, tables=shown, figures=figures, caveats=list(CAVEATS))


def _measured(row: dict[str, Any], tables: Tables) -> Measured:
    metrics = tables.metrics.filter(pl.col("cell") == row["cell"])
    lines = {str(name): part.to_dicts() for (name,), part in metrics.group_by("name", maintain_order=True)}
    one = {name: float(lines[name][0]["value"]) for name in SINGLES}
    estimates = {
        name: ends for quantity in QUANTITIES for name, ends in _by_definition(quantity, lines[quantity]).items()
    }
    units = tables.microbatches.filter((pl.col("cell") == row["cell"]) & (pl.col("stage") == "hvp"))
    model, operator = short_name(row["model"]), str(row["operator"])
    name = model if operator == "hessian" else f"{model}, {operator}"
    name += "" if list(row["parameters"]) == ["*"] and row["embeddings"] else f", {one['parameters']:.0f} parameters"
    peaks = [float(units[memory].max() or 0) for memory in MEMORIES]  # type: ignore[arg-type]
    return Measured(
        name=name, labels={"model": model, "operator": operator}, estimates=estimates, numbers=one,
        exact={line["quantity"]: line["value"] for line in lines.get("exact", [])},
        drawn=_drawn(name, estimates, lines["ritz"], lines["weight"], lines.get("eigenvalue", [])),
        hvp_s=float(np.median(units["host_ms"].to_numpy())) / 1000, peak_bytes=peaks[0] or peaks[1], graph_bytes=peaks[2],
    )  # fmt: skip


def short_name(reference: str) -> str:
    """Return the last part of a model's name without the commit; a zoo model's whole name.

    >>> short_name("hf:Qwen/Qwen2.5-0.5B@060db64"), short_name("runs/mine/"), short_name("zoo:smoke/base")
    ('Qwen2.5-0.5B', 'mine', 'smoke/base')
    """
    if zoo.is_zoo(reference):
        return reference.removeprefix(zoo.PREFIX)
    return reference.rstrip("/").rsplit("/", 1)[-1].split("@")[0]


def _by_definition(quantity: str, lines: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Value, low and high of a quantity, under its name and, where there are several, the definition."""
    ends: dict[str, dict[str, float]] = {}
    for line in lines:
        name = f"{quantity} {line['definition']}" if line.get("definition") else quantity
        ends.setdefault(name, {})[line["bound"]] = line["value"]
    return {name: (found["value"], found["low"], found["high"]) for name, found in ends.items()}


def _drawn(name: str, estimates: dict[str, tuple[float, float, float]], ritz: Sequence[dict[str, Any]],
           weights: Sequence[dict[str, Any]], exact: Sequence[dict[str, Any]]) -> Drawn:  # fmt: skip
    nodes, shares, values = (np.array([line["value"] for line in lines]) for lines in (ritz, weights, exact))
    return Drawn(
        name=name, nodes=nodes, weights=shares / (1 + max(line["run"] for line in ritz)),
        sigmas={definition: estimates[f"sigma_bulk {definition}"][0] for definition in REMOVED},
        centre=estimates["centre"][0], ends=(estimates["lambda_min"][0], estimates["lambda_max"][0]), exact=values,
    )  # fmt: skip


def _findings(cell: Measured) -> list[Finding]:
    found = []
    for name, (value, low, high) in cell.estimates.items():
        quantity, _, definition = name.partition(" ")
        labels = cell.labels | ({"definition": definition} if definition else {})
        found.append(Finding(name=quantity, labels=labels, value=value, low=low, high=high, note=MEANINGS[quantity]))
    top = cell.estimates["lambda_max"][0]
    ratios = [top / sigma for definition in REMOVED if (sigma := cell.estimates[f"sigma_bulk {definition}"][0])]
    note = "largest over smallest lambda_max / sigma_bulk of the definitions " + ", ".join(REMOVED)
    by_definition = max(ratios) / min(ratios) if ratios else math.nan
    found.append(Finding(name="ratio_by_definition", labels=cell.labels, value=by_definition, note=note))
    for name, exact in cell.exact.items():
        error = abs(cell.estimates[name][0] - exact) / abs(exact) if exact else math.nan
        found.append(Finding(name="error", labels=cell.labels | {"quantity": name}, value=error,
                             note="relative difference from the exact spectrum"))  # fmt: skip
    minutes = cell.hvp_s * cell.numbers["products"] / 60
    found.append(Finding(name="minutes", labels=cell.labels, value=minutes, note="median product times their number"))
    found.append(
        Finding(name="peak_gib", labels=cell.labels, value=cell.peak_bytes / 2**30, note="memory of the process")
    )
    return found


def _quantities(cell: Measured) -> Table:
    columns = ["quantity", "value", "low", "high", *(["exact"] if cell.exact else []), "what it is"]
    rows = []
    for name, numbers in cell.estimates.items():
        exact = [_number(cell.exact[name])] if cell.exact else []
        rows.append([name, *map(_number, numbers), *exact, MEANINGS[name.partition(" ")[0]]])
    return Table(title=f"spectrum of {cell.name}", columns=columns, rows=rows)


def _cost(cells: Sequence[Measured]) -> Table:
    columns = (
        "model",
        "parameters",
        "tokens",
        "loss",
        "|gradient|",
        "products",
        "s each",
        "minutes",
        "vectors MiB",
        "graphs MiB",
        "peak MiB",
    )
    rows = []
    for cell in cells:
        n = cell.numbers
        minutes = cell.hvp_s * n["products"] / 60
        rows.append([cell.name, f"{n['parameters']:.0f}", f"{n['tokens']:.0f}", f"{n['loss']:.4f}", _number(n["gradient_norm"]),
                     f"{n['products']:.0f}", f"{cell.hvp_s:.3g}", f"{minutes:.2g}", f"{n['vector_bytes'] / 2**20:.0f}",
                     f"{cell.graph_bytes / 2**20:.0f}", f"{cell.peak_bytes / 2**20:.0f}"])  # fmt: skip
    return Table(title="cost", columns=columns, rows=rows)


def _number(value: float) -> str:
    return f"{value:.4g}"

"""Across cells: each model's spectrum in a few numbers, how far definitions and the exact spectrum differ, and its cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from modelassay.curvature.spectrum import PREREGISTERED, REMOVED
from modelassay.experiments.findings import Figures, Finding, Findings, Table
from modelassay.experiments.spectral.figures import Density, density_figure
from modelassay.models.reference import short_names
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import LEVEL, Estimate, undefined
from modelassay.statistics.intervals import student_mean

QUANTITIES = ("lambda_max", "lambda_min", "sigma_bulk", "centre", "spread", "gap", "outliers", "ratio", "trace")
FACTS = ("estimate", "ritz", "eigenvalues")
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
BOUNDED = ("lambda_max", "lambda_min", "spread", "gap", "outliers")
"""Quantities whose ends are residual bounds of Ritz values and no random interval."""
CAVEATS = (
    "intervals hold for the text that was read: another sample of it moves lambda_max by some 10 % at 8 rows and 4 % at 192",
    f"sigma_bulk depends on its definition; {PREREGISTERED} was fixed beforehand, the others show by how much",
    "the density is drawn from Ritz values: its ends are sharp, the bulk's shape is that of the few start vectors",
)

LEAST_STARTS = 5
"""Start vectors below which no share of eigenvalues is told: of one run's density the negative share was 0.14 to 0.78 where 0.22 is true."""


@dataclass(frozen=True, kw_only=True)
class CellSpectrum:
    """One cell."""

    name: str
    """Model, and operator if it is not the Hessian."""
    labels: dict[str, str]
    """Of its findings."""
    estimates: dict[str, Estimate]
    """By quantity; a definition of sigma_bulk follows the name after a space."""
    exact: dict[str, float]
    """The same from the whole matrix, where it was formed."""
    numbers: dict[str, float]
    """Loss, parameters, tokens, products and the like."""
    density: Density
    negative_share: Estimate
    """Of the eigenvalues, from all start vectors."""
    hvp_s: float
    """Median time of a product."""
    peak_bytes: float
    """Highest memory of the process seen before a product, device's where there is one."""
    graph_bytes: float

    @property
    def minutes(self) -> float:
        """Time of all products."""
        return self.hvp_s * self.numbers["products"] / 60


def analyse(tables: RunData) -> Findings:
    """Say what each cell found.

    Findings, each with ``model`` and ``operator``: the quantities of `Spectrum` (``sigma_bulk`` with its ``definition``),
    ``negative_share`` of the eigenvalues (from `LEAST_STARTS` start vectors at least), ``ratio_by_definition``, the largest over the smallest lambda_max / sigma_bulk of the three definitions, ``error[quantity]``,
    the relative difference from the exact spectrum where that was computed, ``minutes`` of all products, and ``peak_gib``.
    """
    rows = [row for row in tables.cells.iter_rows(named=True) if row["outcome"] == "done"]
    references = list(dict.fromkeys(row["model"] for row in rows))
    names = dict(zip(references, short_names(references), strict=True))
    records = _records_by_cell(tables)
    cells = [_cell_spectrum(row, names[row["model"]], records[row["cell"]]) for row in rows]
    findings = [finding for cell in cells for finding in _findings(cell)]
    shown = [_quantities(cell) for cell in cells] + ([_cost(cells)] if cells else [])
    figures = Figures({
        f"spectrum-{number}": partial(density_figure, cell.density) for number, cell in enumerate(cells, start=1)
    })
    return Findings(findings=findings, tables=shown, figures=figures, caveats=list(CAVEATS))


@dataclass(kw_only=True)
class _Records:
    """What one cell recorded."""

    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Metrics by name."""
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in FACTS})
    units: pl.DataFrame = field(default_factory=pl.DataFrame)
    """Products of the operator."""


def _records_by_cell(tables: RunData) -> Mapping[str, _Records]:
    """Split the tables by cell, each read once."""
    records: defaultdict[str, _Records] = defaultdict(_Records)
    for (cell, name), part in tables.metrics.group_by("cell", "name", maintain_order=True):
        records[str(cell)].lines[str(name)] = part.to_dicts()
    for kind in FACTS:
        for fact in tables.facts(kind):
            records[fact["cell"]].facts[kind].append(fact)
    for (cell,), part in tables.units.filter(pl.col("stage") == "hvp").group_by("cell", maintain_order=True):
        records[str(cell)].units = part
    return records


def _cell_spectrum(row: dict[str, Any], model: str, records: _Records) -> CellSpectrum:
    lines, facts, units = records.lines, records.facts, records.units
    one = {name: float(lines[name][0]["value"]) for name in SINGLES}
    recorded = {(fact["quantity"], fact.get("definition", "")): fact["value"] for fact in facts["estimate"]}
    estimates = {
        f"{quantity} {definition}".strip(): _estimate(quantity, **ends)
        for name in QUANTITIES for (quantity, definition), ends in recorded.items() if quantity == name
    }  # fmt: skip
    operator = str(row["operator"])
    name = model if operator == "hessian" else f"{model}, {operator}"
    name += "" if list(row["parameters"]) == ["*"] and row["embeddings"] else f", {one['parameters']:.0f} parameters"
    peaks = [float(units[memory].max() or 0) for memory in MEMORIES]  # type: ignore[arg-type]
    return CellSpectrum(
        name=name, labels={"model": model, "operator": operator}, estimates=estimates, numbers=one,
        exact={line["quantity"]: line["value"] for line in lines.get("exact", [])},
        negative_share=_negative_share([fact["value"] for fact in facts["ritz"]]),
        density=_density(name, estimates, [fact["value"] for fact in facts["ritz"]], facts["eigenvalues"]),
        hvp_s=float(np.median(units["host_ms"].to_numpy())) / 1000, peak_bytes=peaks[0] or peaks[1], graph_bytes=peaks[2],
    )  # fmt: skip


def _estimate(quantity: str, *, value: float = math.nan, low: float | None = None, high: float | None = None,
              note: str = "") -> Estimate:  # fmt: skip
    """Return what a cell recorded of a quantity; of Ritz values the ends are bounds, which hold for certain. Without a value: why."""
    if math.isnan(value):
        return undefined(note)
    if low is None or high is None:
        return Estimate(value=value, note=MEANINGS[quantity])
    bound = quantity in BOUNDED
    return Estimate(value=value, low=low, high=high, level=None if bound else LEVEL,
                    method="Ritz values, residual bound" if bound else "deflated Hutchinson, Student over probes",
                    note=MEANINGS[quantity])  # fmt: skip


def _density(name: str, estimates: dict[str, Estimate], runs: Sequence[Mapping[str, Sequence[float]]],
             exact: Sequence[Mapping[str, Any]]) -> Density:  # fmt: skip
    """Return what the figure of a spectrum shows: the Ritz values of all Lanczos runs, each run of equal weight."""
    nodes = np.concatenate([run["values"] for run in runs])
    shares = np.concatenate([run["weights"] for run in runs])
    values = np.array([value for fact in exact for value in fact["value"]], dtype=np.float64)
    return Density(
        name=name, nodes=nodes, weights=shares / len(runs),
        sigmas={definition: sigma for definition in REMOVED if not math.isnan(sigma := estimates[f"sigma_bulk {definition}"].value)},
        centre=estimates["centre"].value, ends=(estimates["lambda_min"].value, estimates["lambda_max"].value), exact=values,
    )  # fmt: skip


def _negative_share(runs: Sequence[Mapping[str, Sequence[float]]]) -> Estimate:
    """Return the share of negative eigenvalues, a Ritz weight each, with Student's interval over start vectors; none of fewer than five."""
    if len(runs) < LEAST_STARTS:
        return undefined(f"one start vector is off by a factor: take {LEAST_STARTS} (runs)", n=len(runs))
    shares = [float(np.array(run["weights"])[np.array(run["values"]) < 0].sum()) for run in runs]
    return student_mean(shares, bounds=(0, 1))


def _findings(cell: CellSpectrum) -> list[Finding]:
    findings = []
    for name, estimate in cell.estimates.items():
        quantity, _, definition = name.partition(" ")
        labels = cell.labels | ({"definition": definition} if definition else {})
        findings.append(Finding(name=quantity, labels=labels, estimate=estimate))
    top = cell.estimates["lambda_max"].value
    ratios = {
        definition: top / sigma
        for definition in REMOVED
        if (sigma := cell.estimates[f"sigma_bulk {definition}"].value) > 0
    }
    note = "largest over smallest lambda_max / sigma_bulk of the definitions " + ", ".join(ratios)
    findings.append(Finding(name="negative_share", labels=cell.labels, estimate=cell.negative_share))
    by_definition = Estimate(value=max(ratios.values()) / min(ratios.values()) if ratios else math.nan, note=note)
    findings.append(Finding(name="ratio_by_definition", labels=cell.labels, estimate=by_definition))
    for name, exact in cell.exact.items():
        error = abs(cell.estimates[name].value - exact) / abs(exact) if exact else math.nan
        findings.append(Finding(name="error", labels=cell.labels | {"quantity": name},
                                estimate=Estimate(value=error, note="relative difference from the exact spectrum")))  # fmt: skip
    minutes = Estimate(value=cell.minutes, unit="min", note="median product times their number")
    memory = Estimate(value=cell.peak_bytes / 2**30, unit="GiB", note="memory of the process")
    findings.append(Finding(name="minutes", labels=cell.labels, estimate=minutes))
    findings.append(Finding(name="peak_gib", labels=cell.labels, estimate=memory))
    return findings


def _quantities(cell: CellSpectrum) -> Table:
    columns = ["quantity", "value", "low", "high", *(["exact"] if cell.exact else []), "what it is"]
    rows = []
    for name, estimate in cell.estimates.items():
        exact = [_number(cell.exact[name])] if cell.exact else []
        numbers = (estimate.value, *(math.nan if end is None else end for end in (estimate.low, estimate.high)))
        rows.append([name, *map(_number, numbers), *exact, estimate.note or MEANINGS[name.partition(" ")[0]]])
    return Table(title=f"spectrum of {cell.name}", columns=columns, rows=rows)


def _cost(cells: Sequence[CellSpectrum]) -> Table:
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
        rows.append([cell.name, f"{n['parameters']:.0f}", f"{n['tokens']:.0f}", f"{n['loss']:.4f}", _number(n["gradient_norm"]),
                     f"{n['products']:.0f}", f"{cell.hvp_s:.3g}", f"{cell.minutes:.2g}", f"{n['vector_bytes'] / 2**20:.0f}",
                     f"{cell.graph_bytes / 2**20:.0f}", f"{cell.peak_bytes / 2**20:.0f}"])  # fmt: skip
    return Table(title="cost", columns=columns, rows=rows)


def _number(value: float) -> str:
    return f"{value:.4g}"

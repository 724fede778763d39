"""The toy's analysis: where the walks ended."""

from __future__ import annotations

import polars as pl

from modelassay.experiments.findings import Finding, Findings, Table
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate


def analyse(tables: RunData) -> Findings:
    """Return the last value of each cell and the mean over cells."""
    last = tables.metrics.filter(pl.col("name") == "value").sort("step").group_by("cell", maintain_order=True).last()
    values = dict(zip(last["cell"], last["value"], strict=True))
    rows = [(row["cell"], f"{values.get(row['cell'], float('nan')):.6f}") for row in tables.cells.iter_rows(named=True)]
    mean = sum(values.values()) / len(values) if values else float("nan")
    return Findings(
        findings=[
            Finding(name="final", estimate=Estimate(value=mean, low=min(values.values()), high=max(values.values())))
        ]
        if values
        else [],
        tables=[Table(title="walks", columns=("cell", "final value"), rows=rows)],
        caveats=["a toy"],
    )

"""Standard tasks: base beside fine-tuned."""

from __future__ import annotations

from itertools import groupby

import polars as pl

from modelassay.experiments.findings import Finding, Table
from modelassay.recording.tables import RunData
from modelassay.statistics.proportions import wilson

_BY = ("part", "task", "metric", "model")


def task_findings(tables: RunData) -> list[Finding]:
    """Return ``task_accuracy`` by part, task, metric and model over the cells' items, with Wilson's interval."""
    right = tables.metrics.filter(pl.col("name") == "task_right")
    if not right.height:
        return []
    right = right.join(tables.cells.select("cell", "part"), on="cell", how="left")
    counted = (
        right
        .group_by(_BY, maintain_order=True)
        .agg(pl.col("value").sum().cast(pl.Int64).alias("right"), pl.len())
        .to_dicts()
    )
    return [
        Finding(
            name="task_accuracy", labels={name: row[name] for name in _BY}, estimate=wilson(row["right"], row["len"])
        )
        for row in counted
    ]


def task_table(findings: list[Finding]) -> list[Table]:
    """Return the shares of the base beside those of the fine-tuned model."""

    def key(finding: Finding) -> tuple[str, ...]:
        return tuple(str(finding.labels[name]) for name in _BY[:3])

    rows = []
    for where, group in groupby(sorted(findings, key=key), key=key):
        shown = {each.labels["model"]: each.estimate for each in group}
        cells = [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in (shown["base"], shown["fine-tuned"])]
        rows.append([*where, *cells, str(shown["base"].n)])
    return (
        [Table(title="tasks, as lm-eval counts", columns=(*_BY[:3], "base", "fine-tuned", "items"), rows=rows)]
        if rows
        else []
    )

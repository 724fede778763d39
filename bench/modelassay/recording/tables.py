"""The logs of a run as Polars frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import RecordError
from modelassay.recording.log import MAX_COLUMNS, read_cell

if TYPE_CHECKING:
    import polars as pl


ENDED = ("done", "diverged")
"""Outcomes of cells whose numbers count."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All that analyses, claims and reports may read of a run; of cells that have not ended, nothing but their row."""

    cells: pl.DataFrame
    """cell, outcome, reason, attempts, wall_s, and one column per parameter (nested ones with dotted names)."""

    units: pl.DataFrame
    """cell, stage, index, warmup, reused, host_ms, device_ms, tokens, bytes, flops, gb_per_s, and one column per label."""

    metrics: pl.DataFrame
    """cell, name, value, and one column per label; null where a metric does not carry the label."""

    profile: str
    """The profile that produced the run."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folder of each cell."""

    fact_rows: Sequence[Mapping[str, Any]] = ()
    """cell, fact, value, and each label, in the order in which they were recorded."""

    def facts(self, kind: str) -> list[dict[str, Any]]:
        """Return the facts of one kind: ``cell``, ``value`` and each label of it."""
        return [
            {key: value for key, value in row.items() if key != "fact"} for row in self.fact_rows if row["fact"] == kind
        ]

    def artifact(self, cell: str, name: str) -> Path | None:
        """Return an output of a cell, None where it left none of that name."""
        path = self.folders[cell] / "artifacts" / name
        return path if path.exists() else None

    @property
    def missing(self) -> list[str]:
        """Cells that have not ended yet, or failed: what an analysis has not seen."""
        return [row["cell"] for row in self.cells.iter_rows(named=True) if row["outcome"] not in ENDED]


def read_tables(cells: Mapping[str, tuple[Path, Mapping[str, Any]]], *, profile: str) -> RunData:
    """Read the logs of ``cells`` (id -> folder and parameters) into Polars frames."""
    import polars as pl

    cell_rows, unit_rows, metric_rows, fact_rows = [], [], [], []
    for cell, (folder, params) in cells.items():
        log = read_cell(folder)
        status = log.status or {}
        cell_rows.append(
            {"cell": cell, "outcome": log.outcome, "reason": status.get("reason"), "attempts": log.num_attempts,
             "wall_s": status.get("wall_s"), **flatten(params)}
        )  # fmt: skip
        if log.outcome not in ENDED:
            continue
        unit_rows += [_unit_row(cell, line) for line in log.microbatches]
        metric_rows += [{"cell": cell, "name": m["name"], "value": m["value"], **m["labels"]} for m in log.metrics]
        fact_rows += [{"cell": cell, "fact": f["fact"], "value": f["value"], **f["labels"]} for f in log.facts]
    return RunData(
        cells=_frame(cell_rows, {"cell": pl.String, "outcome": pl.String, "reason": pl.String, "wall_s": pl.Float64}),
        units=_frame(
            unit_rows,
            {"cell": pl.String, "stage": pl.String, "index": pl.Int64, "warmup": pl.Boolean, "reused": pl.Boolean, "host_ms": pl.Float64,
             "device_ms": pl.Float64, "tokens": pl.Int64, "bytes": pl.Int64, "flops": pl.Int64, "gb_per_s": pl.Float64},
        ),
        metrics=_frame(metric_rows, {"cell": pl.String, "name": pl.String, "value": pl.Float64}),
        profile=profile,
        folders={cell: folder for cell, (folder, _) in cells.items()},
        fact_rows=fact_rows,
    )  # fmt: skip


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level with dotted names, lists as JSON text.

    >>> flatten({"a": {"b": 1}, "c": [1, 2]})
    {'a.b': 1, 'c': '[1, 2]'}
    """
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return flat


def _unit_row(cell: str, line: dict[str, Any]) -> dict[str, Any]:
    device_ns, num_bytes = line.get("device_ns"), line.get("bytes")
    nanoseconds = device_ns if device_ns is not None else line["host_ns"]
    return {
        "cell": cell, "stage": line["stage"], "index": line["index"], "warmup": line.get("warmup", False),
        "reused": line.get("reused", False),
        "host_ms": line["host_ns"] / 1e6, "device_ms": None if device_ns is None else device_ns / 1e6,
        "tokens": line.get("tokens"), "bytes": num_bytes, "flops": line.get("flops"),
        "gb_per_s": None if num_bytes is None or nanoseconds == 0 else num_bytes / nanoseconds,
        **line.get("labels", {}),
    }  # fmt: skip


def _frame(rows: list[dict[str, Any]], schema: Mapping[str, Any]) -> pl.DataFrame:
    import polars as pl

    names = list(schema) + sorted({name for row in rows for name in row} - set(schema))
    if len(names) > MAX_COLUMNS:
        raise RecordError(f"the records carry {len(names):,} different labels and parameters, more than {MAX_COLUMNS:,}; "
                          "look at how the run was written")  # fmt: skip
    columns = {
        name: pl.Series(name, [row.get(name) for row in rows], dtype=schema.get(name), strict=False) for name in names
    }
    return pl.DataFrame(columns)

"""The logs of a run as Polars frames."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import RecordError
from modelassay.recording.columns import METRIC, MICROBATCH, Columns, UnexpectedLine
from modelassay.recording.lines import cell_lines
from modelassay.recording.log import MAX_COLUMNS, read_cell
from modelassay.recording.parquet import log_state, read_parquet, write_parquet
from modelassay.recording.status import read_status

if TYPE_CHECKING:
    import polars as pl

    _Tables = tuple[pl.DataFrame, pl.DataFrame, Sequence[Mapping[str, Any]]]
    """Metrics, units and facts."""

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

    environment: Mapping[str, Any] = field(default_factory=dict)
    """Where and from what the run was begun, as its run.json has it."""

    def facts(self, kind: str) -> list[dict[str, Any]]:
        """Return the facts of one kind: ``cell``, ``value`` and each label of it."""
        return [{key: value for key, value in row.items() if key != "fact"} for row in self._facts.get(kind, ())]

    @cached_property
    def _facts(self) -> dict[str, list[Mapping[str, Any]]]:
        """The facts by kind, so that an analysis may ask for each cell."""
        by_kind: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.fact_rows:
            by_kind.setdefault(row["fact"], []).append(row)
        return by_kind

    def artifact(self, cell: str, name: str) -> Path | None:
        """Return an output of a cell, None where it left none of that name."""
        path = self.folders[cell] / "artifacts" / name
        return path if path.exists() else None

    @cached_property
    def missing(self) -> list[str]:
        """Cells that have not ended yet, or failed: what an analysis has not seen."""
        outcomes = zip(self.cells["cell"].to_list(), self.cells["outcome"].to_list(), strict=True)
        return [cell for cell, outcome in outcomes if outcome not in ENDED]


def read_tables(
    cells: Mapping[str, tuple[Path, Mapping[str, Any]]], *, profile: str, beside: Path | None = None
) -> RunData:
    """Read the logs of ``cells`` (id -> folder and parameters) into Polars frames.

    Of cells that have not ended the logs are checked, and nothing of them stands in the tables but their row.

    Args:
        cells: id -> folder and parameters.
        profile: the run's.
        beside: the folder of the same tables as Parquet, which is read where it is of these logs and written where it is not
            (`recording.parquet`); None: there is none.

    Raises:
        RecordError: a log is damaged.
    """
    import polars as pl

    statuses = {cell: read_status(folder) for cell, (folder, _) in cells.items()}
    rows = [
        {"cell": cell, "outcome": (at := statuses[cell]).outcome, "reason": (status := at.status or {}).get("reason"),
         "attempts": at.num_attempts, "wall_s": status.get("wall_s"), **flatten(params)}
        for cell, (_, params) in cells.items()
    ]  # fmt: skip
    folders = {cell: folder for cell, (folder, _) in cells.items()}
    ended = {cell for cell, status in statuses.items() if status.outcome in ENDED}
    have_all = all(status.outcome is not None for status in statuses.values())
    metrics, units, facts = _read_kept(folders, ended, beside) if beside and have_all else _read_logs(folders, ended)
    return RunData(
        cells=_frame(rows, {"cell": pl.String, "outcome": pl.String, "reason": pl.String, "wall_s": pl.Float64}),
        units=units,
        metrics=metrics,
        profile=profile,
        folders=folders,
        fact_rows=facts,
    )


def _read_kept(cells: Mapping[str, Path], ended: Collection[str], beside: Path) -> _Tables:
    """Return the metrics, units and facts from the folder ``beside`` where they are those of the logs, else from the logs."""
    state = log_state(cells)
    if (kept := read_parquet(beside, state)) is not None:
        return kept
    tables = _read_logs(cells, ended)
    write_parquet(beside, state, cells, *tables)
    return tables


def _read_logs(cells: Mapping[str, Path], ended: Collection[str]) -> _Tables:
    try:
        return _read_bulk(cells, ended)
    except UnexpectedLine:
        return _read_singly(cells, ended)


def _read_bulk(cells: Mapping[str, Path], ended: Collection[str]) -> _Tables:
    """Return the metrics, units and facts of those of ``cells`` (id -> folder) that have ended.

    Raises:
        UnexpectedLine: a line is not what it should be, or a metric may stand twice.
    """
    metrics, units = Columns(METRIC), Columns(MICROBATCH)
    others = Columns(METRIC, kept=False), Columns(MICROBATCH, kept=False)
    facts: list[dict[str, Any]] = []
    for number, (cell, folder) in enumerate(cells.items()):
        own_metrics, own_units = (metrics, units) if cell in ended else others
        for lines in cell_lines(folder):
            own_metrics.add(number, *lines.of(METRIC))
            own_units.add(number, *lines.of(MICROBATCH))
            if cell not in ended:
                continue
            facts += [{"cell": cell, "fact": f["fact"], "value": f["value"], **f["labels"]} for f in lines.facts]
    for columns in others:
        columns.frame()  # looks at those that wait
    frame = metrics.frame()
    if _may_repeat(frame.drop("value")):
        raise UnexpectedLine
    return _metric_table(frame, [*cells]), _unit_table(units.frame(), [*cells]), facts


def _may_repeat(keys: pl.DataFrame) -> bool:
    """Whether two rows may be equal: by their hashes, so that a million rows take eight megabytes."""
    return bool(keys.height) and keys.hash_rows().n_unique() < keys.height


def _read_singly(cells: Mapping[str, Path], ended: Collection[str]) -> _Tables:
    """Return the same of logs whose lines have to be looked at one by one, and say what is wrong with them."""
    import polars as pl

    unit_rows: list[dict[str, Any]] = []
    metric_rows: list[dict[str, Any]] = []
    facts: list[dict[str, Any]] = []
    for cell, folder in cells.items():
        log = read_cell(folder)
        if cell not in ended:
            continue
        unit_rows += [_unit_row(cell, line) for line in log.microbatches]
        metric_rows += [{"cell": cell, "name": m["name"], "value": m["value"], **m["labels"]} for m in log.metrics]
        facts += [{"cell": cell, "fact": f["fact"], "value": f["value"], **f["labels"]} for f in log.facts]
    metrics = _frame(metric_rows, {"cell": pl.String, "name": pl.String, "value": pl.Float64})
    units = _frame(
        unit_rows,
        {"cell": pl.String, "stage": pl.String, "index": pl.Int64, "warmup": pl.Boolean, "reused": pl.Boolean, "host_ms": pl.Float64,
         "device_ms": pl.Float64, "tokens": pl.Int64, "bytes": pl.Int64, "flops": pl.Int64, "gb_per_s": pl.Float64},
    )  # fmt: skip
    return metrics, units, facts


def _metric_table(frame: pl.DataFrame, cells: Sequence[str]) -> pl.DataFrame:
    return _table(frame, cells, [frame["name"], frame["value"]])


def _unit_table(frame: pl.DataFrame, cells: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    million = pl.repeat(
        1e6, frame.height, eager=True
    )  # by a number Polars multiplies with its inverse: another last bit
    nanoseconds = pl.coalesce("device_ns", "host_ns")
    rate = pl.when(nanoseconds != 0).then(pl.col("bytes").cast(pl.Float64) / nanoseconds)
    columns = frame.select(
        "stage", "index", pl.col("warmup").fill_null(False), pl.col("reused").fill_null(False),
        (frame["host_ns"] / million).alias("host_ms"), (frame["device_ns"] / million).alias("device_ms"),
        "tokens", "bytes", "flops", rate.alias("gb_per_s"),
    )  # fmt: skip
    return _table(frame, cells, columns.get_columns())


def _table(frame: pl.DataFrame, cells: Sequence[str], columns: Sequence[pl.Series]) -> pl.DataFrame:
    """Return ``columns`` after the cells' ids and before the labels.

    Raises:
        UnexpectedLine: a label is called like a column.
    """
    import polars as pl

    labels = {name[1:]: frame[name] for name in frame.columns if name.startswith(".")}
    cell = pl.Series("cell", cells, dtype=pl.String).gather(frame["cell"])
    names = [column.name for column in (cell, *columns)]
    if not labels.keys().isdisjoint(names):
        raise UnexpectedLine
    _require_few([*names, *labels])
    return pl.DataFrame([cell, *columns, *(column.rename(name) for name, column in labels.items())])


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
    _require_few(names)
    columns = {
        name: pl.Series(name, [row.get(name) for row in rows], dtype=schema.get(name), strict=False) for name in names
    }
    return pl.DataFrame(columns)


def _require_few(names: Collection[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise RecordError(f"the records carry {len(names):,} different labels and parameters, more than {MAX_COLUMNS:,}; "
                          "look at how the run was written")  # fmt: skip

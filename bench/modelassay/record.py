"""The event log: one segment of JSON lines per attempt of a cell, and the tables read from it.

``cells/<id>/attempt-<n>.jsonl`` opens with an ``attempt`` line that says at which position it resumed; every later line
carries ``seq``, its position in the cell. Resuming at position p voids every line with seq >= p of earlier attempts, so
that a cell killed anywhere and started again counts each unit once. Kinds of lines:

=============  =========================================================================================
attempt        schema, cell, attempt, resumed_at, started (UTC), pid
microbatch     stage, index, host_ns, device_ns, at_us since the attempt began, tokens, bytes, flops, warmup, labels
metric         name, value (NaN and infinities as "nan", "inf", "-inf"), labels
memory         stage, host_peak_bytes (of the process so far), device_peak_bytes (of the stage)
clocks         a sample of the GPU's clocks, temperature, throttle reasons and power
status         outcome (done, diverged, failed), reason, wall_s; the last line of a complete attempt
=============  =========================================================================================
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import HostError, RecordError
from modelassay.record_line import NONFINITE, parse_line
from modelassay.storage.files import open_regular, require_folders

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1
"""Version of the line format; a reader refuses a newer one."""

FSYNC_SECONDS = 1.0
"""A power cut loses at most this much of the log; a killed process loses nothing that was written."""

_ENCODE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False).encode
_SEGMENT = re.compile(r"attempt-([1-9][0-9]{0,8})\.jsonl")

MAX_LINE_BYTES = 4_000_000
"""A longer line is no record."""

MAX_COLUMNS = 4096
"""Of a table: labels and parameters."""


def no_space(error: OSError, path: Path) -> HostError | OSError:
    """Return a HostError in place of a full disk or quota, any other ``error`` unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(f"{path}: the disk is full; free some space and run the same directory again, nothing is lost")
    return error


class Log:
    """Appends lines to one attempt's segment: one ``os.write`` per line, fsync at most every second."""

    def __init__(self, path: Path, *, cell: str, attempt: int, resumed_at: int) -> None:
        """Create the segment ``path`` (which must not exist) and write its ``attempt`` line."""
        self.path, self.seq = path, resumed_at
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._synced = time.monotonic()
        self._write(
            {"kind": "attempt", "schema": SCHEMA, "cell": cell, "attempt": attempt, "resumed_at": resumed_at,
             "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "pid": os.getpid()}
        )  # fmt: skip

    def append(self, kind: str, line: Mapping[str, Any]) -> None:
        """Write one line of ``kind`` at the next position."""
        self._write({"seq": self.seq, "kind": kind, **line})
        self.seq += 1

    def _write(self, line: Mapping[str, Any]) -> None:
        data = (_ENCODE(line) + "\n").encode(errors="replace")  # a path that is not UTF-8 holds lone surrogates
        try:
            while data:  # a nearly full disk takes a part of the line, then refuses: the reader drops the torn rest
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise no_space(error, self.path) from error
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Force everything written so far to the disk."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise no_space(error, self.path) from error
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        os.close(self._fd)


def encode_value(value: float) -> float | str:
    """Return ``value`` as JSON can hold it.

    >>> encode_value(float("-inf")), encode_value(0.5)
    ('-inf', 0.5)
    """
    return value if math.isfinite(value) else repr(float(value))  # float: NumPy writes its own as np.float64(nan)


@dataclass
class CellLog:
    """What the log of one cell says after voiding what later attempts redid."""

    cell: str
    num_attempts: int = 0
    position: int = 0
    """Where the next line would stand: one after the last that counts."""

    microbatches: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, Any] | None = None
    """The status line of the newest attempt; None while it runs or when it was killed."""

    @property
    def outcome(self) -> str | None:
        """Return done, diverged, failed, or None for an attempt that never ended."""
        return None if self.status is None else str(self.status["outcome"])

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run: done or diverged."""
        return self.outcome in ("done", "diverged")

    def void_from(self, position: int) -> None:
        """Drop every line at or after ``position``."""
        for lines in (self.microbatches, self.metrics, self.others):
            while lines and lines[-1]["seq"] >= position:
                lines.pop()
        self.status, self.position = None, position


def segments(cell_dir: Path) -> dict[int, Path]:
    """Return a cell's segments by attempt, in order; none where the cell has no folder yet.

    Raises:
        UsageError: there is something else in the folder's place.
    """
    require_folders([cell_dir])
    try:
        found = {int(match[1]): path for path in cell_dir.iterdir() if (match := _SEGMENT.fullmatch(path.name))}
    except FileNotFoundError:
        return {}
    return dict(sorted(found.items()))


def read_segment(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of one segment; drop an unterminated last line.

    Raises:
        RecordError: a bad line anywhere else, or one that is missing, with its number and what is wrong with it.
        UsageError: it is no regular file.
    """
    position = 0
    with open_regular(path) as handle:
        for number, raw in enumerate(iter(partial(handle.readline, MAX_LINE_BYTES), b""), start=1):
            if not raw.endswith(b"\n"):
                if len(raw) == MAX_LINE_BYTES:
                    raise RecordError(
                        f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes, so no record; delete its cell"
                    )
                return
            try:
                line, wrong = parse_line(raw)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise RecordError(
                    f"{path}:{number}: not a record: {raw[:60]!r}; the file is damaged, restore it or delete its cell"
                ) from error
            if wrong:
                raise RecordError(f"{path}:{number}: a {line['kind']} line without a valid {', '.join(wrong)}")
            if (number == 1) != (line["kind"] == "attempt"):
                raise RecordError(f"{path}:{number}: a segment opens with its one attempt line, got {line['kind']}")
            if number == 1 and line["schema"] > SCHEMA:
                raise RecordError(f"{path}:1: schema {line['schema']} is newer than {SCHEMA}; use a newer modelassay")
            if number > 1 and line["seq"] != position:
                raise RecordError(f"{path}:{number}: position {line['seq']} where {position} is due; lines were lost")
            position = line["resumed_at"] if number == 1 else position + 1
            yield line


def read_cell(cell_dir: Path) -> CellLog:
    """Read all attempts of a cell and keep what still counts.

    Raises:
        RecordError: a bad line, a lost segment, one of another cell, or the same metric twice under the same labels.
        UsageError: a segment is no regular file, or the cell no folder.
    """
    log = CellLog(cell_dir.name)
    for path in segments(cell_dir).values():
        for line in read_segment(path):
            match line["kind"]:
                case "attempt":
                    _refuse_misplaced(path, line, log)
                    log.num_attempts += 1
                    log.void_from(line["resumed_at"])
                    continue
                case "microbatch":
                    log.microbatches.append(line)
                case "metric":
                    value = line["value"]
                    line["value"] = NONFINITE[value] if isinstance(value, str) else float(value)
                    log.metrics.append(line)
                case "status":
                    log.status = line
                case _:
                    log.others.append(line)
            log.position += 1
    _refuse_duplicates(cell_dir, log.metrics)
    return log


def _refuse_misplaced(path: Path, opening: dict[str, Any], log: CellLog) -> None:
    if opening["cell"] != log.cell:
        raise RecordError(f"{path}:1: a segment of cell {opening['cell']} lies in the folder of cell {log.cell}")
    if opening["resumed_at"] > log.position:
        raise RecordError(
            f"{path}:1: resumed at position {opening['resumed_at']}, but only {log.position} lines of earlier attempts "
            "are left; restore the lost segment or delete the cell"
        )


def metric_key(name: str, labels: Mapping[str, Any]) -> tuple[str, frozenset[tuple[str, Any]]]:
    """Return what a metric may stand under only once in a cell."""
    return name, frozenset(labels.items())


def _refuse_duplicates(cell_dir: Path, metrics: list[dict[str, Any]]) -> None:
    seen = set()
    for metric in metrics:
        key = metric_key(metric["name"], metric["labels"])
        if key in seen:
            raise RecordError(
                f"{cell_dir}: metric {metric['name']} {json.dumps(metric['labels'])} stands twice; its labels do not tell "
                "its units apart"
            )
        seen.add(key)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """All that analyses, claims and reports may read of a run."""

    cells: pl.DataFrame
    """cell, outcome, reason, attempts, wall_s, and one column per parameter (nested ones with dotted names)."""

    microbatches: pl.DataFrame
    """cell, stage, index, warmup, host_ms, device_ms, tokens, bytes, flops, gb_per_s, and one column per label."""

    metrics: pl.DataFrame
    """cell, name, value, and one column per label; null where a metric does not carry the label."""

    profile: str
    """The profile that produced the run."""


def read_tables(cells: Mapping[str, tuple[Path, Mapping[str, Any]]], *, profile: str) -> Tables:
    """Read the logs of ``cells`` (id -> folder and parameters) into Polars frames."""
    import polars as pl

    cell_rows, unit_rows, metric_rows = [], [], []
    for cell, (folder, params) in cells.items():
        log = read_cell(folder)
        status = log.status or {}
        cell_rows.append(
            {"cell": cell, "outcome": log.outcome, "reason": status.get("reason"), "attempts": log.num_attempts,
             "wall_s": status.get("wall_s"), **flatten(params)}
        )  # fmt: skip
        unit_rows += [_unit_row(cell, line) for line in log.microbatches]
        metric_rows += [{"cell": cell, "name": m["name"], "value": m["value"], **m["labels"]} for m in log.metrics]
    return Tables(
        cells=_frame(cell_rows, {"cell": pl.String, "outcome": pl.String, "reason": pl.String, "wall_s": pl.Float64}),
        microbatches=_frame(
            unit_rows,
            {"cell": pl.String, "stage": pl.String, "index": pl.Int64, "warmup": pl.Boolean, "host_ms": pl.Float64,
             "device_ms": pl.Float64, "tokens": pl.Int64, "bytes": pl.Int64, "flops": pl.Int64, "gb_per_s": pl.Float64},
        ),
        metrics=_frame(metric_rows, {"cell": pl.String, "name": pl.String, "value": pl.Float64}),
        profile=profile,
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

"""The event log: one segment of JSON lines per attempt of a cell, and the tables read from it.

``cells/<id>/attempt-<n>.jsonl`` opens with an ``attempt`` line that says at which position it resumed; every later line
carries ``seq``, its position in the cell. Resuming at position p voids every line with seq >= p of earlier attempts, so
that a cell killed anywhere and started again counts each unit once. Each line ends in its checksum (`line.encode_line`): a
line that is not as it was written is an error, but for a torn last one, which is dropped. Kinds of lines:

=============  =========================================================================================
attempt        schema, cell, attempt, resumed_at, started (UTC), pid, place (where it ran: image, Python, libraries, processor)
microbatch     stage, index, host_ns, device_ns, at_us since the attempt began, tokens, bytes, flops, warmup, labels; reused, of
               a unit that an earlier attempt or another cell measured
metric         name, value (NaN and infinities as "nan", "inf", "-inf"), labels
fact           fact (its kind), value (any JSON), labels
progress       done, total, unit: how far the cell is
memory         stage, host_peak_bytes (of the process so far), device_peak_bytes (of the stage)
clocks         a sample of the GPU's clocks, temperature, throttle reasons and power
note           text: what the attempt had to say besides, as that a damaged artifact was made anew
status         outcome (done, diverged, failed), reason, wall_s; the last line of a complete attempt
=============  =========================================================================================
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from modelassay.errors import RecordError
from modelassay.recording.line import NONFINITE, encode_line, ends_within, is_sound, parse_line
from modelassay.storage.durable import sync_file
from modelassay.storage.files import no_space, open_regular, require_folders

SCHEMA = 3
"""Version of the line format, raised together with that of run.json; no other is read. 3: each line has a checksum; 1: none had."""

FSYNC_SECONDS = 1.0
"""A power cut loses at most this much of the log; a killed process loses nothing that was written."""

_OLDER = b'{"kind":"attempt","schema":1,'
"""How a segment opens that was written before lines had checksums."""
_SEGMENT = re.compile(r"attempt-([1-9][0-9]{0,8})\.jsonl")

MAX_LINE_BYTES = 4_000_000
"""A longer line is no record."""

MAX_COLUMNS = 4096
"""Of a table: labels and parameters."""


class Log:
    """Appends lines to one attempt's segment: one ``os.write`` per line, fsync at most every second."""

    def __init__(
        self, path: Path, *, cell: str, attempt: int, resumed_at: int, place: Mapping[str, Any] | None = None
    ) -> None:
        """Create the segment ``path`` (which must not exist) and write its ``attempt`` line, with where it runs."""
        self.path, self.seq = path, resumed_at
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._synced = time.monotonic()
        self._write(
            {"kind": "attempt", "schema": SCHEMA, "cell": cell, "attempt": attempt, "resumed_at": resumed_at,
             "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "pid": os.getpid(),
             **({} if place is None else {"place": dict(place)})}
        )  # fmt: skip

    def append(self, kind: str, line: Mapping[str, Any]) -> None:
        """Write one line of ``kind`` at the next position."""
        self._write({"seq": self.seq, "kind": kind, **line})
        self.seq += 1

    def _write(self, line: Mapping[str, Any]) -> None:
        data = encode_line(line)
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
            sync_file(self._fd)
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


class HasOutcome:
    """What ended in the status line of an attempt, or has not ended."""

    status: Mapping[str, Any] | None

    @property
    def outcome(self) -> str | None:
        """Return done, diverged, failed, or None for an attempt that never ended."""
        return None if self.status is None else str(self.status["outcome"])

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run: done or diverged."""
        return self.outcome in ("done", "diverged")


@dataclass
class CellLog(HasOutcome):
    """What the log of one cell says after voiding what later attempts redid."""

    cell: str
    num_attempts: int = 0
    places: list[dict[str, Any]] = field(default_factory=list)
    """Where each attempt ran; empty of one that did not say."""
    position: int = 0
    """Where the next line would stand: one after the last that counts."""

    microbatches: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    status: Mapping[str, Any] | None = None
    """The status line of the newest attempt; None while it runs or when it was killed."""

    def void_from(self, position: int) -> None:
        """Drop every line at or after ``position``."""
        for lines in (self.microbatches, self.metrics, self.facts, self.others):
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
            if not is_sound(raw):
                _refuse_damage(path, number, raw)
                return
            try:
                line, wrong = parse_line(raw)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise _bad(path, number, f"not a record: {raw[:60]!r}; {_remedy(path)}") from error
            if wrong:
                raise _bad(path, number, f"a {line['kind']} line without a valid {', '.join(wrong)}; {_remedy(path)}")
            if (number == 1) != (line["kind"] == "attempt"):
                raise _bad(
                    path, number, f"a segment opens with its one attempt line, got {line['kind']}; {_remedy(path)}"
                )
            if number == 1 and line["schema"] != SCHEMA:
                raise _bad(path, 1, f"schema {line['schema']}, this modelassay reads {SCHEMA}; use another version")
            if number > 1 and line["seq"] != position:
                raise _bad(
                    path, number, f"position {line['seq']} where {position} is due; lines were lost; {_remedy(path)}"
                )
            position = line["resumed_at"] if number == 1 else position + 1
            yield line


def _refuse_damage(path: Path, number: int, raw: bytes) -> None:
    """Refuse a line that is not as it was written, unless it is the last one, torn.

    Raises:
        RecordError: it is none.
    """
    if len(raw) == MAX_LINE_BYTES:
        raise _bad(path, number, f"longer than {MAX_LINE_BYTES:,} bytes, so no record; {_remedy(path)}")
    if number == 1 and raw.startswith(_OLDER) and raw.endswith(b"}\n") and b',"crc":"' not in raw:
        reads = f"schema 1, without checksums; this modelassay reads {SCHEMA}: read it with the version that wrote it"
        raise _bad(path, 1, reads)
    if raw.endswith(b"\n") or ends_within(raw):
        raise _bad(path, number, f"not as it was written (the checksum differs): {raw[:60]!r}; {_remedy(path)}")


def _bad(path: Path, number: int, message: str) -> RecordError:
    return RecordError(f"{path}:{number}: {message}", damaged=path)


def _remedy(path: Path) -> str:
    return f"the file is damaged: restore it, or delete {path.parent} to begin anew"


def read_cell(cell_dir: Path, *, cell: str | None = None, before: int | None = None) -> CellLog:
    """Read all attempts of a cell, or of a stage, and keep what still counts.

    Args:
        cell_dir: its folder.
        cell: whose lines it must hold; None: of the cell that the folder is named for.
        before: the attempt that opens now, whose start only earlier ones decide; None: all are read.

    Raises:
        RecordError: a bad line, a lost segment, one of another cell, or the same metric twice under the same labels.
        UsageError: a segment is no regular file, or the cell no folder.
    """
    log = CellLog(cell or cell_dir.name)
    for attempt, path in segments(cell_dir).items():
        if before is not None and attempt >= before:
            break
        for line in read_segment(path):
            match line["kind"]:
                case "attempt":
                    _refuse_misplaced(path, attempt, line, log)
                    log.num_attempts += 1
                    log.places.append(line.get("place", {}))
                    log.void_from(line["resumed_at"])
                    continue
                case "microbatch":
                    log.microbatches.append({**line, "attempt": log.num_attempts})
                case "metric":
                    value = line["value"]
                    line["value"] = NONFINITE[value] if isinstance(value, str) else float(value)
                    log.metrics.append(line)
                case "fact":
                    log.facts.append(line)
                case "status":
                    log.status = line
                case _:
                    log.others.append(line)
            log.position += 1
    _refuse_duplicates(cell_dir, log.metrics)
    return log


def _refuse_misplaced(path: Path, attempt: int, opening: dict[str, Any], log: CellLog) -> None:
    if opening["attempt"] != attempt:
        raise _bad(path, 1, f"the segment of attempt {opening['attempt']} under the name of another; {_remedy(path)}")
    if opening["cell"] != log.cell:
        raise _bad(
            path, 1, f"a segment of cell {opening['cell']} lies in the folder of cell {log.cell}; {_remedy(path)}"
        )
    if opening["resumed_at"] > log.position:
        raise _bad(path, 1, f"resumed at position {opening['resumed_at']}, but only {log.position} lines of earlier attempts "
                            f"are left; restore the lost segment, or delete {path.parent} to begin anew")  # fmt: skip


def metric_key(name: str, labels: Mapping[str, Any]) -> tuple[str, frozenset[tuple[str, Any]]]:
    """Return what a metric may stand under only once in a cell."""
    return name, frozenset(labels.items())


def _refuse_duplicates(cell_dir: Path, metrics: list[dict[str, Any]]) -> None:
    seen = set()
    for metric in metrics:
        key = metric_key(metric["name"], metric["labels"])
        if key in seen:
            raise RecordError(
                f"{cell_dir}: metric {metric['name']} {json.dumps(metric['labels'])} is recorded twice; its labels do not tell "
                "its units apart"
            )
        seen.add(key)

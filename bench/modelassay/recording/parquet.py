"""The tables of a run beside its logs, as Parquet: read in a tenth of the time. The logs stay the truth.

::

    tables/metrics.parquet, units.parquet, facts.parquet     any reader of Parquet reads them
    tables/tables.json                                       sealed: of which logs they are, and what was written

Whoever reads a run in which every cell has ended writes them, unless the folder is somebody else's. They count only while every
segment has the size and SHA-256 that ``tables.json`` tells, and each file those that were written: a log that has changed by a bit
is read, and said to be damaged, as if there were no tables. Files are published by rename, ``tables.json`` last: processes that write
at once write the same, and a kill leaves a draft that the next writer removes.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelassay.errors import AssayError
from modelassay.recording.log import MAX_COLUMNS, segments
from modelassay.storage.digests import difference, digest_of
from modelassay.storage.files import open_regular
from modelassay.storage.sealed import read_sealed, sealed_json
from modelassay.storage.store import say

if TYPE_CHECKING:
    import polars as pl

FOLDER: Final = "tables"
"""The folder of a run's tables."""

SCHEMA: Final = 1
"""Raised whenever the same logs make other tables, or files of another form; no other is read."""

MIN_BYTES: Final = 4 << 20
"""Of all logs; smaller ones are read as fast."""

DRAFT_S: Final = 3600.0
"""From when on a draft is one that was left behind."""

_MANIFEST: Final = "tables.json"
_FIXED: Final = {
    "metrics": ("cell", "name", "value"),
    "units": ("cell", "stage", "index", "warmup", "reused", "host_ms", "device_ms", "tokens", "bytes", "flops", "gb_per_s"),
    "facts": ("cell", "fact", "value", "labels"),
}  # fmt: skip
"""The columns that each table begins with; labels follow."""

Facts = Sequence[Mapping[str, Any]]
Segment = list[Any]
"""Of a cell: its id, an attempt, and the digest of that segment."""


@dataclass(frozen=True)
class LogState:
    """The logs of a run as they are now."""

    paths: Sequence[tuple[str, int, Path]]
    """Cell, attempt and file of each segment, in order."""
    stamps: Sequence[tuple[int, ...]]
    """What changes whenever one is written or replaced."""

    @property
    def num_bytes(self) -> int:
        """Size of all of them."""
        return sum(stamp[1] for stamp in self.stamps)

    def digests(self) -> list[Segment]:
        """Return which segments there are, and of each its size and SHA-256; reads all of them, 1.8 GB/s."""
        return [[cell, attempt, digest_of(path)] for cell, attempt, path in self.paths]


def log_state(cells: Mapping[str, Path]) -> LogState:
    """Return the state of the logs of ``cells`` (id -> folder), from a look at each folder."""
    paths = [(cell, attempt, path) for cell, folder in cells.items() for attempt, path in segments(folder).items()]
    stats = [path.lstat() for _, _, path in paths]
    return LogState(paths, [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats])


def read_parquet(folder: Path, state: LogState) -> tuple[pl.DataFrame, pl.DataFrame, Facts] | None:
    """Return the metrics, units and facts in ``folder`` where they are those of the logs in ``state``, else None.

    Tables of other logs are passed over in silence, as the run has gone on; of damaged ones it is said on stderr.

    Raises:
        UsageError: a segment is no regular file.
    """
    if not os.path.lexists(folder / _MANIFEST):
        return None
    try:
        manifest = read_sealed(folder / _MANIFEST)
        if manifest["schema"] != SCHEMA:
            return None
        sizes = [digest["bytes"] for _, _, digest in manifest["segments"]]
    except (OSError, ValueError, KeyError, TypeError, AssayError) as error:
        _say_refused(folder, f"{_MANIFEST} is damaged ({error})")
        return None
    if sizes != [stamp[1] for stamp in state.stamps] or manifest["segments"] != state.digests():
        return None
    try:
        files = manifest["files"]
        if files.keys() != {f"{name}.parquet" for name in _FIXED}:
            raise ValueError(f"{_MANIFEST} tells of other files")
        if changed := difference(folder, files, wholly=True):
            raise ValueError(changed)
        metrics, units, facts = (_table(folder, name, state.num_bytes) for name in _FIXED)
        return metrics, units, _facts(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssayError) as error:
        _say_refused(folder, str(error))
        return None


def _say_refused(folder: Path, why: str) -> None:
    say(f"{folder}: {why}; the logs are read instead")


def _table(folder: Path, name: str, num_log_bytes: int) -> pl.DataFrame:
    """Read one table.

    Raises:
        ValueError: it is none, or has more rows than the logs have room for.
    """
    import polars as pl

    with open_regular(folder / f"{name}.parquet") as file:
        content = io.BytesIO(file.read())
    try:
        num_rows = pl.scan_parquet(content).select(pl.len()).collect().item()
        if num_rows > num_log_bytes:
            raise ValueError(f"{name}.parquet has more rows than the logs have bytes")
        frame = pl.read_parquet(content)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(f"{name}.parquet cannot be read ({str(error)[:200]})") from error
    if tuple(frame.columns[: len(_FIXED[name])]) != _FIXED[name] or frame.width > MAX_COLUMNS:
        raise ValueError(f"{name}.parquet has other columns")
    return frame


def _facts(frame: pl.DataFrame) -> Facts:
    return [
        {"cell": cell, "fact": fact, "value": json.loads(value), **json.loads(labels)}
        for cell, fact, value, labels in frame.iter_rows()
    ]


def _facts_frame(rows: Facts) -> pl.DataFrame:
    """Return facts as a table of texts.

    Raises:
        TypeError: one has a label called fact, which is none.
    """
    import polars as pl

    fixed = _FIXED["facts"][:3]
    labels = [{key: value for key, value in row.items() if key not in fixed} for row in rows]
    columns = {
        "cell": [row["cell"] for row in rows], "fact": [row["fact"] for row in rows],
        "value": [json.dumps(row["value"], ensure_ascii=False) for row in rows],
        "labels": [json.dumps(own, ensure_ascii=False) for own in labels],
    }  # fmt: skip
    return pl.DataFrame([pl.Series(name, values, dtype=pl.String) for name, values in columns.items()])


def write_parquet(folder: Path, before: LogState, cells: Mapping[str, Path], metrics: pl.DataFrame, units: pl.DataFrame,
                  facts: Facts) -> None:  # fmt: skip
    """Write the tables of the logs that were in state ``before`` when they were read; pass over what cannot be written.

    Nothing is written where the logs are small, have changed since, or lie in somebody else's folder.
    """
    import polars as pl

    if before.num_bytes < MIN_BYTES or folder.parent.stat().st_uid != os.geteuid():
        return
    drafts: list[Path] = []
    try:
        tables = {"metrics": metrics, "units": units, "facts": _facts_frame(facts)}
        folder.mkdir(exist_ok=True)
        files = {}
        for name, frame in tables.items():
            drafts.append(_draft(folder, f"{name}.parquet"))
            frame.write_parquet(drafts[-1], compression="zstd", compression_level=3, statistics=False)
            if pl.read_parquet_schema(drafts[-1]) != frame.schema:
                raise TypeError(f"{name} holds values that Parquet does not")
            files[f"{name}.parquet"] = digest_of(drafts[-1])
        document = {"schema": SCHEMA, "segments": before.digests(), "files": files}
        drafts.append(_draft(folder, _MANIFEST))
        drafts[-1].write_bytes(sealed_json(document))
        if log_state(cells) != before:
            return
        for draft, name in zip(drafts, [*files, _MANIFEST], strict=True):
            draft.replace(folder / name)  # not synced: after a power cut its digest tells
        _sweep(folder)
    except (OSError, TypeError, ValueError, AssayError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        pass  # no place for them, or values of a kind that Parquet has not: the logs are read, as they were just now
    finally:
        for draft in drafts:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        with suppress(OSError):  # it holds tables
            folder.rmdir()


def _draft(folder: Path, name: str) -> Path:
    return folder / f".{name}.{secrets.token_hex(4)}.part"


def _sweep(folder: Path) -> None:
    """Remove drafts that a kill has left, by the clock of the file system."""
    now = (folder / _MANIFEST).stat().st_mtime
    for draft in folder.glob(".*.part"):
        if now - draft.lstat().st_mtime > DRAFT_S:
            draft.unlink(missing_ok=True)

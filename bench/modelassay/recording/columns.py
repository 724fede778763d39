"""Lines of one kind, from any number of cells, as columns: a million metrics in a second and without an object for each.

Lines are gathered into batches of some megabytes, and each batch is parsed at once by Polars' reader of JSON lines into a fixed
set of fields and labels. A batch counts only if it holds nothing else: as many keys, and as many texts, as its columns show. One
that holds more, as a value that is no finite number, a label of another type or an escape, is parsed line by line, as strictly as
`log.read_cell` does; the labels that it shows are known from there on.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from modelassay.recording.line import NONFINITE, parse_line
from modelassay.recording.log import MAX_COLUMNS

if TYPE_CHECKING:
    import polars as pl

BATCH_LINES: Final = 1 << 16
BATCH_BYTES: Final = 1 << 23

SAMPLE: Final = 16
"""Lines of a first batch that are looked at to learn its labels."""

_TEXT, _WHOLE, _NUMBER, _TRUTH = "text", "whole", "number", "truth"
_TYPES: Final = {str: _TEXT, int: _WHOLE, float: _NUMBER, bool: _TRUTH}
"""What the values of a label are, by the types that `line` allows; null is of every type."""


class UnexpectedLine(Exception):  # noqa: N818 - no error: the reader falls back on `log.read_cell`, which says what is wrong
    """A line is not what its place in the log says that it is."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of lines and what a table takes of it."""

    name: str
    mark: bytes
    """What a line of this kind holds near its beginning, as it is written."""
    fields: Mapping[str, str]
    """Names and types of the fields that every line has or may have."""
    required: frozenset[str]
    """Those that every line has."""


METRIC: Final = Kind(
    name="metric",
    mark=b',"kind":"metric",',
    fields={"seq": _WHOLE, "kind": _TEXT, "name": _TEXT, "value": _NUMBER},
    required=frozenset({"seq", "kind", "name", "value"}),
)
MICROBATCH: Final = Kind(
    name="microbatch",
    mark=b',"kind":"microbatch",',
    fields={
        "seq": _WHOLE, "kind": _TEXT, "stage": _TEXT, "index": _WHOLE, "host_ns": _WHOLE, "at_us": _WHOLE, "device_ns": _WHOLE,
        "tokens": _WHOLE, "bytes": _WHOLE, "flops": _WHOLE, "warmup": _TRUTH, "reused": _TRUTH,
    },
    required=frozenset({"seq", "kind", "stage", "index", "host_ns"}),
)  # fmt: skip


@dataclass
class _Batch:
    """Lines that wait to be parsed, and where each stands."""

    lines: list[bytes] = field(default_factory=list)
    cells: list[tuple[int, int]] = field(default_factory=list)
    """Number of a cell, and how many lines it has here."""
    positions: list[Sequence[int]] = field(default_factory=list)
    num_bytes: int = 0


class Columns:
    """The lines of one kind as they are gathered, and the table that they make."""

    def __init__(self, kind: Kind, *, kept: bool = True) -> None:
        """Begin without any; where they are not ``kept`` they are checked alone, and the table is empty."""
        self._kind, self._kept = kind, kept
        self._labels: dict[str, set[str]] = {}
        self._batch = _Batch()
        self._frames: list[pl.DataFrame] = []
        self.num_parsed_singly = 0

    def add(self, cell: int, lines: Sequence[bytes], positions: Sequence[int]) -> None:
        """Take sound lines of the cell with number ``cell``, each with the position that it must have.

        Raises:
            UnexpectedLine: one is of another kind or form, or stands elsewhere.
        """
        batch = self._batch
        batch.lines += lines
        batch.cells.append((cell, len(lines)))
        batch.positions.append(positions)
        batch.num_bytes += sum(map(len, lines))
        if len(batch.lines) >= BATCH_LINES or batch.num_bytes >= BATCH_BYTES:
            self._flush()

    def frame(self) -> pl.DataFrame:
        """Return the table: cell (its number), the kind's fields, then the labels, sorted, each with a dot before its name."""
        import polars as pl

        self._flush()
        frames, self._frames = self._frames, []
        fields = {name: _dtype(kind) for name, kind in self._kind.fields.items() if name not in ("seq", "kind")}
        dtypes = {"cell": pl.Int64, **fields}
        if not frames:
            return pl.DataFrame(schema=dtypes)
        columns = []
        for name in [*dtypes, *(f".{name}" for name in sorted(self._labels))]:
            pieces = [frame.drop_in_place(name) if name in frame.columns else _nulls(name, frame) for frame in frames]
            columns.append(_joined(pieces, dtypes.get(name)))
        return pl.DataFrame(columns)

    def _flush(self) -> None:
        import numpy as np
        import polars as pl

        batch, self._batch = self._batch, _Batch()
        if not batch.lines:
            return
        if not self._labels:
            self._learn(self._parsed(batch.lines[:: max(1, len(batch.lines) // SAMPLE)]))
        frame = self._bulk(batch.lines)
        if frame is None:
            frame = self._singly(batch.lines)
        positions = pl.concat([pl.Series("seq", positions, dtype=pl.Int64) for positions in batch.positions])
        if not (frame["seq"] == positions).all() or not (frame["kind"] == self._kind.name).all():
            raise UnexpectedLine
        if not self._kept:
            return
        cells, counts = zip(*batch.cells, strict=True)
        numbers = pl.Series("cell", np.repeat(np.array(cells, dtype=np.int64), counts))
        self._frames.append(frame.drop("seq", "kind").insert_column(0, numbers))

    def _bulk(self, lines: list[bytes]) -> pl.DataFrame | None:
        """Return the columns of ``lines``, None where they hold anything that the columns would not show."""
        import polars as pl

        text = b"".join(lines)
        types = {name: _only(kinds) for name, kinds in self._labels.items() if kinds}
        if b"\\" in text or None in types.values():
            return None
        schema: dict[str, Any] = {name: _dtype(kind) for name, kind in self._kind.fields.items()}
        if types:
            schema["labels"] = pl.Struct({name: _dtype(kind) for name, kind in types.items() if kind is not None})
        try:
            frame = pl.read_ndjson(io.BytesIO(text), schema=schema)
        except pl.exceptions.PolarsError:
            return None
        if types:
            labels = frame.drop_in_place("labels").struct.unnest()
            frame = frame.hstack([column.rename(f".{column.name}") for column in labels])
        return frame if frame.height == len(lines) and self._is_whole(frame, text) else None

    def _is_whole(self, frame: pl.DataFrame, text: bytes) -> bool:
        """Whether ``text``, which holds no escape, has no more in it than the columns of ``frame`` show."""
        import numpy as np
        import polars as pl

        num_values = {column.name: frame.height - column.null_count() for column in frame}
        if any(num_values[name] != frame.height for name in self._kind.required):
            return False
        # Every line has a checksum as well, and most have labels.
        num_labelled = text.count(b'"labels":{')
        if self._kind is METRIC and (num_labelled != frame.height or not frame["value"].is_finite().all()):
            return False
        num_keys = sum(num_values.values()) + num_labelled + frame.height
        texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
        num_texts = sum(num_values[name] for name in texts) + frame.height
        num_texts -= sum(
            _unquoted(name, text) for name, kinds in self._labels.items() if len(kinds) > 1 and _TEXT in kinds
        )
        counts = [frame[name] for name, kind in self._kind.fields.items() if kind == _WHOLE]
        quotes = np.frombuffer(text, np.uint8) == ord('"')
        colons = np.frombuffer(text, np.uint8) == ord(":")
        return (
            np.count_nonzero(quotes[:-1] & colons[1:]) == num_keys
            and np.count_nonzero(quotes) == 2 * (num_keys + num_texts)
            and not any((count < 0).any() for count in counts)
        )

    def _singly(self, lines: Iterable[bytes]) -> pl.DataFrame:
        """Parse line by line; slower by far, and as strict as can be."""
        import polars as pl

        rows = self._parsed(lines)
        self.num_parsed_singly += len(rows)
        self._learn(rows)
        flat = [
            {name: row.get(name) for name in self._kind.fields} | {f".{k}": v for k, v in row.get("labels", {}).items()}
            for row in rows
        ]
        names = [*self._kind.fields, *(f".{name}" for name in self._labels)]
        dtypes = {name: _dtype(kind) for name, kind in self._kind.fields.items()}
        return pl.DataFrame([
            pl.Series(name, [row.get(name) for row in flat], dtype=dtypes.get(name), strict=False) for name in names
        ])

    def _parsed(self, lines: Iterable[bytes]) -> list[dict[str, Any]]:
        rows = []
        for raw in lines:
            try:
                row, wrong = parse_line(raw)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise UnexpectedLine from None
            if wrong or row["kind"] != self._kind.name:
                raise UnexpectedLine
            if isinstance(value := row.get("value"), str):
                row["value"] = NONFINITE[value]
            rows.append(row)
        return rows

    def _learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            for name, value in row.get("labels", {}).items():
                kinds = self._labels.setdefault(name, set())
                if value is not None:
                    kinds.add(_TYPES[type(value)])
        if len(self._labels) > MAX_COLUMNS:
            raise UnexpectedLine


def _only(kinds: set[str]) -> str | None:
    """Return the type of a column that shows values of these types as they are, None where there is none.

    Whole numbers among others are numbers; among texts they, and truths, are texts, which `_unquoted` counts.
    """
    if kinds <= {_WHOLE, _NUMBER}:
        return _WHOLE if kinds == {_WHOLE} else _NUMBER
    if len(kinds) == 1:
        return next(iter(kinds))
    return _TEXT if _TEXT in kinds and _NUMBER not in kinds else None


def _unquoted(name: str, text: bytes) -> int:
    """Return how many values of the label ``name`` are whole numbers or truths."""
    key = re.escape(json.dumps(name, ensure_ascii=False).encode())
    return len(re.findall(key + rb":(?:-?[0-9]{1,18}|true|false)[,}]", text))


def _dtype(kind: str) -> Any:
    import polars as pl

    return {_TEXT: pl.String, _WHOLE: pl.Int64, _NUMBER: pl.Float64, _TRUTH: pl.Boolean}[kind]


def _nulls(name: str, frame: pl.DataFrame) -> pl.Series:
    import polars as pl

    return pl.repeat(None, frame.height, dtype=pl.Null, eager=True).rename(name)


def _joined(pieces: Sequence[pl.Series], dtype: Any) -> pl.Series:
    """Return one column, of the type that its values would have had at once."""
    import polars as pl

    dtypes = {piece.dtype for piece in pieces} - {pl.Null}
    ladders: list[list[Any]] = [[pl.Boolean, pl.Int64, pl.Float64], [pl.Boolean, pl.Int64, pl.String]]
    if dtype is None:
        ladder = next((ladder for ladder in ladders if dtypes <= {*ladder}), None)
        if ladder is None:
            values = [value for piece in pieces for value in piece.to_list()]
            return pl.Series(pieces[0].name, values, strict=False)
        dtype = max(dtypes, key=ladder.index, default=pl.Null)
    return pl.concat([piece.cast(dtype) for piece in pieces])

"""Reading a published table of similarities.

A table is a square matrix (CSV with names in its first row and column, or JSON ``{name: {name: value}}``) or one pair per
line (CSV, or a JSON list of records). Whatever is wrong with it is one line: file, place, what, what to do. Behind
``read_similarities`` nothing is checked again. Costs one pass over the file, and a few square arrays of the names.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelassay.data.similarities.families import family_of, read_families, related_by
from modelassay.data.strict_text import MAX_NAME, csv_rows, decode, more, read_bytes, shown, strict_json
from modelassay.errors import UsageError, did_you_mean, printable
from modelassay.models.gate import one_line

# N = number of names, P = pairs with a value

TOLERANCE = (
    1e-3  # between a pair's two directions: some tables are printed with three digits, some summed in another order
)
MAX_NAMES = 1_200  # 400 MB as they are read; the largest published table has some 300
_LARGEST = 1e300  # sums of larger ones overflow

Format: TypeAlias = Literal["matrix", "pairs"]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_COLUMNS: dict[str, list[tuple[str, ...]]] = {
    "name": [
        ("a", "b"),
        ("name_a", "name_b"),
        ("model_a", "model_b"),
        ("name1", "name2"),
        ("model1", "model2"),
        ("name_1", "name_2"),
        ("model_1", "model_2"),
        ("base_model_name", "derived_model_name"),
    ],
    "value": [("similarity",), ("score",), ("value",), ("avg_overlap_ratio",)],
    "related": [("related",), ("label",)],
    "family": [
        ("family_a", "family_b"),
        ("cluster_a", "cluster_b"),
        ("family1", "family2"),
        ("cluster1", "cluster2"),
        ("family_1", "family_2"),
        ("cluster_1", "cluster_2"),
    ],
}
_TRUTH = {"true": 1, "1": 1, "yes": 1, "false": 0, "0": 0, "no": 0, "": -1}
_FORMS = (
    "a matrix has the names in its first row and first column, a list of pairs has columns a, b, similarity and, where it is "
    "known, related (true or false)"
)


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """A table of similarities, read and checked; pairs without a value and names with themselves are left out."""

    file: Path
    sha256: str
    families: Path | None
    """The file that says which names belong together."""
    families_sha256: str | None
    names: tuple[str, ...]
    pairs_P2: NDArray[np.int64]
    """Indices into ``names``."""
    scores_P: NDArray[np.float64]
    """The mean of a pair's two directions where both are given."""
    related_P: NDArray[np.int8]
    """1 related, 0 unrelated, -1 not known."""
    num_missing: int
    """Pairs of names without a value."""


def read_similarities(file: Path, *, form: Format | None = None, families: Path | None = None) -> Similarities:
    """Read the table in ``file`` and, from ``families``, which of its models are related.

    Raises:
        UsageError: not such files; the message begins with file and place.
    """
    data = read_bytes(file)
    cells = _Cells(file, in_json=file.suffix.lower() == ".json")
    (_read_json if cells.in_json else _read_csv)(cells, decode(file, data), form)
    scores_NN = cells.symmetric(np.asarray(cells.value))
    if cells.family and cells.says_related:
        raise UsageError(f"{one_line(file)}: has a column of families and a column 'related'; keep one of them")
    family_data = None
    if families is not None:
        if cells.says_related or cells.family:
            raise UsageError(
                f"{one_line(file)}: has its own column of families or of related pairs; drop it, or --families {one_line(families)}"
            )
        family_data = read_bytes(families)
        related_NN = related_by(family_of(cells.names, read_families(families, family_data), file, families))
    elif cells.family:
        related_NN = related_by([cells.family.get(name) for name in cells.names])
    else:
        truth_NN = cells.symmetric(np.where(np.asarray(cells.truth) < 0, np.nan, np.asarray(cells.truth)))
        related_NN = np.nan_to_num(truth_NN, nan=-1.0).astype(np.int8)
    upper = np.triu_indices(len(cells.names), 1)
    present = np.isfinite(scores_NN[upper])
    if not present.any():
        raise UsageError(f"{one_line(file)}: holds no value of two different names; nothing can be computed from it")
    return Similarities(
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        families=families,
        families_sha256=None if family_data is None else hashlib.sha256(family_data).hexdigest(),
        names=tuple(cells.names),
        pairs_P2=np.stack(upper, axis=1)[present],
        scores_P=scores_NN[upper][present],
        related_P=related_NN[upper][present],
        num_missing=int((~present).sum()),
    )


@dataclass
class _Cells:
    """The table as it is read: one entry for each direction of a pair, with the place it came from."""

    file: Path
    in_json: bool
    names: list[str] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    family: dict[str, str] = field(default_factory=dict)
    """By name, where the table itself has families."""
    says_related: bool = False
    a: array[int] = field(default_factory=lambda: array("q"))
    b: array[int] = field(default_factory=lambda: array("q"))
    value: array[float] = field(default_factory=lambda: array("d"))
    """NaN where there is none."""
    truth: array[int] = field(default_factory=lambda: array("b"))
    """1 related, 0 unrelated, -1 not said."""
    place: array[int] = field(default_factory=lambda: array("q"))
    """A line of a CSV, an entry of a JSON."""

    def fail(self, place: int, what: str) -> NoReturn:
        """Raise what is wrong at ``place``."""
        where = f": {self.where(place)}: " if self.in_json else f":{place}: "
        raise UsageError(f"{printable(str(self.file))}{where}{what}")

    def where(self, place: int) -> str:
        """Return a place as an error names it beside its own."""
        return f"{'entry' if self.in_json else 'line'} {place}"

    def add(self, name: str, place: int) -> int:
        """Return the index of ``name``, a new one if it was not met before."""
        if not name:
            self.fail(place, "a name is missing; every model needs one")
        if len(name) > MAX_NAME:
            self.fail(place, f"{shown(name)}: a name of more than {MAX_NAME} characters; shorten it")
        if name not in self.index:
            if len(self.names) == MAX_NAMES:
                self.fail(place, f"more than {MAX_NAMES:,} names; keep those you need")
            self.index[name] = len(self.names)
            self.names.append(name)
        return self.index[name]

    def put(self, a: int, b: int, value: float, truth: int, place: int) -> None:
        """Note one direction of a pair; a name with itself says nothing."""
        if a != b:
            for column, entry in ((self.a, a), (self.b, b), (self.truth, truth), (self.place, place)):
                column.append(entry)
            self.value.append(value)
            self.says_related |= truth >= 0

    def belongs(self, name: str, family: str, place: int) -> None:
        """Note a name's family, as a table of pairs repeats it."""
        if family and self.family.setdefault(name, family) != family:
            self.fail(
                place,
                f"{shown(name)} is of family {shown(family)} here, of {shown(self.family[name])} above; a model has one",
            )

    def symmetric(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``values`` of the entries as [N, N], the mean of both directions, NaN where there is none.

        Raises:
            UsageError: a direction is listed twice, or the directions of a pair differ.
        """
        size = len(self.names)
        a, b, place = (np.asarray(column, dtype=np.int64) for column in (self.a, self.b, self.place))
        value_NN, place_NN = np.full((size, size), np.nan), np.zeros((size, size), dtype=np.int64)
        _, first, count = np.unique(a * size + b, return_index=True, return_counts=True)
        if (count > 1).any():
            again = np.setdiff1d(np.arange(a.size), first)[0]
            before = int(place[np.flatnonzero((a == a[again]) & (b == b[again]))[0]])
            self.fail(
                int(place[again]),
                f"{self.pair(a[again], b[again])} is already on {self.where(before)}; keep one of them",
            )
        value_NN[a, b], place_NN[a, b] = values, place
        differ = np.abs(value_NN - value_NN.T) > TOLERANCE
        if differ.any():
            later = np.where(differ, np.maximum(place_NN, place_NN.T), np.iinfo(np.int64).max)
            row, column = np.unravel_index(int(later.argmin()), later.shape)
            if place_NN[row, column] < place_NN[column, row]:
                row, column = column, row
            self.fail(
                int(place_NN[row, column]),
                f"{self.pair(row, column)} is {value_NN[row, column]:g} here and "
                f"{value_NN[column, row]:g} the other way round ({self.where(int(place_NN[column, row]))}); a similarity "
                "has no direction, make them agree",
            )
        other_NN = np.where(np.isnan(value_NN), value_NN.T, value_NN)
        return (other_NN + other_NN.T) / 2

    def pair(self, a: np.intp, b: np.intp) -> str:
        """Return a pair as an error shows it."""
        return f"{shown(self.names[a])} with {shown(self.names[b])}"


def _read_csv(cells: _Cells, text: str, form: Format | None) -> None:
    rows = csv_rows(cells.file, text)
    place, header = rows[0]
    columns = _columns([title.lower() for title in header])
    if form is None:
        square = not header[0] or set(header[1:]) & {row[0] for _, row in rows[1:]}
        form = "pairs" if columns and header[0] else "matrix" if square else None
    if form == "pairs" and columns is not None:
        _read_pairs(cells, rows, columns)
    elif form == "matrix":
        _read_matrix(cells, rows)
    else:
        cells.fail(place, f"columns {', '.join(map(shown, header[:4]))}{' ...' if len(header) > 4 else ''}: {_FORMS}")


def _columns(titles: Sequence[str]) -> dict[str, int] | None:
    """Return where the known columns of a list of pairs are, None where it lacks names or values.

    >>> _columns(["model_a", "model_b", "score"])
    {'name': 0, 'name_b': 1, 'value': 2}
    """
    columns: dict[str, int] = {}
    for kind, choices in _COLUMNS.items():
        chosen = next((choice for choice in choices if all(title in titles for title in choice)), ())
        columns |= {key: titles.index(title) for key, title in zip((kind, f"{kind}_b"), chosen, strict=False)}
    return columns if {"name", "value"} <= set(columns) else None


def _read_matrix(cells: _Cells, rows: Sequence[tuple[int, list[str]]]) -> None:
    place, header = rows[0]
    for column, name in enumerate(header[1:]):
        if cells.add(name, place) != column:
            cells.fail(
                place, f"{shown(name)} names two columns, {cells.index[name] + 2} and {column + 2}; names are unique"
            )
    lines: dict[str, int] = {}
    for line, (name, *texts) in rows[1:]:
        if len(texts) != len(header) - 1:
            cells.fail(line, f"row {shown(name)} has {len(texts)} values, the first row names {len(header) - 1}")
        if name not in cells.index:
            cells.fail(
                line, f"row {shown(name)} is not among the columns{did_you_mean(name, cells.names)}; a matrix is square"
            )
        if name in lines:
            cells.fail(line, f"row {shown(name)} is already on line {lines[name]}; names are unique")
        lines[name] = line
        for column, text in enumerate(texts):
            cells.put(cells.index[name], column, _csv_number(cells, text, line, (name, header[column + 1])), -1, line)
    if missing := [name for name in cells.names if name not in lines]:
        cells.fail(
            rows[-1][0], f"the last row, and there is none for {shown(missing[0])}{more(missing)}; a matrix is square"
        )


def _read_pairs(cells: _Cells, rows: Sequence[tuple[int, list[str]]], columns: Mapping[str, int]) -> None:
    for line, texts in rows[1:]:
        if len(texts) != len(rows[0][1]):
            cells.fail(line, f"{len(texts)} cells, the first line has {len(rows[0][1])}")
        record = {key: texts[column] for key, column in columns.items()}
        pair = (record["name"], record["name_b"])
        _put_pair(cells, record, _csv_number(cells, record["value"], line, pair), line)


def _put_pair(cells: _Cells, record: Mapping[str, str], value: float, place: int) -> None:
    """Note a pair; in ``record`` all but the value is text."""
    a, b = cells.add(record["name"], place), cells.add(record["name_b"], place)
    truth = record.get("related", "").lower()
    if truth not in _TRUTH:
        cells.fail(place, f"{shown(truth)} is no truth value; write true, false or nothing")
    for name, family in (("name", "family"), ("name_b", "family_b")):
        cells.belongs(record[name], record.get(family, ""), place)
    cells.put(a, b, value, _TRUTH[truth], place)


def _csv_number(cells: _Cells, text: str, line: int, pair: tuple[str, str]) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else np.nan
    if text and not abs(value) < _LARGEST:
        cells.fail(
            line,
            f"{shown(pair[0])} with {shown(pair[1])} is {shown(text)}, not a finite number; leave the cell empty "
            "where there is no value",
        )
    return value


def _read_json(cells: _Cells, text: str, form: Format | None) -> None:
    data = strict_json(cells.file, text)
    data_form: Format | None = "pairs" if isinstance(data, list) else "matrix" if isinstance(data, dict) else None
    if data_form is None or (form or data_form) != data_form:
        want = {"pairs": "a list of records", "matrix": "a mapping of mappings"}
        raise UsageError(
            f"{printable(str(cells.file))}: must be {want[form] if form else ' or '.join(want.values())}, is {shown(json.dumps(data))}"
        )
    for place, record in enumerate(_records(cells, data), start=1):
        columns = _columns([key.lower() for key in record])
        if columns is None:
            keys = ", ".join(map(shown, [*record][:4])) + (" ..." if len(record) > 4 else "")
            cells.fail(place, f"keys {keys or 'missing'}: a record has a, b and similarity")
        values = list(record.values())
        by_kind = {kind: values[column] for kind, column in columns.items()}
        value = _json_number(cells, by_kind.pop("value"), place, str(by_kind["name"]), str(by_kind["name_b"]))
        if not (isinstance(by_kind["name"], str) and isinstance(by_kind["name_b"], str)):
            cells.fail(place, "a name is not text; quote it")
        _put_pair(cells, {kind: "" if item is None else str(item) for kind, item in by_kind.items()}, value, place)


def _records(cells: _Cells, data: Any) -> Iterator[dict[str, Any]]:
    """Yield a record per pair, whichever of the two forms ``data`` has."""
    for key, row in data.items() if isinstance(data, dict) else enumerate(data, start=1):
        if not isinstance(row, dict):
            what = shown(key) if isinstance(data, dict) else f"entry {key}"
            raise UsageError(
                f"{printable(str(cells.file))}: {what} must be a mapping, is {shown(json.dumps(row))}; a file of families is given "
                "beside its table"
            )
        if isinstance(data, dict):
            yield from ({"a": key, "b": other, "similarity": value} for other, value in row.items())
        else:
            yield row


def _json_number(cells: _Cells, value: object, place: int, a: str, b: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        cells.fail(
            place,
            f"{shown(a)} with {shown(b)} is {shown(json.dumps(value))}, not a finite number; write null where "
            "there is no value",
        )
    return float(value)

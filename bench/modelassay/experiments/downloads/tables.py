"""Reading tables of overlaps that others measured: one model per row with its overlap and its downloads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelassay.data.strict_text import csv_rows, decode, read_bytes, shown
from modelassay.errors import UsageError, did_you_mean

_COLUMNS = {
    "name": ("model", "derived_model_name", "model_id", "name"),
    "overlap": ("overlap", "avg_overlap_ratio"),
    "downloads": ("downloads", "derived_model_downloads"),
    "prompts": ("overlaps", "pair_scores_json"),
}
"""What a column may be called; the second of each is how github.com/KimAu197/llm_fingerprint calls it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of a table."""

    name: str
    overlap: float | None
    """None where it was not measured: an empty cell, or a negative number."""
    downloads: float | None
    """None where they are not known: an empty cell, or 0, which that collection also wrote for repositories that were gone."""
    zero: bool
    """Whether it is that 0."""
    by_prompt: str | None
    """The overlaps per prompt as they are written: equal ones in two rows suggest one model twice."""


def read_overlaps(files: Sequence[str]) -> tuple[Row, ...]:
    """Return the rows of ``files``; of a model that stands in several files the first row counts.

    Raises:
        UsageError: not such a file, a model twice in one file, or an overlap above 1; with file and line.
    """
    rows: dict[str, Row] = {}
    for file in files:
        for name, row in _read(Path(file)).items():
            rows.setdefault(name, row)
    return tuple(rows.values())


def _read(file: Path) -> dict[str, Row]:
    rows = csv_rows(file, decode(file, read_bytes(file)))
    line, header = rows[0]
    titles = [title.lower() for title in header]
    places = {
        kind: next((titles.index(name) for name in names if name in titles), None) for kind, names in _COLUMNS.items()
    }
    for kind in ("name", "overlap"):
        if places[kind] is None:
            hint = did_you_mean(_COLUMNS[kind][0], titles)
            raise UsageError(
                f"{file}:{line}: no column {' or '.join(_COLUMNS[kind])} among {', '.join(map(shown, titles[:6]))}{hint}"
            )
    by_name: dict[str, Row] = {}
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise UsageError(f"{file}:{line}: {len(cells)} cells, the first line has {len(header)}")
        text = {kind: "" if place is None else cells[place] for kind, place in places.items()}
        if not text["name"] or text["name"] in by_name:
            wrong = (
                f"{shown(text['name'])} is listed twice; keep one row per model"
                if text["name"]
                else "a model without a name"
            )
            raise UsageError(f"{file}:{line}: {wrong}")
        overlap, downloads = (_number(file, line, kind, text[kind]) for kind in ("overlap", "downloads"))
        if overlap is not None and overlap > 1:
            raise UsageError(f"{file}:{line}: an overlap of {overlap:g}; it is a share, at most 1")
        by_name[text["name"]] = Row(name=text["name"], overlap=None if overlap is None or overlap < 0 else overlap,
                                  downloads=downloads or None, zero=downloads == 0, by_prompt=text["prompts"].strip("[] ") or None)  # fmt: skip
    return by_name


def _number(file: Path, line: int, kind: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"{file}:{line}: {kind} is {shown(text)}, not a finite number; leave the cell empty where it is not known"
        )
    return value

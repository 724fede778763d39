"""The lines of a cell's log by kind, some megabytes at a time, each of them sound; those of the tables as they are written.

What `log.read_cell` refuses is refused here as `UnexpectedLine`, without a word: whoever meets it asks `read_cell`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelassay.recording.columns import METRIC, MICROBATCH, Kind, UnexpectedLine
from modelassay.recording.line import are_sound, ends_within, parse_line
from modelassay.recording.log import MAX_LINE_BYTES, read_segment, segments
from modelassay.storage.files import open_regular

CHUNK_BYTES: Final = 1 << 22

_TABLES: Final = (METRIC, MICROBATCH)

_BEGINNING: Final = 48
"""Bytes of a line within which its kind stands, after the position."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Some of a cell's lines that count."""

    raw: Mapping[str, tuple[list[bytes], Sequence[int]]]
    """Those of the tables by the name of their kind, and the position of each."""
    facts: Sequence[Mapping[str, Any]]

    def of(self, kind: Kind) -> tuple[list[bytes], Sequence[int]]:
        """Return the lines of ``kind`` and their positions."""
        return self.raw.get(kind.name, ([], ()))


def cell_lines(cell_dir: Path) -> Iterator[Lines]:
    """Yield the lines of a cell, less those that a later attempt did again.

    Raises:
        UnexpectedLine: a line is damaged, missing or misplaced.
        UsageError: a segment is no regular file, or the cell no folder.
    """
    openings: list[tuple[Path, int]] = []
    for attempt, path in segments(cell_dir).items():
        opening = next(read_segment(path), None)
        if opening is None:  # killed before its first line was whole
            continue
        if (opening["attempt"], opening["cell"]) != (attempt, cell_dir.name):
            raise UnexpectedLine
        openings.append((path, opening["resumed_at"]))
    end = 0
    for number, (path, begin) in enumerate(openings):
        if begin > end:
            raise UnexpectedLine
        limit = min((resumed_at for _, resumed_at in openings[number + 1 :]), default=None)
        end = begin
        for chunk in _chunks(path):
            yield _sorted(chunk, end, limit)
            end += len(chunk.lines)


@dataclass(frozen=True)
class _Chunk:
    """Some whole lines of a segment, together and one by one."""

    data: bytes
    lines: list[bytes]


def _chunks(path: Path) -> Iterator[_Chunk]:
    """Yield the sound lines of a segment after the one that opens it.

    Raises:
        UnexpectedLine: one is not sound, or too long.
    """
    with open_regular(path) as file:
        file.readline(MAX_LINE_BYTES)
        while data := file.read(CHUNK_BYTES):
            while not data.endswith(b"\n") and (more := file.readline(MAX_LINE_BYTES)):
                data += more  # the rest of a line, or what a cell at work has just written
                if len(more) == MAX_LINE_BYTES:
                    raise UnexpectedLine
            lines = data.splitlines(keepends=True)
            if not data.endswith(b"\n") and ends_within(lines.pop()):
                raise UnexpectedLine
            if not are_sound(lines):
                raise UnexpectedLine
            yield _Chunk(data, lines)


def _sorted(chunk: _Chunk, begin: int, limit: int | None) -> Lines:
    """Return the lines of ``chunk``, the first of which stands at ``begin``, by kind, less those from ``limit`` on."""
    positions = range(begin, begin + len(chunk.lines))
    raw: dict[str, tuple[list[bytes], Sequence[int]]] = {}
    facts: list[dict[str, Any]] = []
    if sole := next((kind for kind in _TABLES if chunk.data.count(kind.mark) == len(chunk.lines)), None):
        raw[sole.name] = chunk.lines, positions
    else:
        places: dict[str, list[int]] = {kind.name: [] for kind in _TABLES}
        for at, line in enumerate(chunk.lines):
            beginning = line[:_BEGINNING]
            if METRIC.mark in beginning:
                places[METRIC.name].append(at)
            elif MICROBATCH.mark in beginning:
                places[MICROBATCH.name].append(at)
            else:
                other = _parsed(line, begin + at)
                if other["kind"] == "fact" and (limit is None or begin + at < limit):
                    facts.append(other)
        raw = {name: ([chunk.lines[at] for at in here], [begin + at for at in here]) for name, here in places.items()}
    if limit is not None and limit < positions.stop:
        for name, (lines, at_positions) in raw.items():
            count = sum(at < limit for at in at_positions)
            raw[name] = lines[:count], at_positions[:count]
    return Lines(raw=raw, facts=facts)


def _parsed(raw: bytes, position: int) -> dict[str, Any]:
    try:
        line, wrong = parse_line(raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnexpectedLine from None
    if wrong or line["kind"] in ("attempt", METRIC.name, MICROBATCH.name) or line["seq"] != position:
        raise UnexpectedLine
    return line

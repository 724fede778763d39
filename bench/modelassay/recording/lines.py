"""The lines of a cell's log by kind, some megabytes at a time, each of them sound; those of the tables as they are written.

What `log.read_cell` refuses is refused here as `UnexpectedLine`, without a word: whoever meets it asks `read_cell`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from modelassay.recording.columns import METRIC, MICROBATCH, Kind, UnexpectedLine
from modelassay.recording.line import are_sound, ends_within, parse_line
from modelassay.recording.log import MAX_LINE_BYTES, read_segment, segments
from modelassay.storage.files import open_regular

CHUNK_BYTES: Final = 1 << 22

_BEGINNING: Final = 48
"""Bytes of a line within which its kind stands, after the position."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Some of a cell's lines that count."""

    raw: dict[str, tuple[list[bytes], Sequence[int]]] = field(default_factory=dict)
    """Those of the tables by the name of their kind, and the position of each."""
    facts: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: Kind) -> tuple[list[bytes], Sequence[int]]:
        """Return the lines of ``kind`` and their positions."""
        return self.raw.get(kind.name, ([], ()))


def cell_lines(cell_dir: Path) -> Iterator[Lines]:
    """Yield the lines of a cell that has ended, less those that a later attempt did again.

    Raises:
        UnexpectedLine: a line is damaged, missing or misplaced.
        UsageError: a segment is no regular file, or the cell no folder.
    """
    openings: list[tuple[Path, int]] = []
    for attempt, path in segments(cell_dir).items():
        with closing(read_segment(path)) as lines:
            opening = next(lines, None)
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
            if not data.endswith(b"\n"):
                data += file.readline(MAX_LINE_BYTES)
            lines = data.splitlines(keepends=True)
            if not data.endswith(b"\n"):
                torn = lines.pop()
                if ends_within(torn) or file.read(1):
                    raise UnexpectedLine
            if not are_sound(lines):
                raise UnexpectedLine
            yield _Chunk(data, lines)


def _sorted(chunk: _Chunk, begin: int, limit: int | None) -> Lines:
    """Return the lines of ``chunk``, the first of which stands at ``begin``, by kind, less those from ``limit`` on."""
    positions = range(begin, begin + len(chunk.lines))
    lines = Lines()
    if sole := next((kind for kind in (METRIC, MICROBATCH) if chunk.data.count(kind.mark) == len(chunk.lines)), None):
        lines.raw[sole.name] = chunk.lines, positions
    else:
        others = []
        for kind in (METRIC, MICROBATCH):
            places = [
                (raw, at) for raw, at in zip(chunk.lines, positions, strict=True) if kind.mark in raw[:_BEGINNING]
            ]
            lines.raw[kind.name] = [raw for raw, _ in places], [at for _, at in places]
        for raw, at in zip(chunk.lines, positions, strict=True):
            if METRIC.mark not in raw[:_BEGINNING] and MICROBATCH.mark not in raw[:_BEGINNING]:
                others.append((_parsed(raw, at), at))
        lines.facts.extend(line for line, at in others if line["kind"] == "fact" and (limit is None or at < limit))
    if limit is not None and limit < positions.stop:
        for name, (raws, places) in lines.raw.items():
            count = sum(at < limit for at in places)
            lines.raw[name] = raws[:count], places[:count]
    return lines


def _parsed(raw: bytes, position: int) -> dict[str, Any]:
    try:
        line, wrong = parse_line(raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnexpectedLine from None
    if wrong or line["kind"] in ("attempt", METRIC.name, MICROBATCH.name) or line["seq"] != position:
        raise UnexpectedLine
    return line

"""How a cell stands, from the two ends of each of its segments: what lies between them is not read.

A segment opens with the position it resumed at and ends with the newest one, so that listing runs, planning and choosing what
is left to run cost the same whatever a log holds. Where an end is not as it should be the log is read whole: it stays the
truth, and says which of its lines is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from modelassay.recording.line import ends_within, is_sound, parse_line
from modelassay.recording.log import MAX_LINE_BYTES, SCHEMA, HasOutcome, read_cell, read_segment, segments
from modelassay.storage.files import open_regular

END_BYTES: Final = 1 << 14
"""Read of each end of a segment at first; a longer last line takes more."""


@dataclass(frozen=True, kw_only=True)
class CellStatus(HasOutcome):
    """What a cell's log says of the cell as a whole."""

    num_attempts: int = 0
    position: int = 0
    """Where the next line would stand: one after the last that counts."""
    status: Mapping[str, Any] | None = None
    """The status line of the newest attempt; None while it runs or when it was killed."""
    places: tuple[Mapping[str, Any], ...] = ()
    """Where each attempt ran."""


class _Odd(Exception):  # noqa: N818 - no error: the log is read whole instead
    """An end of a segment is not as it should be."""


def read_status(cell_dir: Path, *, cell: str | None = None) -> CellStatus:
    """Return how a cell, or a stage, stands; ``cell`` is whose lines it must hold (None: as the folder is called).

    Raises:
        RecordError: as `read_cell`, of what the ends of the segments show.
        UsageError: a segment is no regular file, or the cell no folder.
    """
    num_attempts, position, status, places = 0, 0, None, list[Mapping[str, Any]]()
    try:
        for attempt, path in segments(cell_dir).items():
            ends = _ends(path)
            if ends is None:  # killed before its first line was whole
                continue
            opening, last = ends
            if (opening["attempt"], opening["cell"]) != (attempt, cell or cell_dir.name):
                raise _Odd
            if opening["resumed_at"] > position:
                raise _Odd
            num_attempts += 1
            places.append(opening.get("place", {}))
            position = opening["resumed_at"] if last is None else last["seq"] + 1
            status = last if last is not None and last["kind"] == "status" else None
    except _Odd:
        log = read_cell(cell_dir, cell=cell)
        return CellStatus(
            num_attempts=log.num_attempts, position=log.position, status=log.status, places=tuple(log.places)
        )
    return CellStatus(num_attempts=num_attempts, position=position, status=status, places=tuple(places))


def _ends(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """Return the line that opens a segment and, if there are more, the last whole one; None where not even one is whole.

    Raises:
        _Odd: a line is not as it should be.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(END_BYTES)
        first = head[: 1 + head.find(b"\n")]
        if not first:
            if next(read_segment(path), None) is None:
                return None
            raise _Odd
        tail = head if size <= len(head) else _tail(file, size)
    whole, _, torn = tail.rpartition(b"\n")
    if torn and ends_within(torn):
        raise _Odd
    raw = whole[1 + whole.rfind(b"\n") :] + b"\n"
    opening, last = _line(first), _line(raw)
    if opening["kind"] != "attempt" or opening["schema"] != SCHEMA:
        raise _Odd
    if raw == first and size == len(first) + len(torn):
        return opening, None
    if last["kind"] == "attempt" or last["seq"] < opening["resumed_at"]:
        raise _Odd
    return opening, last


def _tail(file: BinaryIO, size: int) -> bytes:
    """Return the end of a file from before its last whole line on.

    Raises:
        _Odd: that would be longer than lines are.
    """
    length = END_BYTES
    while length < 2 * MAX_LINE_BYTES:
        file.seek(max(0, size - length))
        tail = file.read(min(size, length))
        if tail.count(b"\n") > 1 or length >= size:
            return tail
        length *= 8
    raise _Odd


def _line(raw: bytes) -> dict[str, Any]:
    if not is_sound(raw):
        raise _Odd
    try:
        line, wrong = parse_line(raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _Odd from None
    if wrong:
        raise _Odd
    return line

"""Where a long cell stands, read from what it wrote so far."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from modelassay.errors import UsageError
from modelassay.record import segments
from modelassay.storage.files import open_regular


def report_progress(cell_dir: Path, place: str, report: Callable[[str], None]) -> None:
    """Say where a cell stands: the last line it printed, else its last timed unit."""
    number = max(segments(cell_dir), default=0)
    printed = _last_lines(cell_dir / f"attempt-{number}.out")
    said = (
        "".join(filter(str.isprintable, printed[-1]))[:200]
        if printed
        else _last_unit(_last_lines(cell_dir / f"attempt-{number}.jsonl"))
    )
    report(f"{place}: {said or 'at work'}")


def _last_unit(lines: Sequence[str]) -> str:
    for line in reversed(lines):
        try:
            unit = json.loads(line)
        except ValueError:  # the first of the lines, which may be the end of a longer one
            break
        if isinstance(unit, dict) and unit.get("kind") == "microbatch":
            return f"{unit['stage']} {unit['index'] + 1}"
    return ""


def _last_lines(path: Path) -> list[str]:
    """Return the whole lines in the last 16 kB of a file that another process writes, blank ones left out.

    A carriage return ends a line too: a progress bar draws over itself.
    """
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
            lines = re.split(r"[\r\n]+", file.read().rpartition(b"\n")[0].decode(errors="replace"))
    except (OSError, UsageError):
        return []
    return [line for line in lines if line.strip()]

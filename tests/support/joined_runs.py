"""What several workers left of one run, and their processes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelassay.recording.log import read_segment, segments


def completed(run: Path) -> dict[str, int]:
    """How many attempts of each cell came to their own end and count."""
    counts = {}
    for cell in sorted((run / "cells").iterdir()):
        ends = 0
        for number, path in segments(cell).items():
            lines = list(read_segment(path))
            later = [next(read_segment(other), None) for n, other in segments(cell).items() if n > number]
            is_void = any(opening is not None and opening["resumed_at"] <= lines[-1].get("seq", 0) for opening in later)
            ends += bool(lines and lines[-1]["kind"] == "status" and not is_void)
        counts[cell.name] = ends
    return counts


@contextmanager
def ended(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()

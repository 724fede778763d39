"""How a cell stands now, in one word that every table and every title uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelassay.recording.status import CellStatus, read_status
from modelassay.runs.leases import holder_of
from modelassay.runs.progress import position_of
from modelassay.runs.workers import Sign, read_sign, worker_path


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What has become of a cell so far."""

    word: str
    """done, diverged, failed, running, cut off (an attempt that nobody goes on with) or not run."""
    num_attempts: int
    note: str
    """Why it failed or diverged, how far it is; "" where there is nothing to say."""


def standing(cell_dir: Path, status: CellStatus | None = None) -> Standing:
    """Return how the cell in ``cell_dir`` stands; ``status`` is what its log said a moment ago, None: it is read.

    A cell is running while a worker has it, also before its process has written a line. One that nobody has is looked at once
    more, since it may have ended between its log and its lease.
    """
    status = read_status(cell_dir) if status is None else status
    if not status.is_complete:
        if (worker := worker_of(cell_dir)) is not None and worker.seems_there():
            position = position_of(cell_dir)
            note = "" if position is None or status.status is not None else str(position)
            return Standing(word="running", num_attempts=status.num_attempts, note=note)
        if status.status is None and status.num_attempts:
            status = read_status(cell_dir)
    word = status.outcome or ("cut off" if status.num_attempts else "not run")
    reason = "" if status.status is None else str(status.status.get("reason", ""))
    return Standing(word=word, num_attempts=status.num_attempts, note=reason)


def worker_of(cell_dir: Path) -> Sign | None:
    """Return what is known of the worker that has a cell, whether it is still there or not; None where nobody has it."""
    holder = holder_of(cell_dir)
    return read_sign(worker_path(cell_dir.parents[1], holder)) if holder else None


def in_numbers(standings: Iterable[Standing]) -> str:
    """Return how many cells stand how.

    >>> in_numbers(Standing(word=word, num_attempts=1, note="") for word in ("done", "running", "done"))
    '2 done, 1 running'
    """
    words = [each.word for each in standings]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))

"""Engines start workers on other machines, and do nothing else: workers take cells from the run directory by themselves.

An adapter is told how many workers are wanted, what each asks of its machine and the command that one is. It never sees a
parameter, a result or a tensor. What became of the cells is read from the run directory, by `follow`, like by anybody else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from modelassay.errors import IncompleteRun
from modelassay.runs.directory import Run
from modelassay.runs.progress import Board
from modelassay.runs.watch import Watch

POLL_S: Final = 1.0
"""Between two looks at the run directory."""

MAX_FRUITLESS: Final = 3
"""Times that workers are started anew without a cell coming to its end: what ends every worker is no accident."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an engine is to do for a run."""

    run: Run
    count: int
    """The most workers at a time."""
    attempts: int
    """A cell that failed so often is left alone."""
    arguments: Sequence[str] = ()
    """More of a worker's command line: --jobs, --silence, --in container."""

    @property
    def worker(self) -> list[str]:
        """The command line of one worker, after the program's name."""
        own = ["--worker", "--no-wait", "--attempts", str(self.attempts)]
        return ["run", str(self.run.folder.absolute()), *own, *self.arguments]

    @property
    def command(self) -> list[str]:
        """The whole command line of one worker, in this Python, which the machines have at the same place."""
        return [sys.executable, "-m", "modelassay.cli", *self.worker]


@dataclass(frozen=True, kw_only=True)
class Image:
    """What workers run in on machines that fetch it from a registry."""

    reference: str
    """``REGISTRY/NAME@sha256:...``."""
    mounts: Sequence[tuple[str, bool]]
    """Paths of the shared file system that it sees where they are, and whether it may write there."""
    environment: Mapping[str, str]
    """No secrets: it stands in a file of the run."""
    gpus: int


class Engine(Protocol):
    """What starts workers."""

    def start(self, count: int) -> None:
        """Ask for ``count`` more workers."""

    def look(self) -> Sequence[str]:
        """Find out what became of the workers; return what is to be said of it."""

    @property
    def num_alive(self) -> int:
        """How many workers have been asked for and have not ended."""

    @property
    def last_words(self) -> str:
        """What the newest worker that ended otherwise than by itself said; "" where none did."""

    def withdraw(self) -> None:
        """Take back what was asked for and has not begun."""

    def leave(self) -> str:
        """Let go, however it came to an end; return how workers that go on without this process are found again, "" for none."""


def first_attempts(run: Run) -> int:
    """Return up to how many attempts a cell is tried now: what failed before is tried once more, what fails now is not."""
    return 1 + max((status.num_attempts for status in run.statuses().values() if status.outcome == "failed"), default=0)


def follow(job: Job, engine: Engine, board: Board) -> None:
    """Keep workers at the cells of a run until each has come to its end.

    A worker that ended before its cells did is replaced, also one that somebody else killed.

    Raises:
        IncompleteRun: cells failed, or workers end again and again and no cell does.
        HostError: the engine fails.
    """
    view = Watch(job.run, board)
    try:
        _follow(job, engine, view, board)
        engine.withdraw()
    finally:
        if note := engine.leave():
            board.line(note)
    failed = [cell.label for cell in job.run.suite.cells if view.cells[cell.id].word == "failed"]
    if failed:
        notes = [view.cells[cell.id].note for cell in job.run.suite.cells if view.cells[cell.id].word == "failed"]
        shown = "; ".join(f"{label}: {note}" for label, note in zip(failed[:3], notes, strict=False))
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise IncompleteRun(f"{job.run.folder}: {len(failed)} of {len(view.cells)} cells failed: {shown}{more}; the same command"
                            " tries them again")  # fmt: skip


def _follow(job: Job, engine: Engine, view: Watch, board: Board) -> None:
    fruitless, num_open = 0, -1
    while True:
        view.look()
        for line in engine.look():
            board.line(line)
        left = len(view.open_cells(job.attempts))
        if not left:
            return
        if left != num_open:
            fruitless, num_open = 0, left
        missing = min(job.count, left) - engine.num_alive
        num_free = len(view.free_cells(job.attempts))
        if missing > 0 and num_free > engine.num_alive - view.counts["running"]:
            if fruitless > MAX_FRUITLESS:
                last = f": {engine.last_words}" if engine.last_words else ""
                raise IncompleteRun(
                    f"{job.run.folder}: {left} cells are left, and workers end without any of them{last}"
                )
            fruitless += not engine.num_alive
            engine.start(min(missing, num_free))
        time.sleep(POLL_S)

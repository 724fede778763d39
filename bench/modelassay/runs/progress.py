"""What long work looks like: bars with rate and time left on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from modelassay.errors import UsageError
from modelassay.recording.log import segments
from modelassay.storage.files import open_regular

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS: Final = 10.0
"""Between two plain lines."""

Report = Callable[[str], None]
"""Receives one line for people."""


@dataclass(frozen=True)
class Position:
    """How far a piece of work is."""

    done: float
    total: float | None
    """None where it is not known."""
    unit: str

    def __str__(self) -> str:
        """Return it in words."""
        of = "" if self.total is None else f" of {self.total:g}"
        return f"{self.done:g}{of}{f' {self.unit}' if self.unit else ''}"


class Board(Protocol):
    """Shows the parts of one long piece of work."""

    def line(self, text: str) -> None:
        """Say ``text`` whatever the time."""

    def show(self, part: str, position: Position) -> None:
        """Say that ``part`` stands at ``position``."""

    def drop(self, part: str) -> None:
        """Forget ``part``: it has ended."""


class PlainBoard:
    """Lines for logs and pipes: at most one every ``LINE_SECONDS`` but for those that must be said."""

    def __init__(self, report: Report) -> None:
        """Say lines to ``report``."""
        self.line = report
        self._last = time.monotonic()
        self._parts: dict[str, Position] = {}
        self._began: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, part: str, position: Position) -> None:
        """Say where all parts stand, if it is time for it."""
        now = time.monotonic()
        self._began.setdefault(part, (now, position.done))
        self._parts[part] = position
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self.line("; ".join(f"{name}: {place}{self._pace(name, now)}" for name, place in self._parts.items()))

    def drop(self, part: str) -> None:
        """Forget ``part``."""
        self._parts.pop(part, None)
        self._began.pop(part, None)

    def _pace(self, part: str, now: float) -> str:
        began, first = self._began[part]
        position = self._parts[part]
        rate = (position.done - first) / (now - began) if now > began else 0.0
        if rate <= 0:
            return ""
        left = "" if position.total is None else f", {in_words((position.total - position.done) / rate)} left"
        return f" ({rate:.3g}/s{left})"


class BarBoard:
    """Bars of rich on a terminal."""

    def __init__(self) -> None:
        """Draw on stderr."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[place]}", markup=False),
                   TextColumn("{task.fields[rate]}"), TimeRemainingColumn())  # fmt: skip
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, part: str, position: Position) -> None:
        """Draw the bar of ``part``."""
        if part not in self._tasks:
            self._tasks[part] = self._progress.add_task(part, total=position.total, place="", rate="")
        task = self._tasks[part]
        speed = self._progress.tasks[self._progress.task_ids.index(task)].speed
        self._progress.update(
            task, completed=position.done, total=position.total, place=str(position),
            rate="" if not speed else f"{speed:.3g}/s",
        )  # fmt: skip

    def drop(self, part: str) -> None:
        """Remove the bar of ``part``."""
        if (task := self._tasks.pop(part, None)) is not None:
            self._progress.remove_task(task)


def board(report: Report) -> PlainBoard | BarBoard:
    """Return bars where stderr is a terminal, else plain lines to ``report``."""
    return BarBoard() if sys.stderr is not None and sys.stderr.isatty() else PlainBoard(report)


def in_words(seconds: float) -> str:
    """Return a duration as people say it.

    >>> in_words(7.4), in_words(75), in_words(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def position_of(cell_dir: Path) -> Position | None:
    """Return where a cell stands: its last line of progress, else its last timed unit, among the last 16 kB of its log."""
    number = max(segments(cell_dir), default=0)
    unit: Position | None = None
    for line in reversed(_last_lines(cell_dir / f"attempt-{number}.jsonl")):
        try:
            record = json.loads(line)
            if record["kind"] == "progress":
                return Position(record["done"], record["total"], record["unit"])
            if record["kind"] == "microbatch" and unit is None:
                unit = Position(record["index"] + 1, None, record["stage"])
        except (ValueError, KeyError, TypeError):  # the first of the lines, which may be the end of a longer one
            break
    return unit


def _last_lines(path: Path) -> list[str]:
    """Return the whole lines in the last 16 kB of a file that another process writes."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
            return file.read().rpartition(b"\n")[0].decode(errors="replace").splitlines()
    except (OSError, UsageError):
        return []

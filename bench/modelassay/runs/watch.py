"""One view of all who are at a run, from its directory alone: cells by state, who has what, what was lost and taken over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelassay.errors import UsageError
from modelassay.recording.status import read_status
from modelassay.runs.directory import Run
from modelassay.runs.folder import is_run
from modelassay.runs.leases import holder_of, holders
from modelassay.runs.progress import Board, Position, position_of
from modelassay.runs.workers import Sign, read_sign, read_signs, worker_path
from modelassay.suite import Cell

WORDS = ("done", "diverged", "failed", "running", "lost", "cut off", "not run")
"""How a cell may stand, in the order in which they are told; lost: its worker has ended and nobody has taken it over yet."""


@dataclass(frozen=True, kw_only=True)
class CellView:
    """How one cell stands, and with whom."""

    word: str
    note: str
    """Why it failed or diverged, or how far it is."""
    holders: tuple[str, ...] = ()
    """Who has it and, before that, who had it and ended; the newest last."""
    is_complete: bool = False
    num_attempts: int = 0

    @property
    def holder(self) -> str:
        """Who has or last had it; "" for nobody."""
        return self.holders[-1] if self.holders else ""


class Watch:
    """Looks at a run again and again; a cell that is complete is read no more."""

    def __init__(self, run: Run, board: Board) -> None:
        """Tell of ``run`` on ``board``."""
        self.run, self._board = run, board
        self.cells: dict[str, CellView] = {}
        """By id, as of the last look."""
        self.workers: Sequence[Sign] = ()
        """Who is there, as of the last look."""
        self._names: dict[str, str] = {}
        self._shown: set[str] = set()
        self._newest = 0.0
        self._newest_at = time.monotonic()

    @property
    def counts(self) -> Counter[str]:
        """How many cells stand how."""
        return Counter(view.word for view in self.cells.values())

    def open_cells(self, attempts: int = 1) -> list[Cell]:
        """Return the cells that have not come to their end: not complete, nor failed in ``attempts`` attempts."""
        views = [(cell, self.cells[cell.id]) for cell in self.run.suite.cells]
        return [
            cell
            for cell, view in views
            if not (view.is_complete or (view.word == "failed" and view.num_attempts >= attempts))
        ]

    def free_cells(self, attempts: int = 1) -> list[Cell]:
        """Return those of them that a worker could take now."""
        return [cell for cell in self.open_cells(attempts) if self.cells[cell.id].word != "running"]

    def look(self) -> None:
        """Look once: say what has changed, and how far the run is.

        Raises:
            UsageError: something else lies in the place of a log, a lease or a worker's file.
            RecordError: a log is damaged.
        """
        is_first = not self.cells
        before, signs = self.workers, {sign.worker: sign for sign in read_signs(self.run.folder)}
        self._names |= {sign.worker: str(sign) for sign in signs.values()}
        now = self._now(signs.values())
        self.workers = [sign for sign in signs.values() if sign.seems_there(now)]
        self._tell_workers(before, is_first=is_first)
        for cell in self.run.suite.cells:
            old = self.cells.get(cell.id)
            if old is None or not old.is_complete:
                self.cells[cell.id] = new = self._view(cell)
                self._tell_cell(cell, old, new)
        self._show()

    def summary(self) -> str:
        """Return how many cells stand how, and who is there."""
        counts = self.counts
        cells = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
        return f"{len(self.cells)} cells: {cells}; {len(self.workers)} workers"

    def _now(self, signs: Iterable[Sign]) -> float:
        """Return about what the file system's clock shows: its newest sign of life, and how long ago that was seen.

        Clocks of hosts may be far apart, and whoever only looks writes nothing that the file system would date.
        """
        newest = max((sign.touched for sign in signs), default=0.0)
        if newest > self._newest:
            self._newest, self._newest_at = newest, time.monotonic()
        return self._newest + time.monotonic() - self._newest_at

    def _view(self, cell: Cell) -> CellView:
        cell_dir = self.run.cell_dir(cell)
        there = {sign.worker for sign in self.workers}
        holder, leases = holder_of(cell_dir), list(holders(cell_dir).values())
        status = read_status(cell_dir)  # after the leases: what has ended in between has no more of them
        position = None
        if status.is_complete:
            word = status.outcome or "done"
        elif holder is not None and holder in there:
            word, position = "running", position_of(cell_dir)
        elif holder is not None:
            word = "lost"
        else:
            word = status.outcome or ("cut off" if status.num_attempts else "not run")
        reason = "" if status.status is None else str(status.status.get("reason", ""))
        return CellView(
            word=word,
            note=str(position or "") if word == "running" else reason,
            holders=() if holder is None else tuple(self._name(worker) for worker in leases),
            is_complete=status.is_complete,
            num_attempts=status.num_attempts,
        )

    def _name(self, worker: str) -> str:
        if (
            worker
            and worker not in self._names
            and (sign := read_sign(worker_path(self.run.folder, worker))) is not None
        ):
            self._names[worker] = str(sign)
        return self._names.get(worker, "a worker that has left")

    def _tell_workers(self, before: Sequence[Sign], *, is_first: bool) -> None:
        if is_first:
            return
        old, new = ({sign.worker: sign for sign in signs} for signs in (before, self.workers))
        for worker in new.keys() - old.keys():
            self._board.line(f"{new[worker]}: joined")
        for worker in old.keys() - new.keys():
            self._board.line(f"{old[worker]}: left")

    def _tell_cell(self, cell: Cell, old: CellView | None, new: CellView) -> None:
        if new.word == "lost" and (old is None or old.word != "lost"):
            self._board.line(f"{cell.label}: lost with {new.holder}, which ended before it was done")
        num_taken = len(new.holders) - 1
        if num_taken > 0 and num_taken > (0 if old is None else max(0, len(old.holders) - 1)):
            self._board.line(f"{cell.label}: taken over by {new.holder} from {new.holders[-2]}")
        if old is not None and new.word != old.word and new.word in {"failed", "diverged"}:
            self._board.line(f"{cell.label}: {new.word} ({new.note})" if new.note else f"{cell.label}: {new.word}")

    def _show(self) -> None:
        counts = self.counts
        ended = counts["done"] + counts["diverged"] + counts["failed"]
        others = ", ".join(f"{counts[word]} {word}" for word in WORDS[1:] if counts[word])
        unit = f"cells{f' ({others})' if others else ''}, {len(self.workers)} workers"
        self._board.show(self.run.suite.name, Position(ended, len(self.cells), unit))
        running = {}
        for cell in self.run.suite.cells:
            view = self.cells[cell.id]
            if view.word == "running":
                position = position_of(self.run.cell_dir(cell)) or Position(0, None, "")
                running[f"{cell.label} ({view.holder})"] = position
        for part in self._shown - running.keys():
            self._board.drop(part)
        for part, position in running.items():
            self._board.show(part, position)
        self._shown = set(running)


def watch(run: Run, board: Board, *, every_s: float) -> str:
    """Show ``run`` until every cell has come to an end and nobody is at it; return how it stands then.

    Raises:
        UsageError: the run was removed meanwhile, or something else lies in the place of one of its files.
        RecordError: a log is damaged.
    """
    view = Watch(run, board)
    while True:
        view.look()
        if not view.open_cells() and not view.workers:
            return view.summary()
        time.sleep(every_s)
        if not is_run(run.folder):
            raise UsageError(f"{run.folder}: the run directory was removed while it was watched")

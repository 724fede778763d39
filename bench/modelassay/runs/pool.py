"""Cells in processes of their own, forked from a warm server, as many side by side as fit; whatever they do, nothing of them stays behind."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from modelassay.errors import HostError
from modelassay.machine.code import SourceGraph
from modelassay.machine.redact import Printed
from modelassay.machine.turns import Turn
from modelassay.recording.status import read_status
from modelassay.runs.cell import cell_main
from modelassay.runs.directory import Run
from modelassay.runs.leases import Lease, claim, is_held
from modelassay.runs.progress import Board, Position, in_words, position_of
from modelassay.runs.workers import Worker
from modelassay.storage.durable import disk_fault
from modelassay.storage.files import RunLock
from modelassay.suite import Cell

EXIT_SECONDS = 5.0
"""How long a cell that has said its outcome may take to exit; CUDA takes about one."""

POLL_SECONDS = 0.5
"""Between two looks at how far the cells are."""

HELD_SECONDS = 1.0
"""Between two looks at a cell that another worker has."""

TELL_SECONDS = 30.0
"""Between two lines that say why nothing runs."""


_LEAKS_OF_THE_STOPPED = "ignore:resource_tracker:UserWarning"
"""A library's semaphores in a cell that was stopped are removed by Python's tracker, which would warn the user of them at the end."""

_ALWAYS_LOADED = ("modelassay.runs.cell", "modelassay.experiments")
"""Modules of the server, whatever the experiment: all that a cell's process would else import, each one anew."""


@dataclass(eq=False)
class Waiting:
    """A cell that is not complete."""

    cell: Cell
    num_attempts: int
    """When this worker began: what fails after that, in whoever's hands, is not tried again by it."""
    again_at: float = -math.inf
    """When it is looked at again, if another worker has it."""
    holder: str = ""
    """Who has it."""


@dataclass(eq=False)
class _Running:
    """A cell's process and the pipes to it."""

    cell: Cell
    lease: Lease
    process: BaseProcess
    receiver: Connection
    held: Connection
    """Closes when this process is gone, however it went."""
    reader: Connection
    printed: Printed
    """What the cell prints, on its way into its folder."""
    began: float = field(default_factory=time.monotonic)

    @property
    def cell_dir(self) -> Path:
        """Its folder."""
        return self.lease.cell_dir

    def finish(self) -> tuple[str, ...]:
        """Return the outcome, its reason and what else is to be said, once the process has answered or ended; leave nothing of it behind."""
        try:
            answer = self.receiver.recv() if self.receiver.poll() else None
            self.process.join(EXIT_SECONDS)
        except EOFError:  # it died without an answer
            answer = None
        finally:
            unwritten = self.end()
        if answer is None:
            return "failed", _death(self.process.exitcode, self.cell_dir)
        if answer[0] == "host":
            raise HostError(answer[1])
        if unwritten is not None:
            fault = disk_fault(unwritten, self.cell_dir)
            if isinstance(fault, HostError):
                raise fault
            why = (unwritten.strerror or str(unwritten)).lower()
            return "failed", f"{self.cell_dir}: was removed or closed to writing while the cell ran ({why})"
        return tuple(map(str, answer))

    def end(self) -> OSError | None:
        """Leave nothing of the cell behind: itself if it still runs, children and threads that it did not wait for.

        Return why what it printed could not be written, None if it was.
        """
        if self.process.pid is not None:
            self.process.kill()
            with suppress(ProcessLookupError):  # the usual case: the group is empty
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.join()
        self.held.close()
        unwritten = self.printed.finish()
        self.receiver.close()
        self.reader.close()
        return unwritten


class Pool:
    """Cells in processes of their own, as many at a time as fit, each taken by lease."""

    def __init__(
        self,
        run: Run,
        sources: SourceGraph,
        board: Board,
        lock: RunLock,
        worker: Worker,
        *,
        cores: int,
        jobs: int | None,
        waits: bool,
    ) -> None:
        self._run, self._sources, self._board, self._lock, self._worker = run, sources, board, lock, worker
        self._cores, self._jobs, self._waits = cores, jobs, waits
        self._context = multiprocessing.get_context("forkserver")
        if _LEAKS_OF_THE_STOPPED not in sys.warnoptions:  # the tracker, a process of its own, is started with these
            sys.warnoptions.append(_LEAKS_OF_THE_STOPPED)
        package = run.suite.experiment.package
        self._context.set_forkserver_preload([*_ALWAYS_LOADED, f"{package}.params", f"{package}.run"])
        self._running: list[_Running] = []
        self._waiting: list[Waiting] = []
        self._failures: list[str] = []
        self._num_own = 0
        self._turn = Turn()
        self._shown = self._told = -math.inf

    def run(self, waiting: Sequence[Waiting]) -> list[str]:
        """Run the cells and say which failed, whoever ran them, and why."""
        total, began = self._run.suite.name, time.monotonic()
        self._waiting = list(waiting)
        try:
            while self._waiting or self._running:
                self._lock.require_in_place()
                self._start_what_fits()
                for ended in self._wait():
                    self._finish(ended)
                self._show(total, len(waiting))
                if not (self._waits or self._running) and all(each.holder for each in self._waiting):
                    break
        finally:
            for left in self._running:
                left.end()
                left.lease.release()
            self._turn.release()
            self._board.drop(total)
        self._board.line(f"{self._num_own} cells run in {in_words(time.monotonic() - began)}")
        return self._failures

    def _start_what_fits(self) -> None:
        """Take and start cells in their order, passing over those that others have; cells that others have ended are done with."""
        now = time.monotonic()
        for each in list(self._waiting):
            if each.again_at > now:
                continue
            if not self._fits(each.cell):
                return
            if self._take(each):
                self._waiting.remove(each)
        if not self._running and not self._waiting:
            self._turn.release()

    def _take(self, each: Waiting) -> bool:
        """Start a cell, or find out that it needs no more work; return False where it has to wait."""
        cell_dir = self._run.cell_dir(each.cell)
        if self._is_settled(each, cell_dir):
            return True
        if self._is_timed(each.cell) and not self._turn.take():
            each.again_at = time.monotonic() + POLL_SECONDS
            self._tell(f"{each.cell.label}: waits, since another timed cell runs on this machine")
            return False
        lease = claim(cell_dir, self._worker)
        if not isinstance(lease, Lease):
            each.again_at = time.monotonic() + HELD_SECONDS
            each.holder = "another worker" if lease is None else str(lease)
            return False
        if self._is_settled(each, cell_dir):  # between the first look and the lease
            lease.release()
            return True
        if lease.previous is not None:
            self._board.line(f"{each.cell.label}: taken over from {lease.previous}, which ended before it was done")
        self._running.append(_start(self._context, self._run, each.cell, self._sources, lease))
        return True

    def _is_settled(self, each: Waiting, cell_dir: Path) -> bool:
        """Tell whether another worker has ended a cell since this one began; note that it failed."""
        status = read_status(cell_dir)
        if status.outcome == "failed" and status.status is not None and status.num_attempts > each.num_attempts:
            self._failures.append(f"{each.cell.label}: {status.status['reason']}")
            return True
        return status.is_complete

    def _finish(self, ended: _Running) -> None:
        self._running.remove(ended)
        try:
            outcome, reason, *notes = ended.finish()
        finally:
            was_held = ended.lease.is_held()
            ended.lease.release()
            if not self._running:
                self._turn.release()
        for note in notes:
            self._board.line(note)
        label = ended.cell.label
        self._board.drop(label)
        if not was_held:  # this worker was asleep; whoever has the cell now tells its outcome
            self._board.line(f"{label}: taken over by another worker; what was done here does not count")
            self._waiting.append(Waiting(cell=ended.cell, num_attempts=ended.lease.attempt))
            return
        self._num_own += 1
        if outcome != "done":
            self._board.line(f"{label}: {outcome} ({reason})" if reason else f"{label}: {outcome}")
        if outcome == "failed":
            self._failures.append(f"{label}: {reason}")

    def _is_timed(self, cell: Cell) -> bool:
        return self._run.suite.experiment.cores(cell.params) is None

    def _fits(self, cell: Cell) -> bool:
        cores_of: Callable[[Any], int | None] = self._run.suite.experiment.cores
        busy = [cores_of(running.cell.params) for running in self._running]
        own = cores_of(cell.params)
        if not busy:
            return True
        if own is None or None in busy:  # a timed cell runs alone
            return False
        if self._jobs is not None:
            return len(busy) < self._jobs
        return sum(count for count in busy if count is not None) + own <= self._cores

    def _wait(self) -> list[_Running]:
        """Return the cells that have answered or ended; wait a while for the first."""
        if not self._running:
            if self._waiting:
                time.sleep(min(POLL_SECONDS, max(0.0, min(each.again_at for each in self._waiting) - time.monotonic())))
            return []
        signs: dict[Any, _Running] = {}
        for running in self._running:  # not the pipe alone: a child may hold its other end
            signs[running.receiver] = signs[running.process.sentinel] = running
        ready = wait(list(signs), POLL_SECONDS)
        return list(dict.fromkeys(signs[sign] for sign in ready))

    def _show(self, total: str, num_cells: int) -> None:
        """Say how far the cells are, at most every ``POLL_SECONDS``: small ones end a hundred times as often."""
        if time.monotonic() - self._shown < POLL_SECONDS:
            return
        self._shown = time.monotonic()
        self._board.show(total, Position(num_cells - len(self._waiting) - len(self._running), num_cells, "cells"))
        for running in self._running:
            if (position := position_of(running.cell_dir)) is not None:
                self._board.show(running.cell.label, position)
        if self._waits and self._waiting and not self._running and all(each.holder for each in self._waiting):
            holders = ", ".join(dict.fromkeys(each.holder for each in self._waiting))
            self._tell(f"waiting for {len(self._waiting)} cells that others have: {holders}")

    def _tell(self, text: str) -> None:
        """Say why nothing runs, at most every ``TELL_SECONDS``."""
        if time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            self._board.line(text)


def _start(context: ForkServerContext, run: Run, cell: Cell, sources: SourceGraph, lease: Lease) -> _Running:
    cell_dir = lease.cell_dir
    receiver, sender = context.Pipe(duplex=False)
    lifeline, held = context.Pipe(duplex=False)
    reader, writer = context.Pipe(duplex=False)
    is_lease_held = partial(is_held, cell_dir, lease.attempt)
    arguments = (
        run.suite.experiment,
        cell.params,
        sources,
        cell_dir,
        lease.attempt,
        is_lease_held,
        sender,
        lifeline,
        (reader, writer),
    )
    process = context.Process(target=cell_main, args=arguments, name=f"cell {cell.id}")
    printed = Printed(reader, cell_dir)
    running = _Running(
        cell=cell, lease=lease, process=process, receiver=receiver, held=held, reader=reader, printed=printed
    )
    try:
        try:
            _start_process(process)
        except (EOFError, ConnectionError):
            # The fork server died while preloading; start without preload so that the cell reports the import error.
            time.sleep(0.1)  # until the kernel knows that it is gone
            context.set_forkserver_preload([*_ALWAYS_LOADED])
            _start_process(process)
    except BaseException:
        writer.close()
        running.end()
        lease.release()
        raise
    sender.close()
    lifeline.close()
    writer.close()
    return running


def _start_process(process: BaseProcess) -> None:
    """Start ``process`` without the module that Python was started with, which every child would import anew."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main


def _death(exitcode: int | None, cell_dir: Path) -> str:
    if exitcode is not None and exitcode < 0:
        hint = "; out of memory?" if -exitcode == signal.SIGKILL else ""
        name = next((known.name for known in signal.Signals if known == -exitcode), f"signal {-exitcode}")
        cause = f"its process was killed by {name}{hint}"
    else:
        cause = f"its process ended with code {exitcode}"
    return f"{cause}; see {cell_dir}/attempt-*.out"

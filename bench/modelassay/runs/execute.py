"""Runs what a run directory lacks, cells side by side where their times mean nothing; survives anything.

A run directory holds ``run.json`` (the resolved suite, command line, environment, code), ``cells/<id>/`` and a lock.
Each cell runs in a process of its own, forked from a warm server that has already imported the experiment.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from modelassay.errors import HostError, IncompleteRun
from modelassay.machine.code import SourceGraph
from modelassay.machine.place import moved, place
from modelassay.machine.redact import Printed
from modelassay.machine.signals import sigterm_interrupts
from modelassay.machine.sockets import place_sockets
from modelassay.recording.log import read_cell
from modelassay.recording.status import read_status
from modelassay.runs.cell import cell_main
from modelassay.runs.directory import Run
from modelassay.runs.needs import build_needs, missing_artifacts
from modelassay.runs.plan import refuse_changes
from modelassay.runs.progress import Board, Position, in_words, position_of
from modelassay.storage.durable import disk_fault
from modelassay.storage.files import RunLock, run_lock
from modelassay.storage.store import Store
from modelassay.suite import Cell

EXIT_SECONDS = 5.0
"""How long a cell that has said its outcome may take to exit; CUDA takes about one."""

POLL_SECONDS = 0.5
"""Between two looks at how far the cells are."""


_ALWAYS_LOADED = ("modelassay.runs.cell", "modelassay.experiments")
"""Modules of the server, whatever the experiment: all that a cell's process would else import, each one anew."""


def execute(run: Run, *, board: Board, jobs: int | None = None) -> None:
    """Run every cell that is not complete, after what they need.

    Args:
        run: the run directory.
        board: shows how far it is.
        jobs: how many cells whose times mean nothing run side by side; None: as many as fit the cores. Timed cells run alone.

    Raises:
        HostError: the run is locked, its folder is removed or renamed meanwhile, the disk fills up or fails.
        UsageError: the code or an input changed since the run began.
        IncompleteRun: cells failed; the others were run all the same.
    """
    place_sockets()
    with run_lock(run.folder) as lock, sigterm_interrupts():
        if lock.remark:
            board.line(lock.remark)
        cells = run.suite.cells
        waiting = [cell for cell in cells if _is_waiting(run.cell_dir(cell))]
        if not waiting:
            board.line(f"{run.folder}: all {len(cells)} cells are complete, nothing to run")
            return
        sources = SourceGraph()
        refuse_changes(run, sources)
        if note := moved(run.environment.get("container") or {}, place({})):
            board.line(note)
        # NumPy's products in cells are small, and two threads for each take seven times as long; torch keeps its own number.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        board.line(f"{run.suite.name}: {len(waiting)} of {len(cells)} cells to run")
        cores = num_cores()
        with lock.in_place():
            _build_needs(run, waiting, board, processes=jobs or cores)
            failures = _Pool(run, sources, board, lock, cores=cores, jobs=jobs).run(waiting)
        if failures:
            shown = "; ".join(failures[:3]) + (f"; and {len(failures) - 3} more" if len(failures) > 3 else "")
            raise IncompleteRun(f"{run.folder}: {len(failures)} of {len(cells)} cells failed: {shown}; "
                                f"`modelassay run {run.folder}` tries them again")  # fmt: skip


def _is_waiting(cell_dir: Path) -> bool:
    """Tell whether a cell is not complete; the log of one that will be resumed is read whole, so that damage ends in an error now."""
    standing = read_status(cell_dir)
    if not standing.is_complete and standing.num_attempts:
        read_cell(cell_dir)
    return not standing.is_complete


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build_needs(run: Run, cells: Sequence[Cell], board: Board, *, processes: int) -> None:
    """Build what ``cells`` need and the store lacks; ``needs.jsonl`` in the run says what was built, in which processor time."""
    store = Store()
    artifacts = missing_artifacts(run.needs(cells), store)
    if not artifacts:
        return
    board.line(f"building what the cells need first, {processes} at a time: {len(artifacts)} artifacts")
    began, num_built = time.monotonic(), 0
    board.show("needs", Position(0, round(sum(artifact.work for artifact in artifacts)), "s of work"))

    def progress(done: float, total: float, name: str) -> None:
        nonlocal num_built
        num_built += 1
        unit = f"s of work; {num_built} of {len(artifacts)}, last {name}"
        board.show("needs", Position(round(done), round(total), unit))

    seconds, failures = build_needs(artifacts, store=store, processes=processes, progress=progress, report=board.line)
    board.drop("needs")
    with (run.folder / "needs.jsonl").open("a", encoding="utf-8") as file:
        for artifact in artifacts:
            status = {"cpu_s": seconds.get(artifact.key), "failure": failures.get(artifact.key)}
            file.write(json.dumps({"name": artifact.name, "path": str(store.path(artifact.recipe)), **status}) + "\n")
            if status["failure"]:
                board.line(f"{artifact.name} could not be built: {status['failure']}")
    board.line(f"built {num_built} of {len(artifacts)} artifacts in {in_words(time.monotonic() - began)}")


@dataclass(eq=False)
class _Running:
    """A cell's process and the pipes to it."""

    cell: Cell
    cell_dir: Path
    process: BaseProcess
    receiver: Connection
    held: Connection
    """Closes when this process is gone, however it went."""
    reader: Connection
    printed: Printed
    """What the cell prints, on its way into its folder."""
    began: float = field(default_factory=time.monotonic)

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


class _Pool:
    """Cells in processes of their own, as many at a time as fit."""

    def __init__(
        self, run: Run, sources: SourceGraph, board: Board, lock: RunLock, *, cores: int, jobs: int | None
    ) -> None:
        self._run, self._sources, self._board, self._lock = run, sources, board, lock
        self._cores, self._jobs = cores, jobs
        self._context = multiprocessing.get_context("forkserver")
        package = run.suite.experiment.package
        self._context.set_forkserver_preload([*_ALWAYS_LOADED, f"{package}.params", f"{package}.run"])
        self._running: list[_Running] = []
        self._shown = -math.inf

    def run(self, cells: Sequence[Cell]) -> list[str]:
        """Run ``cells`` and say which failed, and why."""
        failures, queue, num_done = [], deque(cells), 0
        total = f"{self._run.suite.name}"
        began = time.monotonic()
        try:
            while queue or self._running:
                self._lock.require_in_place()
                while queue and self._fits(queue[0]):
                    self._running.append(_start(self._context, self._run, queue.popleft(), self._sources))
                for ended in self._wait():
                    self._running.remove(ended)
                    outcome, reason, *notes = ended.finish()
                    for note in notes:
                        self._board.line(note)
                    num_done += 1
                    self._board.drop(ended.cell.label)
                    if outcome != "done":
                        self._board.line(
                            f"{ended.cell.label}: {outcome} ({reason})" if reason else f"{ended.cell.label}: {outcome}"
                        )
                    if outcome == "failed":
                        failures.append(f"{ended.cell.label}: {reason}")
                self._show(total, num_done, len(cells))
        finally:
            for left in self._running:
                left.end()
            self._board.drop(total)
        self._board.line(f"{num_done} cells run in {in_words(time.monotonic() - began)}")
        return failures

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
        signs: dict[Any, _Running] = {}
        for running in self._running:  # not the pipe alone: a child may hold its other end
            signs[running.receiver] = signs[running.process.sentinel] = running
        ready = wait(list(signs), POLL_SECONDS)
        return list(dict.fromkeys(signs[sign] for sign in ready))

    def _show(self, total: str, num_done: int, num_cells: int) -> None:
        """Say how far the cells are, at most every ``POLL_SECONDS``: small ones end a hundred times as often."""
        if time.monotonic() - self._shown < POLL_SECONDS:
            return
        self._shown = time.monotonic()
        self._board.show(total, Position(num_done, num_cells, "cells"))
        for running in self._running:
            if (position := position_of(running.cell_dir)) is not None:
                self._board.show(running.cell.label, position)


def _start(context: ForkServerContext, run: Run, cell: Cell, sources: SourceGraph) -> _Running:
    cell_dir = run.cell_dir(cell)
    cell_dir.mkdir(parents=True, exist_ok=True)
    receiver, sender = context.Pipe(duplex=False)
    lifeline, held = context.Pipe(duplex=False)
    reader, writer = context.Pipe(duplex=False)
    arguments = (run.suite.experiment, cell.params, sources, cell_dir, sender, lifeline, (reader, writer))
    process = context.Process(target=cell_main, args=arguments, name=f"cell {cell.id}")
    printed = Printed(reader, cell_dir)
    running = _Running(
        cell=cell, cell_dir=cell_dir, process=process, receiver=receiver, held=held, reader=reader, printed=printed
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

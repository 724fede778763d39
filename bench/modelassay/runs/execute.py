"""Runs what a run directory lacks, cells side by side where their times mean nothing; survives anything.

A run directory holds ``run.json`` (the resolved suite, command line, environment, code), ``cells/<id>/`` and a file for each worker
that is at it. Workers, on any machines, take cells by lease (`runs.leases`); each cell runs in a process of its own, forked from a
warm server that has already imported the experiment.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Sequence

from modelassay.errors import IncompleteRun
from modelassay.machine.code import SourceGraph
from modelassay.machine.libraries import leave_cores_to_others
from modelassay.machine.place import moved, place
from modelassay.machine.signals import sigterm_interrupts
from modelassay.machine.sockets import place_sockets
from modelassay.recording.log import read_cell
from modelassay.recording.status import read_status
from modelassay.runs.directory import Run
from modelassay.runs.leases import holder_of
from modelassay.runs.needs import build_needs, missing_artifacts
from modelassay.runs.plan import refuse_changes
from modelassay.runs.pool import Pool, Waiting
from modelassay.runs.progress import Board, Position, in_words
from modelassay.runs.workers import SILENCE_S, Worker
from modelassay.storage.files import run_lock
from modelassay.storage.store import Store
from modelassay.suite import Cell


def execute(
    run: Run,
    *,
    board: Board,
    jobs: int | None = None,
    cells: Collection[str] | None = None,
    silence_s: float = SILENCE_S,
    waits: bool = True,
    attempts: int | None = None,
) -> None:
    """Run every cell that is not complete and that no other worker has, after what they need; join those who are at it.

    Comes to an end when every cell has: a cell whose worker ends before it is taken over.

    Args:
        run: the run directory.
        board: shows how far it is.
        jobs: how many cells whose times mean nothing run side by side; None: as many as fit the cores. Timed cells run alone.
        cells: ids of the only cells to run; None: all.
        silence_s: after how many seconds without a sign of life others take over what this worker has.
        waits: whether to wait for cells that others have; else this comes to an end when no cell is free.
        attempts: a cell that failed and was tried so often is left alone; None: what failed before is tried again.

    Raises:
        HostError: the folder is removed or renamed meanwhile, the disk fills up or fails.
        UsageError: the code or an input changed since the run began.
        IncompleteRun: cells failed; the others were run all the same.
    """
    place_sockets()
    with (
        run_lock(run.folder, exclusive=False) as lock,
        Worker(run.folder, silence_s=silence_s) as worker,
        sigterm_interrupts(),
    ):
        own = [cell for cell in run.suite.cells if cells is None or cell.id in cells]
        waiting = _waiting(run, own, attempts)
        if not waiting:
            board.line(f"{run.folder}: all {len(own)} cells have come to their end, nothing to run"
                       if attempts else f"{run.folder}: all {len(own)} cells are complete, nothing to run")  # fmt: skip
            return
        sources = SourceGraph()
        refuse_changes(run, sources)
        if note := moved(run.environment.get("container") or {}, place({})):
            board.line(note)
        leave_cores_to_others(os.environ)
        board.line(f"{run.suite.name}: {len(waiting)} of {len(own)} cells to run")
        cores = num_cores()
        with lock.in_place():
            if others := worker.others():
                board.line(f"{run.folder}: joining {len(others)} at work on it: {'; '.join(map(str, others[:4]))}")
            _build_needs(run, [each.cell for each in waiting], board, processes=jobs or cores)
            pool = Pool(run, sources, board, lock, worker, cores=cores, jobs=jobs, waits=waits)
            failures = pool.run(waiting)
        if failures:
            shown = "; ".join(failures[:3]) + (f"; and {len(failures) - 3} more" if len(failures) > 3 else "")
            raise IncompleteRun(f"{run.folder}: {len(failures)} of {len(own)} cells failed: {shown}; "
                                f"`modelassay run {run.folder}` tries them again")  # fmt: skip


def _waiting(run: Run, cells: Iterable[Cell], attempts: int | None) -> list[Waiting]:
    """Return the cells that are not complete, nor failed in ``attempts``; the log of one that will be resumed is read whole, so that damage ends in an error now."""
    waiting = []
    for cell in cells:
        cell_dir = run.cell_dir(cell)
        standing = read_status(cell_dir)
        is_left = attempts is not None and standing.outcome == "failed" and standing.num_attempts >= attempts
        if not (standing.is_complete or is_left):
            if standing.num_attempts and holder_of(cell_dir) is None:
                read_cell(cell_dir)
            waiting.append(Waiting(cell=cell, num_attempts=standing.num_attempts))
    return waiting


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

"""What happens inside one cell's own process."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import AssayError, Diverged, HostError
from modelassay.machine.code import SourceGraph
from modelassay.machine.place import place
from modelassay.machine.redact import masked, print_into
from modelassay.models.commits import keep_commits_in
from modelassay.recording.context import CellContext
from modelassay.recording.meter import Clocks
from modelassay.recording.random_state import seed_everything
from modelassay.runs.folder import HUB_COMMITS
from modelassay.storage.durable import disk_fault
from modelassay.storage.store import Store

if TYPE_CHECKING:  # a cell gets finished parameters: how a suite is read decides no result
    from pydantic import BaseModel

    from modelassay.experiments import Experiment

LEASE_SECONDS = 2.0
"""Between two looks at whether the cell was taken over."""

MAX_REASON = 500
"""Characters of an error's text that a status keeps."""


def cell_main(
    experiment: Experiment,
    params: BaseModel,
    sources: SourceGraph,
    cell_dir: Path,
    attempt: int,
    is_held: Callable[[], bool],
    answer: Connection,
    lifeline: Connection,
    printed: tuple[Connection, Connection],
) -> None:
    """Run one cell to its outcome and send it: ``(outcome, reason, *notes)``, or ``("host", message)`` for the machine's fault.

    It ends itself when ``is_held`` says that another worker has taken the cell over.

    What it gets is loaded in the server it is forked from: the package that reads suites takes longer than a small cell.
    ``sources`` tells which code a stage depends on; ``lifeline`` is the reading end of a pipe that the runner holds open.
    ``printed`` is the pipe of `redact.Printed`; with its reading end open here too, printing does not fail when the runner
    dies, which would look like a fault of the cell.
    """
    os.setpgrp()  # whatever it forks can be ended with it; Ctrl-C reaches the runner alone, which decides
    _die_with_runner(lifeline, is_held)
    if not is_held():  # the runner was asleep between its lease and this process
        return
    keep_commits_in(cell_dir.parents[1] / HUB_COMMITS)
    try:
        answer.send(_attempt(experiment, params, sources, cell_dir, attempt, printed[1]))
    except HostError as error:
        answer.send(("host", masked(str(error))))
    except AssayError as error:  # a damaged checkpoint
        answer.send(("failed", masked(str(error))))
    except OSError as error:
        shown = disk_fault(error, cell_dir)
        if not isinstance(shown, HostError):
            raise
        answer.send(("host", str(shown)))


def _attempt(
    experiment: Experiment, params: BaseModel, sources: SourceGraph, cell_dir: Path, attempt: int, printed: Connection
) -> tuple[str, ...]:
    print_into(printed, f"attempt-{attempt}.out")  # the runner's stdout is data
    faulthandler.enable(file=2)
    began = time.monotonic()
    spent: dict[str, Any] = {}
    run, trouble = _import(experiment)  # what a forked process already holds; before the meter looks for a GPU
    with _clocks(spent) as clocks:
        seed = int(getattr(params, "seed", 0))
        where = place(sources.libraries("modelassay.runs.cell", f"{experiment.package}.run"))
        context = CellContext(
            cell_dir,
            cell=cell_dir.name,
            seed=seed,
            store=Store(),
            sources=sources,
            clocks=clocks,
            where=where,
            attempt=attempt,
        )
        try:
            if trouble is not None:
                raise trouble
            seed_everything(context.seed("global") % 2**32)
            outcome, reason = _outcome(partial(run, params, context))
            context.meter.settle()
        except HostError:
            raise
        except BaseException as error:
            if isinstance(error, OSError) and isinstance(disk_fault(error, cell_dir), HostError):
                raise
            traceback.print_exc()
            outcome, reason = "failed", _reason(error)
    log = context.meter.log
    log.append("status", {"outcome": outcome, "reason": reason, "wall_s": round(time.monotonic() - began, 3), **spent})
    log.close()
    if not log.path.exists():
        return "failed", f"{log.path}: was removed while the cell ran, so what it measured is lost"
    return outcome, reason, *map(masked, context.notes)


def _import(experiment: Experiment) -> tuple[Callable[..., None], BaseException | None]:
    """Return the experiment's ``run``, or what was raised on the way there: an attempt is recorded all the same."""
    try:
        return experiment.run(), None
    except BaseException as error:
        return lambda *_: None, error


def _outcome(run: Callable[[], None]) -> tuple[str, str]:
    try:
        run()
    except Diverged as finding:
        return "diverged", masked(str(finding))
    return "done", ""


@contextmanager
def _clocks(spent: dict[str, Any]) -> Iterator[Clocks | None]:
    """Sample the GPU's clocks in here; say in ``spent`` what energy it took, or why that cannot be told."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        yield None
        return
    from modelassay.machine.gpu import ClockSampler, energy_between

    sampler = ClockSampler()
    sampler.start()
    begun = sampler.mark()
    try:
        yield sampler
    finally:
        energy = energy_between(begun, sampler.mark())
        spent.update(energy_j=energy.joules, energy_relative_error=energy.relative_error, energy_reason=energy.reason)
        sampler.stop()


def _reason(error: BaseException) -> str:
    """Return one line that fits into a table; the whole traceback lies in the cell's folder."""
    said = masked(" ".join(str(error).split()))  # before it is cut: half a token is not recognized
    said = said if len(said) <= MAX_REASON else f"{said[:MAX_REASON]}..."
    if isinstance(error, AssayError):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{place}"


def _die_with_runner(lifeline: Connection, is_held: Callable[[], bool]) -> None:
    """Kill this process and its children when ``lifeline`` closes, which the kernel does if the runner dies: no orphan writes on.

    The same when the lease is no longer held, also where the runner itself is stopped. (The parent is the fork server, and that lives as long as its children do.)
    """

    def watch() -> None:
        while not lifeline.poll(LEASE_SECONDS) and is_held():
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()

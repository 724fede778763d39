"""What happens inside one cell's own process."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from modelassay.errors import AssayError, Diverged, HostError
from modelassay.meter import Meter
from modelassay.record import Log, no_space, segments
from modelassay.state import State, Store, latest_checkpoint, locked, seed_everything
from modelassay.suite import Cell, Suite, suite_from_json


def cell_main(run_dir: str, cell_id: str, answer: Connection, lifeline: Connection) -> None:
    """Run one cell to its outcome and send it: ``(outcome, reason)``, or ``("host", message)`` for the machine's fault.

    ``lifeline`` is the reading end of a pipe that the runner holds open.
    """
    _die_with_runner(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides; a terminal sends Ctrl-C to the whole group
    suite = suite_from_json(json.loads((Path(run_dir) / "run.json").read_text())["suite"])
    cell = next(cell for cell in suite.cells if cell.id == cell_id)
    cell_dir = Path(run_dir) / "cells" / cell_id
    try:
        with locked(cell_dir / "lock"):  # a killed attempt's process may still be on its way out
            answer.send(_attempt(suite, cell, cell_dir))
    except HostError as error:
        answer.send(("host", str(error)))
    except OSError as error:
        shown = no_space(error, cell_dir)
        if not isinstance(shown, HostError):
            raise
        answer.send(("host", str(shown)))


def _attempt(suite: Suite, cell: Cell, cell_dir: Path) -> tuple[str, str]:
    attempt = 1 + max(segments(cell_dir), default=0)
    _redirect_output(cell_dir / f"attempt-{attempt}.out")
    began = time.monotonic()
    run = suite.experiment.run()  # imports what a forked process already holds; before the meter looks for a GPU
    saved = latest_checkpoint(cell_dir)
    log = Log(cell_dir / f"attempt-{attempt}.jsonl", cell=cell.id, attempt=attempt,
              resumed_at=saved.position if saved else 0)  # fmt: skip
    clocks = _clocks()
    mark = None if clocks is None else clocks.mark()
    meter = Meter(log, counters=saved.counters if saved else None, clocks=clocks)
    state = State(cell_dir, meter=meter, store=Store(), saved=saved)
    seed_everything(int(cell.id[:8], 16))
    outcome, reason = "done", ""
    try:
        run(cell.params, meter, state)
    except Diverged as finding:
        outcome, reason = "diverged", str(finding)
    except HostError:
        raise
    except BaseException as error:
        if isinstance(error, OSError) and isinstance(no_space(error, cell_dir), HostError):
            raise
        traceback.print_exc()
        outcome, reason = "failed", _reason(error)
    meter.settle()
    spent = {} if clocks is None else _energy(clocks, mark)
    log.append("status", {"outcome": outcome, "reason": reason, "wall_s": round(time.monotonic() - began, 3), **spent})
    log.close()
    if clocks is not None:
        clocks.stop()
    return outcome, reason


def _energy(clocks: Any, begun: Any) -> dict[str, Any]:
    """Return the GPU's energy over the attempt, or why it cannot be told (a window too short for the counter)."""
    from modelassay.gpu_clocks import energy_between

    energy = energy_between(begun, clocks.mark())
    return {"energy_j": energy.joules, "energy_relative_error": energy.relative_error, "energy_reason": energy.reason}


def _reason(error: BaseException) -> str:
    if isinstance(error, AssayError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _clocks() -> Any:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    from modelassay.gpu_clocks import ClockSampler

    sampler = ClockSampler()
    sampler.start()
    return sampler


def _redirect_output(path: Path) -> None:
    """Send whatever the experiment and its libraries print to the cell's folder: the runner's stdout is data."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    faulthandler.enable(file=2)


def _die_with_runner(lifeline: Connection) -> None:
    """Kill this process when ``lifeline`` closes, which the kernel does if the runner dies: no orphan writes on.

    (The parent is the fork server, and that lives as long as its children do.)
    """

    def watch() -> None:
        lifeline.poll(None)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()

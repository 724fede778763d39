"""Cells x run directory -> what runs, what is reused and why; runs it; survives anything.

A run directory holds ``run.json`` (the resolved suite, command line, environment, code), ``cells/<id>/`` and a lock.
Each cell runs in a process of its own, forked from a warm server that has already imported the experiment.
"""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from modelassay import environment
from modelassay.cell import cell_main
from modelassay.errors import HostError, IncompleteRun, UsageError, did_you_mean
from modelassay.progress import report_progress
from modelassay.record import CellLog, Tables, no_space, read_cell, read_tables
from modelassay.redact import Printed
from modelassay.run_folder import CELLS, MANIFEST, MANIFEST_DRAFT, Scaffold, is_run, require_free
from modelassay.state import latest_checkpoint
from modelassay.storage.files import open_lock, read_json, require_folders, require_regular_tree
from modelassay.suite import Cell, Suite, shipped_suites, suite_from_json

SCHEMA = 1
"""Version of run.json; no other is read."""

EXIT_SECONDS = 5.0
"""How long a cell that has said its outcome may take to exit; CUDA takes about one."""

PROGRESS_SECONDS = 15.0
"""Between two reports of where a long cell stands."""

MAX_HOLDER = 300
"""Bytes that a lock says of who holds it."""

_HOLDER = re.compile(rb"(\d+( in container [\w.-]+)?)?\s*")

Action = Literal["run", "resume", "retry", "reuse"]
Report = Callable[[str], None]
"""Receives one line of progress."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM: stop like Ctrl-C, with its own exit code."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a suite: its directory and what ``run.json`` says."""

    folder: Path
    suite: Suite
    environment: dict[str, Any]
    code: dict[str, str]
    """Source file -> hash, of everything that can change a metric."""

    def cell_dir(self, cell: Cell) -> Path:
        """Return the folder of ``cell``."""
        return self.folder / "cells" / cell.id

    def tables(self) -> Tables:
        """Return what the logs say now."""
        cells = {cell.id: (self.cell_dir(cell), cell.params.model_dump(mode="json")) for cell in self.suite.cells}
        return read_tables(cells, profile=self.suite.profile)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will happen to one cell, and why."""

    cell: Cell
    action: Action
    why: str
    estimate_s: float | None
    """Seconds the same cell took in the newest earlier run beside this one; None when it never ran there."""


def new_folder(suite: Suite, root: Path) -> Path:
    """Return the name of a run directory under ``root`` that does not exist yet."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return root / f"{suite.name}-{stamp}-{secrets.token_hex(3)}"


def create_run(suite: Suite, folder: Path) -> Run:
    """Make ``folder`` a run directory: write its ``run.json``. Where that fails, ``folder`` is left as it was.

    Raises:
        UsageError: it is one already, or holds anything else.
        HostError: the folder cannot be made or written.
    """
    require_free(folder)
    manifest = {
        "schema": SCHEMA,
        "suite": suite.to_json(),
        "environment": environment.capture(),
        "code": environment.code_fingerprint(suite.experiment.package),
    }
    scaffold = Scaffold()
    try:
        _write_manifest(manifest, folder, scaffold)
    except BaseException as error:
        scaffold.remove()
        if not isinstance(error, OSError):
            raise
        if isinstance(no_space(error, folder), HostError):
            raise HostError(f"{folder}: the disk is full; free some space and start the run anew") from error
        raise unwritable(error, folder) from error
    return open_run(folder)


def _write_manifest(manifest: dict[str, Any], folder: Path, scaffold: Scaffold) -> None:
    draft = folder / MANIFEST_DRAFT
    scaffold.folder(folder / CELLS)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    with scaffold.file(draft) as handle:
        handle.write(text.encode(errors="replace"))  # a path that is not UTF-8 holds lone surrogates
        handle.flush()
        os.fsync(handle.fileno())  # what is renamed before it is synced is an empty file after a power cut
    if is_run(folder):  # by another process, before this one had the draft to itself
        raise UsageError(f"{folder}: holds a run already; `modelassay run {folder}` goes on with it")
    draft.rename(folder / MANIFEST)


def unwritable(error: OSError, folder: Path) -> HostError | OSError:
    """Return a HostError in place of an ``error`` that says that ``folder`` cannot be made or written, others unchanged."""
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or error.errno == errno.EROFS:
        return HostError(f"{folder}: cannot be written; choose another place with --runs")
    return no_space(error, folder)


def open_run(folder: Path) -> Run:
    """Read a run directory, whoever filled it.

    Raises:
        UsageError: it is not one, it holds anything but folders and regular files, its run.json is damaged or of another
            version, or its experiment is gone.
    """
    path = folder / "run.json"
    try:
        require_regular_tree(folder)
        manifest = read_json(path)
        if manifest["schema"] != SCHEMA:
            raise UsageError(
                f"{path}: schema {manifest['schema']!r}, this modelassay reads {SCHEMA}; use the other version"
            )
        if not (isinstance(manifest["environment"]["libraries"], dict) and isinstance(manifest["code"], dict)):
            raise TypeError("environment.libraries and code must be mappings")
        run = Run(folder=folder, suite=suite_from_json(manifest["suite"], file=str(path)),
                  environment=manifest["environment"], code=manifest["code"])  # fmt: skip
        cell_dirs = [run.cell_dir(cell) for cell in run.suite.cells]
        require_folders([folder / "cells", folder / "figures", *cell_dirs])
        require_folders(cell_dir / name for cell_dir in cell_dirs for name in ("checkpoint", "artifacts"))
        return run
    except OSError as error:
        raise UsageError(f"{folder}: not a run directory ({error.strerror}); a run directory holds run.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: damaged ({type(error).__name__}: {error}); restore it, or start a new run"
        ) from error


def runs_under(root: Path) -> list[Path]:
    """Return the run directories under ``root``, oldest first, those that cannot be read too."""
    found = []
    for folder in root.glob("*"):
        with suppress(OSError):  # it holds no run.json
            found.append(((folder / "run.json").lstat().st_mtime_ns, folder))
    return [folder for _, folder in sorted(found)]


def find_run(reference: str, root: Path) -> Path | None:
    """Return the run directory meant by a path, a name under ``root`` or its short id; None when it names none.

    The name of a shipped suite means the suite wherever one stands; ``./NAME`` means a folder that is called like one.
    """
    if reference in shipped_suites():
        return None
    for folder in (Path(reference), root / reference):
        with suppress(FileNotFoundError, NotADirectoryError):
            (folder / "run.json").lstat()
            return folder
    matching = [folder for folder in runs_under(root) if folder.name.endswith(f"-{reference}")]
    return matching[0] if len(matching) == 1 else None


def require_run(reference: str, root: Path) -> Run:
    """Return the run meant by ``reference``.

    Raises:
        UsageError: there is none.
    """
    folder = find_run(reference, root)
    if folder is None:
        known = [path.name for path in runs_under(root)]
        raise UsageError(f"{reference}: no such run under {root}{did_you_mean(reference, known)}")
    return open_run(folder)


def plan(suite: Suite, *, root: Path, run: Run | None = None) -> list[Planned]:
    """Say for each cell of ``suite`` whether it runs, resumes, is retried or is reused in ``run`` (None: a new one).

    Raises:
        UsageError: cells would have to run, and the code changed since ``run`` began.
    """
    costs = _earlier_costs(suite, root)
    planned = []
    for cell in suite.cells:
        action, why = _action(run, cell)
        planned.append(Planned(cell=cell, action=action, why=why, estimate_s=costs.get(cell.id)))
    if run is not None and any(entry.action != "reuse" for entry in planned):
        refuse_changes(run)
    return planned


def _action(run: Run | None, cell: Cell) -> tuple[Action, str]:
    if run is None:
        return "run", "a new run"
    log = read_cell(run.cell_dir(cell))
    if log.is_complete:
        return "reuse", f"{log.outcome} in attempt {log.num_attempts}"
    if log.num_attempts == 0:
        return "run", "never started"
    saved = latest_checkpoint(run.cell_dir(cell))
    at = "from its start" if saved is None else f"from position {saved.position}"
    if log.outcome == "failed" and log.status is not None:
        return "retry", f"{at}; attempt {log.num_attempts} failed: {log.status['reason']}"
    return "resume", f"{at}; attempt {log.num_attempts} was cut off"


def _earlier_costs(suite: Suite, root: Path) -> dict[str, float]:
    wanted = {cell.id for cell in suite.cells}
    costs: dict[str, float] = {}
    for folder in runs_under(root):
        try:
            require_regular_tree(folder)
            names = wanted.intersection(path.name for path in folder.glob("cells/*"))
        except (UsageError, OSError):  # another run's damage is no matter of this one; its cost stays unknown
            continue
        for name in names:
            try:
                log = read_cell(folder / "cells" / name)
            except (UsageError, OSError):
                continue
            if log.is_complete and log.status is not None and log.num_attempts == 1:  # a later attempt did but a part
                costs[name] = float(log.status["wall_s"])
    return costs


def refuse_changes(run: Run) -> None:
    """Refuse to go on with code or libraries other than those the run began with.

    Raises:
        UsageError: with the differences.
    """
    now = environment.capture()
    found = environment.differences({"code": run.code, "libraries": run.environment["libraries"]},
                                    {"code": environment.code_fingerprint(run.suite.experiment.package),
                                     "libraries": now["libraries"]})  # fmt: skip
    if found:
        listed = "; ".join(found[:6]) + (f"; and {len(found) - 6} more" if len(found) > 6 else "")
        raise UsageError(
            f"{run.folder}: the code changed since this run began: {listed}; start a new run of {run.suite.name}"
        )


@contextmanager
def run_lock(folder: Path, name: str = "run.lock") -> Iterator[None]:
    """Hold the run directory for this process by the file ``name`` in it.

    Raises:
        HostError: another process holds it.
        UsageError: the file is not ours: a link, a pipe, or one with other content than a lock's.
    """
    try:
        opened = open_lock(folder / name)
    except OSError as error:
        raise unwritable(error, folder) from error
    with opened as handle:
        holder = handle.read(MAX_HOLDER + 1)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            process = holder.decode(errors="replace").strip() or "unknown"
            raise HostError(f"{folder}: process {process} is running it; wait for it or stop it first") from error
        if len(holder) > MAX_HOLDER or not _HOLDER.fullmatch(holder):
            raise UsageError(f"{folder / name}: not a lock, it holds something else than a process's number; remove it")
        where = f" in container {socket.gethostname()}" if "MODELASSAY_IMAGE" in os.environ else ""
        handle.truncate(0)
        handle.seek(0)
        handle.write(f"{os.getpid()}{where}".encode())
        yield


def execute(run: Run, *, report: Report) -> None:
    """Run every cell that is not complete, one after another.

    Raises:
        HostError: the run is locked, or the disk filled up.
        UsageError: the code changed since the run began.
        IncompleteRun: cells failed; the others were run all the same.
    """
    with run_lock(run.folder), sigterm_interrupts():
        waiting = [cell for cell in run.suite.cells if not read_cell(run.cell_dir(cell)).is_complete]
        if not waiting:
            report(f"{run.folder}: all {len(run.suite.cells)} cells are complete, nothing to run")
            return
        refuse_changes(run)
        # NumPy's products in cells are small, and two threads for each take seven times as long; torch keeps its own number.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["modelassay.cell", f"{run.suite.experiment.package}.run"])
        failures = []
        for number, cell in enumerate(waiting, start=1):
            place = f"[{number}/{len(waiting)}] {cell.label}"
            report(f"{place}: started")
            began = time.monotonic()
            outcome, reason = _run_in_process(
                context, run, cell, partial(report_progress, run.cell_dir(cell), place, report)
            )
            report(f"{place}: {outcome} in {time.monotonic() - began:.1f} s{f' ({reason})' if reason else ''}")
            if outcome == "failed":
                failures.append(f"{cell.label}: {reason}")
        if failures:
            shown = "; ".join(failures[:3]) + (f"; and {len(failures) - 3} more" if len(failures) > 3 else "")
            raise IncompleteRun(f"{run.folder}: {len(failures)} of {len(run.suite.cells)} cells failed: {shown}; "
                                f"`modelassay run {run.folder}` tries them again")  # fmt: skip


def _run_in_process(
    context: multiprocessing.context.ForkServerContext, run: Run, cell: Cell, progress: Callable[[], None]
) -> tuple[str, str]:
    cell_dir = run.cell_dir(cell)
    cell_dir.mkdir(parents=True, exist_ok=True)
    receiver, sender = context.Pipe(duplex=False)
    lifeline, held = context.Pipe(duplex=False)  # closes when this process is gone, however it went
    reader, writer = context.Pipe(duplex=False)
    printed = Printed(reader, cell_dir)
    siblings = [other.params for other in run.suite.cells]
    arguments = (run.suite.experiment, cell, siblings, cell_dir, sender, lifeline, (reader, writer))
    process = context.Process(target=cell_main, args=arguments, name=f"cell {cell.id}")
    try:
        _start(context, process)
        sender.close()
        lifeline.close()
        writer.close()
        while not wait(
            [receiver, process.sentinel], PROGRESS_SECONDS
        ):  # not the pipe alone: a child may hold its other end
            progress()
        answer = receiver.recv() if receiver.poll() else None
        process.join(EXIT_SECONDS)
    except EOFError:  # it died without an answer
        answer = None
    finally:
        _end(process)
        held.close()
        writer.close()  # also where the process did not start
        unwritten = printed.finish()
        reader.close()
    if answer is None:
        return "failed", _death(process.exitcode, cell_dir)
    if answer[0] == "host":
        raise HostError(answer[1])
    if unwritten is not None:
        raise no_space(unwritten, cell_dir)
    return str(answer[0]), str(answer[1])


def _start(context: multiprocessing.context.ForkServerContext, process: BaseProcess) -> None:
    try:
        process.start()
    except (EOFError, ConnectionError):  # importing the experiment ended the server: let the cell try, and say why not
        time.sleep(0.1)  # until the kernel knows that it is gone
        context.set_forkserver_preload(["modelassay.cell"])
        process.start()


def _end(process: BaseProcess) -> None:
    """Leave nothing of a cell behind: itself if it still runs, children and threads that it did not wait for."""
    if process.pid is not None:
        process.kill()
        with suppress(ProcessLookupError):  # the usual case: the group is empty
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _death(exitcode: int | None, cell_dir: Path) -> str:
    if exitcode is not None and exitcode < 0:
        hint = "; out of memory?" if -exitcode == signal.SIGKILL else ""
        name = next((known.name for known in signal.Signals if known == -exitcode), f"signal {-exitcode}")
        cause = f"its process was killed by {name}{hint}"
    else:
        cause = f"its process ended with code {exitcode}"
    return f"{cause}; see {cell_dir}/attempt-*.out"


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise `Interrupted` in here."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def counts(logs: Iterable[CellLog]) -> str:
    """Return how many cells ended how, as ``3 done, 1 failed``."""
    words = [log.outcome or ("cut off" if log.num_attempts else "not run") for log in logs]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))

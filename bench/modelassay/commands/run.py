"""``modelassay run SUITE|RUN``: a new run, an old one resumed, only its plan, or the same command in a container."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.commands.show import plan_view, run_view
from modelassay.commands.view import View
from modelassay.containers.mounts import loss_warning
from modelassay.errors import AssayError, UsageError, did_you_mean, printable
from modelassay.machine.sockets import place_sockets
from modelassay.runs.directory import Run, create_run, find_run, new_folder, open_run, require_run
from modelassay.runs.execute import execute
from modelassay.runs.folder import MANIFEST_DRAFT, discard, is_run
from modelassay.runs.plan import plan, prepare
from modelassay.runs.predicted import measured_rates
from modelassay.runs.progress import board
from modelassay.runs.workers import SILENCE_S
from modelassay.storage.locks import LockUnavailable
from modelassay.storage.temporary import require_temporary_folder
from modelassay.suite import Suite, load_suite

MAKING_S = 60.0
"""How long a worker waits for another that makes the run; the digests of large inputs take most of it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks to run."""

    target: str
    """A suite by name or file, or a run."""
    profile: str | None
    overrides: Sequence[str]
    into: Path | None
    """The directory of a new run; None: one named by suite and time."""
    root: Path
    """Where run directories are."""

    def open(self) -> tuple[Suite, Run | None]:
        """Return the suite and, where ``target`` is one, the run.

        Raises:
            UsageError: a run cannot be read, or is asked to change its parameters.
            SuiteError: there is no such suite, or it is invalid.
        """
        folder = find_run(self.target, self.root)
        if folder is None:
            return load_suite(self.target, profile=self.profile, overrides=self.overrides), None
        if self.profile or self.overrides or self.into:
            raise UsageError(f"{folder} is an existing run; --profile, -o and --into apply to new runs only")
        run = open_run(folder)
        return run.suite, run

    def folder(self, suite: Suite, run: Run | None) -> Path:
        """Return the directory of ``run``, or of the run to make."""
        return run.folder if run is not None else self.into or new_folder(suite, self.root)


def show_plan(request: Request, *, measured: str | None = None) -> View:
    """Show what would run, what is reused and why, and what it will cost by the microbatches of the run ``measured``.

    Raises:
        UsageError: there is no such run, it is of another suite, or none of its cells has ended.
    """
    suite, run = request.open()
    rates = None
    if measured is not None:
        source = require_run(measured, request.root)
        if source.suite.name != suite.name:
            raise UsageError(f"--measured {printable(measured)}: a run of {source.suite.name}, not of {suite.name}")
        rates = measured_rates(source)
        if not rates.num_units:
            raise UsageError(
                f"--measured {printable(measured)}: no cell of it has ended whose microbatches tell what {suite.name} costs; "
                "run a small part of it first, with -o"
            )
    planned = plan(suite, root=request.root, run=run, rates=rates)
    preparation = prepare(suite, [entry.cell for entry in planned if entry.action != "reuse"])
    return plan_view(planned, preparation, rates)


@dataclass(frozen=True, kw_only=True)
class Work:
    """How this process works on a run."""

    jobs: int | None = None
    """Cells side by side; None: as many as fit the cores."""
    cells: Sequence[str] = ()
    """Ids of the only cells to run; none: all."""
    silence_s: float = SILENCE_S
    """After how many seconds without a sign of life others take over what this process was at."""
    shown: bool = True
    """Whether the run is analysed and shown at the end."""
    waits: bool = True
    """Whether to wait for cells that others have."""
    attempts: int | None = None
    """A cell that failed and was tried so often is left alone; None: it is tried again."""

    def words(self) -> list[str]:
        """Return it as a command line has it.

        >>> Work(jobs=2, shown=False, silence_s=5).words()
        ['--jobs', '2', '--worker', '--silence', '5']
        """
        words = [] if self.jobs is None else ["--jobs", str(self.jobs)]
        words += [] if self.shown else ["--worker"]
        words += [word for cell in self.cells for word in ("--cells", cell)]
        words += [] if self.silence_s == SILENCE_S else ["--silence", f"{self.silence_s:g}"]
        words += [] if self.waits else ["--no-wait"]
        return words + ([] if self.attempts is None else ["--attempts", str(self.attempts)])


def run_here(request: Request, work: Work, *, report: Callable[[str], None]) -> View | None:
    """Execute the cells that are not complete, and show the run with its figures.

    Raises:
        IncompleteRun: a cell failed; the others are there.
        UsageError: a worker without a run, or cells that it does not have.
    """
    suite, run = request.open()
    is_new = run is None
    if run is None and not work.shown and request.into is None:
        raise UsageError(
            f"{request.target}: --worker takes a run that exists, or --into FOLDER, where whoever comes first makes it"
        )
    if work.shown and not (work.waits and work.attempts is None):
        raise UsageError("--no-wait and --attempts apply only with --worker")
    unknown = [cell for cell in work.cells if cell not in {each.id for each in suite.cells}]
    if unknown:
        raise UsageError(
            f"--cells {printable(unknown[0])}: no cell of {request.target}{did_you_mean(unknown[0], [each.id for each in suite.cells])}"
        )
    if work.cells and work.shown:
        raise UsageError("--cells applies only with --worker; choose cells of a new run by -o")
    require_temporary_folder()
    if run is None:
        place_sockets()  # before there is a run that cannot begin
        run = (
            create_run(suite, request.folder(suite, run))
            if work.shown
            else _make_or_join(suite, request.folder(suite, run))
        )
        mounted = request.into or request.root
        warning = loss_warning(run.folder, mounted=mounted, arguments=sys.argv[1:], environ=os.environ)
        if warning is not None:
            report(warning)
    try:
        with board(report) as shown:
            execute(run, board=shown, jobs=work.jobs, cells=set(work.cells) or None, silence_s=work.silence_s,
                    waits=work.waits, attempts=work.attempts)  # fmt: skip
    except LockUnavailable:
        if is_new:
            discard(run.folder)
        raise
    finally:
        if is_run(run.folder):
            report(f"run directory: {run.folder}")
    return run_view(run, figures=run.folder / "figures") if work.shown else None


def make(request: Request) -> Path:
    """Make a run directory in which nothing has begun, and return it.

    Raises:
        UsageError: ``request`` names a run, or a folder that holds anything.
    """
    suite, run = request.open()
    if run is not None:
        raise UsageError(f"{run.folder}: is a run already; --make makes one of a suite")
    return create_run(suite, request.folder(suite, None)).folder


def _make_or_join(suite: Suite, folder: Path) -> Run:
    """Make the run of ``suite`` in ``folder``, or open the one that another worker has just made there.

    Raises:
        UsageError: the folder holds another run, or anything else.
        HostError: it cannot be made.
    """
    deadline = time.monotonic() + MAKING_S
    while True:
        if is_run(folder):
            run = open_run(folder)
            if [cell.id for cell in run.suite.cells] != [cell.id for cell in suite.cells]:
                raise UsageError(
                    f"{folder}: holds a run of other cells than {suite.name} at profile {suite.profile} has now"
                )
            return run
        try:
            return create_run(suite, folder)
        except AssayError:
            is_being_made = is_run(folder) or (folder / MANIFEST_DRAFT).exists()
            if not is_being_made or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def run_in_container(
    request: Request,
    options: Mapping[str, Any],
    work: Work,
    *,
    verify: bool,
    as_json: bool,
    report: Callable[[str], None],
    write: Callable[[bytes], None],
) -> int:
    """Run the same command in the suite's image; return its exit code."""
    from modelassay.containers import launch

    suite, run = request.open()
    arguments = [word for text in request.overrides for word in ("-o", text)]
    if request.profile:
        arguments = ["--profile", request.profile, *arguments]
    arguments += work.words()
    if verify:
        arguments.append("--verify")
    if as_json:
        arguments.append("--json")
    job = launch.Job(
        suite=suite, target=request.target, run=run, folder=request.folder(suite, run), arguments=arguments
    )
    return launch.run_inside(job, launch.Options(**options), report=report, write=write)


def refuse_container_options(options: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning outside a container.

    Raises:
        UsageError: one is set.
    """
    if name := next((name for name, value in options.items() if value not in {None, False}), None):
        raise UsageError(f"--{name.replace('_', '-')} applies only with --in container")

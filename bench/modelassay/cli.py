"""The verbs. Each reads its arguments, calls one function of `modelassay.commands` and prints."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from modelassay import __version__
from modelassay.errors import AssayError, displayed

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


class _Number(click.FloatRange):
    """A number in a range; NaN is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


MAX_SECONDS = 366 * 86_400.0
"""A year: more than any run takes, and less than the system's clocks can count."""

_runs = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where run directories are.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _in_container(command: _Verb) -> _Verb:
    """Add the options that apply only with ``--in container``."""
    for option in (
        click.option("--memory", metavar="SIZE", help="With --in container: its limit, as 4g; default: the machine's."),
        click.option(
            "--timeout",
            metavar="SECONDS",
            type=_Number(min=0, min_open=True, max=MAX_SECONDS),
            help="With --in container: stop it after so long; results are kept.",
        ),
        click.option(
            "--allow-unlocked",
            is_flag=True,
            help="With --in container: take an image that docker/images.lock.json does not pin.",
        ),
        click.option(
            "--image",
            metavar="NAME|REFERENCE",
            help="With --in container: another image than the suite's, as cpu on a machine without a GPU.",
        ),
    ):
        command = option(command)
    return command


_ELSEWHERE = {
    "on": click.option("--on", metavar="ENGINE", help="Start workers on other machines: slurm, ray or ray:HOST:PORT."),
    "workers": click.option("--workers", type=click.IntRange(min=1, max=4096), metavar="N",
                            help="With --on or --as: the most at a time; default: one a cell, up to 16."),
    "slurm": click.option("--slurm", multiple=True, metavar="KEY=VALUE",
                          help="With --on slurm: an option of sbatch, as partition=gpu."),
    "no_shared": click.option("--no-shared", is_flag=True,
                              help="With --on ray: bring results back even where nodes see the run directory."),
    "job_file": click.option("--as", "job_file", type=click.Choice(["k8s", "hf-jobs", "skypilot"]),
                             help="With --plan: print the job file that starts the workers there."),
    "volume": click.option("--volume", metavar="NAME",
                           help="With --as: what holds the runs: a volume claim, ORG/BUCKET, a volume of SkyPilot."),
    "queue": click.option("--queue", metavar="NAME", help="With --as k8s: the queue of Kueue."),
}  # fmt: skip
"""Options of `run` that speak of other machines, by their names."""


def _elsewhere(command: _Verb) -> _Verb:
    """Add the options that speak of other machines."""
    for option in reversed(_ELSEWHERE.values()):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Settle arguments about language models: forensic experiments as declarative, timed suites."""


@cli.command()
@click.argument("target", metavar="SUITE|RUN")
@click.option("--profile", help="A named scale of the suite; default: embedded.")
@click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Set a parameter: a number, true, null, text as it stands, or '[...]', '{...}' and quoted text as in YAML.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would run, what is reused and why.")
@click.option("--measured", metavar="RUN", help="With --plan: predict what cells cost from the microbatches of RUN.")
@click.option("--into", type=click.Path(path_type=Path), help="Make this new or empty folder the run directory.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N",
              help="Cells side by side; default: as many as fit the cores. Timed cells always run alone.")  # fmt: skip
@click.option("--worker", is_flag=True, help="Only work on RUN beside others, on any machines: no results are shown.")
@click.option("--cells", multiple=True, metavar="ID", help="With --worker: the only cells to run; may be given again.")
@click.option("--no-wait", is_flag=True, help="With --worker: end when no cell is free, though others still have some.")
@click.option("--make", is_flag=True, help="Make the run directory and print it; nothing runs yet.")
@click.option("--attempts", type=click.IntRange(min=1), metavar="N",
              help="With --worker: leave a cell alone that failed and was tried so often; default: try it again.")  # fmt: skip
@click.option("--silence", type=_Number(min=2, max=MAX_SECONDS), default=60.0, show_default=True, metavar="SECONDS",
              help="After so long without a sign of life others take over what this process was at.")  # fmt: skip
@click.option(
    "--verify",
    is_flag=True,
    help="Compare all of every artifact that is used with what was made; weights above 16 GiB by samples else.",
)
@click.option(
    "--in", "place", type=click.Choice(["container"]), help="Run the same command in the suite's pinned image."
)
@_elsewhere
@_in_container
@_runs
@_json
def run(
    target: str,
    profile: str | None,
    overrides: tuple[str, ...],
    only_plan: bool,
    measured: str | None,
    into: Path | None,
    jobs: int | None,
    worker: bool,
    cells: tuple[str, ...],
    no_wait: bool,
    make: bool,
    attempts: int | None,
    silence: float,
    verify: bool,
    place: str | None,
    runs: Path,
    as_json: bool,
    **more: Any,
) -> None:
    """Execute SUITE (a shipped name or a file) in a new run directory, or go on with RUN, beside whoever is at it already."""
    from modelassay.commands import run as verb
    from modelassay.commands.view import emit
    from modelassay.storage.store import VERIFY

    request = verb.Request(target=target, profile=profile, overrides=overrides, into=into, root=runs)
    away, container = ({name: more[name] for name in more if (name in _ELSEWHERE) is there} for there in (True, False))
    work = verb.Work(jobs=jobs, cells=cells, silence_s=silence, shown=not worker, waits=not no_wait, attempts=attempts)
    if verify:
        os.environ[VERIFY] = "1"  # for the processes of cells, too
    if measured is not None and (not only_plan or any(away.values())):
        raise click.UsageError("--measured applies only with --plan, and without --as")
    if any(away.values()):
        _run_elsewhere(request, work, away, container, plan=only_plan, inside=place is not None, as_json=as_json)
        return
    if place is None:
        verb.refuse_container_options(container)
    if make:
        click.echo(displayed(str(verb.make(request))))
    elif only_plan:
        emit(verb.show_plan(request, measured=measured), as_json=as_json)
    elif place is None:
        view = verb.run_here(request, work, report=_progress)
        if view is not None:
            emit(view, as_json=as_json)
    else:
        code = verb.run_in_container(
            request, container, work, verify=verify, as_json=as_json, report=_progress, write=_pass_on
        )
        sys.exit(code)


def _run_elsewhere(request: Any, work: Any, away: dict[str, Any], container: dict[str, Any], *, plan: bool, inside: bool,
                   as_json: bool) -> None:  # fmt: skip
    """Start workers on other machines, or print the file that would."""
    from modelassay.commands import engines
    from modelassay.commands.run import refuse_container_options
    from modelassay.commands.view import emit

    on, kind = away["on"], away["job_file"]
    if kind is not None:
        if not plan or on is not None or away["slurm"] or away["no_shared"]:
            raise click.UsageError("--as applies only with --plan, and without --on: it starts nothing")
        named = {name: away[name] for name in ("workers", "volume", "queue")}
        click.echo(engines.job_file(kind, request, image=container["image"], **named), nl=False)
        return
    if on is None or away["volume"] or away["queue"]:
        raise click.UsageError(
            "--workers, --slurm and --no-shared apply only with --on, --volume and --queue with --as"
        )
    if plan or not work.shown or work.cells:
        raise click.UsageError("--on starts workers itself; leave --plan, --worker and --cells out")
    if not inside:
        refuse_container_options(container)
    where = engines.Place(
        on=on, workers=away["workers"], slurm=away["slurm"], shared=not away["no_shared"], in_container=inside
    )
    emit(engines.run_on(where, request, work, container, report=_progress), as_json=as_json)


@cli.command()
@click.argument("target", metavar="[SUITE|RUN]", required=False)
@click.option("--profile", help="Which profile of the suite to resolve.")
@click.option("--claims", is_flag=True, help="The ledger: every published number and what our runs say of it.")
@click.option("--schema", is_flag=True, help="The JSON Schema of suite files, for editors.")
@click.option(
    "--rows",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="The first training rows of SUITE, with the tokens that carry loss marked.",
)
@click.option(
    "-o", "overrides", multiple=True, metavar="A.B=C", help="With --rows: override any parameter; may be given again."
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Draw the figures of RUN into this folder; `run` draws them into the run's own.",
)
@click.option(
    "--watch", is_flag=True, help="Show RUN until it is complete: cells by state, who has what, what was lost."
)
@_runs
@_json
def show(
    target: str | None,
    profile: str | None,
    claims: bool,
    schema: bool,
    rows: int | None,
    overrides: tuple[str, ...],
    figures: Path | None,
    watch: bool,
    runs: Path,
    as_json: bool,
) -> None:
    """List suites and runs; resolve SUITE; show the status and results of RUN."""
    from modelassay.commands import show as views
    from modelassay.commands.ledger import ledger
    from modelassay.commands.view import View, emit
    from modelassay.runs.directory import find_run, open_run
    from modelassay.suite import load_suite, suite_schema

    if overrides and rows is None:
        raise click.UsageError("-o applies only with --rows; `run SUITE --plan -o ...` shows what a run would do")
    if watch:
        if target is None or as_json or figures is not None:
            raise click.UsageError(
                "--watch shows one RUN as it goes; for its data as JSON or figures leave --watch out"
            )
        click.echo(views.watch_run(target, runs, report=_progress))
    elif schema:
        emit(View(data=suite_schema()), as_json=True)
    elif claims:
        emit(ledger(runs), as_json=as_json)
    elif rows is not None:
        if target is None:
            raise click.UsageError("--rows shows the rows of one suite; name it")
        emit(views.rows_view(load_suite(target, profile=profile, overrides=overrides), rows), as_json=as_json)
    elif target is None:
        emit(views.everything(runs), as_json=as_json)
    elif (folder := find_run(target, runs)) is not None:
        emit(views.run_view(open_run(folder), figures=figures), as_json=as_json)
    else:
        emit(views.suite_view(load_suite(target, profile=profile)), as_json=as_json)


@cli.command()
@click.argument("target", metavar="RUN|COMPARISON")
@click.option("--markdown", "as_markdown", is_flag=True, help="Markdown instead of HTML; on stdout without --into.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write this file; default: report.html in the run, or the comparison's name with .html.",
)
@click.option("--to", type=click.Choice(["trackio", "wandb"]), help="Send the run's metrics there instead.")
@_runs
def report(target: str, as_markdown: bool, into: Path | None, to: str | None, runs: Path) -> None:
    """Write RUN, or a COMPARISON that `compare --json` printed, as one HTML file that needs no network."""
    if to is not None and (as_markdown or into is not None):
        raise click.UsageError("--to sends metrics and writes no file; leave out --markdown and --into")

    from modelassay.commands import report as verb

    if to is not None:
        click.echo(verb.send(target, runs=runs, to=to, report=_progress))
        return
    click.echo(displayed(verb.write_report(target, runs=runs, as_markdown=as_markdown, into=into)))


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--families",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Which models of the table are related: CSV (name,cluster) or JSON.",
)
@_json
def check(files: tuple[str, ...], families: Path | None, as_json: bool) -> None:
    """Validate suites (.yaml), records (.jsonl), tables of similarities (.csv, .json) or evidence (evidence.json); nothing is run."""
    from modelassay.commands.check import check_files
    from modelassay.commands.view import emit

    emit(check_files(files, families=families), as_json=as_json)


@cli.command()
@click.argument("models", nargs=-1, metavar="MODEL MODEL...")
@click.option("--suspect", metavar="MODEL", help="Compare this model with each candidate, and nothing else.")
@click.option(
    "--candidates",
    multiple=True,
    metavar="MODEL [MODEL...]",
    help="Models that the suspect may come from; p is corrected for their number.",
)
@click.option("--against", metavar="RUN", help="A run of suite fingerprinting whose strangers are the background.")
@click.option(
    "--figure", type=click.Path(path_type=Path), help="Draw curves and scores into this file (png, svg, pdf)."
)
@click.option(
    "--alpha",
    default=1e-6,
    show_default=True,
    type=_Number(0, 1, min_open=True, max_open=True),
    help="Level at which weights are called inherited.",
)
@click.option(
    "--attention-only",
    is_flag=True,
    help="Read, and of hf: models fetch, nothing but the attention matrices (and headers, configuration, vocabulary); other methods are left out.",
)
@click.option(
    "--sampled",
    is_flag=True,
    help="Test the numbering by rows of a few matrices, more only while it is open: of hf: models some thousandths are fetched.",
)
@click.option(
    "--index",
    metavar="RUN|FOLDER",
    help="Of one MODEL: the nearest models of an index, made by run fingerprinting --profile index, with p-values.",
)
@click.option(
    "--nearest",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="With --index: how many are shown.",
)
@click.option(
    "--keep-weights",
    is_flag=True,
    help="Keep what was fetched of hf: models' weights in the cache; else it is removed when the answer is there.",
)
@click.option(
    "--layout",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file that says where the parts of a model type lie, where nothing else tells (docs/methods/architectures.md).",
)
@click.option(
    "--behaviour",
    is_flag=True,
    help="Also run the models, and compare which tokens each finds least likely; fetches and loads them whole.",
)
@click.option(
    "--evidence",
    type=click.Path(path_type=Path),
    help="Write of each pair evidence.json and a page to print into a folder of this new one.",
)
@_runs
@_json
def fingerprint(
    models: tuple[str, ...],
    suspect: str | None,
    candidates: tuple[str, ...],
    against: str | None,
    figure: Path | None,
    alpha: float,
    attention_only: bool,
    sampled: bool,
    index: str | None,
    nearest: int,
    keep_weights: bool,
    layout: Path | None,
    behaviour: bool,
    evidence: Path | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Test for each pair of MODELs whether one derives from the other: folders, hf:ORG/NAME@COMMIT or zoo:NAME."""
    from modelassay.models.hub import require_models
    from modelassay.zoo.ancestry import is_zoo

    if (suspect is None) != (not candidates):
        raise click.UsageError("--suspect A and --candidates B C ... go together; without them name models: A B C")
    models = (*candidates, *models)
    named = (*models, *([] if suspect is None else [suspect]))
    if index is not None:
        if len(named) != 1 or suspect is not None:
            raise click.UsageError(f"--index scans for the kin of one MODEL, got {len(named)}")
        given = {"--sampled": sampled, "--attention-only": attention_only, "--behaviour": behaviour, "--evidence": evidence,
                 "--figure": figure, "--against": against, "--layout": layout}  # fmt: skip
        if unfit := [option for option, value in given.items() if value]:
            raise click.UsageError(
                f"--index compares sketches of a few rows, and {unfit[0]} does not apply to it; leave one of them out"
            )
    if len(named) > 1:  # one is refused as too few
        require_models(name for name in named if not is_zoo(name))  # in a second; what follows imports for several

    from modelassay.commands.view import emit

    if index is not None:
        from modelassay.commands.fingerprint.scan import scan

        emit(scan(models[0], index=index, runs=runs, alpha=alpha, nearest=nearest, report=_progress), as_json=as_json)
        return
    if sampled:
        others = {"--attention-only": attention_only, "--behaviour": behaviour, "--evidence": evidence, "--figure": figure,
                  "--against": against}  # fmt: skip
        if unfit := [option for option, value in others.items() if value]:
            raise click.UsageError(
                f"--sampled reads a few rows, and {unfit[0]} needs whole matrices; leave one of them out"
            )
        from modelassay.commands.fingerprint.sampled import sampled as sampled_verb

        emit(sampled_verb(models, suspect=suspect, alpha=alpha, report=_progress), as_json=as_json)
        return
    from modelassay.commands import fingerprint as verb
    from modelassay.runs.directory import require_run

    background = None if against is None else require_run(against, runs)
    view = verb.fingerprint(
        models,
        suspect=suspect,
        background=background,
        figure=figure,
        alpha=alpha,
        attention_only=attention_only,
        behaviour=behaviour,
        evidence=evidence,
        keep_weights=keep_weights,
        layout=layout,
        report=_progress,
    )
    emit(view, as_json=as_json)


@cli.command()
@click.argument("results", nargs=-1, metavar="BASE RESULT...")
@click.option(
    "--rerun",
    is_flag=True,
    help="Measure two environments in turns: a Python, a folder of packages, a wheel or image:REF.",
)
@click.option(
    "--workload",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --rerun: a Python file with the cases; default: our kernels.",
)
@click.option(
    "--case", "cases", multiple=True, metavar="NAME", help="With --rerun: only this case; may be given again."
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="With --rerun: cpu leaves out the time that other processes took, on a machine that is shared.",
)
@click.option(
    "--minutes",
    type=_Number(min=0, min_open=True),
    help="With --rerun: begin no pair later than so many minutes; what is undecided then stays so (exit code 5).",
)
@click.option(
    "--effect",
    metavar="SHARE",
    type=_Number(min=0, max=1, min_open=True),
    help="Smaller changes are called same; default: 0.01 with --rerun, else 0.05.",
)
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the ratios into this file (png, svg, pdf).")
@click.option(
    "--history",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Append the gate, or each RESULT, to the nights in this folder, and show their trend.",
)
@_runs
@_json
def compare(
    results: tuple[str, ...],
    rerun: bool,
    workload: Path | None,
    cases: tuple[str, ...],
    clock: Any,
    minutes: float | None,
    effect: float | None,
    figure: Path | None,
    history: Path | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Compare each RESULT, a run or a JSON file of benchmarks, with BASE; --rerun measures two environments anew.

    With --rerun the exit code is 0 where no case is slower, 4 where one is slower or its result is wrong, 5 where one is undecided.
    """
    from modelassay.commands import compare as verb
    from modelassay.commands.view import emit

    if not rerun and (workload is not None or cases or clock != "wall" or minutes is not None):
        raise click.UsageError("--workload, --case, --clock and --minutes apply only with --rerun")
    if rerun:
        view = verb.gate(
            results,
            workload=workload,
            cases=cases,
            relative=effect or 0.01,
            clock=clock,
            limit_s=None if minutes is None else 60 * minutes,
            figure=figure,
            report=_progress,
        )
        if history is not None:
            view = verb.joined(view, verb.remember(view.data, (), runs, history))
    elif history is not None:
        view = verb.remember(None, results, runs, history)
    else:
        view = verb.compare_stored(results, runs, relative=effect or 0.05, figure=figure)
    emit(view, as_json=as_json)


@cli.command()
@click.option("--container", is_flag=True, help="Require also what --in container needs.")
@click.option("--engine", metavar="ENGINE", help="Examine what --on ENGINE needs instead: slurm, ray or ray:HOST:PORT.")
@_json
@click.pass_context
def doctor(context: click.Context, container: bool, engine: str | None, as_json: bool) -> None:
    """Examine this machine; each fault with its fix."""
    from modelassay.commands.machine import doctor_view
    from modelassay.commands.view import emit
    from modelassay.containers.doctor import examine_containers
    from modelassay.machine.doctor import examine

    if engine is not None:
        from modelassay.commands.engines import examine_named

        checks = examine_named(engine)
    else:
        checks = [*examine(), *examine_containers(required=container)]
    emit(doctor_view(checks), as_json=as_json)
    context.exit(6 if any(check.required and check.status != "ok" for check in checks) else 0)


@cli.group(invoke_without_command=True)
@_json
@click.pass_context
def images(context: click.Context, as_json: bool) -> None:
    """List the images that runs can happen in, and what pins them; build, lock and verify them."""
    from modelassay.commands.machine import images_view
    from modelassay.commands.view import emit
    from modelassay.containers.images import locked_images

    if context.invoked_subcommand is None:
        emit(images_view(locked_images()), as_json=as_json)


@images.command("build")
@click.argument("name")
@click.option("--base", metavar="REF", help="Stand on this image instead of the pinned one; the result is not locked.")
@click.option("--wheels", type=click.Path(path_type=Path), help="Install from this folder; default: docker/wheels.")
@_json
def images_build(name: str, base: str | None, wheels: Path | None, as_json: bool) -> None:
    """Build image NAME from the checkout."""
    from modelassay.commands.machine import built_view
    from modelassay.commands.view import emit
    from modelassay.containers.build import build
    from modelassay.containers.images import locked_image

    image = build(locked_image(name), base=base, wheels=wheels, report=_progress)
    emit(built_view(image), as_json=as_json)


@images.command("lock")
def images_lock() -> None:
    """Bring docker/images.lock.json and the Dockerfile up to date with the requirement locks; asks no registry."""
    from modelassay.containers.images import refresh_lock, required_checkout

    for line in refresh_lock(required_checkout("lock")) or ["everything is up to date"]:
        click.echo(line)


@images.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME...]")
def images_verify(names: tuple[str, ...]) -> None:
    """Ask the registry whether each base's tag still names the pinned digest, and note when it did."""
    from modelassay.containers.build import verify_all

    for name, when in verify_all(names).items():
        click.echo(f"{name}: confirmed at {when}")


def _progress(line: str) -> None:
    try:
        click.echo(displayed(line), err=True)
    except OSError:  # nobody reads it any more, which must not end hours of work
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _pass_on(data: bytes) -> None:
    click.echo(data, nl=False)


def main() -> None:
    """Run the command line; every expected error is one line on stderr and its exit code."""
    from modelassay.errors import HostError
    from modelassay.machine import libraries, lifeline
    from modelassay.machine.redact import mask_streams
    from modelassay.models.connection import set_login_aside

    lifeline.exit_when_stdin_closes(os.environ)
    libraries.set_up(os.environ)
    set_login_aside(os.environ)
    mask_streams()
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.Abort as abort:  # click's form of KeyboardInterrupt, but of EOFError too
        from modelassay.machine.signals import Interrupted

        if isinstance(abort.__cause__, EOFError):
            raise
        _progress("interrupted; what was measured is kept, run the same directory again to go on")
        sys.exit(143 if isinstance(abort.__cause__, Interrupted) else 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except AssayError as error:
        _progress(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        from modelassay.storage.durable import disk_fault

        problem = disk_fault(error, Path(error.filename or "."))
        if error.filename is None and not isinstance(problem, HostError):
            raise
        _progress(f"error: {problem if isinstance(problem, HostError) else f'{error.filename}: {error.strerror}'}")
        sys.exit(HostError.exit_code)


if __name__ == "__main__":
    main()

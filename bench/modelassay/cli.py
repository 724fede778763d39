"""The verbs. Each reads its arguments, calls one function and prints; no logic lives here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from modelassay import __version__
from modelassay.errors import AssayError, UsageError, displayed

_Verb = TypeVar("_Verb", bound=Callable[..., Any])

_runs = click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                     help="Where run directories are.")  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _in_container(command: _Verb) -> _Verb:
    """Add the options that say something of the container."""
    for option in (
        click.option("--memory", metavar="SIZE", help="With --in container: its limit, as 4g; default: the machine's."),
        click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
                     help="With --in container: stop it after so long; results are kept."),
        click.option("--allow-unlocked", is_flag=True,
                     help="With --in container: take an image that docker/images.lock.json does not pin."),
        click.option("--image", metavar="NAME|REFERENCE",
                     help="With --in container: another image than the suite's, as cpu on a machine without a GPU."),
    ):  # fmt: skip
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
    "-o", "--override", "overrides", multiple=True, metavar="A.B=C", help="Set a parameter; the value is YAML."
)
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would run, what is reused and why.")
@click.option("--into", type=click.Path(path_type=Path), help="Make this new or empty folder the run directory.")
@click.option(
    "--in", "place", type=click.Choice(["container"]), help="Run the same command in the suite's pinned image."
)
@_in_container
@_runs
@_json
def run(
    target: str, profile: str | None, overrides: tuple[str, ...], only_plan: bool, into: Path | None, place: str | None,
    runs: Path, as_json: bool, **boxed: Any,
) -> None:  # fmt: skip
    """Execute SUITE (a shipped name or a file) in a new run directory, or go on with RUN."""
    from modelassay import runner, show
    from modelassay.image_mounts import loss_warning
    from modelassay.suite import load_suite

    folder = runner.find_run(target, runs)
    if folder is not None and (profile or overrides or into):
        raise UsageError(f"{folder}: a run keeps the parameters it began with; start a new run of its suite instead")
    if place is None and (named := [name for name, value in boxed.items() if value]):
        raise UsageError(f"--{named[0].replace('_', '-')} says something of a container; add --in container")
    found = None if folder is None else runner.open_run(folder)
    suite = found.suite if found else load_suite(target, profile=profile, overrides=overrides)
    if only_plan:
        show.emit(show.plan_view(runner.plan(suite, root=runs, run=found)), as_json=as_json)
        return
    if place is not None:
        from modelassay import container

        given = [*(("--profile", profile) if profile else ()), *(word for text in overrides for word in ("-o", text))]
        job = container.Job(suite=suite, target=target, run=found, folder=folder or into or runner.new_folder(suite, runs),
                            arguments=[*given, *(("--json",) if as_json else ())])  # fmt: skip
        sys.exit(container.run_inside(job, container.Options(**boxed), report=_progress, write=_pass_on))
    if found is None:
        found = runner.create_run(suite, into or runner.new_folder(suite, runs))
        warning = loss_warning(found.folder, mounted=into or runs, arguments=sys.argv[1:], environ=os.environ)
        if warning is not None:
            _progress(warning)
    try:
        runner.execute(found, report=_progress)
    finally:
        _progress(f"run directory: {found.folder}")
    show.emit(show.run_view(found, figures=found.folder / "figures"), as_json=as_json)


@cli.command()
@click.argument("target", metavar="[SUITE|RUN]", required=False)
@click.option("--profile", help="Which profile of the suite to resolve.")
@click.option("--claims", is_flag=True, help="The ledger: every published number and what our runs say of it.")
@click.option("--schema", is_flag=True, help="The JSON Schema of suite files, for editors.")
@click.option("--figures", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Draw the figures of RUN into this folder; `run` draws them into the run's own.")  # fmt: skip
@_runs
@_json
def show(target: str | None, profile: str | None, claims: bool, schema: bool, figures: Path | None, runs: Path,
         as_json: bool) -> None:  # fmt: skip
    """List suites and runs; resolve SUITE; show the status and results of RUN."""
    from modelassay import runner
    from modelassay import show as views
    from modelassay.suite import load_suite, suite_schema

    if schema:
        views.emit(views.View(data=suite_schema()), as_json=True)
    elif claims:
        views.emit(views.ledger(runs), as_json=as_json)
    elif target is None:
        views.emit(views.everything(runs), as_json=as_json)
    elif (folder := runner.find_run(target, runs)) is not None:
        views.emit(views.run_view(runner.open_run(folder), figures=figures), as_json=as_json)
    else:
        views.emit(views.suite_view(load_suite(target, profile=profile)), as_json=as_json)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--families", type=click.Path(path_type=Path), metavar="FILE",
              help="Which models of the table are related: CSV (name,cluster) or JSON.")  # fmt: skip
@_json
def check(files: tuple[str, ...], families: Path | None, as_json: bool) -> None:
    """Validate suites (.yaml), records (.jsonl) or published tables of similarities (.csv, .json) without running anything."""
    from modelassay import show
    from modelassay.check import check_files

    show.emit(check_files(files, families=families), as_json=as_json)


@cli.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL MODEL...")
@click.option("--against", metavar="RUN", help="A run of suite fingerprinting whose strangers are the background.")
@click.option(
    "--figure", type=click.Path(path_type=Path), help="Draw curves and scores into this file (png, svg, pdf)."
)
@click.option("--alpha", default=0.05, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Level at which a pair is called related.")  # fmt: skip
@click.option("--attention-only", is_flag=True,
              help="Read, and of hf: models fetch, nothing but the attention matrices; other methods are left out.")  # fmt: skip
@click.option("--behaviour", is_flag=True,
              help="Also run the models, and compare which tokens each finds least likely; fetches and loads them whole.")  # fmt: skip
@_runs
@_json
def fingerprint(models: tuple[str, ...], against: str | None, figure: Path | None, alpha: float, attention_only: bool,
                behaviour: bool, runs: Path, as_json: bool) -> None:  # fmt: skip
    """Say of each pair of MODELs whether one derives from the other: folders, hf:ORG/NAME@COMMIT or zoo:NAME."""
    from modelassay import runner, show
    from modelassay.fingerprint import fingerprint as judged

    background = None if against is None else runner.require_run(against, runs)
    found = judged(
        models, background=background, figure=figure, alpha=alpha, attention_only=attention_only, behaviour=behaviour,
        report=_progress,
    )  # fmt: skip
    show.emit(found, as_json=as_json)


@cli.command()
@click.option("--container", is_flag=True, help="Require also what --in container needs.")
@_json
@click.pass_context
def doctor(context: click.Context, container: bool, as_json: bool) -> None:
    """Examine this machine; each fault with its fix."""
    from modelassay import show
    from modelassay.doctor import examine
    from modelassay.doctor_container import examine_containers

    checks = [*examine(), *examine_containers(required=container)]
    show.emit(show.doctor_view(checks), as_json=as_json)
    context.exit(6 if any(check.required and check.status != "ok" for check in checks) else 0)


@cli.group(invoke_without_command=True)
@_json
@click.pass_context
def images(context: click.Context, as_json: bool) -> None:
    """List the images that runs can happen in, and what pins them; build, lock and verify them."""
    from modelassay import show
    from modelassay.images import locked_images

    if context.invoked_subcommand is None:
        show.emit(show.images_view(locked_images()), as_json=as_json)


@images.command("build")
@click.argument("name")
@click.option("--base", metavar="REF", help="Stand on this image instead of the pinned one; the result is not locked.")
@click.option("--wheels", type=click.Path(path_type=Path), help="Install from this folder; default: docker/wheels.")
@_json
def images_build(name: str, base: str | None, wheels: Path | None, as_json: bool) -> None:
    """Build image NAME from the checkout."""
    from modelassay import show
    from modelassay.image_build import build
    from modelassay.images import locked_image

    built = build(locked_image(name), base=base, wheels=wheels, report=_progress)
    show.emit(show.built_view(built), as_json=as_json)


@images.command("lock")
def images_lock() -> None:
    """Bring docker/images.lock.json and the Dockerfiles up to date with the requirement locks; asks no registry."""
    from modelassay.images import refresh_lock, required_checkout

    for line in refresh_lock(required_checkout("lock")) or ["everything is up to date"]:
        click.echo(line)


@images.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME...]")
def images_verify(names: tuple[str, ...]) -> None:
    """Ask the registry whether each base's tag still names the pinned digest, and note when it did."""
    from modelassay.image_build import verify_all

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
    from modelassay import lifeline
    from modelassay.errors import HostError
    from modelassay.models.hub import set_login_aside
    from modelassay.redact import mask_streams

    lifeline.hold(os.environ)
    set_login_aside(os.environ)
    mask_streams()
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.Abort as abort:  # click's form of KeyboardInterrupt, but of EOFError too
        from modelassay.runner import Interrupted

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
        from modelassay.record import no_space

        shown = no_space(error, Path(error.filename or "."))
        if error.filename is None and not isinstance(shown, HostError):
            raise
        _progress(f"error: {shown if isinstance(shown, HostError) else f'{error.filename}: {error.strerror}'}")
        sys.exit(HostError.exit_code)


if __name__ == "__main__":
    main()

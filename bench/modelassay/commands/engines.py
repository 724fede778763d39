"""``modelassay run SUITE|RUN --on ENGINE``: workers on other machines, followed to the end of the run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from modelassay.commands.run import Request, Work
from modelassay.commands.show import run_view
from modelassay.commands.view import View
from modelassay.containers.settings import SECRETS, binds, environment, is_offline, needs_hub
from modelassay.errors import UsageError, did_you_mean, printable
from modelassay.machine.doctor import Check
from modelassay.machine.lifeline import VARIABLE as LIFELINE
from modelassay.runs.directory import Run, create_run
from modelassay.runs.engines import Engine, Image, Job, first_attempts, follow
from modelassay.runs.progress import board
from modelassay.suite import Suite, shipped_suites

NAMES: Final = ("ray", "slurm")

MAX_WORKERS: Final = 16
"""Workers at a time where the command line does not say."""

_VOLUME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")

_DIGEST: Final = re.compile(r"[^/\s]+/[^@\s]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where workers are to run."""

    on: str
    """``slurm``, ``ray`` or ``ray:ADDRESS``."""
    workers: int | None
    """The most at a time; None: one a cell, up to ``MAX_WORKERS``."""
    slurm: Sequence[str]
    """Options of sbatch, ``KEY=VALUE``."""
    shared: bool
    """Whether the run directory may be seen by other machines; else results are brought back as bytes."""
    in_container: bool

    @property
    def name(self) -> str:
        """The engine."""
        return self.on.partition(":")[0]

    def check(self) -> None:
        """Refuse what cannot be understood.

        Raises:
            UsageError: an unknown engine, or an option of another one.
        """
        name, colon, address = self.on.partition(":")
        if name not in NAMES or (colon and (name != "ray" or not address)):
            raise UsageError(
                f"--on {printable(self.on)}: no engine{did_you_mean(name, NAMES) or '; slurm, ray or ray:HOST:PORT'}"
            )
        if self.slurm and name != "slurm":
            raise UsageError("--slurm applies only with --on slurm")
        if not self.shared and name != "ray":
            raise UsageError("--no-shared applies only with --on ray; Slurm's nodes must see the run directory")


def examine_named(on: str) -> list[Check]:
    """Return what ``doctor --engine`` finds.

    Raises:
        UsageError: no such engine.
    """
    from modelassay.runs.engines.doctor import examine_engine

    Place(on=on, workers=None, slurm=(), shared=True, in_container=False).check()
    return examine_engine(on)


def run_on(
    place: Place, request: Request, work: Work, container: Mapping[str, Any], *, report: Callable[[str], None]
) -> View:
    """Make or open the run, keep workers at its cells until all have come to their end, and show it.

    Raises:
        UsageError: an option that cannot be understood.
        HostError: the engine is not there, or refuses.
        IncompleteRun: a cell failed; the others are there.
    """
    place.check()
    suite, run = request.open()
    start = _engine(
        place, suite, container, work.silence_s
    )  # before there is a run: what cannot begin leaves nothing behind
    run = create_run(suite, request.folder(suite, None)) if run is None else run
    arguments = replace(work, jobs=work.jobs or 1).words()
    if place.in_container and place.name == "ray":
        arguments += ["--in", "container", *_words(container)]
    count = place.workers or min(len(suite.cells), MAX_WORKERS)
    job = Job(run=run, count=count, attempts=first_attempts(run), arguments=arguments)
    try:
        with board(report) as shown:
            follow(job, start(job), shown)
    finally:
        report(f"run directory: {run.folder}")
    return run_view(run, figures=run.folder / "figures")


def _engine(place: Place, suite: Suite, container: Mapping[str, Any], silence_s: float) -> Callable[[Job], Engine]:
    """Find the engine out, and whether it is there; return what begins with it."""
    if place.name == "slurm":
        from modelassay.runs.engines.slurm import Slurm
        from modelassay.runs.engines.slurm_commands import require_slurm
        from modelassay.runs.engines.slurm_script import Script, parse_options

        require_slurm()
        options = parse_options(place.slurm)
        if place.in_container:
            reference = image_by_digest(container, suite)
        return lambda job: Slurm(
            job, Script(job=job, options=options, image=image_of(reference, job.run) if place.in_container else None)
        )
    from modelassay.runs.engines.ray import Ray
    from modelassay.runs.engines.ray_cluster import connect

    ray = connect(place.on.partition(":")[2] or None, suite.resources)
    return lambda job: Ray(job, ray, shared=place.shared, silence_s=silence_s)


def _words(container: Mapping[str, Any]) -> list[str]:
    """Return the container's options as a command line has them."""
    words = []
    for name, value in container.items():
        if value not in {None, False}:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def image_by_digest(container: Mapping[str, Any], suite: Suite) -> str:
    """Return the image that machines are to fetch from a registry.

    Raises:
        UsageError: it is not named by registry and digest, or an option of local containers is given.
    """
    if name := next((name for name in ("memory", "timeout", "allow_unlocked") if container.get(name)), None):
        hint = {"memory": "; say it under resources: in the suite", "timeout": "; say time: under resources:"}.get(
            name, ""
        )
        raise UsageError(f"--{name.replace('_', '-')} applies to containers of this machine{hint}")
    reference = container.get("image") or ""
    if not _DIGEST.fullmatch(reference):
        raise UsageError(
            f"--image {printable(reference) or suite.image}: other machines fetch the image from a registry; push the one that"
            f" `modelassay images build {suite.image}` makes, and name it --image REGISTRY/NAME@sha256:..."
        )
    return str(reference)


def image_of(reference: str, run: Run) -> Image:
    """Return what workers of ``run`` see in the image ``reference``, as in a container of this machine.

    Raises:
        UsageError: a parameter names what no container is shown.
    """
    offline = is_offline(run.suite, os.environ)
    shown = binds(run.suite, run.folder, os.environ, offline=offline, suite_file=False)
    chosen = environment(os.environ, offline=offline)
    chosen = {name: value for name, value in chosen.items() if name not in {LIFELINE, *SECRETS}}
    named = {"MODELASSAY_IMAGE": reference, "MODELASSAY_IMAGE_DIGEST": reference.partition("@")[2]}
    mounts = [(str(bind.path), bind.writable) for bind in shown]
    return Image(reference=reference, mounts=mounts, environment=chosen | named, gpus=run.suite.resources.gpus)


def job_file(
    kind: str, request: Request, *, workers: int | None, volume: str | None, queue: str | None, image: str | None
) -> str:
    """Return the job file that starts workers of a run elsewhere; nothing is made or started.

    A run is taken for one that lies on the volume under its own name; of a shipped suite the first worker makes it there.

    Raises:
        UsageError: no image by digest, no volume, or a suite or run that the workers could not have.
    """
    from modelassay.runs.engines.job_files import RUNS, JobFile

    suite, run = request.open()
    reference = image_by_digest({"image": image}, suite)
    if volume is None or not _VOLUME.fullmatch(volume):
        raise UsageError("--as needs --volume NAME, what holds the runs: a persistent volume claim, ORG/BUCKET of the Hub,"
                         " or a volume of SkyPilot")  # fmt: skip
    if queue is not None and (kind != "k8s" or not _VOLUME.fullmatch(queue)):
        raise UsageError("--queue is the name of Kueue's queue and applies only with --as k8s")
    if kind == "hf-jobs" and (run is None or "/" not in volume):
        raise UsageError(f"--as hf-jobs takes a run, which goes into a bucket before jobs share its cells: `modelassay run {request.target}"
                         " --make`, and --volume ORG/BUCKET")  # fmt: skip
    if run is None and suite.name not in shipped_suites():
        raise UsageError(f"{request.target}: workers elsewhere have the shipped suites alone; make the run (--make) and copy it to the"
                         " volume, then name the run here")  # fmt: skip
    folder = (run.folder if run is not None else request.folder(suite, None)).name
    own = (
        []
        if run is not None
        else ["--profile", suite.profile, *(word for text in suite.overrides for word in ("-o", text))]
    )
    place = [f"{RUNS}/{folder}"] if run is not None else [suite.name, *own, "--into", f"{RUNS}/{folder}"]
    waits = [] if kind == "hf-jobs" else ["--no-wait", "--attempts", str(1 if run is None else first_attempts(run))]
    cells = [cell.id for cell in suite.cells if run is None or not run.statuses()[cell.id].is_complete]
    return JobFile(
        name=folder, suite=suite.name, words=["run", *place, "--worker", *waits, "--jobs", "1"], cells=cells,
        count=max(1, min(workers or MAX_WORKERS, len(cells))), image=reference, volume=volume, queue=queue,
        resources=suite.resources, needs_hub=needs_hub(suite),
    ).text(kind)  # fmt: skip

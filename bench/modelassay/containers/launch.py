"""The same command, once, inside an image: what it needs, and what to say when it went wrong.

The host makes the run directory, so that it belongs to the caller; the run inside writes everything else. The client
holds the container's standard input as a lifeline, the engine removes the container when it ends, and the client is known to be
there (`containers.presence`) as long as it lives. So whoever dies first, nothing is left behind and the run can go on.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from modelassay.containers.engine import Engine, LocalImage, connect, find_image, require_locked
from modelassay.containers.presence import Presence, attend
from modelassay.containers.session import ContainerExit, TimedOut, follow, remove_left, start, stop
from modelassay.containers.settings import Bind, Settings, binds, environment, is_offline, shm_bytes
from modelassay.errors import AssayError, HostError, UsageError, printable
from modelassay.machine.signals import sigterm_interrupts
from modelassay.runs.directory import Run
from modelassay.runs.folder import CELLS, CLIENT_LOCK, MANIFEST_DRAFT, Scaffold, is_run, require_free
from modelassay.runs.progress import Report
from modelassay.storage.files import unwritable
from modelassay.suite import Suite

SMALLEST_BYTES: Final = 6 << 20
"""Docker takes no smaller limit."""

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([bkmgt])(?:i?b)?)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says of the container."""

    image: str | None = None
    """A name in docker/images.lock.json, a reference or an id; None: the run's own, or the suite's."""
    allow_unlocked: bool = False
    """Whether an image may be another than the lock pins."""
    timeout: float | None = None
    """Seconds after which it is stopped."""
    memory: str | None = None
    """Its limit with a unit, as 4g; None: the machine's."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to run inside."""

    suite: Suite
    target: str
    """SUITE or RUN as the user wrote it."""
    run: Run | None
    """The run to go on with; None: a new one."""
    folder: Path
    """Its directory, or the one to make."""
    arguments: Sequence[str]
    """The rest of the command line."""

    @property
    def command(self) -> list[str]:
        """The command line inside."""
        place = [str(self.folder)] if self.run else [self.target, "--into", str(self.folder)]
        return ["run", *place, *self.arguments]

    @property
    def needs_file(self) -> bool:
        """Whether the suite is a file of the user's; the image has the shipped ones."""
        return self.run is None and (self.target.endswith((".yaml", ".yml")) or "/" in self.target)


def run_inside(job: Job, options: Options, *, report: Report, write: Callable[[bytes], None]) -> int:
    """Run ``job`` in a container and return the exit code of the command inside; what it prints is passed on.

    Args:
        job: the command.
        options: of the container.
        report: receives each line of progress.
        write: receives what goes to stdout.

    Raises:
        UsageError: an option that cannot be understood, or a new run in a folder that holds anything.
        HostError: no engine, no image or not the one that is pinned, a folder that cannot be written, no GPU for
            containers, time or memory over, or the container was killed.
    """
    if job.run is None:
        require_free(job.folder)
    if options.memory is not None:
        size_bytes(options.memory)  # before anything is asked of an engine
    engine = connect()
    memory_bytes = memory_limit(options.memory, engine)
    image = choose_image(engine, job, options)
    owner = results_owner(job.folder)
    offline = is_offline(job.suite, os.environ)
    shown = binds(job.suite, job.folder, os.environ, offline=offline, suite_file=job.needs_file)
    settings = Settings(
        folder=job.folder.absolute(),
        binds=shown,
        environment=environment(os.environ, offline=offline) | image_variables(image),
        user=user_inside(engine, owner),
        network="none" if offline else "bridge",
        memory_bytes=memory_bytes,
        shm_bytes=shm_bytes(memory_bytes, engine.memory_bytes),
        own_user_ids=engine.remaps_users,
        client=secrets.token_hex(6),
    )
    scaffold = Scaffold()
    with sigterm_interrupts():
        try:
            prepare(shown, owner, scaffold)
            report(
                f"{job.folder}: inside {image.reference} ({image.digest}) on {engine.name}, network {settings.network}"
            )
            with _attend(job, owner, scaffold) as presence:
                if presence.is_alone:
                    remove_left(engine, settings)
                presence.let_others_in()
                return _run(engine, image, settings, job, options, report=report, write=write)
        finally:
            if is_run(job.folder):
                report(f"run directory: {job.folder}")
            else:
                scaffold.remove()


@contextmanager
def _attend(job: Job, owner: tuple[int, int], scaffold: Scaffold) -> Iterator[Presence]:
    """Be a client at the run directory; at the end, what belongs to a run that did not begin is removed.

    Raises:
        UsageError: the folder of a new run was filled by somebody else.
        HostError: another client begins a run there.
    """
    lock = job.folder / CLIENT_LOCK
    existed = os.path.lexists(lock)
    with attend(job.folder) as presence:
        if not lock.exists():  # its last holder removed it between our opening and our locking it
            raise HostError(f"{job.folder}: another client removed it at the same time; run the same command again")
        if job.run is None:
            require_free(job.folder)
            scaffold.note(*(() if existed else (lock,)), job.folder / CELLS, job.folder / MANIFEST_DRAFT)
        _chown(lock, owner)
        try:
            yield presence
        finally:
            if not is_run(job.folder):
                scaffold.remove()


def image_variables(image: LocalImage) -> dict[str, str]:
    """Return the environment variables that tell the run which image it is in, and that it records."""
    variables = {"MODELASSAY_IMAGE": image.reference, "MODELASSAY_IMAGE_DIGEST": image.digest}
    return variables | ({"MODELASSAY_IMAGE_UNLOCKED": image.unlocked} if image.unlocked else {})


def memory_limit(text: str | None, engine: Engine) -> int | None:
    """Return the bytes that ``--memory`` means.

    Raises:
        UsageError: not a size, or one that no engine takes.
        HostError: the engine cannot limit memory.
    """
    if text is None:
        return None
    limit = size_bytes(text)
    if not engine.can_limit_memory:
        raise HostError(f"{engine.name} cannot limit memory (no cgroup controller for it); leave --memory out")
    return limit


def size_bytes(text: str) -> int:
    """Return the bytes that a size with a unit means; without one it counts bytes.

    Raises:
        UsageError: it is no size, or less than an engine takes: to it 0 would mean no limit.

    >>> size_bytes("4g"), size_bytes("0.5 GB"), size_bytes("512m")
    (4294967296, 536870912, 536870912)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--memory {printable(text)}: not a size; write it with a unit, as 512m or 4g")
    limit = int(Decimal(match[1]) * (1 << 10 * "bkmgt".index((match[2] or "b").lower())))
    if limit < SMALLEST_BYTES:
        raise UsageError(
            f"--memory {printable(text)}: the smallest limit is {SMALLEST_BYTES >> 20}m; for no limit leave --memory out"
        )
    if limit >= 1 << 63:
        raise UsageError(f"--memory {printable(text)}: more than any machine has; for no limit leave --memory out")
    return limit


def choose_image(engine: Engine, job: Job, options: Options) -> LocalImage:
    """Return the image to use: the one asked for, the one the run began in, or the suite's.

    Raises:
        UsageError: a name that the lock does not have.
        HostError: the engine does not have it, it is not the one the run began in, or it is not locked.
    """
    begun: Any = (job.run.environment.get("container") if job.run else None) or {}
    digest = begun.get("image_digest")
    image = find_image(engine, options.image or begun.get("image") or job.suite.image)
    if digest is not None and digest not in {image.id, *image.repo_digests}:
        raise HostError(
            f"{job.folder}: this run began in image {digest}, and {image.reference} is now {image.digest};"
            f" go on with --image {digest}, or start a new run of {job.suite.name}"
        )
    # What the run began in was accepted then and is recorded: going on asks for nothing new.
    require_locked(image, allow_unlocked=options.allow_unlocked or bool(begun.get("unlocked")))
    return image


def results_owner(folder: Path) -> tuple[int, int]:
    """Return the user and group that results belong to: the caller's; for root, those of ``folder``'s owner.

    Where ``folder`` does not exist yet, the nearest one above it counts.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    above = folder.absolute()
    status = next(path for path in (above, *above.parents) if path.exists()).stat()
    return status.st_uid, status.st_gid


def user_inside(engine: Engine, owner: tuple[int, int]) -> str:
    """Return who the container runs as, so that what it writes is ``owner``'s: in a rootless engine its root is the caller."""
    return "0:0" if engine.rootless else f"{owner[0]}:{owner[1]}"


def prepare(shown: Sequence[Bind], owner: tuple[int, int], scaffold: Scaffold) -> None:
    """Make the writable folders, so that the engine does not make them as root, and write to each once as ``owner``.

    Args:
        shown: what the container sees, the run directory first.
        owner: user and group that the folders are made for.
        scaffold: notes those that are made.

    Raises:
        HostError: one cannot be made or written.
    """
    for bind in shown:
        if not bind.writable:
            continue
        try:
            for folder in scaffold.folder(bind.source):
                _chown(folder, owner)
            trouble = _why_unwritable(bind.source, owner)
        except OSError as error:
            if not isinstance(unwritable(error, bind.path), HostError):
                raise
            trouble = (error.strerror or str(error)).lower()
        if trouble:
            chosen_by = "--runs" if bind == shown[0] else "MODELASSAY_CACHE or HF_HOME"
            raise HostError(
                f"{bind.path}: cannot be written by user {owner[0]}:{owner[1]}, as whom the container runs: {trouble};"
                f" choose another folder with {chosen_by}, or: chown -R {owner[0]}:{owner[1]} {bind.source}"
            )


def _chown(path: Path, owner: tuple[int, int]) -> None:
    if os.geteuid() == 0:
        os.chown(path, *owner, follow_symlinks=False)


def _why_unwritable(folder: Path, owner: tuple[int, int]) -> str:
    """Return why ``owner`` cannot make a file in ``folder``, "" if they can. Asked by doing: permission bits say little."""
    if os.geteuid() == owner[0]:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    # Into the folder first and another user then, as the container enters it: what lies above it does not matter.
    script = 'probe=.writable-$$; : > "$probe" && rm -f "$probe"'
    done = subprocess.run(["/bin/sh", "-c", script], cwd=folder, user=owner[0], group=owner[1], extra_groups=[0],
                          capture_output=True, text=True, check=False)  # fmt: skip
    return "" if done.returncode == 0 else done.stderr.strip().rpartition(": ")[2].lower() or "refused"


def _run(engine: Engine, image: LocalImage, settings: Settings, job: Job, options: Options, *, report: Report,
         write: Callable[[bytes], None]) -> int:  # fmt: skip
    try:
        attached = start(engine, image, settings, job.command, report)
        try:
            ending = follow(attached, timeout_s=options.timeout, report=report, write=write)
        finally:
            attached.close()
    except TimedOut:
        stop(engine, settings)
        raise HostError(f"{job.folder}: timed out after {options.timeout:g} s; {_how_to_resume(job)}") from None
    except BaseException:
        stop(engine, settings)
        raise
    return judge(ending, settings, image, again=_how_to_resume(job), report=report)


def _how_to_resume(job: Job) -> str:
    return f"what was measured is kept, go on with: modelassay run {job.folder} --in container"


def judge(ending: ContainerExit, settings: Settings, image: LocalImage, *, again: str, report: Report) -> int:
    """Return the exit code of the command inside.

    Args:
        ending: what became of the container.
        settings: what it was told.
        image: what it was made of.
        again: how the run goes on.
        report: receives a line where the command ended by itself after running out of memory.

    Raises:
        HostError: the container did not end by itself, or never began.
        AssayError: a code that modelassay does not give.
    """
    code = ending.exit_code
    limit = f"its limit is {settings.memory_bytes / 2**20:.0f} MiB" if settings.memory_bytes else "all the machine has"
    starved = f"{settings.folder}: out of memory inside the container ({limit}); give it more with --memory"
    if code is not None and (code in range(7) or code in {130, 143}):
        if ending.out_of_memory:
            report(f"{starved} and run the same directory again")
        return code
    if code == 137:
        raise HostError(f"{starved}; {again}" if ending.out_of_memory
                        else f"{settings.folder}: the container was killed from outside; {again}")  # fmt: skip
    if code in {126, 127}:
        raise HostError(f"image {image.reference} holds no modelassay; take one of: modelassay images build NAME")
    if code is None or code > 128:
        raise HostError(f"{settings.folder}: the container was ended by a signal (code {code}); {again}")
    raise AssayError(f"{settings.folder}: the container ended with {code}, no exit code of modelassay; {again}")

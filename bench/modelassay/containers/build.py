"""Build the project's images through the engine, and ask a registry, through the engine too, whether a pin holds."""

from __future__ import annotations

import datetime
import os
import subprocess
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Final

import docker.errors
import requests

from modelassay.containers.engine import connect, engine_errors, explanation
from modelassay.containers.images import (
    PLATFORM,
    Image,
    dockerfile_arguments,
    locked_image,
    locked_images,
    read_lock,
    required_checkout,
    why_not_locked,
    write_lock,
)
from modelassay.errors import HostError, UsageError

BUILD_TIMEOUT_S: Final = 1800
"""Without a word from the engine; one step of a build is silent for minutes."""

REGISTRY_TIMEOUT_S: Final = 60

NUM_LAST_LINES: Final = 12
"""How much of a failed build's log its error repeats."""

# What the Dockerfile copies; the context holds nothing else, whatever lies in the checkout.
_CONTEXT: Final = ("pyproject.toml", "README.md", "bench", "kernels", "suites", "docker", "ci/constraints.txt")
_LEFT_OUT: Final = frozenset({"__pycache__", "benchmarks", "wheels", ".mypy_cache", ".ruff_cache"})

# A zip file, and so a wheel, cannot hold a time before 1980.
_EARLIEST_EPOCH: Final = 315_532_800

_INDEX_TYPES: Final = frozenset({
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
})  # fmt: skip


def build(image: Image, *, base: str | None, wheels: Path | None, report: Callable[[str], None]) -> dict[str, Any]:
    """Build ``image`` from the checkout and tag it with its reference; return what came out, as JSON.

    The context is a tar of the files that the Dockerfile names, all with the time ``SOURCE_DATE_EPOCH`` (default: that of
    the last commit), so that the same sources give the same layers.

    Args:
        image: what to build.
        base: stands in for the pinned base, by a name the engine knows; the result is then not locked.
        wheels: a folder of wheels to install from; None: the checkout's docker/wheels, which may be empty.
        report: receives the engine's log, a line at a time.

    Raises:
        HostError: no checkout, no engine, or the build failed; the message ends with the log's last lines.
        UsageError: ``wheels`` is not a folder.
    """
    top = required_checkout("build")
    wheels = wheels or top / "docker" / "wheels"
    if not wheels.is_dir():
        raise UsageError(f"{wheels}: not a folder; --wheels takes a folder of .whl files")
    epoch = source_date_epoch(top)
    arguments = dockerfile_arguments(image) | {"REVISION": revision(top), "SOURCE_DATE_EPOCH": str(epoch)}
    if base is not None:
        arguments |= {"BASE": base, "BASE_DIGEST": base.partition("@")[2]}
    errors = engine_errors(f"to build {image.reference}")
    with closing(connect(timeout_s=BUILD_TIMEOUT_S).client) as client, tempfile.TemporaryFile() as context, errors:
        write_context(context, top=top, wheels=wheels, epoch=epoch)
        stream = client.api.build(fileobj=context, custom_context=True, dockerfile="docker/Dockerfile",
                                  tag=image.reference, buildargs=arguments, rm=True, forcerm=True, decode=True)  # fmt: skip
        _follow(stream, image, report)
        built = client.images.get(image.reference)
        return {
            "image": image.name,
            "reference": image.reference,
            "id": built.id,
            "size_bytes": built.attrs["Size"],
            "labels": built.labels,
            "why_not_locked": why_not_locked(image, built.labels),
        }


def verify(image: Image) -> str:
    """Ask the registry what the tag of ``image``'s base names, and note in the lock that it is what the lock pins.

    Costs no pull: the engine asks for the manifest only. Returns the new ``verified_at``.

    Raises:
        HostError: no checkout, no engine, the registry could not be asked, or it names another digest; the lock is then
            left as it was.
    """
    path = required_checkout("verify") / "docker" / "images.lock.json"
    digest, is_index = _registry_digest(image.base)
    pinned = image.base_index_digest or image.base_platform_digest
    if digest != pinned:
        raise HostError(f"{image.name}: the registry's {image.base} is {digest}, and docker/images.lock.json pins"
                        f" {pinned or 'no digest'} (the tag has moved): keep the pin, or pin the new digest"
                        " there and run modelassay images lock")  # fmt: skip
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    lock = read_lock(path)
    entry = lock["images"][image.name]["base"]
    entry["verified_at"] = now
    if not is_index:
        entry["platform_digests"][PLATFORM] = digest
    write_lock(lock, path)
    return now


def verify_all(names: tuple[str, ...]) -> dict[str, str]:
    """Verify the images called ``names`` (none: all), each of them even after a failure; return their ``verified_at``.

    Raises:
        HostError: some could not be verified; the message holds each one's reason.
    """
    images = [locked_image(name) for name in names] if names else list(locked_images().values())
    confirmed, failures = {}, []
    for image in images:
        try:
            confirmed[image.name] = verify(image)
        except HostError as error:
            failures.append(str(error))
    if failures:
        raise HostError("\n".join(failures))
    return confirmed


def write_context(file: IO[bytes], *, top: Path, wheels: Path, epoch: int) -> None:
    """Write the build context as a tar into ``file``, and go back to its start.

    The entries are in order of their names and belong to root, and all have the time ``epoch``.
    """

    def same_everywhere(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = entry.name.rsplit("/", 1)[-1]
        if name in _LEFT_OUT or name.endswith(".so"):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = epoch
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    # ruff's advice of a context manager would close `file`, which the caller reads.
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in _CONTEXT:
            tar.add(top / name, arcname=name, filter=same_everywhere)
        for path in [top / "docker" / "wheels" / "README.md", *sorted(wheels.glob("*.whl"))]:
            tar.add(path, arcname=f"docker/wheels/{path.name}", filter=same_everywhere)
    file.seek(0)


def source_date_epoch(top: Path) -> int:
    """Return the time in seconds that files of a build get: ``SOURCE_DATE_EPOCH``, else that of the last commit.

    Raises:
        UsageError: the variable is not a number of seconds since 1970.
    """
    setting = os.environ.get("SOURCE_DATE_EPOCH")
    if setting is not None and not setting.isdecimal():
        raise UsageError(f"SOURCE_DATE_EPOCH: {setting!r} is not a number of seconds since 1970; unset it or give one")
    return max(_EARLIEST_EPOCH, int(setting or _git(top, "log", "-1", "--format=%ct") or 0))


def revision(top: Path) -> str:
    """Return the commit of the checkout, with ``-dirty`` after it where files differ; ``unknown`` without git."""
    commit = _git(top, "rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit}-dirty" if _git(top, "status", "--porcelain", "--untracked-files=no") else commit


def _git(top: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(top), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _follow(stream: Iterator[dict[str, Any]], image: Image, report: Callable[[str], None]) -> None:
    last: deque[str] = deque(maxlen=NUM_LAST_LINES)
    error = None
    for event in stream:  # to its end, which closes the connection
        for line in event.get("stream", "").splitlines():
            if line.strip():
                last.append(line.rstrip())
                report(line.rstrip())
        error = error or event.get("error")
    if error:
        log = "\n".join(f"  {line}" for line in last)
        at_base = " : FROM " in (last[-1] if last else "")
        advice = "; where the base cannot be pulled, name another with --base" if at_base else ""
        raise HostError(f"{image.name}: the build failed: {error.strip()}{advice}\n{log}")


def _registry_digest(reference: str) -> tuple[str, bool]:
    """Return the digest that ``reference`` has in its registry, and whether it is an index's."""
    with closing(connect(timeout_s=REGISTRY_TIMEOUT_S).client) as client:
        try:
            descriptor = client.api.inspect_distribution(reference)["Descriptor"]
        except docker.errors.APIError as error:
            reason = explanation(error)
            raise HostError(f"{reference}: its registry cannot be reached ({reason}); nothing was changed") from error
        except requests.exceptions.RequestException as error:
            raise HostError(f"{reference}: its registry cannot be reached ({error}); nothing was changed") from error
    return descriptor["digest"], descriptor["mediaType"] in _INDEX_TYPES

"""The container engine: finding it, what it says of itself, the images it has, and its errors in words that say what to do."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import docker
import docker.errors
import docker.utils
import requests

from modelassay.containers import images
from modelassay.errors import HostError, UsageError
from modelassay.machine.scrub import scrub_text

TIMEOUT_S: Final = 300
"""For one answer of the engine; the first start of an image of many GB takes minutes."""

INSTALL: Final = "install Docker (docs.docker.com/engine/install) and start it, or name an engine with DOCKER_HOST"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A container engine that answered."""

    client: Any
    """A ``docker.DockerClient``."""
    name: str
    """Its name, version and peculiarities, for people."""
    rootless: bool
    """Whether root inside its containers is the user who runs it."""
    remaps_users: bool
    """Whether it maps user ids inside to others outside (``userns-remap``), unless told otherwise."""
    can_limit_memory: bool
    memory_bytes: int
    """Of the machine it runs on."""
    root_dir: str
    """Where it keeps images and containers."""


@dataclass(frozen=True, kw_only=True)
class LocalImage:
    """An image the engine has."""

    reference: str
    """As it was asked for."""
    id: str
    """``sha256:`` and its configuration's digest: names its content, and nothing can be moved to it later."""
    repo_digests: tuple[str, ...]
    """``repository@sha256:...``, where it came from or went to a registry."""
    labels: Mapping[str, str]
    unlocked: str | None
    """Why it is not what docker/images.lock.json pins; None if it is."""

    @property
    def digest(self) -> str:
        """What a record stores: the digest that can be pulled, else the id."""
        return self.repo_digests[0] if self.repo_digests else self.id


def connect(*, timeout_s: float = TIMEOUT_S) -> Engine:
    """Return the engine that DOCKER_HOST, Docker's current context, or the usual socket names.

    Raises:
        HostError: none answers.
    """
    parameters = _address()
    where = str(parameters.get("base_url", "unix:///var/run/docker.sock"))
    _ask_socket(where)
    try:
        client = docker.DockerClient(timeout=timeout_s, **parameters)
        info = client.info()
        version = client.version()
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise HostError(f"no container engine answers at {where}: {scrub_text(str(error))}; {INSTALL}") from error
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    rootless = any("rootless" in option for option in options)
    remaps_users = any("name=userns" in option for option in options)
    parts = " ".join(str(part.get("Name")) for part in version.get("Components") or ())
    kind = "Podman" if "podman" in parts.lower() else "Docker"
    peculiar = [word for word, holds in (("rootless", rootless), ("user ids remapped", remaps_users)) if holds]
    return Engine(
        client=client, name=", ".join([f"{kind} {version.get('Version', 'of unknown version')}", *peculiar]),
        rootless=rootless, remaps_users=remaps_users, can_limit_memory=bool(info.get("MemoryLimit", True)),
        memory_bytes=int(info.get("MemTotal") or 0), root_dir=str(info.get("DockerRootDir") or ""),
    )  # fmt: skip


def _address() -> dict[str, Any]:
    """Return what the SDK's client needs to find the engine."""
    try:
        parameters: dict[str, Any] = docker.utils.kwargs_from_env()
        context = getattr(docker.ContextAPI, "kwargs_from_context", None)  # from 7.2 on
        return parameters if "base_url" in parameters or context is None else {**context(), **parameters}
    except Exception as error:  # the SDK raises bare Exception for a broken context
        raise HostError(f"Docker's configuration cannot be read: {error}; mend it, or set DOCKER_HOST") from error


def _ask_socket(where: str) -> None:
    """Connect to a local socket, since its refusals say more than what the SDK makes of them."""
    if not where.startswith("unix://"):
        return
    path = "/" + where.removeprefix("unix://").lstrip("/")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        try:
            knocking.connect(path)
        except PermissionError as error:
            raise HostError(
                f"{path}: this user may not use the container engine; add them to its group (usermod -aG docker USER,"
                " then log in again), or use a rootless engine through DOCKER_HOST"
            ) from error
        except FileNotFoundError as error:
            raise HostError(f"no container engine: there is no {path}; {INSTALL}") from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise HostError(
                f"no container engine answers at {path} ({reason}); start it: systemctl start docker"
            ) from error


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn the SDK's errors into HostErrors that say what was being done.

    Raises:
        HostError: the engine refused, or stopped answering.
    """
    try:
        yield
    except docker.errors.APIError as error:
        raise HostError(f"the container engine refused {doing}: {explanation(error)}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise HostError(f"the container engine stopped answering while {doing}: {scrub_text(str(error))}") from error


def explanation(error: Any) -> str:
    """Return what the engine itself said, on one line and without secrets."""
    return scrub_text(" ".join(str(error.explanation or error).split()))


def find_image(engine: Engine, wanted: str) -> LocalImage:
    """Return the image ``wanted``: a name in docker/images.lock.json, a reference or an id.

    Raises:
        UsageError: a bare word that is no such name.
        HostError: the engine does not have it.
    """
    is_name = not re.search(r"[/:@]", wanted)
    reference = images.locked_image(wanted).reference if is_name else wanted
    with engine_errors(f"to look for image {reference}"):
        try:
            found = engine.client.images.get(reference)
        except docker.errors.ImageNotFound:
            found = None
    if found is None:
        fix = f"modelassay images build {wanted}" if is_name else f"docker pull {reference}"
        other = "; on a machine without a GPU, --image cpu" if wanted == "core" else ""
        raise HostError(f"image {reference} is not on this machine; get it: {fix}{other}")
    labels = dict(found.labels)
    name = wanted if is_name else _lock_name([labels.get("org.modelassay.image", ""), reference, *found.tags])
    return LocalImage(
        reference=reference, id=str(found.id), repo_digests=tuple(found.attrs.get("RepoDigests") or ()), labels=labels,
        unlocked="it is not one of the images that docker/images.lock.json names" if name is None
        else images.why_not_locked(images.locked_image(name), labels),
    )  # fmt: skip


def _lock_name(candidates: Sequence[str]) -> str | None:
    """Return the first name that the lock knows among the last parts of ``candidates``, without their tags."""
    for candidate in candidates:
        name = re.split(r"[:@]", candidate.rpartition("/")[2])[0]
        try:
            return images.locked_image(name).name
        except UsageError:
            continue
    return None


def require_locked(image: LocalImage, *, allow_unlocked: bool) -> None:
    """Refuse an image whose content is not pinned.

    Raises:
        HostError: it is not what docker/images.lock.json pins.
    """
    if image.unlocked and not allow_unlocked:
        raise HostError(
            f"image {image.reference} is not locked: {image.unlocked}; build it again (modelassay images build), or"
            " accept what it is with --allow-unlocked, which the run will record"
        )

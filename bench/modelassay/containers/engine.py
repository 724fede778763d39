"""The container engine: finding it, what it says of itself, the images it has, and its errors in words that say what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import docker
import docker.errors
import requests

from modelassay.containers import images
from modelassay.containers.endpoint import INSTALL, config_folder, find_endpoint
from modelassay.errors import HostError, UsageError, printable
from modelassay.machine.scrub import scrub_text

TIMEOUT_S: Final = 300
"""For one answer of the engine; the first start of an image of many GB takes minutes."""

FIRST_ANSWER_S: Final = 20
"""For the version; an engine that hangs is told soon."""


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
    """Return the engine that DOCKER_HOST or Docker's current context names, else one that listens at a usual socket.

    Raises:
        HostError: none answers, or what names it is damaged.
    """
    endpoint = find_endpoint()
    try:
        with closing(docker.DockerClient(timeout=min(timeout_s, FIRST_ANSWER_S), **endpoint.parameters)) as client:
            version = client.version()
        client = docker.DockerClient(timeout=timeout_s, **endpoint.parameters)
        info = client.info()
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        reason = printable(scrub_text(str(error)))
        raise HostError(f"no container engine answers at {endpoint.url}: {reason}; {INSTALL}") from error
    except (AttributeError, TypeError, ValueError) as error:  # the SDK trusts what config.json holds
        path = config_folder(os.environ) / "config.json"
        raise HostError(f"Docker's configuration cannot be read: {path}: {error}; mend or remove it") from error
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

"""The images the project makes, as ``docker/images.lock.json`` pins them; reads files only, so it needs no engine.

A base image is pinned by tag and digest, an image's requirements by the sha256 of its hashed lock. An image is *locked*
when the labels of its build say that it stands on that base and holds those requirements.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import modelassay
from modelassay.errors import HostError, UsageError, did_you_mean

PLATFORM: Final = "linux/amd64"
"""The only platform that the requirement locks are made for."""

DEFAULT_IMAGE: Final = "cpu"
"""What the Dockerfile builds without arguments."""

LABEL_BASE_NAME: Final = "org.opencontainers.image.base.name"
LABEL_BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
LABEL_VERSION: Final = "org.opencontainers.image.version"
LABEL_IMAGE: Final = "org.modelassay.image"
LABEL_LOCK: Final = "org.modelassay.lock.sha256"


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image the project makes, as docker/images.lock.json pins it."""

    name: str
    """core, cpu or vllm."""
    reference: str
    """The local tag that a build gives, ``modelassay/<name>:<version>``."""
    base: str
    """``repository:tag`` of the base image."""
    base_index_digest: str | None
    """``sha256:...`` of the base's index (manifest list); None where none is known."""
    base_platform_digest: str | None
    """``sha256:...`` of the base's manifest for ``PLATFORM``; None where none is known."""
    base_source: str
    """Where the base's digest was found, in words."""
    verified_at: str | None
    """When a registry confirmed the digest (UTC); None: none has been asked yet."""
    lock: str
    """The file of its hashed requirements, relative to the checkout."""
    lock_sha256: str
    """sha256 of that file."""
    foundation: str
    """The Dockerfile's stage that it stands on: ``toolchain``, whose compiler Triton needs, or ``base``."""

    @property
    def pinned_base(self) -> str:
        """The base as a build names it: by tag and, where one is known, digest."""
        digest = self.base_index_digest or self.base_platform_digest
        return f"{self.base}@{digest}" if digest else self.base

    @property
    def version(self) -> str:
        """The project's version in ``reference``."""
        return self.reference.rsplit(":", 1)[1]


def checkout() -> Path | None:
    """Return the top of the checkout that this package is imported from; None for an installed wheel."""
    package = Path(modelassay.__file__).parent
    top = package.parents[1]
    return top if package.parent.name == "bench" and (top / "docker" / "images.lock.json").is_file() else None


def lock_path() -> Path:
    """Return the image lock in use: the checkout's, or the one in the wheel."""
    top = checkout() or Path(modelassay.__file__).parent
    return top / "docker" / "images.lock.json"


def required_checkout(what: str) -> Path:
    """Return the top of the checkout.

    Raises:
        HostError: this is an installed wheel, which carries no Dockerfile.
    """
    top = checkout()
    if top is None:
        raise HostError(f"images {what} needs the project's checkout, and this modelassay is installed without one"
                        f" ({Path(modelassay.__file__).parent}); run it in a checkout installed with pip install -e .")  # fmt: skip
    return top


def locked_images() -> dict[str, Image]:
    """Return every image of the lock by name, sorted.

    Raises:
        UsageError: the lock cannot be read as one.
    """
    return {name: _image(name, entry) for name, entry in sorted(read_lock()["images"].items())}


def locked_image(name: str) -> Image:
    """Return the image called ``name``.

    >>> locked_image("cpu").reference
    'modelassay/cpu:0.1.0'

    Raises:
        UsageError: there is none; or the lock cannot be read.
    """
    images = locked_images()
    if name not in images:
        raise UsageError(f"{name}: no such image{did_you_mean(name, images) or '; there are ' + ', '.join(images)}")
    return images[name]


def expected_labels(image: Image) -> dict[str, str]:
    """Return the labels that a locked build of ``image`` carries.

    >>> expected_labels(locked_image("cpu"))["org.modelassay.image"]
    'cpu'
    """
    return {
        LABEL_IMAGE: image.name,
        LABEL_VERSION: image.version,
        LABEL_BASE_NAME: image.pinned_base,
        LABEL_BASE_DIGEST: image.base_index_digest or image.base_platform_digest or "",
        LABEL_LOCK: image.lock_sha256,
    }


def why_not_locked(image: Image, labels: Mapping[str, str]) -> str | None:
    """Return None if an image with these ``labels`` is what the lock pins, else the difference in words.

    >>> why_not_locked(locked_image("cpu"), {})
    'it carries no label org.modelassay.image, so it was not built from docker/Dockerfile'
    """
    if LABEL_IMAGE not in labels:
        return f"it carries no label {LABEL_IMAGE}, so it was not built from docker/Dockerfile"
    words = {
        LABEL_IMAGE: "it is the image '{value}', not '{expected}'",
        LABEL_VERSION: "it was built from modelassay {value}, and this is {expected}",
        LABEL_BASE_NAME: "its base is {value}, and the lock pins {expected}",
        LABEL_BASE_DIGEST: "its base has the digest '{value}', and the lock pins '{expected}'",
        LABEL_LOCK: "its requirements have the sha256 {value}, and those of the lock {expected}",
    }
    for label, expected in expected_labels(image).items():
        value = labels.get(label, "")
        if value != expected:
            return words[label].format(value=value or "(no label)", expected=expected)
    return None


def read_lock(path: Path | None = None) -> dict[str, Any]:
    """Return the image lock as JSON.

    Raises:
        UsageError: it is missing, not JSON, or of another format.
    """
    path = path or lock_path()
    try:
        lock = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not an image lock ({error}); restore it from the project's repository") from error
    if not isinstance(lock, dict) or lock.get("format") != 1 or not isinstance(lock.get("images"), dict):
        raise UsageError(f"{path}: not an image lock of format 1; restore it from the project's repository")
    return lock


def write_lock(lock: Mapping[str, Any], path: Path) -> None:
    """Write the image lock aside and rename it."""
    temporary = path.with_suffix(".json.new")
    temporary.write_text(json.dumps(lock, indent=1, ensure_ascii=False) + "\n")
    temporary.rename(path)


def refresh_lock(top: Path) -> list[str]:
    """Bring docker/images.lock.json and the Dockerfile's defaults in ``top`` up to date; return what changed, in words.

    The sha256 of each requirement lock and the version in each reference are computed; what the lock pins for the image
    ``DEFAULT_IMAGE`` is written into the Dockerfile. Asks no registry.

    Raises:
        HostError: a requirement lock is missing.
    """
    path = top / "docker" / "images.lock.json"
    lock, changed = read_lock(path), []
    for name, entry in lock["images"].items():
        requirements = top / entry["lock"]["file"]
        if not requirements.is_file():
            raise HostError(f"{requirements}: missing; make it with ci/lock {name}")
        digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
        entry["reference"] = f"modelassay/{name}:{modelassay.__version__}"
        if entry["lock"]["sha256"] != digest:
            entry["lock"]["sha256"] = digest
            changed.append(f"{name}: {entry['lock']['file']} has the sha256 {digest}")
    if lock != read_lock(path):
        write_lock(lock, path)
    dockerfile = top / "docker" / "Dockerfile"
    text = dockerfile.read_text()
    fresh = with_arguments(text, dockerfile_arguments(_image(DEFAULT_IMAGE, lock["images"][DEFAULT_IMAGE])))
    if fresh != text:
        dockerfile.write_text(fresh)
        changed.append(f"{DEFAULT_IMAGE}: docker/Dockerfile names what the lock pins")
    return changed


def dockerfile_arguments(image: Image) -> dict[str, str]:
    """Return the build arguments that tell a locked build what it is.

    >>> dockerfile_arguments(locked_image("cpu"))["FOUNDATION"]
    'base'
    """
    labels = expected_labels(image)
    return {
        "BASE": image.pinned_base,
        "BASE_DIGEST": labels[LABEL_BASE_DIGEST],
        "IMAGE": image.name,
        "VERSION": image.version,
        "LOCK_SHA256": image.lock_sha256,
        "FOUNDATION": image.foundation,
    }


def with_arguments(dockerfile: str, arguments: Mapping[str, str]) -> str:
    r"""Return the text of a Dockerfile whose leading ``ARG`` lines have these defaults.

    >>> with_arguments("ARG BASE=old\nFROM $BASE\nARG BASE\n", {"BASE": "new:1"})
    'ARG BASE=new:1\nFROM $BASE\nARG BASE\n'
    """
    lines = dockerfile.splitlines()
    for position, line in enumerate(lines):
        name = line.removeprefix("ARG ").partition("=")[0]
        if line.startswith(f"ARG {name}=") and name in arguments:
            lines[position] = f"ARG {name}={arguments[name]}"
    return "\n".join(lines) + "\n"


def _image(name: str, entry: Mapping[str, Any]) -> Image:
    try:
        base, lock = entry["base"], entry["lock"]
        return Image(
            name=name,
            reference=entry["reference"],
            base=base["tag"],
            base_index_digest=base["index_digest"],
            base_platform_digest=base["platform_digests"].get(PLATFORM),
            base_source=base["source"],
            verified_at=base["verified_at"],
            lock=lock["file"],
            lock_sha256=lock["sha256"],
            foundation=entry["foundation"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{lock_path()}: images.{name}: {error} is missing; run modelassay images lock") from error

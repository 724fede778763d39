"""The machine and its images, as the verbs print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from modelassay.commands.view import View
from modelassay.experiments.findings import Table

if TYPE_CHECKING:
    from modelassay.containers.images import Image
    from modelassay.machine.doctor import Check


def doctor_view(checks: Sequence[Check]) -> View:
    """Show what `doctor` found, each fault with its fix."""
    rows = [
        (
            check.name,
            check.status if check.required or check.status == "ok" else f"{check.status} (optional)",
            check.detail,
            check.fix or "",
        )
        for check in checks
    ]
    return View(
        data=[asdict(check) for check in checks],
        tables=[Table(title="", columns=("check", "status", "detail", "fix"), rows=rows)],
    )


def images_view(images: Mapping[str, Image]) -> View:
    """List the images: reference, base and its digest, requirements, and whether a registry confirmed the pin."""
    rows = [
        (
            image.reference,
            image.base,
            (image.base_index_digest or "none known")[:19],
            image.lock_sha256[:12],
            image.verified_at or "not confirmed by a registry",
        )
        for image in images.values()
    ]
    columns = ("image", "base", "base digest", "requirements", "verified")
    return View(
        data={name: asdict(image) for name, image in images.items()},
        tables=[Table(title="images", columns=columns, rows=rows)],
    )


def built_view(image: Mapping[str, Any]) -> View:
    """Say what a build gave, and whether it is what the lock pins."""
    why = image["why_not_locked"]
    lines = [
        f"{image['reference']}: {image['id']}, {image['size_bytes'] / 1e9:.2f} GB",
        f"not what the lock pins: {why}" if why else "it is what docker/images.lock.json pins",
    ]
    return View(data=dict(image), lines=lines)

"""Where an attempt runs, in few words: which image or host, Python, C library, processor, libraries.

A run may go on elsewhere than it began, as long as code, Python and libraries are the same; each attempt records where it was.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def place(libraries: Mapping[str, str | None]) -> dict[str, Any]:
    """Return where this process runs, with the ``libraries`` that decide; costs 0.1 ms.

    A host is told from others by 8 hex digits of a hash of its name; the name itself is not kept.
    """
    image = os.environ.get("MODELASSAY_IMAGE")
    return {
        "image": image,
        "digest": os.environ.get("MODELASSAY_IMAGE_DIGEST") if image else None,
        "host": None if image else hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest(),
        "processor": _processor(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "libraries": dict(libraries),
    }


def in_words(about: Mapping[str, Any]) -> str:
    """Return a place as people say it; processors and libraries are left out.

    >>> in_words({"image": "core", "digest": "sha256:5f0c2a9be1d34477aa", "host": None})
    'image core@sha256:5f0c2a9be1d3'
    >>> in_words({"image": None, "host": "8c2a41d7"}), in_words({})
    ('host 8c2a41d7', 'an unrecorded place')
    """
    if image := about.get("image"):
        digest = str(about.get("digest") or "")
        return f"image {image}" + (f"@{digest[:19]}" if digest else "")
    return f"host {about['host']}" if about.get("host") else "an unrecorded place"


def differ(places: Iterable[Mapping[str, Any]]) -> str | None:
    """Say that attempts ran in different ``places``; None where all ran in one."""
    words = [in_words(about) for about in places]
    if len(set(words)) < 2:
        return None
    counted = ", ".join(f"{words.count(word)} in {word}" for word in dict.fromkeys(words))
    return f"its attempts ran in different places: {counted}; their logs open with what was there"


def moved(began: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say that a run which ``began`` in one image or outside of any goes on elsewhere; None where it does not."""
    then = {"image": began.get("image"), "digest": began.get("image_digest")}
    here = {"image": now.get("image"), "digest": now.get("digest")}
    if then == here:
        return None
    first, second = (f"in {in_words(about)}" if about["image"] else "outside any image" for about in (then, here))
    return f"this run began {first} and goes on {second}: each attempt records where it ran"


def _processor() -> str | None:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(4096).splitlines()
    except OSError:
        return platform.machine() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return names[0] if names else platform.machine() or None

"""Artifacts by the recipe that made them: resumable while they are built, whole or absent afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelassay.errors import HostError
from modelassay.storage.files import locked, publish


def content_key(value: Any) -> str:
    """Return 16 hex digits of BLAKE2b over the canonical JSON of ``value``: equal values, equal keys.

    >>> content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def home_folder() -> Path:
    """Return this user's home folder.

    Raises:
        HostError: they have none, as a user of a container that is only a number.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise HostError(
            f"user {os.getuid()} has no home folder for caches: HOME is not set; set it, or MODELASSAY_CACHE and HF_HOME"
        ) from error


def cache_root() -> Path:
    """Return the folder of everything that can be made again: ``MODELASSAY_CACHE``, else the XDG cache folder.

    Raises:
        HostError: neither is set and the user has no home folder.
    """
    if explicit := os.environ.get("MODELASSAY_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else home_folder() / ".cache") / "modelassay"


class Store:
    """Folders named by the hash of the recipe that made them; the only thing cells share.

    A folder is built as ``X.part`` under a lock and renamed, so whoever sees it sees all of it, and two cells that want
    the same one build it once. Beside what was built lies ``record.json``: the recipe, what it was made from, when, how
    long that took and in how many attempts.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Open the store at ``root`` (default: ``artifacts`` under the cache folder)."""
        self.root = root if root is not None else cache_root() / "artifacts"

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """Return where the artifact of ``recipe`` (any JSON-able mapping with a ``kind``) lies or will lie."""
        return self.root / str(recipe["kind"]) / content_key(recipe)

    def get(self, recipe: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the artifact's folder, calling ``build(folder)`` to fill it the first time, from an empty folder."""
        return build_folder(self.path(recipe), build, record={"recipe": dict(recipe)})


def build_folder(
    final: Path, build: Callable[[Path], None], *, record: Mapping[str, Any], resumable: bool = False
) -> Path:
    """Return the folder ``final``, built by ``build(part)`` the first time.

    Args:
        final: where it lies or will lie.
        build: fills the folder it is given.
        record: what ``record.json`` says beside times and attempts.
        resumable: whether ``build`` goes on with what a killed attempt left in its folder; else it begins with an empty one.
    """
    if final.is_dir():
        return final
    with locked(final.with_suffix(".lock")):
        if final.is_dir():
            return final
        part, tally = final.with_suffix(".part"), final.with_suffix(".attempts")
        attempts = 1 + (len(tally.read_bytes()) if tally.is_file() else 0)
        if not resumable:
            shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, exist_ok=True)
        tally.write_bytes(b"." * attempts)
        began, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        build(part)
        full = {**record, "started": started, "seconds": round(time.monotonic() - began, 3), "attempts": attempts}
        text = json.dumps(full, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (part / "record.json").write_bytes(text.encode(errors="surrogateescape"))
        publish(part, final)
        tally.unlink()
    final.with_suffix(".lock").unlink(missing_ok=True)  # whoever waits on it holds the file itself and sees the folder
    return final

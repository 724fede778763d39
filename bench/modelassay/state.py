"""What outlives a process: the content-addressed artifact store (zoo models, parents, factors) that cells share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def content_key(value: Any) -> str:
    """Return 16 hex digits of BLAKE2b over the canonical JSON of ``value``: equal values, equal keys.

    >>> content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def cache_root() -> Path:
    """Return the folder of everything that can be made again: ``MODELASSAY_CACHE``, else the XDG cache folder."""
    if explicit := os.environ.get("MODELASSAY_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "modelassay"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if missing); the kernel releases it if the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Store:
    """Folders named by the hash of the recipe that made them; the only thing cells share.

    A folder is built aside under a lock and renamed, so whoever sees it sees all of it, and two cells that want the
    same one build it once.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Open the store at ``root`` (default: ``artifacts`` under the cache folder)."""
        self.root = root if root is not None else cache_root() / "artifacts"

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """Return where the artifact of ``recipe`` (any JSON-able mapping with a ``kind``) lies or will lie."""
        return self.root / str(recipe["kind"]) / content_key(recipe)

    def get(self, recipe: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the artifact's folder, calling ``build(folder)`` to fill it the first time.

        ``recipe.json`` is written beside what ``build`` made, so a folder says how to make it again.
        """
        final = self.path(recipe)
        if final.is_dir():
            return final
        with locked(final.with_suffix(".lock")):
            if final.is_dir():
                return final
            aside = final.with_suffix(".new")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            build(aside)
            (aside / "recipe.json").write_text(json.dumps(recipe, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
            aside.rename(final)
        return final

"""What a cell needs before it starts: files of the user's, and artifacts that many cells share.

``needs(params)`` in an experiment's ``params.py`` lists them. The runner collects them over the matrix, records the
hashes of files when a run is created, and builds each artifact once before the cells that want it.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from modelassay.errors import UsageError
from modelassay.storage.digests import contents_of
from modelassay.storage.store import Store, content_key
from modelassay.storage.stray import is_stray

_BESIDE: Final = (".md", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".log")
_PAPERS: Final = ("license", "notice", "readme", "use_policy", "events.out.tfevents")
"""How files end or begin that lie beside a model and decide nothing of it."""

_TEMPLATES: Final = "additional_chat_templates"
"""The only folder within a model's that transformers reads."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file or folder of the user's that a cell reads."""

    path: Path
    kind: Literal["data", "model"] = "data"
    """Of a model's folder only its own files count, not what lies beside or below them."""

    def digests(self) -> dict[str, str]:
        """Return path -> 32 hex digits of BLAKE2b, of files above 16 GiB over samples: of a model each file that decides it, of other folders one for all.

        Links to files are followed; what file managers and the like leave (`is_stray`) does not count.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            if self.path.is_dir() and self.kind == "model":
                return {str(path): _digest([path], path) for path in _of_model(self.path)}
            if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
                raise UsageError(f"{self.path}: neither a file nor a folder; name one")
            files = _below(self.path) if self.path.is_dir() else [self.path]
            return {str(self.path): _digest(files, self.path)}
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be read: {error.strerror}; check the path and its permissions"
            ) from error


def _of_model(folder: Path) -> list[Path]:
    """Return the files of a model's folder that may decide what it computes."""
    entries = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*")]
    return sorted(
        path
        for path in entries
        if path.is_file()
        and not is_stray(path.name)
        and not path.name.lower().endswith(_BESIDE)
        and not path.name.lower().startswith(_PAPERS)
    )


def _below(folder: Path) -> list[Path]:
    """Return all files in a folder and below it."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(is_stray(part) for part in path.relative_to(folder).parts)
    )


def _digest(files: Iterable[Path], top: Path) -> str:
    """Return the hash of the names below ``top``, the sizes and the contents of ``files``."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(f"{path.relative_to(top)}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        digest.update("".join(contents_of(path.resolve())).encode())  # links are followed, as who reads the model does
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Something in the artifact store that cells share and that can be made before any of them starts."""

    name: str
    """What people call it, as ``zoo:base``."""
    recipe: Mapping[str, Any]
    """Determines the content; `Store.path` of it is where it lies."""
    build: str
    """``module:function``, called as ``function(store, **arguments)``; fills ``store.path(recipe)``."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Artifact, ...] = ()
    """What must be there first."""
    work: float = 1.0
    """About how many seconds it takes: what heads the longest line of work is begun first, and how much is left is told by it."""

    @cached_property
    def key(self) -> str:
        """The key of its recipe: two artifacts of one key are one."""
        return content_key(self.recipe)

    def is_built(self, store: Store) -> bool:
        """Return whether ``store`` holds it as it was published."""
        return store.holds(self.recipe)

    def make(self, store: Store) -> None:
        """Build it in ``store``, unless it is there."""
        if not self.is_built(store):
            module, _, function = self.build.partition(":")
            getattr(importlib.import_module(module), function)(store, **self.arguments)


Need = File | Artifact


def in_order(needs: Iterable[Need]) -> list[Artifact]:
    """Return the artifacts among ``needs`` and all they are made from, each once, inputs before what is made of them."""
    ordered: dict[str, Artifact] = {}

    def add(artifact: Artifact) -> None:
        if artifact.key not in ordered:
            for source in artifact.inputs:
                add(source)
            ordered[artifact.key] = artifact

    for need in needs:
        if isinstance(need, Artifact):
            add(need)
    return list(ordered.values())

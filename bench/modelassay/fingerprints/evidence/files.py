"""Which files of a model were read, and their hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from modelassay.fingerprints.evidence import FileHash
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.adapters import ADAPTER_WEIGHTS, AdapterFiles
from modelassay.models.places import ADAPTER
from modelassay.models.reference import Model
from modelassay.models.tokenizer import TOKENIZER_FILES

_HASH = re.compile("[0-9a-f]{64}")
_INDEX = "model.safetensors.index.json"
Role = Literal["weights", "configuration", "tokenizer"]
_ADAPTER: tuple[tuple[str, Role], ...] = (
    (ADAPTER, "configuration"),
    *((name, "weights") for name in ADAPTER_WEIGHTS),
)


def file_hashes(model: Model) -> tuple[FileHash, ...]:
    """Return the hash of every file of ``model`` that is on this machine and was read: configuration, tokenizer, weights.

    Whole files are hashed, whatever part of them was read. Of the Hub's files its own hash stands beside it where the cache
    knows it: large files lie there under their SHA-256. Nothing is fetched.
    """
    hashes, files = [], model.files
    read = [(files, name, name, role) for name, role in _read_files(model.checkpoint())]
    if isinstance(files, AdapterFiles):
        own = [(files.own, name, name, role) for name, role in _ADAPTER]
        read = [*own, *((files.base, name, f"base/{name}", role) for _, name, _, role in read)]
    for place, name, shown, role in read:
        path = place.folder / name
        if path.is_file():
            hub = None if place.local else _hub_hash(path)
            size, sha256 = _hash(path)
            hashes.append(FileHash(name=shown, role=role, bytes=size, sha256=sha256, hub_sha256=hub))
    return tuple(hashes)


def _read_files(checkpoint: Checkpoint) -> Iterator[tuple[str, Role]]:
    yield "config.json", "configuration"
    yield _INDEX, "weights"
    for name in checkpoint.tensors.files_read():
        yield name, "weights"
    for name in TOKENIZER_FILES:
        yield name, "tokenizer"


def _hub_hash(path: Path) -> str | None:
    """Return the SHA-256 under which the Hub's cache keeps a file; None where it is kept under another name."""
    name = path.resolve().name
    return name if _HASH.fullmatch(name) else None


def _hash(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()

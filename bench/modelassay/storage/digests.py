"""What a folder held when it was published, file by file, and whether it still does.

Whole files up to 256 MiB count, a second's work at most. Of larger ones, as weights are, the size and 256 blocks of 64 KiB
count unless all of it is asked for: an edit of less than 1/256 may pass.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from modelassay.errors import AssayError, printable
from modelassay.storage.files import open_regular

WHOLE_BYTES: Final = 256 << 20
"""Files up to this size are read whole."""

NUM_SAMPLES: Final = 256
SAMPLE_BYTES: Final = 64 << 10

Digests = dict[str, dict[str, Any]]
"""File -> ``bytes``, ``sha256`` and, of one that is larger than `WHOLE_BYTES`, ``sampled``: SHA-256 of its sampled blocks."""


def blocks(file: BinaryIO, *, sampled: bool = True) -> Iterator[bytes]:
    """Yield what ``file`` holds; with ``sampled``, of a large one its samples alone."""
    size = os.fstat(file.fileno()).st_size
    if not sampled or size <= WHOLE_BYTES:
        while block := file.read(1 << 20):
            yield block
        return
    for index in range(NUM_SAMPLES):
        file.seek((size - SAMPLE_BYTES) * index // (NUM_SAMPLES - 1))
        yield file.read(SAMPLE_BYTES)


def digests_of(folder: Path) -> Digests:
    """Return the digests of every file below ``folder``; of hidden ones, which file systems and file managers leave, none.

    Raises:
        AssayError: it holds a link, a pipe, a socket or a device.
    """
    digests: Digests = {}
    for name, status in _entries(folder):
        path = folder / name
        if not stat.S_ISREG(status.st_mode):
            raise AssayError(f"{path}: what is kept may hold files and folders only")
        digests[name] = digest_of(path)
    return digests


def digest_of(path: Path) -> dict[str, Any]:
    """Return the digest of one file."""
    size = path.stat().st_size
    digest = {"bytes": size, "sha256": _sha256(path, sampled=False)}
    return {**digest, "sampled": _sha256(path, sampled=True)} if size > WHOLE_BYTES else digest


def difference(folder: Path, digests: Mapping[str, Mapping[str, Any]], *, wholly: bool = False) -> str | None:
    """Say in words which file of ``digests`` is not in ``folder`` as it was; None where all are. Others are passed over.

    Args:
        folder: where they lie.
        digests: as `digests_of` returned them.
        wholly: read large files whole too.
    """
    for name, digest in digests.items():
        path, shown = folder / name, printable(name)
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{shown} is no regular file any more"
            if status.st_size != digest["bytes"]:
                return f"{shown} has {status.st_size:,} bytes where {digest['bytes']:,} were written"
            sampled = "sampled" in digest and not wholly
            if _sha256(path, sampled=sampled) != digest["sampled" if sampled else "sha256"]:
                return f"{shown} does not hold what was written"
        except (FileNotFoundError, NotADirectoryError):
            return f"{shown} is missing"
        except OSError as error:
            return f"{shown} cannot be read ({error.strerror})"
    return None


def strangers(folder: Path, digests: Mapping[str, Any]) -> list[str]:
    """Return what lies below ``folder`` and is not in ``digests``; hidden files are passed over, as are folders."""
    return [name for name, _ in _entries(folder) if name not in digests]


def stamp(folder: Path) -> bytes:
    """Return 16 bytes that change whenever a file below ``folder`` is written, replaced, added or removed; 20 us for ten files.

    Raises:
        OSError: it is no folder, or may not be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, status in _entries(folder):
        about = (name, status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(about).encode(errors="surrogateescape"))
    return digest.digest()


def _entries(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return all but folders and what is hidden below ``folder``, sorted, each with its status; no link is followed."""
    statuses: dict[str, os.stat_result] = {}
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{inside}{entry.name}/")
                else:
                    statuses[inside + entry.name] = entry.stat(follow_symlinks=False)
    return sorted(statuses.items())


def _sha256(path: Path, *, sampled: bool) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for block in blocks(file, sampled=sampled):
            digest.update(block)
    return digest.hexdigest()

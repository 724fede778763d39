"""What a folder held when it was published, file by file, and whether it still does.

Files are read whole, in parts of 64 MiB by up to four threads: 1.8 GB per processor second where it has SHA-256. Only of a file above
16 GiB, 256 parts count unless all of it is asked for; what was read so is said by whoever verifies it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from modelassay.errors import AssayError, printable
from modelassay.storage.files import open_regular

PART_BYTES: Final = 64 << 20
NUM_SAMPLES: Final = 256
"""Parts that are read of a file that has more, the first and the last among them."""

_BLOCK_BYTES: Final = 1 << 20
_THREADS: Final = 4

Digests = dict[str, dict[str, Any]]
"""File -> ``bytes``, and ``sha256`` or, of one that is larger than `PART_BYTES`, ``parts``: SHA-256 of each."""


def is_sampled(digest: Mapping[str, Any]) -> bool:
    """Whether a file has so many parts that some are left out where not all is asked for."""
    return len(digest.get("parts", ())) > NUM_SAMPLES


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
    if size <= PART_BYTES:
        return {"bytes": size, "sha256": _sha256(path)}
    return {"bytes": size, "parts": _parts(path, range(_num_parts(size)))}


def contents_of(path: Path) -> list[str]:
    """Return the SHA-256 of each part of a file, of one that has more than `NUM_SAMPLES` parts of as many."""
    return _parts(path, _samples(_num_parts(path.stat().st_size)))


def difference(folder: Path, digests: Mapping[str, Mapping[str, Any]], *, wholly: bool = False) -> str | None:
    """Say in words which file of ``digests`` is not in ``folder`` as it was; None where all are. Others are passed over.

    Args:
        folder: where they lie.
        digests: as `digests_of` returned them.
        wholly: read files of more than `NUM_SAMPLES` parts whole too.
    """
    for name, digest in digests.items():
        path, shown = folder / name, printable(name)
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{shown} is no regular file any more"
            if status.st_size != digest["bytes"]:
                return f"{shown} has {status.st_size:,} bytes where {digest['bytes']:,} were written"
            if not _holds(path, digest, wholly=wholly):
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


def _holds(path: Path, digest: Mapping[str, Any], *, wholly: bool) -> bool:
    if "parts" not in digest:
        return _sha256(path) == str(digest["sha256"])
    parts = digest["parts"]
    numbers = range(len(parts)) if wholly else _samples(len(parts))
    return _parts(path, numbers) == [parts[number] for number in numbers]


def _num_parts(size: int) -> int:
    return max(1, -(-size // PART_BYTES))


def _samples(count: int) -> Sequence[int]:
    """Return which of ``count`` parts are read: all, or as many as are allowed from the first to the last."""
    if count <= NUM_SAMPLES:
        return range(count)
    return [(count - 1) * index // (NUM_SAMPLES - 1) for index in range(NUM_SAMPLES)]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _parts(path: Path, numbers: Sequence[int]) -> list[str]:
    """Return the SHA-256 of some parts of a file, computed side by side."""
    threads = min(_THREADS, len(os.sched_getaffinity(0)), len(numbers))
    with open_regular(path) as file, ThreadPoolExecutor(max(1, threads)) as pool:
        read: Callable[[int], str] = partial(_part, file.fileno())
        return list(pool.map(read, numbers))


def _part(fd: int, number: int) -> str:
    digest, start = hashlib.sha256(), number * PART_BYTES
    end = start + PART_BYTES
    for place in range(start, end, _BLOCK_BYTES):
        digest.update(os.pread(fd, min(_BLOCK_BYTES, end - place), place))
    return digest.hexdigest()

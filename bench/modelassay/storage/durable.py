"""What is written is on the disk, or an error says what failed: syncing and publishing on any file system.

Some file systems cannot sync a folder, or nothing at all, and answer so (`sync_file`, `sync_folder`): that is passed over, since
nothing is lost but the order of things after a power cut. A disk that fails or is full is never passed over.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from modelassay.errors import HostError, printable
from modelassay.storage.locks import uninterrupted

_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})
_UNSUPPORTED_FOR_FOLDERS: Final = _UNSUPPORTED | {errno.EBADF, errno.EISDIR, errno.EACCES, errno.EPERM}

_RETRY: Final = "run the same directory again, nothing is lost"

_FAULTS: Final = {
    errno.ENOSPC: f"the disk is full; free some space and {_RETRY}",
    errno.EDQUOT: f"the disk is full for this user, whose quota is used up; free some space and {_RETRY}",
    errno.EFBIG: "larger than the file system or the limit of this process (ulimit -f) takes; choose another place with --runs",
    errno.EIO: "the disk, or the server of the folder, fails (input/output error); copy what is there to another disk and"
    " run the copy again",
    errno.ESTALE: f"the server of the folder no longer knows it (stale file handle); mount it again and {_RETRY}",
    errno.ENOTCONN: f"the folder's file system has gone (not connected); mount it again and {_RETRY}",
    errno.EHOSTDOWN: f"the server of the folder is down; when it is back, {_RETRY}",
    errno.ENODEV: f"the folder's device has gone; mount it again and {_RETRY}",
    errno.ENXIO: f"the folder's device has gone; mount it again and {_RETRY}",
    errno.EROFS: f"the file system is read-only, perhaps since it failed; make it writable and {_RETRY}",
    errno.EMFILE: f"this process has too many files open; raise the limit (ulimit -n 4096) and {_RETRY}",
    errno.ENFILE: f"this machine has too many files open; close some programs and {_RETRY}",
}  # fmt: skip
"""The machine's faults, wherever they turn up, and what to do."""


def disk_fault(error: OSError, path: Path) -> HostError | OSError:
    """Return a HostError in place of a fault of the disk or its file system, any other ``error`` unchanged."""
    sentence = _FAULTS.get(error.errno or 0)
    return error if sentence is None else HostError(f"{printable(str(path))}: {sentence}")


def no_space(error: Exception, path: Path) -> Exception:
    """Return a HostError in place of a full disk or quota, any other ``error`` unchanged.

    Also of safetensors, whose own error is no OSError and hands the system's words on.
    """
    if type(error).__name__ == "SafetensorError" and "No space left" in str(error):
        error = OSError(errno.ENOSPC, str(error))
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return disk_fault(error, path) if is_full and isinstance(error, OSError) else error


def unwritable(error: OSError, folder: Path) -> HostError | OSError:
    """Return a HostError in place of an ``error`` that says that ``folder`` cannot be made or written, others unchanged."""
    if error.errno == errno.ENAMETOOLONG:
        return HostError(f"{printable(str(folder))}: longer than the file system's names may be; choose a shorter one")
    elsewhere = "choose another place with --runs, for the cache with MODELASSAY_CACHE"
    if isinstance(error, NotADirectoryError | FileExistsError):
        blocker = in_the_way(folder)
        return HostError(
            f"{printable(str(blocker or folder))}: {'no folder' if blocker else (error.strerror or 'File exists').lower()}, so "
            f"{printable(folder.name)} cannot be made; remove what is in the way, or {elsewhere}"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return HostError(f"{printable(str(folder))}: cannot be written; {elsewhere}")
    return disk_fault(error, folder)


def in_the_way(path: Path) -> Path | None:
    """Return what lies where ``path``, or a folder above it, should be made, and is no folder; None if nothing does."""
    places = (place for place in (*reversed(path.parents), path) if os.path.lexists(place) and not place.is_dir())
    return next(places, None)


def sync_file(fd: int) -> None:
    """Force what was written to the open file ``fd`` to the disk, as far as its file system can.

    Raises:
        OSError: the disk fails or is full.
    """
    _sync(fd, _UNSUPPORTED)


def give_up_pages(path: Path) -> None:
    """Say that a file on the disk is not read again soon: its place in memory is for what is."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(path: Path) -> None:
    """Force the names in the folder ``path`` to the disk, as far as its file system can.

    Raises:
        OSError: the disk fails or is full, or there is no such folder.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _UNSUPPORTED_FOR_FOLDERS:  # a folder may be writable and not readable
            return
        raise
    try:
        _sync(fd, _UNSUPPORTED_FOR_FOLDERS)
    finally:
        os.close(fd)


def publish(aside: Path, final: Path) -> None:
    """Rename the folder ``aside`` to ``final`` once all in it is on the disk: a power cut leaves whole folders or none.

    A folder that cannot be renamed where it stands (one of a lower layer of an overlay, of another quota) is copied first.

    Raises:
        OSError: the disk fails or is full.
    """
    _sync_tree(aside)
    try:
        aside.rename(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = aside.with_name(f"{aside.name}.copy-{os.getpid()}")
        try:
            shutil.copytree(aside, copy, symlinks=True)
            _sync_tree(copy)
            copy.rename(final)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(final.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write the file that somebody named: it appears only when it is whole, through a link where it is one.

    A pipe or a device, as /dev/stdout, is written into and never replaced.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            with path.open("wb") as file:
                file.write(content)
            return
    path = path.resolve()
    part = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        with suppress(OSError):  # where the folder cannot hold it there is nothing to remove
            part.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
            continue
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync_file(fd)
        finally:
            os.close(fd)


def _sync(fd: int, passed_over: frozenset[int]) -> None:
    try:
        uninterrupted(lambda: os.fsync(fd))
    except OSError as error:
        if error.errno not in passed_over:
            raise

"""Locks that one process at a time holds, on file systems that have them and on those that have not.

A lock is the kernel's (`flock`), which dies with its process. Where the file system has none (NFS without its lock service,
Lustre without ``-o flock``, some FUSE), the file ``<lock>.owner`` stands in: whoever makes it holds the lock, and it says who
that is. It is taken over only from a process that has provably ended: of this boot, of this PID namespace, and no longer
there under its start time. Of any other holder nobody here can tell, so the lock is refused with what to do. A lock that
fails otherwise (a dying disk, a stale NFS handle) is an error of its own, never a holder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from modelassay.errors import HostError, printable
from modelassay.storage.processes import has_ended, is_seen, this_process

UNSUPPORTED: Final = frozenset({
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOLCK,
    errno.EINVAL,
    errno.ENOTTY,
    errno.EBADF,
})
"""What file systems answer that have no locks; EBADF is NFS's for a file that is open in the wrong mode."""

HELD: Final = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
"""What `flock` answers where somebody else holds the lock; EACCES comes of emulations by record locks."""

POLL_S: Final = 0.05
"""Between two looks at an owner file."""

MAX_INTERRUPTIONS: Final = 1000
"""Signals in a row that end a call before it has done anything."""

WRITING_S: Final = 2.0
"""Between the making of an owner file and what it says, where both cannot be done at once."""

_NO_LINKS: Final = frozenset({
    errno.EPERM,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EMLINK,
    errno.EXDEV,
    errno.EINVAL,
})

_MAX_OWNER_BYTES: Final = 1000


class LockUnavailable(HostError):
    """The file system can neither lock nor keep an owner file; nothing was written."""


class Busy(Exception):  # noqa: N818 - not an error: the lock works
    """Somebody else holds the lock, or may hold it; the text says who, where that is known."""


class _Unsupported(Exception):  # noqa: N818 - not an error: the owner file stands in
    """The file system has no such locks."""


@contextmanager
def hold(handle: BinaryIO, path: Path, *, wait: bool) -> Iterator[str]:
    """Hold the lock that ``handle`` has open at ``path``.

    Yields why an owner file stands in for the kernel's lock, "" where it does not.

    Args:
        handle: the lock, open for writing.
        path: where it lies.
        wait: whether to wait for another process that holds it.

    Raises:
        Busy: another process holds it; with ``wait``, one of which nobody here can tell whether it still runs.
        LockUnavailable: the file system fails.
    """
    owner = owner_path(path)
    try:
        _flock(handle, path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except _Unsupported as reason:
        token = _claim(owner, wait=wait)
        try:
            yield f"the file system has no locks ({reason}); {owner.name} keeps other processes out instead"
        finally:
            _give_up(owner, token)
        return
    while (holder := _holder(owner)) is not None:  # one to whom the same folder is mounted without locks
        if has_ended(holder):
            break
        _await(holder, owner, wait=wait)
    yield ""


def is_held(handle: BinaryIO, path: Path) -> bool:
    """Tell whether a process holds the lock that ``handle`` has open at ``path``.

    Raises:
        LockUnavailable: the file system fails.
    """
    with suppress(_Unsupported):
        try:
            _flock(handle, path, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except Busy:
            return True
    holder = _holder(owner_path(path))
    return holder is not None and not has_ended(holder)


def owner_path(path: Path) -> Path:
    """Return the file that stands in for the lock ``path`` where there are no locks."""
    return path.with_name(f"{path.name}.owner")


def uninterrupted(call: Callable[[], None]) -> None:
    """Call ``call`` again as long as signals end it early.

    Raises:
        OSError: what else it raises.
    """
    for _ in range(MAX_INTERRUPTIONS):
        try:
            return call()
        except InterruptedError:
            continue
    return call()


def _flock(handle: BinaryIO, path: Path, operation: int) -> None:
    try:
        uninterrupted(lambda: fcntl.flock(handle, operation))
    except OSError as error:
        if error.errno in HELD:
            raise Busy("") from error
        reason = (error.strerror or str(error)).lower()
        if error.errno in UNSUPPORTED:
            raise _Unsupported(reason) from error
        raise LockUnavailable(
            f"{printable(str(path))}: cannot be locked ({reason}): the disk, or the server of the folder, fails; nothing was"
            " written; mend it, or choose another place with --runs or MODELASSAY_CACHE"
        ) from error


def _claim(owner: Path, *, wait: bool) -> str:
    """Make the owner file, once it is free; return what it says."""
    token = json.dumps(this_process())
    while True:
        holder = _holder(owner)
        if holder is None:
            try:
                if make_once(owner, token):
                    return token
            except OSError as error:
                raise _unwritable(error, owner) from error
        elif not has_ended(holder):
            _await(holder, owner, wait=wait)
        elif not _take_over(owner, holder):
            time.sleep(POLL_S)


def make_once(path: Path, text: str) -> bool:
    """Make the file ``path`` with its text, both at once where the file system has links; return False where it is there already.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    finally:
        draft.unlink(missing_ok=True)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _unwritable(error: OSError, owner: Path) -> HostError:
    return LockUnavailable(
        f"{printable(str(owner))}: the file system has no locks, and the file that stands in cannot be written"
        f" ({(error.strerror or str(error)).lower()}); choose another place with --runs or MODELASSAY_CACHE"
    )


def _give_up(owner: Path, token: str) -> None:
    with suppress(OSError):  # gone already, or its folder is
        if owner.read_text(encoding="utf-8") == token:
            owner.unlink()


def _take_over(owner: Path, ended: dict[str, Any]) -> bool:
    """Remove the owner file of a process that has ended; return False where another process is at it."""
    turn = owner.with_name(f"{owner.name}.new")  # whoever makes it may remove the owner file
    try:
        os.close(os.open(turn, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        with suppress(FileNotFoundError):
            if time.time() - turn.stat().st_mtime > 60:  # this takes microseconds
                raise Busy(f"an unknown process (if none is at it, remove {printable(str(turn))})") from None
        return False
    except OSError as error:
        raise _unwritable(error, owner) from error
    try:
        if _holder(owner) == ended:
            owner.unlink(missing_ok=True)
    finally:
        turn.unlink(missing_ok=True)
    return True


def _await(holder: dict[str, Any], owner: Path, *, wait: bool) -> None:
    """Wait a moment for ``holder``.

    Raises:
        Busy: without ``wait``, or where nobody here would see it end.
    """
    name = f"{holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown machine')}"
    if not is_seen(holder):
        raise Busy(printable(f"{name} (if that has ended, remove {owner})"))
    if not wait:
        raise Busy(str(holder["pid"]))
    time.sleep(POLL_S)


def _holder(owner: Path) -> dict[str, Any] | None:
    """Return what the owner file says, an empty mapping where it says nothing of use, None where there is none."""
    deadline = time.monotonic() + WRITING_S
    while (holder := _read(owner)) == {} and time.monotonic() < deadline:
        time.sleep(POLL_S)  # whoever made it may not have written it yet
    return holder


def _read(owner: Path) -> dict[str, Any] | None:
    try:
        fd = os.open(owner, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return {}
    with os.fdopen(fd, "rb") as file:
        try:
            holder = json.loads(file.read(_MAX_OWNER_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
    return holder if isinstance(holder, dict) and isinstance(holder.get("pid"), int) else {}

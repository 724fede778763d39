"""The gate for folders that somebody else may have filled: regular files only, nothing reached through links.

A run directory that was sent holds whatever its sender put there. `require_regular_tree` refuses one that holds a link,
a pipe, a socket or a device; `open_regular` and `open_lock` then open single files without following a link, without
waiting for the other end of a pipe, and without changing what they hold.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from modelassay.errors import HostError, UsageError, printable

MAX_FOLDER_DEPTH = 64
"""Folders within folders; a run's own lie four deep, an experiment's a few more."""

MAX_JSON_BYTES = 256_000_000
"""A run.json of 4,096 cells takes 20 MB; a checkpoint's state with the order of ten million rows takes 90 MB."""

MAX_JSON_DEPTH = 64
"""Lists and mappings within each other."""

_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe without a writer would block for ever
_KINDS = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"),
          (stat.S_ISSOCK, "a socket"), (stat.S_ISREG, "a regular file"))  # fmt: skip

MAX_HOLDER = 300
"""Bytes that a lock says of who holds it."""

_HOLDER = re.compile(rb"(\d+( in container [\w.-]+)?)?\s*")


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "a device")


def require_regular_tree(folder: Path) -> None:
    """Refuse ``folder`` if anything in it, however deep, is neither a folder nor a regular file.

    ``folder`` itself may be reached through a link. What disappears meanwhile (a checkpoint of a process at work) is
    passed over. Costs one ``scandir`` a folder: 20 ms for 10,000 files.

    Raises:
        UsageError: with the first such entry.
        OSError: ``folder`` cannot be read.
    """
    pending = [(os.fspath(folder), 0)]
    while pending:
        here, depth = pending.pop()
        if depth > MAX_FOLDER_DEPTH:
            raise UsageError(
                f"{folder}: folders nest more than {MAX_FOLDER_DEPTH} deep; take out what does not belong to the run"
            )
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, depth + 1))
                    elif not entry.is_file(follow_symlinks=False):
                        _refuse(
                            Path(entry.path), entry.stat(follow_symlinks=False).st_mode, "a regular file or a folder"
                        )
        except FileNotFoundError:
            if depth == 0:
                raise


def require_folders(paths: Iterable[Path]) -> None:
    """Refuse the first of ``paths`` that exists and is no folder.

    Raises:
        UsageError: there is one.
    """
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(mode):
            _refuse(path, mode, "a folder")


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file ``path`` for reading.

    Raises:
        UsageError: it is a link, a folder, a pipe, a socket or a device.
        OSError: it is missing or may not be read.
    """
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def open_lock(path: Path) -> BinaryIO:
    """Open the file ``path``, made if missing, for locking; whatever it holds is kept.

    Raises:
        UsageError: it is no regular file, or one that has a second name elsewhere.
        OSError: it cannot be made or opened.
    """
    fd = _open(path, os.O_RDWR | os.O_CREAT)
    if os.fstat(fd).st_nlink > 1:
        os.close(fd)
        raise UsageError(f"{printable(str(path))}: a lock that is also a file elsewhere (a hard link); remove it")
    return os.fdopen(fd, "r+b", buffering=0)


def _open(path: Path, flags: int) -> int:
    try:
        mode = path.lstat().st_mode  # opening some devices and sockets does something, or fails without saying why
    except FileNotFoundError:
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        _refuse(path, mode, "a regular file")
    fd = os.open(path, flags | _OPEN, 0o666)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        _refuse(path, mode, "a regular file")
    return fd


def _refuse(path: Path, mode: int, due: str) -> NoReturn:
    raise UsageError(f"{printable(str(path))}: {_kind(mode)} where {due} is due; remove it", damaged=path)


def read_json(path: Path, *, plain: bool = True) -> Any:
    """Return what the JSON file ``path`` holds, read strictly; see `strict_json`.

    Raises:
        UsageError: it is no regular file, or larger than ``MAX_JSON_BYTES``.
        ValueError: it is not such JSON.
        OSError: it is missing or may not be read.
    """
    return strict_json(read_limited(path).decode(), plain=plain)


def read_limited(path: Path) -> bytes:
    """Return what the file ``path`` holds.

    Raises:
        UsageError: it is no regular file, or larger than ``MAX_JSON_BYTES``.
        OSError: it is missing or may not be read.
    """
    with open_regular(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise UsageError(
            f"{printable(str(path))}: larger than {MAX_JSON_BYTES:,} bytes, which no run needs; remove it", damaged=path
        )
    return data


def strict_json(text: str, *, plain: bool = True) -> Any:
    """Parse ``text`` as JSON without a key given twice and without nesting beyond ``MAX_JSON_DEPTH``.

    ``plain`` refuses, too, what only Python writes: numbers that are not finite and halves of characters.

    Raises:
        ValueError: it is not such JSON.
    """
    numbers: dict[str, Any] = {"parse_constant": _not_finite, "parse_float": _finite} if plain else {}
    try:
        value = json.loads(text, object_pairs_hook=_unique, **numbers)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep") from None
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep")
        if isinstance(item, dict):
            pending += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            pending += [(part, depth + 1) for part in item]
        elif isinstance(item, str) and plain:
            item.encode()
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"key '{printable(key)[:60]}' stands twice in one mapping")
        mapping[key] = value
    return mapping


def _not_finite(word: str) -> NoReturn:
    raise ValueError(f"{word[:20]} is no finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


def unwritable(error: OSError, folder: Path) -> HostError | OSError:
    """Return a HostError in place of an ``error`` that says that ``folder`` cannot be made or written, others unchanged."""
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or error.errno == errno.EROFS:
        return HostError(f"{folder}: cannot be written; choose another place with --runs")
    return no_space(error, folder)


@contextmanager
def run_lock(folder: Path, name: str = "run.lock") -> Iterator[None]:
    """Hold the run directory for this process by the file ``name`` in it.

    Raises:
        HostError: another process holds it.
        UsageError: the file is not ours: a link, a pipe, or one with other content than a lock's.
    """
    try:
        opened = open_lock(folder / name)
    except OSError as error:
        raise unwritable(error, folder) from error
    with opened as handle:
        holder = handle.read(MAX_HOLDER + 1)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            process = holder.decode(errors="replace").strip() or "unknown"
            raise HostError(f"{folder}: process {process} is running it; wait for it or stop it first") from error
        if len(holder) > MAX_HOLDER or not _HOLDER.fullmatch(holder):
            raise UsageError(f"{folder / name}: not a lock, it holds something else than a process's number; remove it")
        where = f" in container {socket.gethostname()}" if "MODELASSAY_IMAGE" in os.environ else ""
        handle.truncate(0)
        handle.seek(0)
        handle.write(f"{os.getpid()}{where}".encode())
        yield


def no_space(error: OSError, path: Path) -> HostError | OSError:
    """Return a HostError in place of a full disk or quota, any other ``error`` unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(f"{path}: the disk is full; free some space and run the same directory again, nothing is lost")
    return error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if missing); the kernel releases it if the process dies.

    Raises:
        UsageError: something else than a file of its own lies there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock ``path``; nothing is made where there is none.

    Raises:
        UsageError: something else than a file of its own lies there.
    """
    if not path.exists():
        return False
    with open_lock(path) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def publish(aside: Path, final: Path) -> None:
    """Rename the folder ``aside`` to ``final`` once all in it is on the disk: a power cut leaves whole folders or none."""
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    aside.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

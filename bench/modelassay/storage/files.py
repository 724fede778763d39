"""The gate for folders that somebody else may have filled: regular files only, nothing reached through links.

A run directory that was sent holds whatever its sender put there. `require_regular_tree` refuses one that holds a link,
a pipe, a socket or a device; `open_regular` and `open_lock` then open single files without following a link, without
waiting for the other end of a pipe, and without changing what they hold.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from modelassay.errors import AssayError, HostError, UsageError, printable
from modelassay.storage.durable import no_space as no_space
from modelassay.storage.durable import publish as publish
from modelassay.storage.durable import unwritable as unwritable
from modelassay.storage.locks import Busy, hold, is_held
from modelassay.storage.unique_keys import unique_keys

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
        value = json.loads(text, object_pairs_hook=unique_keys(_stands_twice), **numbers)
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


def _stands_twice(key: str) -> ValueError:
    return ValueError(f"key '{printable(key)[:60]}' stands twice in one mapping")


def _not_finite(word: str) -> NoReturn:
    raise ValueError(f"{word[:20]} is no finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


@dataclass(frozen=True)
class RunLock:
    """A run directory that this process holds."""

    folder: Path
    path: Path
    """The lock's file."""
    handle: BinaryIO
    remark: str
    """Why something else than the kernel's lock holds it, "" where that one does."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Say of what goes wrong in here that the folder is gone, where it is; and at the end that it is still there.

        Raises:
            HostError: it was removed, renamed or replaced.
        """
        try:
            yield
        except (OSError, AssayError):
            self.require_in_place()
            raise
        self.require_in_place()

    def require_in_place(self) -> None:
        """Refuse to go on in a folder that was removed, renamed or replaced since it was locked.

        Raises:
            HostError: it was.
        """
        lock = os.fstat(self.handle.fileno())
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            status = None
        if status is not None and os.path.samestat(lock, status):
            return
        folder, place = printable(str(self.folder)), self._new_place() if lock.st_nlink else None
        if place is not None:
            new = printable(str(place))
            raise HostError(
                f"{folder}: the run directory was renamed to {new} while it ran; `modelassay run {new}` goes on with it"
            )
        if not self.folder.is_dir():
            raise HostError(f"{folder}: the run directory was removed while it ran; start a new run")
        raise HostError(
            f"{folder}: {self.path.name} was removed or replaced while it ran, so that another process may be at it too;"
            f" `modelassay run {folder}` goes on with it"
        )

    def _new_place(self) -> Path | None:
        """Return where the folder lies now, None where nobody knows."""
        try:
            path = Path(f"/proc/self/fd/{self.handle.fileno()}").readlink()
            in_place = os.path.samestat(path.stat(), os.fstat(self.handle.fileno()))
        except OSError:
            return None
        return path.parent if in_place and path.name == self.path.name else None


@contextmanager
def run_lock(folder: Path, name: str = "run.lock", *, exclusive: bool = True) -> Iterator[RunLock]:
    """Hold the run directory for this process by the file ``name`` in it.

    Not ``exclusive``: other processes may be at it too, and the file only tells that the folder stays what it is.

    Raises:
        HostError: another process holds it, or the file system fails.
        UsageError: the file is not ours: a link, a pipe, or one with other content than a lock's.
    """
    try:
        lock = open_lock(folder / name)
    except OSError as error:
        raise unwritable(error, folder) from error
    with lock as handle:
        content = handle.read(MAX_HOLDER + 1)
        try:
            with hold(handle, folder / name, wait=False) if exclusive else nullcontext("") as remark:
                if len(content) > MAX_HOLDER or not _HOLDER.fullmatch(content):
                    raise UsageError(
                        f"{folder / name}: not a lock, it holds something else than a process's number; remove it"
                    )
                where = f" in container {socket.gethostname()}" if "MODELASSAY_IMAGE" in os.environ else ""
                try:
                    handle.truncate(0)
                    handle.seek(0)
                    handle.write(f"{os.getpid()}{where}".encode())
                except OSError as error:
                    raise unwritable(error, folder) from error
                yield RunLock(folder, folder / name, handle, remark and f"{folder}: {remark}")
        except Busy as busy:
            process = str(busy) or content.decode(errors="replace").strip() or "unknown"
            raise HostError(f"{folder}: process {process} is running it; wait for it or stop it first") from busy


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if missing); it is free again when the process has died.

    Raises:
        HostError: its folder cannot be written, the file system fails, or nobody here can tell whether its holder still runs.
        UsageError: something else than a file of its own lies there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(path)
    except OSError as error:
        raise unwritable(error, path.parent) from error
    with lock as handle:
        try:
            with hold(handle, path, wait=True):
                yield
        except Busy as busy:
            raise HostError(f"{path}: process {busy} holds it; wait for it or stop it first") from busy


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock ``path``; nothing is made or written.

    Raises:
        UsageError: something else than a regular file lies there.
        HostError: the file system fails.
    """
    try:
        lock = open_regular(path)
    except FileNotFoundError:
        return False
    with lock as handle:
        return is_held(handle, path)

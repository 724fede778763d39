"""Who is at a run: one file for each worker, which its heartbeat keeps young.

``workers/<id>.json`` says which process it is, on which host, since when. The process holds a kernel's lock on it and touches it
every few seconds. A worker has ended when its file is gone, when a process on the same machine gets its lock, or when its file
has not been touched for as long as it says itself that it may be silent. Ages are differences between two times that the file
system gave (one's own file is touched for it), so that the clocks of hosts do not matter.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from modelassay.errors import HostError, printable
from modelassay.storage.files import open_regular, unwritable
from modelassay.storage.locks import HELD, UNSUPPORTED, LockUnavailable, uninterrupted
from modelassay.storage.processes import has_ended, is_seen, this_process

WORKERS: Final = "workers"
"""The folder of the workers' files in a run."""

SILENCE_S: Final = 60.0
"""How long a worker may be silent before others take its cells over. An NFS client may show times that are this old by 3 s, more
where attributes are cached longer, and a machine that swaps is silent for tens of seconds."""

BEAT_S: Final = 5.0
"""Between two touches."""

MAX_BYTES: Final = 2000

_ID: Final = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a worker's file says."""

    worker: str
    about: dict[str, Any]
    """host, pid, started, boot, namespace, image, began, silence_s, locked."""
    touched: float
    """By the clock of the file system."""
    locked: bool | None
    """Whether its process holds the kernel's lock; None where that cannot be told from here."""

    def __str__(self) -> str:
        """Return who that is, for people."""
        return printable(
            f"process {self.about.get('pid', 'unknown')} on {self.about.get('host', 'an unknown machine')}"
        )

    def has_ended(self, now: float) -> bool:
        """Tell whether the worker is no longer there; ``now`` is by the clock of the file system."""
        if now - self.touched > float(self.about.get("silence_s", SILENCE_S)):
            return True
        if self.locked is not None:
            return not self.locked
        return has_ended(self.about)

    def seems_there(self, now: float | None = None) -> bool:
        """Tell the same as far as somebody can who is no worker: where no lock tells, by ``now``, or by this host's clock."""
        return self.locked if self.locked is not None else not self.has_ended(time.time() if now is None else now)


def worker_path(folder: Path, worker: str) -> Path:
    """Return the file of a worker of the run in ``folder``."""
    return folder / WORKERS / f"{worker}.json"


class Worker:
    """This process as a worker of a run, from entering to leaving."""

    def __init__(self, folder: Path, *, silence_s: float = SILENCE_S) -> None:
        """Belong to the run directory ``folder``; others take over what it holds after ``silence_s`` without a beat."""
        self.id, self.folder = secrets.token_hex(6), folder / WORKERS
        self._path, self.silence_s = worker_path(folder, self.id), silence_s
        self._handle: BinaryIO | None = None
        self._left = threading.Event()

    def __enter__(self) -> Self:
        """Make the file and begin to touch it.

        Raises:
            HostError: it cannot be written, or the file system fails.
        """
        draft = self._path.with_suffix(".new")
        try:
            self.folder.mkdir(exist_ok=True)
            self._handle = draft.open("x+b", buffering=0)
            about = this_process() | {
                "image": os.environ.get("MODELASSAY_IMAGE"), "silence_s": self.silence_s, "locked": _lock(self._handle, draft),
                "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }  # fmt: skip
            self._handle.write(json.dumps(about).encode())
            draft.rename(self._path)  # the lock goes with the file
        except OSError as error:
            self._leave(draft)
            raise unwritable(error, self.folder) from error
        except HostError:
            self._leave(draft)
            raise
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(self._path)

    def _leave(self, path: Path) -> None:
        self._left.set()
        if self._handle is not None:
            self._handle.close()
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):  # others are there
            self.folder.rmdir()

    def _beat(self) -> None:
        while not self._left.wait(min(BEAT_S, self.silence_s / 6)):
            with suppress(OSError, ValueError):  # a run directory that is gone is told by the runner
                self.now()

    def now(self) -> float:
        """Touch this worker's file and return the time that the file system gave it.

        Raises:
            OSError: the file system fails.
        """
        assert self._handle is not None
        os.utime(self._handle.fileno())  # without a time: the server's clock, where there is a server
        return os.fstat(self._handle.fileno()).st_mtime

    def sign_of(self, worker: str) -> Sign | None:
        """Return what the file of another worker says; None where it has none, since it has left."""
        return read_sign(worker_path(self.folder.parent, worker)) if _ID.fullmatch(worker) else None

    def others(self) -> list[Sign]:
        """Return the other workers that are there now."""
        signs = (self.sign_of(path.stem) for path in sorted(self.folder.glob("*.json")) if path.stem != self.id)
        now = self.now()
        return [sign for sign in signs if sign is not None and not sign.has_ended(now)]


def read_signs(folder: Path) -> list[Sign]:
    """Return what all workers' files in the run directory ``folder`` say, whether they are still there or not."""
    signs = (read_sign(path) for path in sorted((folder / WORKERS).glob("*.json")) if _ID.fullmatch(path.stem))
    return [sign for sign in signs if sign is not None]


def read_sign(path: Path) -> Sign | None:
    """Return what a worker's file says, None where there is none.

    Raises:
        UsageError: it is no regular file.
    """
    try:
        with open_regular(path) as handle:
            touched = os.fstat(
                handle.fileno()
            ).st_mtime  # of an open file, which network file systems ask the server for
            try:
                about = json.loads(handle.read(MAX_BYTES))
            except (ValueError, RecursionError):
                about = {}
            about = about if isinstance(about, dict) and isinstance(about.get("pid"), int) else {}
            return Sign(worker=path.stem, about=about, touched=touched, locked=_is_locked(handle, about))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unwritable(error, path) from error


def _lock(handle: BinaryIO, path: Path) -> bool:
    """Lock a worker's own file; return whether its file system has locks.

    Raises:
        LockUnavailable: the file system fails.
    """
    try:
        uninterrupted(lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        reason = (error.strerror or str(error)).lower()
        raise LockUnavailable(
            f"{printable(str(path))}: cannot be locked ({reason}): the disk, or the server of the folder, fails; nothing was"
            " written; mend it, or choose another place with --runs"
        ) from error
    return True


def _is_locked(handle: BinaryIO, about: dict[str, Any]) -> bool | None:
    """Tell whether a worker of this machine holds its file; None of one of another machine, or where there are no locks."""
    if not about.get("locked") or not about.get("boot") or not is_seen(about, "boot"):
        return None  # on another machine a lock may be that machine's own affair
    try:
        uninterrupted(lambda: fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB))
    except OSError as error:
        return True if error.errno in HELD else None
    return False

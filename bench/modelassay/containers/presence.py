"""Which clients of containers are at a run directory: one alone while it begins a run or tidies up, then as many as come.

Each holds the file ``client.lock`` in the run directory as long as it lives: alone at first, together with others once its run
is there. Where the file system has no locks of the kernel's, there is one client at a time.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from modelassay.errors import HostError
from modelassay.runs.folder import CLIENT_LOCK, is_run
from modelassay.storage.files import RunLock, open_lock, run_lock
from modelassay.storage.locks import LockUnavailable, uninterrupted

WAIT_S: Final = 10.0
"""How long a client waits for another that tidies up before it starts; a container is removed within ten seconds."""

POLL_S: Final = 0.1


class Presence:
    """This client at a run directory."""

    def __init__(self, folder: Path, lock: RunLock | None) -> None:
        """Be there alone with ``lock``, or, without one, beside others."""
        self._folder, self._lock = folder, lock
        self._left = threading.Event()

    @property
    def is_alone(self) -> bool:
        """Whether no other client was there when this one came: what is left of any is nobody's."""
        return self._lock is not None

    def let_others_in(self) -> None:
        """Be there beside others from when the run is there, which may be now."""
        if self._lock is None or self._lock.remark:  # an owner file cannot be shared
            return
        if is_run(self._folder):
            _share(self._lock.handle)
        else:
            threading.Thread(target=self._wait, args=(self._lock.handle,), name="presence", daemon=True).start()

    def _wait(self, handle: BinaryIO) -> None:
        while not self._left.wait(POLL_S):
            if is_run(self._folder):
                with suppress(OSError, ValueError):  # closed in between: nobody is kept out any more
                    _share(handle)
                return

    def leave(self) -> None:
        """Look out for the run no more."""
        self._left.set()


@contextmanager
def attend(folder: Path) -> Iterator[Presence]:
    """Be a client at ``folder``: alone, or beside others where a run is there.

    Raises:
        HostError: another client begins a run there, or the file system fails.
        UsageError: something else than a lock lies there.
    """
    with ExitStack() as stack:
        try:
            lock: RunLock | None = stack.enter_context(run_lock(folder, CLIENT_LOCK))
        except LockUnavailable:
            raise
        except HostError:
            if not is_run(folder):
                raise
            handle = stack.enter_context(open_lock(folder / CLIENT_LOCK))
            if not _joined(handle):
                raise
            lock = None
        presence = Presence(folder, lock)
        stack.callback(presence.leave)
        yield presence


def _share(handle: BinaryIO) -> None:
    uninterrupted(lambda: fcntl.flock(handle, fcntl.LOCK_SH))


def _joined(handle: BinaryIO) -> bool:
    """Hold the lock together with others, once whoever has it alone lets them in; False where it does not."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            uninterrupted(lambda: fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB))
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
        time.sleep(POLL_S)

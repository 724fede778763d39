"""A process that must not outlive whoever started it: it stops when its standard input ends.

A container's client holds the other end. When the client dies, however it dies, its connection to the engine closes, the
engine closes the container's standard input, and the run inside stops as on SIGTERM, with its results kept.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "MODELASSAY_LIFELINE"
"""Set to ``stdin`` by those who hold a process's standard input open as long as it may run."""

GRACE_S: Final = 10.0
"""Seconds between the wish to stop and the end."""


def _read() -> bytes:
    """Return what standard input holds, waiting for the first byte even where it is set not to; empty at its end."""
    while True:
        try:
            return os.read(0, 4096)
        except BlockingIOError:
            select.select([0], [], [])


def exit_when_stdin_closes(environ: Mapping[str, str], *, grace_s: float = GRACE_S) -> None:
    """Watch standard input in the background, if ``environ`` asks for it; stop this process when it ends.

    First by SIGTERM to itself, and ``grace_s`` seconds later without further ado.
    """
    if environ.get(VARIABLE) != "stdin":
        return

    def watch() -> None:
        try:
            while _read():
                pass
        except OSError:  # no standard input at all: nobody holds the other end
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()

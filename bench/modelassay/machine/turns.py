"""Timed work takes turns on a machine, whichever run and worker it belongs to: one at a time for each GPU, or each socket."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from modelassay.storage.files import open_lock
from modelassay.storage.locks import HELD, uninterrupted


class Turn:
    """The turn of this process, on the GPUs that it sees, else on the sockets whose cores it may use."""

    def __init__(self, *, folder: Path | None = None) -> None:
        """Keep the locks in ``folder``; None: one of this user's on this machine."""
        self._folder = folder or _machine_folder()
        self._held: ExitStack | None = None

    def take(self) -> bool:
        """Take the turn; return False where somebody else has it. Where the machine has no such folder or locks everybody has it."""
        if self._held is not None:
            return True
        with ExitStack() as stack:
            for device in devices():
                try:
                    self._folder.mkdir(mode=0o700, exist_ok=True)
                    handle = stack.enter_context(open_lock(self._folder / f"timed-{device}.lock"))
                    uninterrupted(partial(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except OSError as error:
                    if error.errno in HELD:
                        return False
            self._held = stack.pop_all()
        return True

    def release(self) -> None:
        """Let others have their turn."""
        if self._held is not None:
            self._held.close()
            self._held = None


def devices() -> list[str]:
    """Return what timed work here keeps busy, sorted: GPUs as ``CUDA_VISIBLE_DEVICES`` names them, else sockets."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if visible and visible != "-1":
        return sorted({f"gpu-{name.strip().replace('/', '-')}" for name in visible.split(",") if name.strip()})
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    return sorted({f"socket-{_socket(core)}" for core in cores})


def _socket(core: int) -> str:
    with suppress(OSError):
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/physical_package_id").read_text().strip()
    return "0"


def _machine_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "modelassay" if runtime else Path(tempfile.gettempdir()) / f"modelassay-{os.getuid()}"

"""Whether a process that left its description somewhere is still there: of this boot, of this PID namespace, under its start time."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_SURROUNDINGS: Final = ("host", "boot", "namespace")


def this_process() -> dict[str, Any]:
    """Describe this process: pid, started, host, boot, namespace."""
    pid = os.getpid()
    return {"pid": pid, "started": start_time(pid), **surroundings()}


def surroundings() -> dict[str, str]:
    """Return what a number of a process means something within."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def is_seen(process: Mapping[str, Any], *names: str) -> bool:
    """Tell whether this process would see ``process`` run; with ``names``, only whether it shares these surroundings."""
    here = surroundings()
    return all(process.get(name) == here[name] for name in names or _SURROUNDINGS)


def has_ended(process: Mapping[str, Any]) -> bool:
    """Tell whether ``process`` has provably ended; one that would not be seen here has not."""
    return is_seen(process) and start_time(process["pid"]) != process.get("started")


def start_time(pid: int) -> str | None:
    """Return when the process ``pid`` began, in a form that only comparing makes sense of; None where none runs."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    else:
        return None if state in "ZX" else rest[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "unknown"

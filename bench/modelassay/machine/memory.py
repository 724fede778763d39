"""How much of the host's memory this process may still take, and keeping what it freed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60
"""What cgroups of version 1 write where nothing is limited begins about here."""

_KEEPING = {-8: 1, -3: 32 << 20, -1: 1 << 30}
"""M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), by the numbers of glibc's malloc.h."""


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of memory that can be taken without swapping: what is free, and what the page cache would give back.

    On Linux ``MemAvailable`` (kernel documentation, filesystems/proc), or what the control groups that this process is in leave of
    their limits, if that is less: a container sees the whole host's memory in /proc. Elsewhere half of what is installed. ``root`` is
    where /proc and /sys lie.
    """
    text = _read(root / "proc/meminfo")
    fields = {line.partition(":")[0]: line.split()[1] for line in text.splitlines() if len(line.split()) > 1}
    if "MemAvailable" not in fields:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min(int(fields["MemAvailable"]) * 1024, *_left_by_groups(root)))


def keep_freed_memory() -> bool:
    """Have freed blocks of up to 32 MiB used again instead of given back and asked for anew; return whether the C library listened.

    For a process that goes through large tensors one after the other: each is new pages otherwise, which a machine gives one at a time
    to one thread at a time; two threads that compared layers took longer than one. One heap serves all threads, since
    others cannot grow beyond 64 MiB (glibc, malloc/arena.c); what is larger than 32 MiB, the most that may be asked for, is mapped
    as ever. Up to 1 GiB is kept at its end. Other C libraries than glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no library of no name
        return False
    heard = [mallopt(option, value) for option, value in _KEEPING.items()]  # each, whatever came of the one before
    return all(heard)


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what each control group of this process leaves, of a file that is not its limit more than any machine has."""
    yield _UNLIMITED
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):  # a container may see its own group as the top, under its path outside
            most, taken = _read(folder / limit).strip(), _read(folder / used).strip()
            if most.isdigit() and taken.isdigit() and int(most) < _UNLIMITED:
                yield int(most) - int(taken) + _cached(folder)
            if folder == top:
                break


def _cached(group: Path) -> int:
    """Return what of a group's use is file pages that have not been asked for lately: they are given back before memory runs out."""
    pairs = (line.split() for line in _read(group / "memory.stat").splitlines())
    values = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    return values.get("total_inactive_file", values.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""How much memory may still be taken: of the host, and of the control groups that a process is in."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from modelassay.machine.memory import available_bytes, keep_freed_memory

GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = f"MemTotal: {64 * GIB // 1024} kB\nMemFree: {GIB // 1024} kB\nMemAvailable: {40 * GIB // 1024} kB\nHugePages_Total: 0\n"
CASES = {
    "page cache counts as available": ({}, 40 * GIB),
    "group without a limit": ({"proc/self/cgroup": "0::/user\n", "sys/fs/cgroup/user/memory.max": "max\n",
                               "sys/fs/cgroup/user/memory.current": "1\n"}, 40 * GIB),
    "container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{4 * GIB}\n", "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
                   "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file 9\n"}, 3 * GIB),
    "limit of a group above": ({"proc/self/cgroup": "0::/job/step\n", "sys/fs/cgroup/job/memory.max": f"{8 * GIB}\n",
                                "sys/fs/cgroup/job/memory.current": f"{GIB}\n", "sys/fs/cgroup/job/step/memory.max": "max\n",
                                "sys/fs/cgroup/job/step/memory.current": "7\n"}, 7 * GIB),
    "version 1": ({"proc/self/cgroup": "5:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n",
                   "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}", "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}",
                   "sys/fs/cgroup/memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}\n"}, 3 * GIB // 2),
    "version 1 without a limit": ({"proc/self/cgroup": "3:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                                   "sys/fs/cgroup/memory/memory.usage_in_bytes": "1"}, 40 * GIB),
    "group that is full": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "100", "sys/fs/cgroup/memory.current": "200"}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_available(tmp_path: Path, name: str) -> None:
    files, expected = CASES[name]
    assert available_bytes(tree(tmp_path, {"proc/meminfo": MEMINFO, **files})) == expected


def test_of_this_machine_and_where_nothing_tells(tmp_path: Path) -> None:
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes() <= installed
    assert available_bytes(tmp_path) == installed // 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_blocks_are_used_again_by_whichever_thread() -> None:
    script = """
import resource, sys, threading
import numpy as np
from modelassay.machine.memory import keep_freed_memory
if sys.argv[1] == "yes":
    assert keep_freed_memory()
def work():
    for _ in range(4):
        held = [np.full(1 << 20, 7.0) for _ in range(10)]
        del held
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        wanted: int(
            subprocess.run(
                [sys.executable, "-c", script, wanted], capture_output=True, text=True, check=True,
                env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"},
            ).stdout
        )
        for wanted in ("yes", "no")
    }  # fmt: skip
    assert faults["yes"] < 4096 < 15_000 < faults["no"]  # a heap of the thread's own takes ten times 2,048 pages anew


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()

"""How much memory a call takes beside what was there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_kib() -> int:
    """Peak resident memory of this process, as Linux tells it."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_growth_kib(setup: str, call: str) -> int | None:
    """Return what ``call`` adds to the peak of a process of its own after ``setup``; None where /proc does not tell it.

    Both are Python source; torch is there, with as many threads as here. What the call returns is to be kept in a variable.

    >>> growth = peak_growth_kib("x = torch.ones(2, 2)", "y = torch.ones(1 << 24)")
    >>> growth is None or growth > 60_000
    True
    """
    if not STATUS.exists():
        return None
    program = [
        "import torch",
        "from modelassay_kernels.benchmarking.memory import peak_kib",
        f"torch.set_num_threads({torch.get_num_threads()})",
        setup,
        "before_kib = peak_kib()",
        call,
        "print(peak_kib() - before_kib)",
    ]
    command = [sys.executable, "-c", "\n".join(program)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def extra_device_bytes(run: Callable[[], object]) -> int:
    """Return the CUDA memory one call takes beside what was there, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before

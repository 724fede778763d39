"""What torch and NumPy are told before they are loaded, and that they hear it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelassay.machine.libraries import ask_for_large_pages, leave_cores_to_others


def test_large_pages_are_asked_for_unless_somebody_decided() -> None:
    environ = {"THP_MEM_ALLOC_ENABLE": "0"}
    ask_for_large_pages(environ)
    assert environ == {"THP_MEM_ALLOC_ENABLE": "0"}
    script = """
import os, sys
from modelassay.machine.libraries import ask_for_large_pages
if sys.argv[1] == "yes":
    ask_for_large_pages(os.environ)
import torch
x = torch.ones(1 << 24)
for block in open("/proc/self/smaps").read().split("VmFlags:"):
    if " hg" in block.splitlines()[0] and len(block) > 9:
        print("asked")
        break
"""
    for wanted in ("yes", "no"):
        plain = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        out = subprocess.run(
            [sys.executable, "-c", script, wanted], capture_output=True, text=True, check=True, env=plain
        ).stdout
        assert out == ("asked\n" if wanted == "yes" else ""), "torch does not know the variable any more"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_numpy_computes_on_one_core_unless_somebody_decided() -> None:
    script = """
import os
from modelassay.machine.libraries import set_up
set_up(os.environ)
import numpy
print(len(os.listdir("/proc/self/task")))
"""
    plain = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=plain).stdout
    assert told == "1\n"  # OpenBLAS starts its threads when it is loaded
    environ = {"OPENBLAS_NUM_THREADS": "3"}
    leave_cores_to_others(environ)
    assert environ == {"OPENBLAS_NUM_THREADS": "3"}

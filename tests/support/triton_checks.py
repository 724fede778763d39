"""What a Triton kernel computes, without a GPU: interpreted."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# Shared memory one block may use: sm_80 code also runs on sm_86 and sm_89, which have the least.
SHARED_LIMIT_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def run_interpreted(files: Sequence[Path], marker: str) -> None:
    """Run the tests of some files that take `kernel_device` under TRITON_INTERPRET=1, and fail with their report.

    Triton reads the variable when it is imported and when a kernel is decorated, so it takes a process of its own.
    """
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=short", "-m", marker]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(file) for file in files)],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"in the interpreter (TRITON_INTERPRET=1 pytest FILE):\n{done.stdout}{done.stderr}", pytrace=False)

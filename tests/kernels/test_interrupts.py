"""Ctrl-C ends what C++ is at: each call here would take minutes, and does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from modelassay_kernels import native_available

PROGRAM = """
import os, signal, sys, threading
import torch
from modelassay_kernels import FileSpan, bottom_k, layer_std, layer_std_file
torch.set_num_threads(int(sys.argv[2]))
row = torch.arange(1 << 20).float()[None]
for call in (
    lambda: layer_std([row.expand(1 << 19, -1)]),
    lambda: layer_std([(row % 200).to(torch.float8_e4m3fn).expand(1 << 19, -1)]),
    lambda: layer_std_file([FileSpan(sys.argv[1], 0, "BF16", 1, 1 << 39, 1 << 39)]),
    lambda: bottom_k(row.expand(1 << 22, -1), 1),
):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        call()
    except KeyboardInterrupt:
        print("interrupted", float(layer_std([torch.tensor([1.0, 3.0])], correction=0)), flush=True)
"""


@pytest.mark.skipif(not native_available(), reason="needs the compiled extension")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_long_calls_end_with_keyboard_interrupt(num_threads: int, tmp_path: Path) -> None:
    """In a process of its own, since one that is deaf to it must be killed; afterwards the operations work as before."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(sparse), str(num_threads)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["interrupted 1.0"] * 4, done.stderr

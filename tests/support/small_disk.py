"""A real file system that fills up."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of ``size`` (as 64k, 2m) at ``folder``/disk while the block runs; skip where that is not allowed."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False).returncode != 0:
        pytest.skip("this machine may not mount a tmpfs")
    try:
        yield disk
    finally:
        # Lazily: of a cell that ended in this process a log may still be open.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)

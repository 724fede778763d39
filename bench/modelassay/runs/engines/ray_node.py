"""What runs on a node of a Ray cluster: a worker of the run, started and listened to. Pickled by value, so it imports nothing of ours.

The worker's standard input is held open as long as the task lives: whoever ends the task, or its node's Ray, ends the worker,
which gives its cell back.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path


def describe(manifest: str) -> dict[str, str]:
    """Return what a node has: host, python, ray, code (a digest of modelassay's sources, "" without it), manifest (of that file)."""
    import ray

    path = Path(manifest)
    try:
        seen = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        seen = ""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"host": platform.node(), "python": python, "ray": ray.__version__, "code": sources(), "manifest": seen}


def sources() -> str:
    """Return a digest of the modelassay that this Python imports, "" where it has none."""
    spec = importlib.util.find_spec("modelassay")
    if spec is None or spec.origin is None:
        return ""
    digest, top = hashlib.sha256(), Path(spec.origin).parent
    for path in sorted(top.rglob("*.py")):
        digest.update(f"{path.relative_to(top)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def work(words: list[str]) -> tuple[int, str]:
    """Run one worker to its end; return its exit code and the last that it said."""
    environment = {**os.environ, "MODELASSAY_LIFELINE": "stdin"}
    command = [sys.executable, "-m", "modelassay.cli", *words]
    said: collections.deque[str] = collections.deque(maxlen=20)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said.extend(line.strip() for line in process.stderr if line.strip() and not line.startswith("run directory: "))
        code = process.wait()
    return code, said[-1] if said else f"ended with code {code}"


def carry(words: list[str], manifest: bytes, cell: str, parts: dict[str, bytes]) -> tuple[int, str, dict[str, bytes]]:
    """Run one cell in a folder of this node, which begins with ``parts``; return its exit code, last words and files."""
    try:
        with tempfile.TemporaryDirectory(prefix="modelassay-") as name:
            folder = Path(name)
            (folder / "run.json").write_bytes(manifest)
            own = folder / "cells" / cell
            unpack(own, parts)
            code, said = work(["run", name, "--cells", cell, *words])
            return code, said, pack(own)
    except OSError as error:
        return 6, f"{platform.node()}: {error.filename or tempfile.gettempdir()}: {error.strerror or error}", {}


def pack(folder: Path) -> dict[str, bytes]:
    """Return the files of a cell by their paths within it; temporary ones are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix not in {".new", ".part"}}


def unpack(folder: Path, parts: dict[str, bytes]) -> None:
    """Write a cell's files, each whole or not at all and its logs last, since they say what the others are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(parts, key=lambda name: (name.endswith(".jsonl"), name)):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise OSError(f"{name} is no path within a cell")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.part")
        draft.write_bytes(parts[name])
        draft.replace(path)

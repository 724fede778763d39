"""A suite over the torch-free experiment, and the command line run on it in processes of its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelassay.recording.log import read_cell
from modelassay.storage.sealed import sealed_json, unseal
from support.warm_server import LIGHT, WITH_MODELS, warm_server

REPOSITORY = Path(__file__).parents[2]

SUITE = """\
suite: walk
experiment: toy
question: Where does the walk end?
profiles:
  embedded: {steps: 24, pause_ms: 3.0}
matrix:
  model: [zoo:base, zoo:child]
  seed: [0, 1]
claims:
  - {id: near-zero, source: made up, metric: final, published: 0.0, tolerance: 5, profile: embedded}
  - {id: far-away, source: made up, metric: final, published: 900, tolerance: 5, profile: embedded}
  - {id: elsewhere, source: made up, metric: final, published: 0.0, tolerance: 5, profile: embedded}
"""


def write_suite(folder: Path, text: str = SUITE) -> Path:
    path = folder / "walk.yaml"
    path.write_text(text)
    return path


def environ(**extra: str) -> dict[str, str]:
    """The environment of a child process: this checkout's packages and the toy, one thread."""
    paths = [str(REPOSITORY / name) for name in ("bench", "kernels", "tests")]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a run in this process has set the second
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **threads, **extra}


def start(*arguments: str | Path, **popen: Any) -> subprocess.Popen[str]:
    """Start the command line, with SIGINT as a terminal gives it: a shell's background jobs ignore it, and so would their children."""
    command = [sys.executable, "-m", "modelassay.cli", *map(str, arguments)]
    popen.setdefault("env", environ())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
    finally:
        signal.signal(signal.SIGINT, before)


def modelassay(
    *arguments: str | Path, timeout_s: float = 300, loaded: tuple[str, ...] = LIGHT, **popen: Any
) -> tuple[int, str, str]:
    """Run the command line to its end: exit code, stdout, stderr.

    It is a fork of a process with the modules ``loaded`` where that changes nothing for it, else a process of its own.
    """
    env = popen.get("env") or environ()
    if popen.keys() <= {"cwd", "env"} and (server := warm_server(loaded, environ)) is not None and server.fits(env):
        folder = str(popen.get("cwd") or Path.cwd())
        code, *read = server.run([*map(str, arguments)], environ=env, folder=folder, timeout_s=timeout_s)
        out, err = (io.TextIOWrapper(io.BytesIO(content)).read() for content in read)
        return code, out, err
    process = start(*arguments, **popen)
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def modelassay_with_models(*arguments: str | Path, **popen: Any) -> tuple[int, str, str]:
    """`modelassay`, as a fork of a process that has also imported what models take."""
    return modelassay(*arguments, loaded=WITH_MODELS, **popen)


def only_run(root: Path) -> Path:
    (manifest,) = root.glob("*/run.json")
    return manifest.parent


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what run.json says, as its own writer would have written it."""
    manifest = unseal((run / "run.json").read_bytes())
    change(manifest)
    (run / "run.json").write_bytes(sealed_json(manifest, by_lines=True))


def metrics_of(run: Path) -> dict[tuple[str, str, str], float]:
    """Every metric of a run under its unit key."""
    return {
        (cell.name, metric["name"], str(sorted(metric["labels"].items()))): metric["value"]
        for cell in sorted((run / "cells").iterdir())
        for metric in read_cell(cell).metrics
    }


def facts_of(run: Path, kind: str) -> list[Any]:
    """What a run of one cell recorded as facts of ``kind``."""
    (cell,) = (run / "cells").iterdir()
    return [fact["value"] for fact in read_cell(cell).facts if fact["fact"] == kind]

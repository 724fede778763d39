"""What many cells and many records cost: `check` of 4,096 cells, `show` of a million metrics, and a thousand trivial cells.

::

    python tests/benchmarks/bench_load.py [--metrics 1000000] [--cells 1000]

Each command runs in a process of its own; its wall time, processor time and peak memory are printed. Of the cells' own
processes, which are forked from a server, the processor time is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
for name in ("bench", "tests"):
    sys.path.insert(0, str(REPOSITORY / name))

from modelassay.recording.log import Log  # noqa: E402
from support.toy_suite import environ  # noqa: E402


def suite(folder: Path, name: str, matrix: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        f"suite: {name}\nexperiment: toy\nquestion: How long does it take?\n"
        f"profiles:\n  embedded: {{model: zoo:base, steps: 1, timed: false}}\nmatrix:\n  max_cells: 4096\n{matrix}"
    )
    return path


def timed(title: str, *arguments: str | Path) -> None:
    """Run the command line once and print what it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "modelassay.cli", *map(str, arguments)]
    process = subprocess.Popen(command, env=environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    print(f"{title:44} exit {process.returncode}  wall {wall:6.2f} s  processor {usage.ru_utime + usage.ru_stime:6.2f} s"
          f"  memory {usage.ru_maxrss / 1024:5.0f} MB", flush=True)  # fmt: skip


def fill(run: Path, num_metrics: int) -> None:
    """Give the only cell of a run a log of so many metrics instead of its own."""
    (cell,) = (run / "cells").iterdir()
    (cell / "attempt-1.jsonl").unlink()
    log, rng = Log(cell / "attempt-1.jsonl", cell=cell.name, attempt=1, resumed_at=0), random.Random(0)
    for step in range(num_metrics):
        labels = {"step": step, "role": "qkvo"[step % 4], "verbose": False}
        log.append("metric", {"name": "value", "value": rng.gauss(0.0, 1.0), "labels": labels})
    log.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
    log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", type=int, default=1_000_000)
    parser.add_argument("--cells", type=int, default=1_000)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-load-"))
    runs = folder / "runs"
    try:
        rates = [number / 100 for number in range(1, 65)]
        checked = {
            "check, 64 x 64 cells": f"  seed: {[*range(64)]}\n  rate: {rates}\n",
            "check, an axis of 4,096 values": f"  seed: {[*range(4096)]}\n",
            "check, an axis of 15,000 values (refused)": f"  seed: {[*range(15_000)]}\n",
            "check, 2,000 of 3,000 excluded": f"  seed: {[*range(3000)]}\n  exclude: "
            + json.dumps([{"seed": number} for number in range(2000)]) + "\n",
        }  # fmt: skip
        for title, matrix in checked.items():
            timed(title, "check", suite(folder, "checked", matrix))
        timed("run, one cell", "run", suite(folder, "large", "  seed: [0]\n"), "--into", runs / "large")
        fill(runs / "large", asked.metrics)
        cells = suite(folder, "small", f"  seed: {[*range(asked.cells)]}\n")
        timed(f"show, a run of {asked.metrics:,} metrics", "show", runs / "large")
        timed(f"report, a run of {asked.metrics:,} metrics", "report", runs / "large")
        timed("show, the runs beside it", "show", "--runs", runs)
        timed("run --plan, beside it", "run", suite(folder, "large", "  seed: [0]\n"), "--plan", "--runs", runs)
        timed(f"run --jobs 2, {asked.cells:,} trivial cells", "run", cells, "--jobs", "2", "--into", runs / "small")
        timed("show, that run", "show", runs / "small")
        timed("run, nothing left to do", "run", runs / "small")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

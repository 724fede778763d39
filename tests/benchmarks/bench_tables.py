"""What reading a large run costs: `show`, `report` and `compare` of a run of a million metrics, or of a million units.

::

    nice -n -10 python tests/benchmarks/bench_tables.py [--records 1000000] [--kind metric|microbatch] [--cells 1] [--repeats 5]

Each command runs in a process of its own; medians of its wall time, processor time and peak memory are printed: of the first
reader, who writes the tables beside the logs, of later ones, and of readers of a run whose folder cannot be written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
for name in ("bench", "tests"):
    sys.path.insert(0, str(REPOSITORY / name))

from modelassay.recording.log import Log  # noqa: E402
from support.toy_suite import environ  # noqa: E402


def run_of(folder: Path, num_cells: int) -> None:
    """Make a run of the toy experiment in ``folder`` with so many cells."""
    suite = folder.with_suffix(".yaml")
    suite.write_text(
        "suite: large\nexperiment: toy\nquestion: How long does it take?\n"
        "profiles:\n  embedded: {model: zoo:base, steps: 1, timed: false}\n"
        f"matrix:\n  max_cells: 4096\n  seed: {[*range(num_cells)]}\n"
    )
    command = [sys.executable, "-m", "modelassay.cli", "run", str(suite), "--into", str(folder)]
    subprocess.run(command, env=environ(), check=True, capture_output=True)


def fill(folder: Path, kind: str, num_records: int, *, changed: bool) -> None:
    """Give each cell of a run a log of so many records of ``kind`` in all instead of its own."""
    rng, cells = random.Random(0), sorted((folder / "cells").iterdir())
    for cell in cells:
        for path in cell.glob("attempt-*"):
            path.unlink()
        log = Log(cell / "attempt-1.jsonl", cell=cell.name, attempt=1, resumed_at=0)
        for step in range(num_records // len(cells)):
            labels = {"step": step, "role": "qkvo"[step % 4], "verbose": False}
            if kind == "metric":
                value = rng.gauss(0.0, 1.0)
                log.append(
                    "metric", {"name": "value", "value": value * (1.0 + (changed and step % 10 == 0)), "labels": labels}
                )
            else:
                host_ns = round(1e6 * rng.lognormvariate(0.0, 0.1) * (1.2 if changed else 1.0))
                log.append("microbatch", {"stage": "forward", "index": step, "host_ns": host_ns, "at_us": 1000 * step, "tokens": 512,
                                          "bytes": 1 << 20, "labels": {"role": "qkvo"[step % 4]}})  # fmt: skip
        if kind != "metric":
            log.append("metric", {"name": "value", "value": 0.5, "labels": {"step": 0}})  # what the analysis asks for
        log.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
        log.close()


def measured(*arguments: str | Path) -> tuple[float, float, float, float]:
    """Run the command line once: its exit code, wall and processor seconds, peak memory in MB."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "modelassay.cli", *map(str, arguments)]
    process = subprocess.Popen(command, env=environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    return process.returncode, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def report(title: str, repeats: int, *arguments: str | Path, before: Callable[[], None] = lambda: None) -> None:
    rows = []
    for _ in range(repeats):
        before()
        rows.append(measured(*arguments))
    exits, wall, processor, memory = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"{title:40} exit {exits:.0f}  wall {wall:6.2f} s  processor {processor:6.2f} s  memory {memory:5.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("metric", "microbatch"), default="metric")
    parser.add_argument("--cells", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-tables-"))
    runs = [folder / "base", folder / "candidate"]
    try:
        for run in runs:
            run_of(run, asked.cells)
            fill(run, asked.kind, asked.records, changed=run is runs[1])
        size = sum(path.stat().st_size for path in runs[0].glob("cells/*/*.jsonl"))
        print(json.dumps({**vars(asked), "log_mb": round(size / 1e6, 1)}))

        def forget() -> None:
            for run in runs:
                shutil.rmtree(run / "tables", ignore_errors=True)

        commands: dict[str, tuple[str | Path, ...]] = {
            "show": ("show", runs[0]), "report": ("report", runs[0], "--into", folder / "report.html"),
            "report --markdown": ("report", runs[0], "--markdown", "--into", folder / "report.md"),
            "compare": ("compare", *runs),
        }  # fmt: skip
        for title, arguments in commands.items():
            report(f"{title}, first", asked.repeats, *arguments, before=forget)
            report(f"{title}, later", asked.repeats, *arguments)
        kept = sum(path.stat().st_size for path in runs[0].glob("tables/*"))
        print(f"tables: {kept / 1e6:.1f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

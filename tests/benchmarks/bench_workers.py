"""What it costs to share a run: from a free slot to a running cell, cells a second of one and of eight workers, `--jobs 2` against 1.

::

    nice -n -10 python tests/benchmarks/bench_workers.py [--cells 200] [--rounds 3]

Cells are walks that sleep nowhere. The gap is the time between the last line of one cell and the birth of the next one's log, of one
worker that runs one cell at a time. Figures are medians of rounds, with the lowest and the highest; other processes of the machine
are in them, so that its load is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
for name in ("bench", "tests"):
    sys.path.insert(0, str(REPOSITORY / name))

from support.toy_suite import environ  # noqa: E402


def made(folder: Path, num_cells: int, steps: int) -> Path:
    """A run of which nothing has begun."""
    suite = folder / "load.yaml"
    suite.write_text(
        "suite: load\nexperiment: toy\nquestion: How long does it take?\n"
        f"profiles:\n  embedded: {{model: zoo:base, steps: {steps}, eval_every: 1000, checkpoint_every: 1000, timed: false}}\n"
        f"matrix:\n  max_cells: 4096\n  seed: {list(range(num_cells))}\n"
    )
    run = folder / f"run-{time.monotonic_ns()}"
    command("run", suite, "--make", "--into", run).wait()
    return run


def command(*arguments: str | Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "modelassay.cli", *map(str, arguments)]
    return subprocess.Popen(words, env=environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds(run: Path, *, workers: int, jobs: int) -> float:
    """From the start of so many workers to the end of the last."""
    began = time.perf_counter()
    processes = [command("run", run, "--worker", "--jobs", str(jobs)) for _ in range(workers)]
    codes = [process.wait() for process in processes]
    assert codes == [0] * workers, codes
    return time.perf_counter() - began


def gaps_ms(run: Path) -> list[float]:
    """Between each cell's last line and the next one's log, where one worker ran them in turn."""
    logs = list(run.glob("cells/*/attempt-1.jsonl"))
    shown = subprocess.run(["stat", "--format=%.9W", *map(str, logs)], capture_output=True, text=True, check=True)
    born = sorted(zip(map(float, shown.stdout.split()), logs, strict=True))
    return [1e3 * (later - earlier.stat().st_mtime) for (_, earlier), (later, _) in zip(born, born[1:], strict=False)]


def row(name: str, values: list[float], unit: str) -> dict[str, object]:
    middle, low, high = statistics.median(values), min(values), max(values)
    print(f"{name:52} {middle:8.3g} {unit:12} [{low:.3g}, {high:.3g}]", flush=True)
    return {"name": name, "median": middle, "lowest": low, "highest": high, "unit": unit, "rounds": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    num = options.cells
    gaps, rates_1, rates_8, ratios = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(options.rounds):
            run = made(folder, num, 1)
            rates_1.append(num / seconds(run, workers=1, jobs=1))
            gaps.append(statistics.median(gaps_ms(run)))
            rates_8.append(num / seconds(made(folder, num, 1), workers=8, jobs=1))
            one, two = (seconds(made(folder, 16, 10_000), workers=1, jobs=jobs) for jobs in (1, 2))
            ratios.append(two / one)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rows = [
        row("from a free slot to a running cell", gaps, "ms"),
        row(f"one worker, {num} trivial cells", rates_1, "cells/s"),
        row(f"eight workers, {num} trivial cells", rates_8, "cells/s"),
        row("--jobs 2 against --jobs 1, 16 cells of one core", ratios, "of the time"),
    ]
    if options.into is not None:
        options.into.write_text(
            json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

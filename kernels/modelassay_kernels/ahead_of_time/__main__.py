"""Write what the kernels compile to: ``python -m modelassay_kernels.ahead_of_time --write kernels/RESOURCES.md``.

With ``--triton FOLDER`` (``pip install --target FOLDER --no-deps triton==3.6.0``) also for that version, in a process of its own.
Takes a quarter of an hour a version on one core; Triton keeps what it has compiled. ``--case "attention, D = 128"`` compiles only what
has that in its name, and writes over those rows of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelassay_kernels.ahead_of_time.bounds import all_rows
from modelassay_kernels.ahead_of_time.pretended import CARDS
from modelassay_kernels.ahead_of_time.report import markdown, with_rows

BEFORE = Path(__file__).parents[2] / "benchmarks" / "results" / "resources-e2ac8b4.json"


def measure(capabilities: Sequence[int], among: str = "") -> list[dict[str, Any]]:
    """Return the rows of the Triton that is installed."""
    import triton  # noqa: PLC0415 - only where triton is

    return [asdict(row) | {"triton": triton.__version__} for row in dict.fromkeys(all_rows(capabilities, among))]


def measure_with(folder: Path, capabilities: Sequence[int], among: str = "") -> list[dict[str, Any]]:
    """Return the rows of the Triton in a folder.

    Raises:
        CalledProcessError: it could not compile them.
    """
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache")) / folder.name
    command = [
        sys.executable,
        "-m",
        "modelassay_kernels.ahead_of_time",
        "--json",
        "--capability",
        *map(str, capabilities),
        "--case",
        among,
    ]
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def main() -> int:
    """Print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m modelassay_kernels.ahead_of_time", description=__doc__)
    parser.add_argument("--capability", type=int, nargs="+", choices=tuple(CARDS), default=tuple(CARDS))
    parser.add_argument("--triton", type=Path, metavar="FOLDER", action="append", default=[], help="another version")
    parser.add_argument("--case", default="", metavar="TEXT", help="only calls whose name holds this")
    parser.add_argument("--json", action="store_true", help="print the rows of the installed version")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page is written")
    options = parser.parse_args()
    rows = measure(options.capability, options.case)
    for folder in options.triton:
        rows += measure_with(folder, options.capability, options.case)
    if options.json:
        json.dump(rows, sys.stdout)
        return 0
    if options.case and options.write is not None:
        options.write.write_text(with_rows(options.write.read_text(), rows))
        return 0
    page = markdown(rows, json.loads(BEFORE.read_text()) if BEFORE.exists() else ())
    if options.write is None:
        print(page, end="")
    else:
        options.write.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Time every kernel against its peers: ``python -m modelassay_kernels.benchmarking --results FOLDER``.

Runs the benchmarks of a GPU where torch can use one, else those of the processor (``--device`` asks for either), and writes
``FOLDER/<device>.json``, which holds rows of that device alone. Other arguments go to pytest, and a run narrowed by some prints its times and writes nothing:
``python -m modelassay_kernels.benchmarking -k bottom_k``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from modelassay_kernels.benchmarking.results import short_name, write_results

PACKAGE = Path(__file__).parents[1]


class Failures:
    """A pytest plug-in that keeps the first line of what went wrong, by `short_name`."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a failure of any phase of a benchmark."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(report.longrepr) if crash is None else str(crash.message)
            self.reasons[short_name(report.nodeid)] = next(iter(message.splitlines()), "failed")


def pytest_arguments(kind: str, extra: Sequence[str]) -> list[str]:
    """Return how pytest is called: the same in a checkout and in an installed package, whatever plug-ins are installed."""
    plugins = ("pytest_benchmark.plugin", "modelassay_kernels.benchmarking.measure", "no:cacheprovider")
    arguments = ["-c", os.devnull, f"--rootdir={PACKAGE}", "--import-mode=importlib", "-o", "python_files=benchmark.py"]
    for plugin in plugins:
        arguments += ["-p", plugin]
    arguments += ["-m", "gpu" if kind == "cuda" else "not gpu"]
    arguments += ["-W", "ignore:Failed to initialize NumPy:UserWarning"]
    return [*arguments, *extra, *(str(path) for path in sorted(PACKAGE.glob("*/benchmark.py")))]


def main() -> int:
    """Run the benchmarks and return pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m modelassay_kernels.benchmarking", description=__doc__)
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where <device>.json is written")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default=default, help=f"whose benchmarks run (here {default})"
    )
    options, extra = parser.parse_known_args()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    failures = Failures()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "times.json"
        status = pytest.main(
            [f"--benchmark-json={report}", *pytest_arguments(options.device, extra)], plugins=[failures]
        )
        # Also after a failure: the failed are listed without a time, the others keep theirs.
        if options.results is not None and not extra and report.exists() and report.stat().st_size > 0:
            print(write_results(json.loads(report.read_text()), failures.reasons, options.results, options.device))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())

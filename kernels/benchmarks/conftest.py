"""What all kernel benchmarks share: a check before any timing, rates from declared bytes, results as small text.

``--save-results NAME`` writes ``results/NAME.json``: the rows of the operations that ran replace theirs, others stay.
Needs torch, pytest-benchmark and modelassay_kernels.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

_ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the results file."""
    parser.addoption("--save-results", metavar="NAME", help="write results/NAME.json beside the benchmarks")


def pytest_configure(config: pytest.Config) -> None:
    """Start with no rows."""
    config.stash[_ROWS] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the results, but only of a session in which every check passed."""
    name = session.config.getoption("--save-results")
    rows = session.config.stash[_ROWS]
    if not name or not rows or exitstatus:
        return
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    operations = {row["operation"] for row in rows}
    if path.exists():
        kept = json.loads(path.read_text())["rows"]
        rows = [row for row in kept if row["operation"] not in operations] + rows
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"environment": {json.dumps(environment())},\n "rows": [\n  {lines}\n]}}\n')


def environment() -> dict[str, Any]:
    """Return what the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


class Measure:
    """Times one provider of one operation; every round of it is preceded by one sample of its ceiling."""

    def __init__(self, benchmark: Any, rows: list[dict[str, Any]]) -> None:
        self._benchmark = benchmark
        self._rows = rows

    def __call__(
        self,
        operation: str,
        provider: str,
        run: Callable[[], Any],
        *,
        check: Callable[[Any], None],
        size_bytes: int,
        ceiling: Callable[[], float],
        before: Callable[[], None] = lambda: None,
        rounds: int = 15,
        **facts: Any,
    ) -> None:
        """Check the result of one run, then time ``rounds`` of them.

        ``size_bytes`` are the bytes the operation cannot avoid to move; ``ceiling`` measures the GB/s at which this machine
        moves them, and is interleaved with the rounds, untimed; ``before`` prepares a round, untimed. ``facts`` are kept.
        """
        before()
        check(run())
        ceilings: list[float] = []

        def prepare() -> None:
            ceilings.append(ceiling())
            before()

        self._benchmark.group = f"{operation} {facts.get('dtype', '')}"
        self._benchmark.pedantic(run, setup=prepare, rounds=rounds)
        times = self._benchmark.stats.stats.sorted_data
        median_s = statistics.median(times)
        gbps = size_bytes / median_s / 1e9
        ceiling_gbps = statistics.median(ceilings)
        row = {
            "operation": operation,
            "provider": provider,
            **facts,
            "size_bytes": size_bytes,
            "rounds": rounds,
            "median_ms": round(median_s * 1e3, 3),
            "best_ms": round(times[0] * 1e3, 3),
            "gbps": round(gbps, 2),
            "ceiling_gbps": round(ceiling_gbps, 2),
            "share_of_ceiling": round(gbps / ceiling_gbps, 3),
        }
        self._benchmark.extra_info.update(row)
        self._rows.append(row)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """Give a benchmark its clock."""
    return Measure(benchmark, request.config.stash[_ROWS])

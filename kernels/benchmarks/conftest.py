"""What all kernel benchmarks share: a check before any timing, and rates from declared bytes.

Needs pytest-benchmark alone. `collect_results.py` makes ``results/<device>.json`` of what the benchmarks leave.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest


class Measure:
    """Times one provider of one operation; every round of it is preceded by one sample of its ceiling."""

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

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
        median_s = self._benchmark.stats.stats.median
        gbps = size_bytes / median_s / 1e9
        ceiling_gbps = statistics.median(ceilings)
        self._benchmark.extra_info |= {
            "operation": operation,
            "provider": provider,
            **facts,
            "size_bytes": size_bytes,
            "gbps": round(gbps, 2),
            "ceiling_gbps": round(ceiling_gbps, 2),
            "share_of_ceiling": round(gbps / ceiling_gbps, 3),
        }


@pytest.fixture
def measure(benchmark: Any) -> Measure:
    """Give a benchmark its clock."""
    return Measure(benchmark)

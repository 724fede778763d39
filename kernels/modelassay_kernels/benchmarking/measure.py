"""A pytest plug-in: the fixture ``measure``, which checks before it times and gives rates by declared work."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from modelassay_kernels.benchmarking.memory import extra_device_bytes
from modelassay_kernels.native import native_available
from modelassay_kernels.work import Work

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
"""What a benchmark that runs anywhere is parametrized by."""

WARM_UP_RUNS = 3
"""Before the first round on a GPU: kernels are compiled and clocks have risen."""


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, for a run without the project's settings."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def require(device: str, *, native: bool = False, free_bytes: int = 0) -> None:
    """Skip a benchmark that cannot run here: no CUDA device, too little of its memory, or no compiled extension."""
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device; torch.cuda.is_available() is False")
        if torch.cuda.mem_get_info()[0] < free_bytes:
            pytest.skip(f"needs {free_bytes / 1e9:.0f} GB of free device memory")
    elif native and not native_available():
        pytest.skip("needs the compiled extension")


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
        work: Work,
        ceiling: Callable[[], float],
        device: str = "cpu",
        before: Callable[[], None] = lambda: None,
        rounds: int = 15,
        **facts: Any,
    ) -> None:
        """Check the result of one run, then time ``rounds`` of them.

        ``ceiling`` measures the GB/s at which this machine moves the bytes of ``work``, and is interleaved with the rounds,
        untimed; ``before`` prepares a round, untimed. ``facts`` are kept. On a GPU a round ends when its device work does,
        and the memory that a run takes beside what was there is kept too.
        """
        before()
        check(run())
        timed = run
        if device == "cuda":
            timed = _synchronised(run)
            for _ in range(WARM_UP_RUNS):
                timed()
            facts["extra_memory_bytes"] = extra_device_bytes(run)
        ceilings: list[float] = []

        def prepare() -> None:
            ceilings.append(ceiling())
            before()

        self._benchmark.group = f"{operation} {facts.get('dtype', '')} {device}"
        self._benchmark.pedantic(timed, setup=prepare, rounds=rounds)
        gbps = work.bytes / self._benchmark.stats.stats.median / 1e9
        ceiling_gbps = statistics.median(ceilings)
        self._benchmark.extra_info |= {
            "operation": operation,
            "provider": provider,
            "device": device,
            **facts,
            "size_bytes": work.bytes,
            "flops": work.flops,
            "gbps": round(gbps, 2),
            "ceiling_gbps": round(ceiling_gbps, 2),
            "share_of_ceiling": round(gbps / ceiling_gbps, 3),
            "ceiling_rounds_gbps": [float(f"{sample:.4g}") for sample in ceilings],
        }


def _synchronised(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``run``, ending when the device's work does."""

    def run_to_the_end() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return run_to_the_end


@pytest.fixture
def measure(benchmark: Any) -> Measure:
    """Give a benchmark its clock."""
    return Measure(benchmark)

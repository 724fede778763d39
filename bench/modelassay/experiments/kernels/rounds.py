"""Rounds of all providers on one workload: inputs anew for each call, its probes beside it, its result checked after the clock.

A provider's times are handed out only at the end, if none of its checked results was wrong.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from modelassay.machine.peaks import Probe, ceiling, implausible
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.intervals import median_interval
from modelassay_kernels.benchmarking.workload import Absent, Provider, Run, Tensors, Workload

FLUSH_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
"""Written to empty the caches: several times the last level of the processors and cards that we know."""

Word = Literal["done", "wrong", "failed", "absent", "implausible"]


@dataclass(kw_only=True)
class Series:
    """What became of one provider."""

    outcome: Word = "done"
    reason: str = ""
    seconds: list[tuple[int, float, float]] = field(default_factory=list)
    """Round, host's time, and device's, which on a CPU is the same."""

    def estimate(self) -> Estimate:
        """Return the median time of a call in seconds."""
        return median_interval([device_s for _, _, device_s in self.seconds], unit="s")

    def end(self, outcome: Word, reason: str) -> None:
        """Keep no time of a provider that is not done."""
        self.outcome, self.reason, self.seconds = outcome, reason.splitlines()[0][:300] if reason else outcome, []


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When rounds are enough; see `Params`."""

    min_rounds: int
    max_rounds: int
    half_width: float
    checked: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the rounds of one workload told."""

    series: dict[str, Series]
    probes: dict[str, list[float]]
    """GB/s."""
    products: dict[str, list[float]]
    """TFLOP/s."""


class Call:
    """Calls providers of one workload, each time on new inputs."""

    def __init__(self, workload: Workload, *, device: str, cache: str, seed: int) -> None:
        self._workload, self._device, self._cache, self._seed = workload, device, cache, seed
        self._flush = torch.empty(FLUSH_BYTES[device] if cache == "cold" else 0, dtype=torch.uint8, device=device)

    def settle(self, inputs: Tensors) -> None:
        """Bring the caches into their named state."""
        if self._cache == "cold":
            self._flush.add_(1)
        else:
            for tensor in inputs:
                tensor.sum()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def inputs(self) -> Tensors:
        """Return new inputs."""
        self._seed += 1000
        return self._workload.fill(self._seed)

    def time(self, run: Run, inputs: Tensors) -> tuple[Any, float, float]:
        """Return the result, the host's seconds and the device's."""
        self.settle(inputs)
        if self._device != "cuda":
            start_s = time.perf_counter()
            result = run(*inputs)
            took_s = time.perf_counter() - start_s
            return result, took_s, took_s
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start_s = time.perf_counter()
        start.record()
        result = run(*inputs)
        end.record()
        torch.cuda.synchronize()  # of all streams: a provider may have work on one of its own
        took_s = time.perf_counter() - start_s
        return result, took_s, float(start.elapsed_time(end)) / 1e3

    def check(self, inputs: Tensors, before: Tensors, result: Any, provider: Provider) -> None:
        """Compare a result with float64, and the inputs with what they were.

        Raises:
            AssertionError: it is wrong, or the provider changed its inputs.
        """
        self._workload.check(before, result, secrets.randbits(31), provider.loose)
        if not all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True)):
            raise AssertionError("the provider wrote to its inputs")


def measure(workload: Workload, rule: Rule, *, device: str, cache: str, seed: int, wanted: Callable[[str], bool],
            memory: Callable[[Tensor], Mapping[str, Probe]], products: Mapping[str, Probe],
            progress: Callable[[int], None] = lambda number: None) -> Result:  # fmt: skip
    """Time all providers of a workload round by round.

    Args:
        workload: what is computed.
        rule: when to stop.
        device: ``cpu`` or ``cuda``.
        cache: ``cold`` or ``hot``.
        seed: of the inputs.
        wanted: whether a provider is timed; the others are not listed.
        memory: probes of memory over a buffer as large as the inputs; brought into the same state before each.
        products: probes of products.
        progress: told the number of each round.
    """
    call = Call(workload, device=device, cache=cache, seed=seed)
    runs: dict[str, Run] = {}
    result = Result(series={}, probes={}, products={})
    for name, provider in workload.providers.items():
        if wanted(name):
            series = result.series[name] = Series()
            if (run := _admitted(call, provider, series)) is not None:
                runs[name] = run
    buffer = torch.empty(sum(x.nbytes for x in call.inputs()), dtype=torch.uint8, device=device).fill_(1)
    probes = memory(buffer)
    result.probes.update({name: [] for name in probes})
    result.products.update({name: [] for name in products})
    checks: dict[str, int] = dict.fromkeys(runs, 0)
    for number in range(rule.max_rounds):
        for name, probe in probes.items():
            call.settle((buffer,))
            result.probes[name].append(probe())
        for name, probe in products.items():
            result.products[name].append(probe())
        order = list(runs) if number % 2 == 0 else list(reversed(runs))
        for name in order:
            provider, series = workload.providers[name], result.series[name]
            # Where chance has chosen none of the rounds that always happen, the last of them is.
            last_chance = not checks[name] and number == rule.min_rounds - 1
            chosen = last_chance or secrets.randbelow(1 << 20) < rule.checked * (1 << 20)
            if _one(call, runs[name], provider, series, number, chosen=chosen):
                checks[name] += chosen
            else:
                del runs[name]
        progress(number + 1)
        if number + 1 >= rule.min_rounds and all(_narrow(result.series[name], rule) for name in runs):
            break
    _judge(workload, result)
    return result


def _admitted(call: Call, provider: Provider, series: Series) -> Run | None:
    """Return a provider's function after a right answer, on a GPU after its warm-up too."""
    try:
        run = provider.load()
        for _ in range(2):  # the first may compile; the second is of other inputs
            inputs = call.inputs()
            before = tuple(tensor.clone() for tensor in inputs)
            call.check(inputs, before, run(*inputs), provider)
    except Absent as error:
        series.end("absent", str(error))
    except AssertionError as error:
        series.end("wrong", str(error).strip())
    except Exception as error:  # noqa: BLE001 - somebody else's code: whatever it raises is its outcome
        series.end("failed", f"{type(error).__name__}: {error}")
    else:
        return run
    return None


def _one(call: Call, run: Run, provider: Provider, series: Series, number: int, *, chosen: bool) -> bool:
    """Time one call, check it if chosen, and return whether the provider stays."""
    inputs = call.inputs()
    before = tuple(tensor.clone() for tensor in inputs) if chosen else inputs
    try:
        result, host_s, device_s = call.time(run, inputs)
        if chosen:
            call.check(inputs, before, result, provider)
    except AssertionError as error:
        series.end("wrong", f"round {number}: {str(error).strip()}")
        return False
    except Exception as error:  # noqa: BLE001 - as above
        series.end("failed", f"round {number}: {type(error).__name__}: {error}")
        return False
    series.seconds.append((number, host_s, device_s))
    return True


def _narrow(series: Series, rule: Rule) -> bool:
    estimate = series.estimate()
    return estimate.has_interval and estimate.half_width <= rule.half_width


def _judge(workload: Workload, result: Result) -> None:
    """End providers that were faster than the device can be."""
    for series in result.series.values():
        if series.outcome != "done":
            continue
        seconds = series.estimate()
        for amount, samples, unit in ((workload.work.bytes / 1e9, result.probes, "GB/s"),
                                      (workload.work.flops / 1e12, result.products, "TFLOP/s")):  # fmt: skip
            if not samples or (unit == "TFLOP/s" and not workload.products):
                continue
            rate, (name, best) = rate_of(amount, seconds), ceiling(samples)
            if implausible(rate, best):
                share = rate.value / best.value
                series.end(
                    "implausible", f"{share:.3f} of the highest {unit} of the probes ({name}), above both intervals"
                )
                break


def rate_of(amount: float, seconds: Estimate, unit: str = "") -> Estimate:
    """Return amount per second, with the ends of the time's interval turned around."""
    if seconds.low is None or seconds.high is None or seconds.low <= 0:
        return Estimate(value=amount / seconds.value, n=seconds.n, unit=unit, note=seconds.note)
    return Estimate(value=amount / seconds.value, low=amount / seconds.high, high=amount / seconds.low, level=seconds.level,
                    method=seconds.method, n=seconds.n, unit=unit)  # fmt: skip

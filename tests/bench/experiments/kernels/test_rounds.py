"""What may keep a time: providers that compute anew, rightly, and no faster than the device can."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay.experiments.kernels.rounds import Result, Rule, measure
from modelassay_kernels.benchmarking.workload import Absent, Provider, Tensors, Workload, assert_near, library, normal
from modelassay_kernels.work import Work

SIZE = 1 << 12
RULE = Rule(min_rounds=6, max_rounds=8, half_width=1e-9, checked=0.2)


def workload(**providers: Callable[..., Tensor]) -> Workload:
    """The square of each of a vector's elements."""

    def check(inputs: Tensors, result: Any, seed: int, loose: float) -> None:
        assert_near(result, inputs[0].double() ** 2, 1e-6)

    return Workload(
        operation="square",
        sizes={},
        work=Work(bytes=8 * SIZE, flops=SIZE),
        fill=lambda seed: (normal(seed, "cpu", torch.float32, SIZE),),
        check=check,
        providers={name: Provider(load=lambda run=run: run) for name, run in providers.items()},
    )


def times(gbps: float = 1e9, rule: Rule = RULE, **providers: Callable[..., Tensor]) -> Result:
    return measure(workload(**providers), rule, device="cpu", cache="hot", seed=1, wanted=lambda name: True,
                   memory=lambda buffer: {"read": lambda: gbps}, products={})  # fmt: skip


def test_an_honest_provider_keeps_every_round_and_is_paired_with_others() -> None:
    result = times(one=torch.square, other=lambda x: x * x)
    for series in result.series.values():
        assert series.outcome == "done"
        assert [number for number, _, _ in series.seconds] == [*range(8)]
        assert all(host_s > 0 for _, host_s, _ in series.seconds)
    assert result.probes["read"] == [1e9] * 8


def test_a_provider_that_caches_its_output_is_wrong() -> None:
    kept: dict[int, Tensor] = {}
    result = times(cheat=lambda x: kept.setdefault(x.numel(), x * x))
    assert result.series["cheat"].outcome == "wrong"
    assert result.series["cheat"].seconds == []


def replaying(calls: int) -> Callable[[Tensor], Tensor]:
    """Compute as many calls, which is what an admission takes, and return the last result ever after."""
    results: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        if len(results) < calls:
            results.append(x * x)
        return results[-1]

    return run


def test_a_provider_that_returns_the_result_of_the_warm_up_is_wrong() -> None:
    for _ in range(5):  # which round is checked is chance; that one is, is not
        series = times(cheat=replaying(2)).series["cheat"]
        assert series.outcome == "wrong"
        assert series.reason.startswith("round ")
        assert series.seconds == []


def test_a_provider_that_skips_work_is_wrong() -> None:
    def half(x: Tensor) -> Tensor:
        return torch.cat([x[: SIZE // 2] ** 2, torch.zeros(SIZE // 2)])

    def after_admission() -> Callable[[Tensor], Tensor]:
        calls: Iterator[int] = iter(range(1000))
        return lambda x: torch.square(x) if next(calls) < 2 else half(x)

    result = times(cheat=half, late=after_admission())
    assert {series.outcome for series in result.series.values()} == {"wrong"}
    assert "differs from float64 by" in result.series["cheat"].reason


def test_a_provider_that_writes_to_its_inputs_is_wrong() -> None:
    series = times(cheat=lambda x: x.mul_(x).clone()).series["cheat"]
    assert (series.outcome, series.reason) == ("wrong", "the provider wrote to its inputs")


def test_a_rate_above_the_ceiling_is_no_number() -> None:
    series = times(gbps=1e-6, one=torch.square).series["one"]
    assert series.outcome == "implausible"
    assert "of the highest GB/s of the probes (read)" in series.reason
    assert series.seconds == []


def test_the_absent_and_the_broken_are_listed_with_their_reasons() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    def absent() -> Callable[..., Tensor]:
        return library("modelassay_no_such_library", "top_k")

    base = workload(broken=broken, one=torch.square)
    base.providers["absent"] = Provider(load=absent)  # type: ignore[index]
    result = measure(
        base, RULE, device="cpu", cache="cold", seed=1, wanted=lambda name: True, memory=lambda buffer: {}, products={}
    )
    assert result.series["broken"].reason == "RuntimeError: no such kernel"
    assert result.series["absent"].outcome == "absent"
    assert "modelassay_no_such_library" in result.series["absent"].reason
    assert result.series["one"].outcome == "done"


def test_rounds_end_when_all_intervals_are_narrow() -> None:
    wide = Rule(min_rounds=6, max_rounds=50, half_width=1e9, checked=0.2)
    assert len(times(rule=wide, one=torch.square).series["one"].seconds) == 6


def test_a_library_without_the_name_is_absent() -> None:
    with pytest.raises(Absent, match="no_such_function"):
        library("torch", "no_such_function")

"""The units of a run as timings: by case, processes apart, with their work and ceilings."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.compare import stored
from modelassay.compare.frame import Timing
from modelassay.compare.run import _unit_timings, device_of
from modelassay.compare.stored import MAX_ROUNDS, batch_medians, times_ratio
from modelassay.recording.tables import RunData

AXES = {"a": {"op": "sort"}, "b": {"op": "sort"}, "c": {"op": "sum"}}
"""Cells a and b differ in ``repeat`` alone."""


def unit(cell: str, index: int, ms: float, **more: Any) -> dict[str, Any]:
    return {"cell": cell, "stage": "forward", "index": index, "warmup": False, "reused": False, "host_ms": ms, "device_ms": None,
            "tokens": None, "bytes": 8, "flops": 10**15, "gb_per_s": None, "provider": "torch", "device": "cpu"} | more  # fmt: skip


def timings(units: list[dict[str, Any]], ceilings: dict[str, float] | None = None) -> dict[str, Timing]:
    rows = [
        {"cell": cell, "name": "ceiling_gbps", "value": value, "device": "cpu"}
        for cell, value in (ceilings or {}).items()
    ]
    schema = {"cell": pl.String, "name": pl.String, "value": pl.Float64, "device": pl.String}
    frame = pl.DataFrame(units, infer_schema_length=None).cast({"device_ms": pl.Float64, "tokens": pl.Int64})
    data = RunData(cells=pl.DataFrame(), units=frame, metrics=pl.DataFrame(rows, schema=schema), profile="p")
    return _unit_timings(data, AXES)


def rounds(timing: Timing) -> list[list[float]]:
    return [np.asarray(process).tolist() for process in timing.processes_ns]


def test_units_are_gathered_by_case_with_processes_apart() -> None:
    units = [
        unit(cell, index, ms)
        for cell, base in (("a", 1.0), ("b", 2.0), ("c", 3.0))
        for index, ms in enumerate((base, base + 0.5))
    ]
    units += [unit("a", 8, 99.0, warmup=True), unit("b", 9, 99.0, reused=True), unit("c", 9, 0.0)]
    told = timings(units, {"a": 20.0, "b": 30.0})
    assert [*told] == ["stage=forward, op=sort, provider=torch", "stage=forward, op=sum, provider=torch"]
    both, alone = told.values()
    assert rounds(both) == [[1e6, 1.5e6], [2e6, 2.5e6]]
    assert both.ceilings == [20.0, 20.0, 30.0, 30.0]
    assert both.labels == {"stage": "forward", "op": "sort", "provider": "torch", "cell": "op=sort"}
    assert rounds(alone) == [[3e6, 3.5e6, 1.0]]  # no time is below a nanosecond
    assert alone.ceilings == ()
    assert both.work == {"size_bytes": 8.0, "flops": 1e15}


def test_a_single_unit_is_no_timing_and_two_cells_of_one_case_are() -> None:
    assert timings([unit("a", 0, 1.0), unit("c", 0, 1.0)]) == {}
    (told,) = timings([unit("a", 0, 1.0), unit("b", 0, 2.0), unit("c", 0, 1.0)]).values()
    assert rounds(told) == [[1e6], [2e6]]


def test_device_times_stand_before_the_host_s_and_say_where() -> None:
    (told,) = timings([unit("a", i, 5.0, device_ms=1.0) for i in range(2)]).values()
    assert (told.where, rounds(told)) == ("cuda", [[1e6, 1e6]])
    (told,) = timings([unit("a", i, 5.0, device="cuda") for i in range(2)]).values()
    assert (told.where, rounds(told)) == ("cuda", [[5e6, 5e6]])


def test_the_work_of_twenty_thousand_large_units_does_not_run_over() -> None:
    (told,) = timings([unit("a", index, 1.0) for index in range(20_000)]).values()
    assert told.work == {"size_bytes": 8.0, "flops": 1e15}


def test_batches_of_neighbours_have_an_odd_size_and_few_stay_as_they_are() -> None:
    values = np.random.default_rng(0).normal(size=9_001)
    batched = batch_medians(values)
    assert batched.tolist() == [np.median(values[at : at + 5]) for at in range(0, 9_000, 5)]
    assert batch_medians(values[:MAX_ROUNDS]) is not None
    assert np.array_equal(batch_medians(values[:MAX_ROUNDS]), values[:MAX_ROUNDS])
    assert batch_medians(values[: MAX_ROUNDS + 1]).size == (MAX_ROUNDS + 1) // 3


def test_the_interval_of_many_rounds_is_a_fifth_wider_than_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8,000 lognormal rounds, in batches and one by one: the same ratio. The density of the median of five at its middle is
    30/16 of the law's, so that the widths are as sqrt(5) / (30/16) = 1.19."""
    rng = np.random.default_rng(3)
    sides = [Timing(case="a", labels={}, processes_ns=[np.exp(rng.normal(0, 0.2, 8_000)).tolist()]) for _ in range(2)]
    batched = times_ratio(*sides)
    monkeypatch.setattr(stored, "MAX_ROUNDS", 8_000)
    whole = times_ratio(*sides)
    assert batched.value == whole.value
    assert batched.low is not None
    assert batched.high is not None
    assert whole.low is not None
    assert whole.high is not None
    assert (batched.high - batched.low) / (whole.high - whole.low) == pytest.approx(5**0.5 / (30 / 16), abs=0.15)


@pytest.mark.parametrize(("about", "device"), [
    ({"gpu": {"devices": [{"name": "H200"}, {"name": "H200"}]}, "cpu": {"model": "x"}}, "2 x H200"),
    ({"gpu": {"devices": [{"name": "H200"}]}}, "H200"),
    ({"gpu": {"devices": [], "reason": "no NVML"}, "cpu": {"model": "EPYC", "logical_cores": 2, "usable_cores": 2}}, "EPYC, 2 cores"),
    ({"gpu": None, "cpu": {"model": None, "logical_cores": 2}}, None),
    ({}, None),
])  # fmt: skip
def test_the_device_is_what_the_environment_tells(about: dict[str, Any], device: str | None) -> None:
    assert device_of(about) == device

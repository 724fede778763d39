"""The meter: unit numbers, failed units, labels, order of device timings."""

from pathlib import Path
from typing import Any

import pytest

from modelassay.recording.log import Log, read_cell
from modelassay.recording.meter import Meter


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0)


def test_units_are_numbered_per_stage_and_carry_their_work(log: Log) -> None:
    meter = Meter(log)
    for stage in ("a", "b", "a"):
        with meter.microbatch(stage, tokens=4, bytes=8, flops=16, warmup=stage == "b", layer=2):
            pass
    meter.settle()
    cell = read_cell(log.path.parent)
    assert [(u["stage"], u["index"], u.get("warmup", False)) for u in cell.microbatches] == [
        ("a", 0, False), ("b", 0, True), ("a", 1, False),
    ]  # fmt: skip
    assert all(
        (u["tokens"], u["bytes"], u["flops"], u["labels"]) == (4, 8, 16, {"layer": 2}) for u in cell.microbatches
    )
    assert {line["stage"] for line in cell.others if line["kind"] == "memory"} == {"a", "b"}


def test_time_is_the_time_inside(log: Log) -> None:
    meter = Meter(log)
    import time

    with meter.microbatch("sleep"):
        time.sleep(0.02)
    unit = read_cell(log.path.parent).microbatches[0]
    assert unit["host_ns"] >= 20_000_000


def test_failed_unit_leaves_no_time(log: Log) -> None:
    meter = Meter(log)
    with pytest.raises(ValueError, match="boom"), meter.microbatch("a"):
        raise ValueError("boom")
    with meter.microbatch("a"):
        pass
    assert [u["index"] for u in read_cell(log.path.parent).microbatches] == [0]


def test_counters_continue_from_a_checkpoint(log: Log) -> None:
    meter = Meter(log, counters={"a": 7})
    with meter.microbatch("a"):
        pass
    assert read_cell(log.path.parent).microbatches[0]["index"] == 7


def test_label_that_is_a_column_is_refused(log: Log) -> None:
    with pytest.raises(ValueError, match="label 'stage' is a column"):
        Meter(log).metric("x", 1.0, stage="a")


def test_same_metric_twice_is_refused_when_it_is_written(log: Log) -> None:
    meter = Meter(log)
    meter.metric("x", 1.0, step=1)
    meter.metric("x", 1.0, step=2)
    with pytest.raises(ValueError, match="metric x {'step': 1} was recorded before"):
        meter.metric("x", 2.0, step=1)
    assert [m["labels"] for m in read_cell(log.path.parent).metrics] == [{"step": 1}, {"step": 2}]


class FakeEvent:
    """Stands in for a CUDA event on a machine without one: finishes when the test says so."""

    finished = False
    clock_ms = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.clock_ms += 1.5
        self.at_ms = FakeEvent.clock_ms

    def query(self) -> bool:
        return FakeEvent.finished

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Any) -> float:
        return float(end.at_ms - self.at_ms)


class FakeCuda:
    """The four functions of torch.cuda that the meter calls."""

    Event = FakeEvent
    resets = 0

    @staticmethod
    def max_memory_allocated() -> int:
        return 1000

    @staticmethod
    def reset_peak_memory_stats() -> None:
        FakeCuda.resets += 1


def test_device_units_wait_for_their_events_and_keep_their_order(log: Log) -> None:
    meter = Meter(log)
    meter._cuda = FakeCuda
    FakeEvent.finished = False
    for stage in ("a", "b"):
        with meter.microbatch(stage):
            pass
    assert read_cell(log.path.parent).microbatches == []
    meter.metric("x", 1.0)  # a metric comes after the units it was computed from, and waits for no device
    assert read_cell(log.path.parent).metrics == []
    meter.settle()
    cell = read_cell(log.path.parent)
    assert [(u["stage"], u["seq"], u["device_ns"]) for u in cell.microbatches] == [
        ("a", 0, 1_500_000),
        ("b", 1, 1_500_000),
    ]
    assert cell.metrics[0]["seq"] == 2
    peaks = [(line["stage"], line["device_peak_bytes"]) for line in read_cell(log.path.parent).others]
    assert peaks == [("a", 1000), ("b", 1000)]

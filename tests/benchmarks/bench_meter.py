"""What the meter costs per unit, beside the write it cannot do without: the mark is 10 us."""

import os
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from modelassay.recording.log import Log, read_cell
from modelassay.recording.meter import Meter

UNITS = 1_000
ROUNDS = 50


@pytest.mark.parametrize("labels", [{}, {"layer": 3, "role": "q"}], ids=["bare", "labelled"])
def test_microbatch(benchmark: BenchmarkFixture, tmp_path: Path, labels: dict[str, str | int]) -> None:
    """An empty unit: two clock readings, one line of JSON, one write; the fsync every second included."""
    meter = Meter(Log(tmp_path / "attempt-1.jsonl", cell=tmp_path.name, attempt=1, resumed_at=0))

    def units() -> None:
        for _ in range(UNITS):
            with meter.microbatch("unit", tokens=4, bytes=8, **labels):
                pass

    benchmark.pedantic(units, rounds=ROUNDS, warmup_rounds=2)
    assert len(read_cell(tmp_path).microbatches) == UNITS * (ROUNDS + 2)
    tell(benchmark)


def test_bare_write(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """The floor: as many bytes by os.write alone."""
    line = b'{"seq":123,"kind":"microbatch","stage":"unit","tokens":4,"bytes":8,"index":123,"host_ns":1234,"at_us":123456}\n'
    fd = os.open(tmp_path / "floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def writes() -> None:
        for _ in range(UNITS):
            os.write(fd, line)

    benchmark.pedantic(writes, rounds=ROUNDS, warmup_rounds=2)
    os.close(fd)
    tell(benchmark)


def tell(benchmark: BenchmarkFixture) -> None:
    benchmark.extra_info["us_per_unit"] = round(benchmark.stats.stats.median / UNITS * 1e6, 2)
    print(f"{benchmark.name}: {benchmark.extra_info['us_per_unit']} us per unit")

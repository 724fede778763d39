"""The committed form of kernel benchmarks."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "kernels/benchmarks/collect_results.py"

OUTCOMES = """<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="1" tests="4">
<testcase classname="kernels.benchmarks.bench_a" name="test_b[1]"/>
<testcase classname="kernels.benchmarks.bench_a" name="test_b[2]"><failure message="wrong by 3&#10;more">trace</failure></testcase>
<testcase classname="kernels.benchmarks.bench_c" name="test_d"><error message="out of memory">trace</error></testcase>
<testcase classname="kernels.benchmarks.bench_e" name="test_skipped"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def _timed(name: str, median_s: float) -> dict[str, object]:
    stats = {"median": median_s, "q1": median_s / 2, "q3": median_s * 2, "min": median_s / 4, "max": 1.0, "rounds": 7}
    return {"fullname": f"kernels/benchmarks/{name}", "stats": stats, "extra_info": {"bytes": 64}, "params": None}


REPORT = {
    "machine_info": {"node": "somebodys-host", "cpu": {"brand_raw": "x"}},
    "commit_info": {"id": "24c8e358", "dirty": True},
    "datetime": "2026-11-20T10:00:00+00:00",
    "benchmarks": [_timed("bench_a.py::test_b[2]", 1e-6), _timed("bench_a.py::test_b[1]", 123.456789e-6)],
}


@pytest.fixture
def collect() -> ModuleType:
    spec = importlib.util.spec_from_file_location("collect_results", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_are_small_and_failures_carry_no_time(collect: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "outcomes.xml").write_text(OUTCOMES)
    written = collect.write_results(REPORT, collect.failures_in(tmp_path / "outcomes.xml"), tmp_path / "results")
    text = written.read_text()
    results = json.loads(text)
    assert results["benchmarks"] == [
        {"name": "bench_a::test_b[1]", "median_us": 123.46, "q1_us": 61.728, "q3_us": 246.91, "min_us": 30.864,
         "rounds": 7, "bytes": 64},
        {"name": "bench_a::test_b[2]", "failed": "wrong by 3"},
        {"name": "bench_c::test_d", "failed": "out of memory"},
    ]  # fmt: skip
    assert written.stem == results["machine"]["device"]
    assert (results["machine"]["commit"], results["machine"]["dirty"]) == ("24c8e358", True)
    assert "somebodys-host" not in text
    assert len(text.splitlines()) == 4 + len(results["benchmarks"]) + 1

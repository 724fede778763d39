"""Stored results compared: files of benchmarks of one device, and of a second one, which is synthetic and says so."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelassay.commands.compare import compare_stored
from modelassay.compare.frame import Source, Timing
from modelassay.compare.load import read_benchmarks
from modelassay.compare.run import device_of
from modelassay.compare.stored import compare, judge, times_ratio
from modelassay.errors import FileError, UsageError
from modelassay.statistics.estimate import Estimate

BASE_US = {"modelassay": 100.0, "torch": 250.0}


def record(
    provider: str, us: float, *, operation: str = "op", size_bytes: int = 10**6, seed: int = 0, ceiling: float = 20.0
) -> dict[str, Any]:
    rng = np.random.default_rng([seed, len(provider)])
    rounds = (us * np.exp(rng.normal(0, 0.01, size=15))).tolist()
    return {"name": f"{operation}::{provider}", "operation": operation, "provider": provider, "device": "cpu", "dtype": "F32", "size_bytes": size_bytes,
            "flops": 0, "median_us": float(np.median(rounds)), "rounds_us": rounds, "ceiling_rounds_gbps": [ceiling] * 15}  # fmt: skip


def write(
    path: Path,
    records: list[dict[str, Any]],
    *,
    device: str = "cpu-here",
    synthetic: bool = False,
    torch: str = "2.13.0",
) -> str:
    machine = {"device": device, "torch": torch} | ({"synthetic": True} if synthetic else {})
    path.write_text(json.dumps({"machine": machine, "benchmarks": records}))
    return str(path)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write(tmp_path / "base.json", [record(provider, us) for provider, us in BASE_US.items()])


def compared(*references: str, root: Path) -> dict[str, Any]:
    document = compare_stored(references, root, relative=0.05, figure=None).data
    json.dumps(document, allow_nan=False)
    return dict(document)


def test_a_ratio_is_candidate_over_base_with_its_verdict(base: str, tmp_path: Path) -> None:
    changed = [record("modelassay", 130.0, seed=1), record("torch", 250.0, seed=1)]
    document = compared(base, write(tmp_path / "new.json", changed), root=tmp_path)
    cells = {cell["labels"]["provider"]: cell for cell in document["cells"]}
    assert cells["modelassay"]["verdict"] == "slower"
    assert cells["modelassay"]["ratio"]["value"] == pytest.approx(1.3, abs=0.03)
    assert cells["torch"]["verdict"] == "same"
    assert document["verdict"] == "slower"


def test_where_the_same_code_took_another_time_the_machine_changed(base: str, tmp_path: Path) -> None:
    loaded = write(tmp_path / "new.json", [record("modelassay", 130.0, seed=1), record("torch", 375.0, seed=1)])
    for cell in compared(base, loaded, root=tmp_path)["cells"]:
        assert cell["measure"] == "time"
        assert (cell["verdict"], cell["why"][:42]) == ("inconclusive", "torch, the same code on both sides, took 1")


def test_another_version_of_the_reference_tells_nothing_of_the_machine(base: str, tmp_path: Path) -> None:
    newer = write(
        tmp_path / "new.json", [record("modelassay", 150.0, seed=1), record("torch", 375.0, seed=1)], torch="2.14.0"
    )
    assert {cell["verdict"] for cell in compared(base, newer, root=tmp_path)["cells"]} == {"slower"}


def test_across_devices_shares_of_the_peak_and_speeds_over_the_reference_are_compared(
    base: str, tmp_path: Path
) -> None:
    """100 us for 1 MB are 10 GB/s: half of a peak of 20; 2 us are 500 GB/s, a quarter of 2,000."""
    fast = [record("modelassay", 2.0, seed=1, ceiling=2000.0), record("torch", 10.0, seed=1, ceiling=2000.0)]
    document = compared(
        base, write(tmp_path / "h200.json", fast, device="synthetic-card", synthetic=True), root=tmp_path
    )
    cells = {(cell["labels"]["provider"], cell["measure"]): cell for cell in document["cells"]}
    assert all(cell["base_ms"] is None for cell in cells.values())
    assert cells["modelassay", "share of peak"]["ratio"]["value"] == pytest.approx(0.5, rel=0.02)
    assert cells["modelassay", "share of peak"]["verdict"] == "slower"
    assert cells["modelassay", "speed over reference"]["ratio"]["value"] == pytest.approx(5.0 / 2.5, rel=0.02)
    assert cells["modelassay", "speed over reference"]["verdict"] == "faster"
    levels = {(level["labels"]["provider"], level["source"]): level for level in document["levels"]}
    assert levels["modelassay", 0]["share_of_peak"]["value"] == pytest.approx(0.5, rel=0.02)
    assert levels["modelassay", 0]["reference"] == "torch"
    assert any("synthetic: nobody measured it" in note for note in document["notes"])


def test_other_work_is_refused_and_what_is_missing_is_listed(base: str, tmp_path: Path) -> None:
    other = [
        record("modelassay", 100.0, size_bytes=2 * 10**6),
        record("torch", 250.0),
        {"name": "op::x", "operation": "op", "failed": "wrong"},
    ]
    document = compared(base, write(tmp_path / "other.json", other), root=tmp_path)
    assert [row["differs"] for row in document["refused"]] == [["size_bytes: 1000000 against 2000000"]]
    assert [(row["what"], row["why"]) for row in document["ignored"]] == [("op::x", "it failed: wrong")]
    assert len(document["cells"]) == 1


def test_nothing_in_common_is_a_usage_error_that_says_why(base: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", [record("modelassay", 1.0, operation="another")])
    with pytest.raises(UsageError, match="nothing that can be compared: .*only the base has it"):
        compare_stored((base, other), tmp_path, relative=0.05, figure=None)


def test_what_pytest_benchmark_writes_is_read(tmp_path: Path) -> None:
    plain = {"machine_info": {"cpu": {"brand_raw": "AMD EPYC", "count": 2}, "python_version": "3.11"}, "datetime": "now", "commit_info": {},
             "benchmarks": [{"name": "test_a[1]", "fullname": "t.py::test_a[1]", "params": {"n": 1}, "extra_info": {}, "stats": {"data": [1e-3, 2e-3]}},
                            {"name": "test_b", "fullname": "t.py::test_b", "params": None, "extra_info": {}, "stats": {"median": 1.0}}]}  # fmt: skip
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(plain))
    source = read_benchmarks(path)
    (timing,) = source.timings.values()
    assert (source.device, timing.labels) == ("AMD EPYC, 2 cores", {"benchmark": "t.py::test_a[1]", "n": 1})
    assert timing.processes_ns[0] == pytest.approx([1e6, 2e6])
    assert [why for _, why in source.left_out] == ["its rounds were not kept (--benchmark-save-data)"]


def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"benchmarks": 3}')
    with pytest.raises(FileError, match="x.json: not the JSON of pytest-benchmark"):
        read_benchmarks(tmp_path / "x.json")


def test_three_processes_a_side_are_judged_by_their_medians() -> None:
    """Within a process all rounds are equal; between processes they are 10 % apart: only the medians' spread is a spread."""

    def timing(medians: list[float]) -> Timing:
        return Timing(case="a", labels={}, processes_ns=[[median] * 50 for median in medians])

    ratio = times_ratio(timing([90.0, 100.0, 110.0]), timing([95.0, 105.0, 115.0]))
    assert ratio.method.startswith("Welch")
    assert judge(ratio, 0.05, lower_is_faster=True)[0] == "inconclusive"


def test_an_interval_that_touches_the_effect_is_inconclusive() -> None:
    for value, low, high, verdict in (
        (1.0, 0.96, 1.04, "same"),
        (1.1, 1.04, 1.2, "inconclusive"),
        (0.8, 0.7, 0.94, "faster"),
    ):
        assert judge(Estimate(value=value, low=low, high=high), 0.05, lower_is_faster=True)[0] == verdict


def test_copies_of_one_file_are_the_same(base: str, tmp_path: Path) -> None:
    document = compared(base, base, root=tmp_path)
    assert {cell["ratio"]["value"] for cell in document["cells"]} == {1.0}
    assert copy.deepcopy(document)["verdict"] == "same"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0, "fast", None, True])
def test_a_round_that_is_no_time_leaves_its_benchmark_out(bad: Any, base: str, tmp_path: Path) -> None:
    changed = [record("modelassay", 100.0), record("torch", 250.0)]
    changed[0]["rounds_us"][3] = bad
    document = compared(base, write(tmp_path / "bad.json", changed), root=tmp_path)
    assert [cell["labels"]["provider"] for cell in document["cells"]] == ["torch"]
    assert ("op::modelassay", "a round of it took no positive, finite time") in [
        (row["what"], row["why"]) for row in document["ignored"]
    ]


def test_a_ceiling_that_is_no_rate_gives_no_share(tmp_path: Path) -> None:
    source = read_benchmarks(Path(write(tmp_path / "a.json", [record("modelassay", 100.0, ceiling=0.0)])))
    (timing,) = source.timings.values()
    assert not timing.ceilings


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"benchmarks": [], "machine_info": null}', '{"machine": {}, "benchmarks": [3]}',
     '{"machine_info": {}, "benchmarks": [{"name": "a"}]}', '{"machine_info": {}, "benchmarks": [{"name": "a", "stats": {"data": "x"}}]}',
     '{"machine_info": {}, "benchmarks": [{"name": "a", "stats": {"data": [[1]]}}]}', "\ufeff{}"],
)  # fmt: skip
def test_other_peoples_files_are_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(FileError, match=r"x\.json: not the JSON of pytest-benchmark"):
        read_benchmarks(path)


def test_a_file_without_benchmarks_has_nothing_to_compare(base: str, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text('{"machine_info": {}, "benchmarks": []}')
    with pytest.raises(UsageError, match="nothing that can be compared"):
        compare_stored((base, str(tmp_path / "none.json")), tmp_path, relative=0.05, figure=None)


def test_files_that_do_not_name_their_machine_are_not_of_one_device(tmp_path: Path) -> None:
    path = tmp_path / "anonymous.json"
    path.write_text('{"machine_info": {"cpu": {}}, "benchmarks": [{"name": "a", "stats": {"data": [1, 2, 3]}}]}')
    assert read_benchmarks(path).device is None
    with pytest.raises(UsageError, match="milliseconds tell nothing"):
        compare_stored((str(path), str(path)), tmp_path, relative=0.05, figure=None)


def test_a_file_that_is_not_there_is_named(base: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: no such file; name a JSON file of benchmarks or a run"):
        compare_stored((base, str(tmp_path / "none.json")), tmp_path, relative=0.05, figure=None)


def test_runs_of_two_suites_are_told_apart_first(tmp_path: Path) -> None:
    runs = [
        Source(name=name, path=name, kind="run", suite=name, profile="smoke", left_out=[("a", "x")])
        for name in ("kernels", "spectral")
    ]
    with pytest.raises(
        UsageError, match="kernels and spectral have nothing that can be compared: suite: kernels against spectral"
    ):
        compare(runs, relative=0.05)


def test_a_run_is_of_its_gpu_or_of_its_processor() -> None:
    processor = {"model": "AMD EPYC", "usable_cores": 2, "logical_cores": 2}
    assert device_of({"gpu": {"devices": [{"name": "NVIDIA H200"}]}, "cpu": processor}) == "NVIDIA H200"
    assert device_of({"gpu": {"devices": [], "reason": "no NVML"}, "cpu": processor}) == "AMD EPYC, 2 cores"
    assert device_of({"gpu": None, "cpu": {"model": None}}) is None

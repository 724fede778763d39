"""The committed form of kernel benchmarks, and how they are run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import modelassay_kernels
from modelassay_kernels import native_available
from modelassay_kernels.benchmarking.results import GPU_FACTS, describe_machine, gpu_facts, summarise, write_results

if native_available():
    from modelassay_kernels import _native

PACKAGE = Path(modelassay_kernels.__file__).parent
OPERATIONS = {path.parent.name for path in PACKAGE.glob("*/work.py")}
FAILURES = {"op::test_b[2]": "wrong by 3", "other::test_d": "out of memory"}


def timed(name: str, median_s: float) -> dict[str, Any]:
    stats = {"median": median_s, "q1": median_s / 2, "q3": median_s * 2, "min": median_s / 4, "max": 1.0, "rounds": 3}
    data = [median_s * 2, median_s / 4, median_s]
    return {"fullname": f"op/benchmark.py::{name}", "stats": {**stats, "data": data}, "extra_info": {"bytes": 64}}


REPORT = {
    "machine_info": {"node": "somebodys-host", "cpu": {"brand_raw": "x"}},
    "commit_info": {"id": "24c8e358", "dirty": True},
    "datetime": "2026-11-20T10:00:00+00:00",
    "benchmarks": [timed("test_b[2]", 1e-6), timed("test_b[1]", 123.456789e-6)],
}


def test_results_are_small_and_failures_carry_no_time(tmp_path: Path) -> None:
    written = write_results(REPORT, FAILURES, tmp_path / "results", "cpu")
    text = written.read_text()
    results = json.loads(text)
    times = {"median_us": 123.46, "q1_us": 61.728, "q3_us": 246.91, "min_us": 30.864}
    assert results["benchmarks"] == [
        {"name": "op::test_b[1]", **times, "rounds": 3, "bytes": 64, "rounds_us": [246.91, 30.864, 123.46]},
        {"name": "op::test_b[2]", "failed": "wrong by 3"},
        {"name": "other::test_d", "failed": "out of memory"},
    ]
    assert written.stem == results["machine"]["device"]
    assert (results["machine"]["commit"], results["machine"]["dirty"]) == ("24c8e358", True)
    assert "somebodys-host" not in text
    assert len(text.splitlines()) == 4 + len(results["benchmarks"]) + 1


def test_rows_of_a_cpu_never_land_in_the_file_of_a_gpu(tmp_path: Path) -> None:
    row = timed("test_b[1]", 1e-6)
    report = {
        **REPORT,
        "benchmarks": [{**row, "extra_info": {"device": "cuda"}}, {**row, "extra_info": {"device": "cpu"}}],
    }
    with pytest.raises(ValueError, match=r"op::test_b\[1\] ran on cuda; a file of cpu holds no such row"):
        write_results(report, {}, tmp_path, "cpu")
    assert not list(tmp_path.iterdir())


def test_the_record_of_a_cpu_names_its_instruction_sets() -> None:
    machine = describe_machine("cpu")
    assert machine["torch_instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert machine["instruction_set"] == (_native.instruction_sets()[0] if native_available() else None)


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        ("570.124.06, 700.00, Enabled, 345, 2619, 1980, 2619, [N/A]",
         ["570.124.06", 700.0, "Enabled", 345.0, 2619.0, 1980.0, 2619.0, None]),
        ("No devices were found", [None] * 8),
    ],
)  # fmt: skip
def test_the_record_of_a_gpu_has_its_limits(
    answer: str, facts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi is a stand-in that notes what it is asked."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\necho "$@" >"{tmp_path}/asked"\necho "{answer}"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert list(gpu_facts("1234").values()) == facts
    assert list(gpu_facts("1234")) == list(GPU_FACTS)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[0] == f"--query-gpu={','.join(GPU_FACTS.values())}"
    assert asked[-1] == "--id=GPU-1234"
    monkeypatch.setenv("PATH", "/nowhere")
    assert set(gpu_facts("").values()) == {None}


def test_rounds_keep_the_order_of_time() -> None:
    first, second = summarise(REPORT, {})
    assert first["rounds_us"] == [246.91, 30.864, 123.46]
    assert second["rounds_us"] == [2.0, 0.25, 1.0]


def run(*arguments: str, cwd: Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelassay_kernels.benchmarking", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environ)


def test_every_operation_has_benchmarks_on_both_devices_wherever_it_is_installed(tmp_path: Path) -> None:
    assert {"attention", "bottom_k", "cross_entropy", "layer_std", "softmax_ggn"} == OPERATIONS
    done = run("--collect-only", "-q", "-m", "gpu or not gpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    nodes = [line for line in done.stdout.splitlines() if "::" in line]
    for device in ("cpu", "cuda"):
        assert {node.split("/")[0] for node in nodes if device in node.partition("[")[2]} == OPERATIONS


@pytest.mark.nightly
def test_a_benchmark_runs_from_check_to_committed_form(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTEST_ADDOPTS": "-k modelassay-cpu-F32"}  # arguments would leave the results alone
    assert run("--results", str(tmp_path), cwd=tmp_path, environ=environ).returncode == 0
    (path,) = tmp_path.glob("*.json")
    (record,) = json.loads(path.read_text())["benchmarks"]
    assert record["name"] == "softmax_ggn::test_softmax_ggn[modelassay-cpu-F32]"
    assert len(record["rounds_us"]) == len(record["ceiling_rounds_gbps"]) == record["rounds"] == 9
    assert record["size_bytes"] == 3 * 4 * record["shape"][0] * record["shape"][1]

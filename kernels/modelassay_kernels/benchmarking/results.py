"""The small text of a run of benchmarks that is committed: ``<device>.json``.

Keeps what a reader compares (median and quartiles, what the benchmark declared in ``extra_info``), every round in the order
of time, with its ceiling's sample, for a later comparison of two runs, and where it was measured; drops host names. A
benchmark that failed is listed with its failure and without a time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def summarise(report: dict[str, Any], failures: dict[str, str]) -> list[dict[str, Any]]:
    """Return one small record per benchmark, by name.

    Args:
        report: what ``--benchmark-json`` wrote; its times are in seconds.
        failures: names as by `short_name`, to the first line of what went wrong.

    >>> stats = {"median": 2e-6, "q1": 1e-6, "q3": 3e-6, "min": 1e-6, "rounds": 3, "data": [3e-6, 1e-6, 2e-6]}
    >>> timed = {"fullname": "op/benchmark.py::test_b[1]", "params": {"n": 1}, "extra_info": {"bytes": 8}}
    >>> summarise({"benchmarks": [timed | {"stats": stats}]}, {"op::test_b[2]": "wrong"}) # doctest: +NORMALIZE_WHITESPACE
    [{'name': 'op::test_b[1]', 'median_us': 2.0, 'q1_us': 1.0, 'q3_us': 3.0, 'min_us': 1.0, 'rounds': 3, 'bytes': 8,
      'rounds_us': [3.0, 1.0, 2.0]},
     {'name': 'op::test_b[2]', 'failed': 'wrong'}]
    """
    records: list[dict[str, Any]] = [{"name": name, "failed": reason} for name, reason in failures.items()]
    for benchmark in report["benchmarks"]:
        name = short_name(benchmark["fullname"])
        if name in failures:
            continue
        stats = benchmark["stats"]
        times = {f"{key}_us": _microseconds(stats[key]) for key in ("median", "q1", "q3", "min")}
        rounds_us = [_microseconds(seconds) for seconds in stats["data"]]
        facts = {"rounds": stats["rounds"], **benchmark["extra_info"], "rounds_us": rounds_us}
        records.append({"name": name, **times, **facts})
    return sorted(records, key=lambda record: str(record["name"]))


def short_name(node: str) -> str:
    """Return the operation's folder and the test of pytest's name of a benchmark.

    >>> short_name("kernels/modelassay_kernels/bottom_k/benchmark.py::test_linear[cpu-F32]")
    'bottom_k::test_linear[cpu-F32]'
    """
    file, _, test = node.partition("::")
    return f"{Path(file).parent.name}::{test}"


def _microseconds(seconds: float) -> float:
    return float(f"{seconds * 1e6:.5g}")


GPU_FACTS = {
    "driver": "driver_version",
    "power_limit_w": "power.limit",
    "ecc": "ecc.mode.current",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "max_sm_clock_mhz": "clocks.max.sm",
    "max_memory_clock_mhz": "clocks.max.mem",
    "mig": "mig.mode.current",
}
"""What is kept of a GPU, by the name that nvidia-smi has for it: a time without its limits means little."""


def describe_machine(kind: str) -> dict[str, Any]:
    """Return what decides a time on a device of this machine, ``cpu`` or ``cuda``; ``device`` names the results' file.

    The device is the first GPU, with its driver, limits and clocks as nvidia-smi tells them now, or the processor with its number
    of usable cores and the instruction sets that the kernels and torch choose on it; what is not known is null.
    """
    import torch

    from modelassay_kernels.native import instruction_set

    if kind == "cuda":
        device = torch.cuda.get_device_name(0)
        facts = gpu_facts(str(getattr(torch.cuda.get_device_properties(0), "uuid", "")))
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        device = f"cpu {_processor()} {cores} cores"
        facts = {"instruction_set": instruction_set(), "torch_instruction_set": torch.backends.cpu.get_cpu_capability()}
    return {
        "device": re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        **facts,
    }


def gpu_facts(uuid: str) -> dict[str, Any]:
    """Return `GPU_FACTS` of the GPU with this identifier, numbers as such; null what the driver does not tell."""
    choice = [f"--id={uuid if uuid.startswith('GPU-') else f'GPU-{uuid}'}"] if uuid else []
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FACTS.values())}", "--format=csv,noheader,nounits", *choice]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(GPU_FACTS)
    values = [value.strip() for value in next(iter(told.splitlines()), "").split(",")]
    if len(values) != len(GPU_FACTS):
        return dict.fromkeys(GPU_FACTS)
    return {name: _fact(name, value) for name, value in zip(GPU_FACTS, values, strict=True)}


def _fact(name: str, value: str) -> str | float | None:
    if value.startswith("[") or value == "N/A":  # [N/A], [Not Supported]
        return None
    try:
        return value if name == "driver" else float(value)
    except ValueError:
        return value


def write_results(report: dict[str, Any], failures: dict[str, str], folder: Path, kind: str) -> Path:
    """Write ``<device>.json`` in ``folder``, one line per benchmark so that a difference is a line, and return it.

    Raises:
        ValueError: a row is of another kind of device, ``cpu`` or ``cuda``, than the file.
    """
    for benchmark in report["benchmarks"]:
        device = benchmark["extra_info"].get("device", kind)
        if device != kind:
            raise ValueError(f"{short_name(benchmark['fullname'])} ran on {device}; a file of {kind} holds no such row")
    commit = report["commit_info"]
    machine = describe_machine(kind) | {
        "commit": commit.get("id"),
        "dirty": commit.get("dirty"),
        "utc": report["datetime"],
    }
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False) for record in summarise(report, failures))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine['device']}.json"
    path.write_text(f'{{\n "machine": {json.dumps(machine)},\n "benchmarks": [\n  {lines}\n ]\n}}\n')
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None

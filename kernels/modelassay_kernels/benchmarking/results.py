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


def describe_machine() -> dict[str, Any]:
    """Return what decides a time on this machine; ``device`` names the results' file.

    The device is the first GPU where torch can use one, else the processor with its number of usable cores.
    """
    import torch

    gpu = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name(0) if gpu else f"cpu {_processor()} {cores} cores"
    return {
        "device": re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def write_results(report: dict[str, Any], failures: dict[str, str], folder: Path) -> Path:
    """Write ``<device>.json`` in ``folder``, one line per benchmark so that a difference is a line, and return it."""
    commit = report["commit_info"]
    machine = describe_machine() | {"commit": commit.get("id"), "dirty": commit.get("dirty"), "utc": report["datetime"]}
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

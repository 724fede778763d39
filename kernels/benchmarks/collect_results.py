"""Turns pytest-benchmark's report into the small text that is committed: ``results/<device>.json``.

Keeps what a reader compares (median and quartiles, what the benchmark declared in ``extra_info``) and where it was
measured; drops host names and raw samples. A benchmark that failed is listed with its failure and without a time.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def summarise(report: dict[str, Any], failures: dict[str, str]) -> list[dict[str, Any]]:
    """Return one small record per benchmark, by name.

    Args:
        report: what ``--benchmark-json`` wrote; its times are in seconds.
        failures: ``bench_file::test[parameters]`` to the first line of what went wrong.

    >>> stats = {"median": 2e-6, "q1": 1e-6, "q3": 3e-6, "min": 1e-6, "rounds": 5}
    >>> timed = {"fullname": "kernels/benchmarks/bench_a.py::test_b[1]", "params": {"n": 1}, "extra_info": {"bytes": 8}}
    >>> summarise({"benchmarks": [timed | {"stats": stats}]}, {"bench_a::test_b[2]": "wrong"})
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'name': 'bench_a::test_b[1]', 'median_us': 2.0, 'q1_us': 1.0, 'q3_us': 3.0, 'min_us': 1.0, 'rounds': 5, 'bytes': 8},
     {'name': 'bench_a::test_b[2]', 'failed': 'wrong'}]
    """
    records: list[dict[str, Any]] = [{"name": name, "failed": reason} for name, reason in failures.items()]
    for benchmark in report["benchmarks"]:
        name = _short_name(benchmark["fullname"])
        if name in failures:
            continue
        times = {f"{key}_us": float(f"{benchmark['stats'][key] * 1e6:.5g}") for key in ("median", "q1", "q3", "min")}
        records.append({"name": name, **times, "rounds": benchmark["stats"]["rounds"], **benchmark["extra_info"]})
    return sorted(records, key=lambda record: str(record["name"]))


def failures_in(outcomes: Path) -> dict[str, str]:
    """Read the failed benchmarks and the first lines of their failures from pytest's JUnit file."""
    failures = {}
    for case in ElementTree.parse(outcomes).iter("testcase"):
        for trouble in (*case.findall("failure"), *case.findall("error")):
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            failures[name] = (trouble.get("message") or trouble.tag).splitlines()[0]
    return failures


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


def write_results(report: dict[str, Any], failures: dict[str, str], folder: Path = RESULTS) -> Path:
    """Write ``<device>.json`` in ``folder``, one line per benchmark so that a difference is a line, and return it."""
    commit = report["commit_info"]
    machine = describe_machine() | {"commit": commit.get("id"), "dirty": commit.get("dirty"), "utc": report["datetime"]}
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False) for record in summarise(report, failures))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine['device']}.json"
    path.write_text(f'{{\n "machine": {json.dumps(machine)},\n "benchmarks": [\n  {lines}\n ]\n}}\n')
    return path


def _short_name(fullname: str) -> str:
    file, _, test = fullname.partition("::")
    return f"{Path(file).stem}::{test}"


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


if __name__ == "__main__":
    times, outcomes = sys.argv[1:]
    print(write_results(json.loads(Path(times).read_text()), failures_in(Path(outcomes))))

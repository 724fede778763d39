"""Runs and benchmark files read into one frame."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelassay.compare.frame import Source, Timing, printed
from modelassay.errors import FileError, UsageError
from modelassay.recording.tables import RunData, flatten
from modelassay.runs.directory import Run, find_run, open_run, require_run
from modelassay.storage.files import open_regular

MAX_BYTES: Final = 1 << 30
MEASURED: Final = frozenset({
    "median_us", "q1_us", "q3_us", "min_us", "rounds", "gbps", "ceiling_gbps", "share_of_ceiling", "ceiling_rounds_gbps",
    "rounds_us", "extra_memory_bytes", "growth_kib_by_length", "name", "failed", "device", "size_bytes", "flops",
})  # fmt: skip
"""Of a benchmark's facts those that it measured, or that say where or how much; the others say which case it is."""
_UNIT_COLUMNS: Final = frozenset({
    "cell", "stage", "index", "warmup", "reused", "host_ms", "device_ms", "tokens", "bytes", "flops", "gb_per_s",
})  # fmt: skip


_WORK: Final = {"tokens": "tokens", "bytes": "size_bytes", "flops": "flops"}
_PEAK_LABELS: Final = ("shape", "dtype", "cache", "device")
_TIMES: Final = frozenset({
    "time_us", "rounds", "half_width", "peak_gbps", "peak_tflops", "ceiling_gbps", "ceiling_tflops",
})  # fmt: skip
"""Metrics of suite kernels, which its units hold in full."""


def load(reference: str, root: Path) -> Source:
    """Read a run (a path, or a name under ``root``) or a JSON file of benchmarks.

    Raises:
        UsageError: there is neither.
        FileError: a file that is not JSON of pytest-benchmark or of ``python -m modelassay_kernels.benchmarking``.
    """
    path = Path(reference)
    if path.suffix == ".json" and path.is_file():
        return read_benchmarks(path)
    if path.suffix == ".json" and find_run(reference, root) is None:
        raise UsageError(f"{reference}: no such file; name a JSON file of benchmarks or a run")
    folder = find_run(reference, root)
    return read_run(open_run(folder) if folder is not None else require_run(reference, root))


def read_benchmarks(path: Path) -> Source:
    """Read what pytest-benchmark wrote, or the short form of it that this project commits.

    Raises:
        FileError: neither.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise FileError(f"{path}: larger than {MAX_BYTES >> 30} GiB; compare a part of it")
        document = json.loads(content)
        short = "machine" in document
        machine = document["machine"] if short else _machine(document)
        records = [_plain_record(record, short=short) for record in document["benchmarks"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: not the JSON of pytest-benchmark ({type(error).__name__}: {error}); write one by "
                        "`pytest --benchmark-json FILE`, with --benchmark-save-data") from error  # fmt: skip
    timings, left_out = _timings(records)
    return Source(
        name=path.name,
        path=str(path),
        kind="benchmarks",
        device=machine.get("device"),
        synthetic=bool(machine.get("synthetic")),
        facts={name: value for name, value in machine.items() if isinstance(value, str | int | float | bool)},
        timings=timings,
        left_out=left_out,
    )


def _machine(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what pytest-benchmark itself says of the machine: its name is no part of what a time depends on."""
    about = document["machine_info"]
    cpu = about.get("cpu") or {}
    name = cpu.get("brand_raw") or about.get("machine")
    device = None if name is None else f"{name}, {cpu.get('count', '?')} cores"
    return {"device": device, "python": about.get("python_version"), "utc": document.get("datetime"),
            "commit": (document.get("commit_info") or {}).get("id")}  # fmt: skip


def _plain_record(record: Mapping[str, Any], *, short: bool) -> dict[str, Any]:
    """Return a benchmark in the short form; times in microseconds."""
    if short:
        return dict(record)
    facts = dict(record.get("extra_info") or {})
    if "operation" not in facts:
        facts = {"benchmark": record.get("fullname", record["name"]), **flatten(record.get("params") or {}), **facts}
    rounds_us = [seconds * 1e6 for seconds in record["stats"].get("data") or ()]
    return {"name": record["name"], **facts, **({"rounds_us": rounds_us} if rounds_us else {})}


def is_time(value: Any) -> bool:
    """Whether a value can be a time: a positive, finite number.

    >>> [is_time(value) for value in (0.5, 0, float("nan"), "1", True)]
    [True, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _timings(records: list[dict[str, Any]]) -> tuple[dict[str, Timing], list[tuple[str, str]]]:
    timings: dict[str, Timing] = {}
    left_out: list[tuple[str, str]] = []
    for record in records:
        name = str(record["name"])
        labels = {key: value for key, value in record.items()
                  if key not in MEASURED and isinstance(value, str | int | float) and value != ""}  # fmt: skip
        rounds_us = record.get("rounds_us")
        if "failed" in record:
            left_out.append((name, f"it failed: {record['failed']}"))
        elif rounds_us and not all(is_time(us) for us in rounds_us):
            left_out.append((name, "a round of it took no positive, finite time"))
        elif not rounds_us or len(rounds_us) < 2:
            why = (
                "one round has no spread"
                if record.get("rounds") == 1
                else "its rounds were not kept (--benchmark-save-data)"
            )
            left_out.append((name, why))
        else:
            case = printed(labels)
            if case in timings:
                left_out.append((name, "its labels do not tell it from another benchmark"))
                continue
            work: dict[str, float] = {key: record[key] for key in ("size_bytes", "flops") if key in record}
            ceilings = record.get("ceiling_rounds_gbps") or ()
            timings[case] = Timing(
                case=case,
                labels=labels,
                processes_ns=[[1e3 * us for us in rounds_us]],
                work=work,
                ceilings=ceilings
                if len(ceilings) == len(rounds_us) and work.get("size_bytes") and all(map(is_time, ceilings))
                else (),
                where=str(record.get("device", "cpu")),
            )
    return timings, left_out


def read_run(run: Run) -> Source:
    """Read a run: its units by stage and labels, the cells that differ in ``repeat`` alone as processes of one case, and its metrics."""
    data = run.data()
    names = {cell.id: cell.label for cell in run.suite.cells}
    axes = {cell.id: {name: value for name, value in cell.axes.items() if name != "repeat"} for cell in run.suite.cells}
    params = {
        printed(axes[cell.id]): flatten(cell.params.model_dump(mode="json") | {"repeat": None})
        for cell in run.suite.cells
    }
    return Source(
        name=run.folder.name,
        path=str(run.folder),
        kind="run",
        device=device_of(run.environment),
        suite=run.suite.name,
        profile=run.suite.profile,
        facts={name: version for name, version in run.environment.get("libraries", {}).items() if version},
        timings=_unit_timings(data, axes),
        metrics=_metrics(data, names),
        parameters=params,
        left_out=[
            *((names[cell], "the cell has not ended, or failed") for cell in data.missing),
            *_without_a_time(data, names),
        ],
    )


def _without_a_time(data: RunData, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what suite kernels says has no time, and why."""
    rows = []
    for row in data.facts("outcome"):
        value = row["value"]
        if isinstance(value, Mapping) and value.get("outcome") not in (None, "done"):
            about = {key: entry for key, entry in row.items() if key not in ("cell", "value")}
            rows.append((f"{names[row['cell']]} {printed(about)}", f"{value['outcome']}: {value.get('reason', '')}"))
    return rows


def device_of(environment: Mapping[str, Any]) -> str | None:
    """Return the name of a run's first GPU, without one its processor's and the cores it could use, as its environment tells them.

    >>> device_of({"gpu": {"devices": []}, "cpu": {"model": "AMD EPYC", "usable_cores": 2}})
    'AMD EPYC, 2 cores'
    """
    devices = (environment.get("gpu") or {}).get("devices") or []
    if devices and devices[0].get("name"):
        return str(devices[0]["name"])
    processor = environment.get("cpu") or {}
    name, cores = processor.get("model"), processor.get("usable_cores")
    return None if name is None else f"{name}, {cores} cores" if cores else str(name)


def _unit_timings(data: RunData, axes: Mapping[str, Mapping[str, Any]]) -> dict[str, Timing]:
    units = data.units
    if not units.height:
        return {}
    own = [column for column in units.columns if column not in _UNIT_COLUMNS | {"round", "device"}]
    peaks = _peaks(data)
    cases: dict[str, dict[str, Any]] = {}
    for row in units.filter(~units["warmup"] & ~units["reused"]).iter_rows(named=True):
        labels = {name: row[name] for name in own if row[name] is not None}
        about = {"stage": row["stage"], **{n: v for n, v in axes[row["cell"]].items() if v != row["stage"]}, **labels}
        entry = cases.setdefault(printed(about), {"labels": about | {"cell": printed(axes[row["cell"]])}, "cells": {}, "peaks": [],
                                                  "work": Counter(), "num": 0, "where": "cpu"})  # fmt: skip
        milliseconds = row["device_ms"] if row["device_ms"] is not None else row["host_ms"]
        entry["cells"].setdefault(row["cell"], []).append(max(1.0, 1e6 * milliseconds))
        entry["peaks"].append(_ceiling_gbps(peaks, row))
        if row["device_ms"] is not None or row.get("device") == "cuda":
            entry["where"] = "cuda"
        entry["work"] += Counter({_WORK[key]: row[key] for key in _WORK if row[key]})
        entry["num"] += 1
    return {
        case: Timing(case=case, labels=entry["labels"], processes_ns=[*entry["cells"].values()], where=entry["where"],
                     work={key: total / entry["num"] for key, total in entry["work"].items()},
                     ceilings=entry["peaks"] if all(entry["peaks"]) and "size_bytes" in entry["work"] else ())
        for case, entry in cases.items() if entry["num"] > 1
    }  # fmt: skip


def _peaks(data: RunData) -> dict[tuple[Any, ...], float]:
    """Return the ceilings that suite kernels measured beside its rounds, GB/s and TFLOP/s by metric, cell and labels."""
    rows = data.metrics.filter(data.metrics["name"].is_in(["ceiling_gbps", "ceiling_tflops"])).iter_rows(named=True)
    return {(row["name"], row["cell"], *(row.get(name) for name in _PEAK_LABELS)): row["value"] for row in rows}


def _ceiling_gbps(peaks: Mapping[tuple[Any, ...], float], row: Mapping[str, Any]) -> float | None:
    """Return the rate in GB/s at which a unit's bytes pass at the ceiling: of its products where they are most of the work."""
    place = (row["cell"], *(row.get(name) for name in _PEAK_LABELS))
    tflops = peaks.get(("ceiling_tflops", *place))
    if tflops is not None and row["flops"] and row["bytes"]:
        return tflops * 1e3 * float(row["bytes"]) / float(row["flops"])
    return peaks.get(("ceiling_gbps", *place))


def _metrics(data: RunData, labels: Mapping[str, str]) -> dict[tuple[str, str], float]:
    own = [column for column in data.metrics.columns if column not in ("cell", "name", "value")]
    return {  # what is a time or made of times is no number that could be equal
        (row["name"], printed({"cell": labels[row["cell"]], **{name: row[name] for name in own}})): row["value"]
        for row in data.metrics.iter_rows(named=True)
        if row["name"] not in _TIMES
    }

"""A run read into one frame: its units as timings by case, and its metrics, in seconds for a million of either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from modelassay.compare.frame import Source, Timing, printed
from modelassay.compare.metrics import metric_frame
from modelassay.recording.tables import RunData, flatten
from modelassay.runs.directory import Run

if TYPE_CHECKING:
    import polars as pl

_UNIT_COLUMNS: Final = frozenset({
    "cell", "stage", "index", "warmup", "reused", "host_ms", "device_ms", "tokens", "bytes", "flops", "gb_per_s",
})  # fmt: skip
_WORK: Final = {"tokens": "tokens", "bytes": "size_bytes", "flops": "flops"}
_PEAK_LABELS: Final = ("shape", "dtype", "cache", "device")
_TIMES: Final = frozenset({
    "time_us", "rounds", "half_width", "peak_gbps", "peak_tflops", "ceiling_gbps", "ceiling_tflops",
})  # fmt: skip
"""Metrics of suite kernels, which its units hold in full."""


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
        metrics=metric_frame(data.metrics, names, without=_TIMES),
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


def device_of(about: Mapping[str, Any]) -> str | None:
    """Return what a run's environment tells that its times depend on: the GPUs, else the processor and how much of it was used.

    >>> device_of({"gpu": {"devices": []}, "cpu": {"model": "AMD EPYC", "logical_cores": 4, "usable_cores": 2}})
    'AMD EPYC, 2 of 4 cores'
    """
    devices, cpu = (about.get("gpu") or {}).get("devices") or [], about.get("cpu") or {}
    if names := [str(device["name"]) for device in devices if device and device.get("name")]:
        return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in Counter(names).items())
    if not cpu.get("model"):
        return None
    cores, usable = cpu.get("logical_cores"), cpu.get("usable_cores")
    return f"{cpu['model']}, {usable} of {cores} cores" if usable != cores else f"{cpu['model']}, {cores} cores"


def _unit_timings(data: RunData, axes: Mapping[str, Mapping[str, Any]]) -> dict[str, Timing]:
    """Return the timings of a run by case; a case of one unit has no spread and is none."""
    if not data.units.height:
        return {}
    own = [column for column in data.units.columns if column not in _UNIT_COLUMNS | {"round", "device"}]
    peaks = _peaks(data)
    cases: dict[str, dict[str, Any]] = {}
    grouped = _grouped(data.units, axes, own)
    for at in range(grouped.height):
        row = {column.name: column[at] for column in grouped}
        labels = {name: row[name] for name in own if row[name] is not None}
        about = {"stage": row["stage"], **{n: v for n, v in axes[row["cell"]].items() if v != row["stage"]}, **labels}
        entry = cases.setdefault(printed(about), {"labels": about | {"cell": printed(axes[row["cell"]])}, "cells": {}, "peaks": [],
                                                  "work": dict.fromkeys(_WORK, 0), "num": 0, "where": "cpu"})  # fmt: skip
        times_ns = row[".ns"].to_numpy()
        entry["cells"].setdefault(row["cell"], []).append(times_ns)
        if peaks:
            devices = row["device"] if "device" in row else [None] * len(times_ns)
            shared = [row.get(name) for name in _PEAK_LABELS[:-1]]
            entry["peaks"] += [
                _ceiling_gbps(peaks, (row["cell"], *shared, device), row["bytes"], row["flops"]) for device in devices
            ]
        if row[".on_device"]:
            entry["where"] = "cuda"
        for key in _WORK:
            entry["work"][key] += row[key]
        entry["num"] += len(times_ns)
    return {
        case: Timing(case=case, labels=entry["labels"], processes_ns=[*map(np.concatenate, entry["cells"].values())], where=entry["where"],
                     work={name: entry["work"][key] / entry["num"] for key, name in _WORK.items() if entry["work"][key]},
                     ceilings=entry["peaks"] if entry["peaks"] and all(entry["peaks"]) and entry["work"]["bytes"] else ())
        for case, entry in cases.items() if entry["num"] > 1
    }  # fmt: skip


def _grouped(units: pl.DataFrame, axes: Mapping[str, Mapping[str, Any]], own: list[str]) -> pl.DataFrame:
    """Return the units that count by cell, stage and labels ``own``: ``.ns``, ``.on_device``, ``device``, and sums of their work.

    Those that share their case with no other unit of the run are left out.
    """
    import polars as pl

    cases = {cell: printed(axis) for cell, axis in axes.items()}
    fresh = units.lazy().filter(~pl.col("warmup") & ~pl.col("reused"))
    on_device = pl.col("device_ms").is_not_null()
    if "device" in units.columns:
        on_device |= pl.col("device").cast(pl.String).eq_missing(pl.lit("cuda"))
    time_ns = pl.max_horizontal(pl.lit(1.0), 1e6 * pl.coalesce("device_ms", "host_ms"))
    return (
        fresh
        .group_by("cell", "stage", *own, maintain_order=True)
        .agg(
            time_ns.alias(".ns"),
            on_device.any().alias(".on_device"),
            *([pl.col("device")] if "device" in units.columns else []),
            *(pl.col(key).cast(pl.Int128).sum() for key in _WORK),  # a million times 1e15 flops is beyond 64 bits
        )
        .with_columns(pl.col("cell").replace_strict(cases, return_dtype=pl.String).alias(".case"))
        .filter(pl.col(".ns").list.len().sum().over(".case", "stage", *own) > 1)
        .drop(".case")
        .collect()
    )


def _peaks(data: RunData) -> dict[tuple[Any, ...], float]:
    """Return the ceilings that suite kernels measured beside its rounds, GB/s and TFLOP/s by metric, cell and labels."""
    rows = data.metrics.filter(data.metrics["name"].is_in(["ceiling_gbps", "ceiling_tflops"])).iter_rows(named=True)
    return {(row["name"], row["cell"], *(row.get(name) for name in _PEAK_LABELS)): row["value"] for row in rows}


def _ceiling_gbps(
    peaks: Mapping[tuple[Any, ...], float], place: tuple[Any, ...], num_bytes: int, num_flops: int
) -> float | None:
    """Return the rate in GB/s at which a unit's bytes pass at the ceiling: of its products where they are most of the work."""
    tflops = peaks.get(("ceiling_tflops", *place))
    if tflops is not None and num_flops and num_bytes:
        return tflops * 1e3 * float(num_bytes) / float(num_flops)
    return peaks.get(("ceiling_gbps", *place))

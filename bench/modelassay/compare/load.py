"""Runs and benchmark files read into one frame."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelassay.compare.frame import Source, Timing, printed
from modelassay.compare.run import read_run
from modelassay.errors import FileError, UsageError
from modelassay.recording.tables import flatten
from modelassay.runs.directory import find_run, open_run, require_run
from modelassay.storage.files import open_regular

MAX_BYTES: Final = 1 << 30
MEASURED: Final = frozenset({
    "median_us", "q1_us", "q3_us", "min_us", "rounds", "gbps", "ceiling_gbps", "share_of_ceiling", "ceiling_rounds_gbps",
    "rounds_us", "extra_memory_bytes", "growth_kib_by_length", "name", "failed", "device", "size_bytes", "flops",
})  # fmt: skip
"""Of a benchmark's facts those that it measured, or that say where or how much; the others say which case it is."""


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

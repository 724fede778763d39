"""A segment of a log and tables of similarities that are sound, and one damage for each seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelassay.recording.line import sealed
from modelassay.recording.log import SCHEMA
from support.damaged_json import damaged, damaged_bytes

LINES: tuple[dict[str, Any], ...] = (
    {"kind": "attempt", "schema": SCHEMA, "cell": "0123456789ab", "attempt": 1, "resumed_at": 0, "started": "2026-11-28T00:00:00Z", "pid": 7},
    {"seq": 0, "kind": "microbatch", "stage": "step", "index": 0, "host_ns": 1000, "device_ns": 900, "tokens": 8, "bytes": 9, "flops": 10,
     "warmup": True, "labels": {"role": "q"}},
    {"seq": 1, "kind": "metric", "name": "loss", "value": 0.5, "labels": {"step": 1}},
    {"seq": 2, "kind": "fact", "fact": "completion", "value": {"text": ["a", 1]}, "labels": {}},
    {"seq": 3, "kind": "progress", "done": 1, "total": 2, "unit": "steps"},
    {"seq": 4, "kind": "memory", "stage": "step", "host_peak_bytes": 5},
    {"seq": 5, "kind": "clocks", "sm_mhz": 1000},
    {"seq": 6, "kind": "metric", "name": "loss", "value": "nan", "labels": {"step": 2}},
    {"seq": 7, "kind": "status", "outcome": "done", "reason": "", "wall_s": 1.5},
)  # fmt: skip

TABLES = {
    "matrix.csv": ",a,b,c\na,1,0.5,0.25\nb,0.5,1,0.125\nc,0.25,0.125,1\n",
    "pairs.csv": "a,b,similarity,related\nx,y,0.5,true\nx,z,0.25,false\ny,z,0.75,\n",
    "columns.csv": "a,b,value,family_a,family_b\nx,y,0.9,r,r\nx,z,0.5,r,s\n",
    "records.json": json.dumps([
        {"a": "x", "b": "y", "similarity": 0.5, "label": 1},
        {"a": "x", "b": "z", "similarity": 0.25, "label": 0},
    ]),
    "mapping.json": json.dumps({"x": {"y": 0.5, "z": 0.25}, "y": {"z": 0.1}}),
}
FAMILIES = {
    "families.csv": "name,cluster\n" + "".join(f"{name},{name}\n" for name in "abcxyz"),
    "families.json": json.dumps({name: name for name in "abcxyz"}),
}
CELLS = ("", "0", "1e300", "-1e308", "1e999", "nan", "x", "\0", "\x1b[2J", "\u202e", '"', "a\nb", " ", "9" * 400, "0x1", "1,2", "\u00e9" * 9000,
         "true")  # fmt: skip


def log_of(lines: Iterable[Any]) -> bytes:
    """A log of ``lines``, each with the checksum of what it says; what is no mapping has none."""
    return b"".join(_line_of(line) for line in lines)


def _line_of(line: Any) -> bytes:
    text = json.dumps(line).encode()
    return sealed(text) if isinstance(line, dict) and line else text + b"\n"


def damaged_log(folder: Path, seed: int) -> tuple[Path, str]:
    """Write a damaged segment; return it and what was done."""
    rng, path, lines = random.Random(seed), folder / "attempt-1.jsonl", [dict(line) for line in LINES]
    at, other, kind = rng.randrange(len(lines)), rng.randrange(len(lines)), rng.random()
    what = f"lines {at} and {other} exchanged"
    if kind < 0.6:
        lines[at], deed = damaged(lines[at], rng)
        what = f"line {at}: {deed}"
    elif kind < 0.7:
        lines[at], lines[other] = lines[other], lines[at]
    data = log_of(lines)
    if kind >= 0.7:
        data, what = damaged_bytes(data, rng)
    path.write_bytes(data)
    return path, what


def damaged_table(folder: Path, seed: int) -> tuple[Path, Path | None, str]:
    """Write a damaged table, or a sound one with damaged families; return both and what was done."""
    rng = random.Random(seed)
    name, family = rng.choice([*TABLES]), rng.choice([None, None, *FAMILIES])
    table, families = folder / name, None if family is None else folder / family
    table.write_text(TABLES[name])
    if families is not None:
        families.write_text(FAMILIES[families.name])
    spoilt = families if families is not None and rng.random() < 0.7 else table
    text = spoilt.read_text()
    if rng.random() < 0.4:
        data, what = damaged_bytes(text.encode(), rng)
    elif spoilt.suffix == ".json":
        value, what = damaged(json.loads(text), rng)
        data = json.dumps(value).encode()
    else:
        rows = [row.split(",") for row in text.splitlines()]
        for row in rng.choices(rows, k=rng.choice([1, 1, 2, 4])):
            row[rng.randrange(len(row))] = rng.choice([*CELLS, *(cell for other in rows for cell in other)])
        data, what = "\n".join(",".join(row) for row in rows).encode(), "cells"
    spoilt.write_bytes(data)
    return table, families, f"{spoilt.name}: {what}"

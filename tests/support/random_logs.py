"""Logs of cells that hold whatever a log may hold, by a seed."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path
from typing import Any

from polars.testing import assert_frame_equal

from modelassay.recording.log import Log, encode_value
from modelassay.recording.tables import RunData

VALUES: dict[str, list[Any]] = {
    "whole": [0, 1, -7, 2**53 + 1, 2**62],
    "number": [0.5, 1.0, -0.0, 1e-7, 1e300, 5e-324],
    "mixed numbers": [1, 2.5, 3],
    "truth": [True, False],
    "text": ["q", "", "5", "true", ":x", "a,b", "{}", "日本語", '":', "kind"],
    "escapes": ["a\nb", 'say "x"', "\\", "\u2028"],
    "text and whole": ["last", 5, 12, -1],
    "text and truth": ["x", True],
    "text and number": ["x", 0.5, 1e300],
    "truth and whole": [True, 3],
    "truth and number": [True, 2.5],
    "null": [None, 1, "x"],
    "null alone": [None],
    "large": [2**63, 2**64, 1],
    "large text": ["x", 2**70],
}
"""What a label may hold, of one type and of several."""


def any_float(rng: random.Random) -> float:
    return struct.unpack("d", struct.pack("Q", rng.getrandbits(64)))[0]


def write_cell(folder: Path, rng: random.Random, kinds: list[str], *, attempts: int = 2, status: bool = True) -> None:
    """Write a cell whose lines have labels of ``kinds``; each attempt but the first does a part again."""
    folder.mkdir(parents=True)
    names = {f"l{number}": VALUES[kind] for number, kind in enumerate(kinds)}
    resumed_at = 0
    for attempt in range(1, attempts + 1):
        segment = Log(folder / f"attempt-{attempt}.jsonl", cell=folder.name, attempt=attempt, resumed_at=resumed_at)
        for number in range(rng.randint(3, 30)):
            labels = {name: rng.choice(values) for name, values in names.items() if rng.random() < 0.8}
            labels["step"] = attempt * 1000 + number
            value = rng.choice([any_float(rng), rng.gauss(0, 1), 3, math.nan, -math.inf])
            match rng.choice(["metric", "metric", "metric", "microbatch", "fact", "progress"]):
                case "metric":
                    line = {"name": rng.choice(["a", "b:", "c"]), "value": encode_value(value), "labels": labels}
                    segment.append("metric", line)
                case "microbatch":
                    line = {"stage": "s", "index": number, "host_ns": rng.choice([0, 5, 1000]), "at_us": 3}
                    line |= rng.choice([{}, {"bytes": 7, "tokens": 2}, {"device_ns": 0, "bytes": 9}, {"warmup": True}])
                    segment.append("microbatch", line | rng.choice([{}, {"labels": labels}, {"labels": {}}]))
                case "fact":
                    fact = {"fact": "f", "value": {"kind": "metric", "a": [{"labels": {}}]}, "labels": labels}
                    segment.append("fact", fact)
                case _:
                    segment.append("progress", {"done": 1, "total": 2, "unit": ""})
        resumed_at = rng.randint(resumed_at, segment.seq)
        if attempt == attempts and status:
            segment.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
        segment.close()


def assert_same(one: RunData, other: RunData) -> None:
    for name in ("cells", "metrics", "units"):
        assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    assert one.fact_rows == other.fact_rows

"""Wrong values for JSON files: of every type and size, put in the place of one that is right."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**9, 10**20, 10**400, 0.0, 0.5, -1.5, 3e38, 1e308),
    *(float("nan"), float("inf")),
    *("", "x", "4", "auto", "\0", "a\nb", "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe", "\u2028", "é" * 300, "../x", "/etc/passwd"),
    *([], [0], [1, 2], [8, 7], [[]], [None], ["x"], ["x", 1], [{}], [0] * 3000, ["q", "k", "v"]),
    *({}, {"": 0}, {"x": {}}, {"x": []}, {"a": None, "b": "\x1b[31m"}, {str(n): n for n in range(3000)}),
)  # fmt: skip
"""Floats that are not finite are written as Python writes them, a surrogate as an escape."""


def deep(num_levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(num_levels):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = (), *, limit: int = 400) -> list[tuple[Any, ...]]:
    """Paths of what ``value`` holds, of long lists and mappings the first entries only."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    paths = [path] if path else []
    for key, entry in entries[:40]:
        if len(paths) > limit:
            break
        paths += places(entry, (*path, key), limit=limit)
    return paths


def damaged(value: Any, rng: random.Random, *, path: tuple[Any, ...] | None = None) -> tuple[Any, str]:
    """A copy of ``value`` with one entry replaced, removed, wrapped, renamed or doubled, and what was done."""
    value = copy.deepcopy(value)
    paths = places(value)
    if not paths or rng.random() < 0.03:
        wrong = rng.choice(WRONG_VALUES)
        return wrong, f"all of it {wrong!r:.60}"
    path = path or rng.choice([p for p in paths if len(p) <= rng.choice((1, 2, 3, 9))])
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key, deed = path[-1], rng.random()
    if deed < 0.12:
        del holder[key]
        return value, f"{path} removed"
    if deed < 0.2:
        holder[key] = rng.choice([[holder[key]], {"x": holder[key]}, json.dumps(holder[key])])
    elif deed < 0.26 and isinstance(holder[key], list) and holder[key]:
        holder[key] = rng.choice([holder[key][:-1], holder[key] * 2, holder[key][::-1], holder[key] * 2000])
    elif deed < 0.3 and isinstance(holder, dict):
        name = rng.choice(["", "\x1b[2J", "\u202ex", "a\nb", "x" * 3000])
        holder[name] = holder.pop(key)
        return value, f"{path} renamed to {name!r:.30}"
    elif deed < 0.33:
        holder[key] = deep(rng.choice([50, 500, 900]))
    else:
        holder[key] = rng.choice(WRONG_VALUES)
    return value, f"{path} -> {holder[key]!r:.60}"


def damaged_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """``data`` cut short, emptied, overwritten, encoded otherwise or with a key twice, and what was done."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(10):
        case 0:
            return data[:at], f"cut at byte {at}"
        case 1:
            return b"", "emptied"
        case 2:
            return bytes(rng.choice([1, 64, 5000])), "zeros only"
        case 3:
            return data[:at] + bytes([data[at - 1] ^ 1 << rng.randrange(8)]) + data[at + 1 :], f"a flipped bit at {at}"
        case 4:
            return data[:at] + bytes(rng.choice([1, 700])) + data[at:], f"zeros at {at}"
        case 5:
            return data.decode("latin-1").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])), "another encoding"
        case 6:
            return data[:at] + rng.choice([b"\xff", b"\xed\xa0\x80", b"\x1b[2J", b"\xe2\x80\xae"]) + data[
                at:
            ], f"odd bytes at {at}"
        case 7:
            return data + data, "twice"
        case 8:
            return rng.choice([
                b"[" * 200_000,
                b'{"a":' * 100_000,
                b"[" * 800 + b"]" * 800,
                b'"' + b"x" * 300_000 + b'"',
            ]), "brackets"
        case _:
            return data[:1] + rng.choice([b'"model_type": "llama", ', b'"a": 1, "a": 2, ', b",", b"\\"]) + data[
                1:
            ], "a key more"

"""What one line of the event log must hold: the form of each kind's fields, and nothing that reads in two ways."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any

from modelassay.storage.files import strict_json

_DECODE = json.JSONDecoder().decode
NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SPACED_COLON = re.compile(rb'"\s+:')
_LARGEST = sys.float_info.max
_PLAIN = frozenset({str, bool, type(None)})
_OUTCOMES = ("done", "diverged", "failed")

RESERVED = frozenset({
    "cell",
    "name",
    "value",
    "stage",
    "index",
    "warmup",
    "reused",
    "host_ms",
    "device_ms",
    "gb_per_s",
})
"""Columns of the tables, which no label may be called."""


def _is_number(value: object) -> bool:
    return (type(value) is float or type(value) is int) and -_LARGEST <= value <= _LARGEST  # NaN is neither


def _is_value(value: object) -> bool:
    return _is_number(value) or (isinstance(value, str) and value in NONFINITE)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _are_labels(value: object) -> bool:
    if type(value) is not dict or not RESERVED.isdisjoint(value):
        return False
    for label in value.values():  # noqa: SIM110 - a generator takes twice as long
        if type(label) not in _PLAIN and not _is_number(label):
            return False
    return True


_REQUIRED: dict[str, dict[str, Callable[[object], bool]]] = {
    "attempt": {"schema": _is_count, "cell": _is_text, "attempt": _is_count, "resumed_at": _is_count},
    "microbatch": {"seq": _is_count, "stage": _is_text, "index": _is_count, "host_ns": _is_count},
    "metric": {"seq": _is_count, "name": _is_text, "value": _is_value, "labels": _are_labels},
    "fact": {"seq": _is_count, "fact": _is_text, "labels": _are_labels},
    "progress": {"seq": _is_count, "done": _is_number, "total": _is_number, "unit": _is_text},
    "memory": {"seq": _is_count, "stage": _is_text},
    "clocks": {"seq": _is_count},
    "status": {"seq": _is_count, "outcome": lambda word: word in _OUTCOMES, "reason": _is_text, "wall_s": _is_number},
}
_OPTIONAL: dict[str, Callable[[object], bool]] = {
    "device_ns": _is_count, "tokens": _is_number, "bytes": _is_number, "flops": _is_number, "warmup": _is_bool,
    "reused": _is_bool,
    "labels": _are_labels,
}  # fmt: skip
"""What else the tables take of a microbatch."""


def parse_line(raw: bytes) -> tuple[dict[str, Any], list[str]]:
    """Return a line and those of its fields that are missing or of another form.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, RecursionError: it is no line of a known kind.
    """
    line = _DECODE(raw.decode())
    if _may_be_ambiguous(raw, line):
        line = strict_json(raw.decode())
    return line, _wrong_fields(line)


def _may_be_ambiguous(raw: bytes, line: Any) -> bool:
    """Whether ``line`` may have a key twice, or half a character: the quick look that most lines need."""
    num_keys = len(line) + len(line.get("labels", ()))
    return raw.count(b'":') != num_keys or b"\\u" in raw or _SPACED_COLON.search(raw) is not None


def _wrong_fields(line: dict[str, Any]) -> list[str]:
    """Return the fields of ``line`` that are missing or of another form."""
    kind = line["kind"]
    wrong = [name for name, is_sound in _REQUIRED[kind].items() if not is_sound(line.get(name))]
    if kind == "microbatch":
        wrong += [name for name, is_sound in _OPTIONAL.items() if name in line and not is_sound(line[name])]
    return wrong

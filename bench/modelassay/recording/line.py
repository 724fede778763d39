"""What one line of the event log must hold: the form of each kind's fields, nothing that reads in two ways, and its checksum.

::

    {"seq":3,"kind":"metric","name":"overlap","value":0.91,"labels":{"step":4},"crc":"8c2a41d7"}

``crc`` stands last: CRC-32 of all bytes before ``,"crc"``. It finds every change of up to three bits and every burst of up to
32 in a line of up to 11 kB, and all but one in 2^32 of any other damage. Costs 0.6 us to write and as much to check.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelassay.storage.files import strict_json

_DECODE = json.JSONDecoder().decode
_ENCODE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False).encode
_SEAL = b',"crc":"%08x"}\n'
_SEAL_WITHIN = re.compile(rb',"crc":"([0-9a-f]{8})"\}')
_SEAL_BYTES = len(_SEAL % 0)
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
    "note": {"seq": _is_count, "text": _is_text},
    "status": {"seq": _is_count, "outcome": lambda word: word in _OUTCOMES, "reason": _is_text, "wall_s": _is_number},
}
_OPTIONAL: dict[str, Callable[[object], bool]] = {
    "device_ns": _is_count, "tokens": _is_number, "bytes": _is_number, "flops": _is_number, "warmup": _is_bool,
    "reused": _is_bool,
    "labels": _are_labels,
}  # fmt: skip
"""What else the tables take of a microbatch."""


def encode_line(line: Mapping[str, Any]) -> bytes:
    """Return a line, which holds something, as it stands in the log: with its checksum and its end."""
    return sealed(_ENCODE(line).encode(errors="replace"))  # a path that is not UTF-8 holds lone surrogates


def sealed(text: bytes) -> bytes:
    """Return the JSON mapping ``text``, which holds something, with its checksum and the end of a line."""
    body = text[:-1]
    return body + _SEAL % zlib.crc32(body)


def is_sound(raw: bytes) -> bool:
    """Return whether a line with its end is as `encode_line` wrote it."""
    body = raw[:-_SEAL_BYTES]
    return raw[-_SEAL_BYTES:] == _SEAL % zlib.crc32(body)


def are_sound(lines: Sequence[bytes]) -> bool:
    """Return whether each of ``lines`` is sound; half as long as asking one by one."""
    sums = tuple(map(zlib.crc32, [raw[:-_SEAL_BYTES] for raw in lines]))
    return b"".join([raw[-_SEAL_BYTES:] for raw in lines]) == _SEAL * len(lines) % sums


def ends_within(raw: bytes) -> bool:
    """Return whether a sound line ends inside ``raw`` with something else than a new line behind it: no torn line does."""
    return any(
        match.end() < len(raw) and match[1] == b"%08x" % zlib.crc32(raw[: match.start()])
        for match in _SEAL_WITHIN.finditer(raw)
    )


def parse_line(raw: bytes) -> tuple[dict[str, Any], list[str]]:
    """Return a line with its end, less its checksum, and those of its fields that are missing or of another form.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, RecursionError: it is no line of a known kind.
    """
    body = raw[:-_SEAL_BYTES] + b"}"
    line = _DECODE(body.decode())
    if _may_be_ambiguous(body, line):
        line = strict_json(body.decode())
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

"""The gate for a checkpoint's small files, which anybody may have written: config.json, shard index, headers, tokenizer.

Whatever a file holds is counted in its bytes before any of it is built, so that no file costs more than some 400 MB or a
few seconds; behind the gate nothing is counted again. Each kind of file has its limits here, several times what the largest
published checkpoints need.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelassay.errors import CheckpointError, printable

DAMAGED: Final = "the file is damaged or its download was cut short; fetch it again"

MAX_DEPTH: Final = 64
"""Lists and mappings within each other."""

_STRUCTURE = b"[]{},:"
_PIECE_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a kind of file may hold."""

    size_bytes: int
    values: int
    """Numbers, texts, lists and mappings of a JSON; lines of a text."""
    keys: int
    """Of all mappings of a JSON together."""


CONFIG: Final = Limits(size_bytes=16_000_000, values=400_000, keys=200_000)
"""config.json and the tokenizer's settings; the longest known list a quantiser's 50,000 modules."""
INDEX: Final = Limits(size_bytes=50_000_000, values=600_000, keys=500_000)
"""model.safetensors.index.json: DeepSeek-V3 names 92,000 tensors in 9 MB."""
HEADER: Final = Limits(size_bytes=50_000_000, values=2_500_000, keys=1_000_000)
"""The header of a safetensors file: some 250,000 tensors, 10 values and 4 keys each."""
VOCABULARY: Final = Limits(size_bytes=64_000_000, values=3_000_000, keys=1_200_000)
"""tokenizer.json and vocabularies: Gemma 3 has 262,000 tokens and 515,000 merges in 33 MB."""


def shown(value: object) -> str:
    """Return ``value`` as an error shows it: on one line, short whatever its size, control characters escaped.

    >>> shown({"a": [1, 2]}), shown("x" * 100), shown([0] * 10**6)
    ("{'a': [1, 2]}", "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'", '[0, 0, 0, 0, 0, 0, ...]')
    """
    text = _shown(value, 3)
    return text if len(text) <= 600 else text[:597] + "..."


def _shown(value: object, depth: int) -> str:
    match value:
        case str():
            return repr(value) if len(value) <= 60 else repr(value[:60])[:-1] + "...'"
        case int() if not isinstance(value, bool) and abs(value) >= 10**30:
            return "a number of more than 30 digits"
        case dict() | list() | tuple() if depth == 0 and value:
            return "{...}" if isinstance(value, dict) else "[...]"
        case dict():
            parts = [
                f"{_shown(key, 0)}: {_shown(value[key], depth - 1)}" for key, _ in zip(value, range(6), strict=False)
            ]
            return "{" + ", ".join([*parts, *(["..."] if len(value) > 6 else [])]) + "}"
        case list() | tuple():
            parts = [_shown(item, depth - 1) for item in value[:6]]
            return "[" + ", ".join([*parts, *(["..."] if len(value) > 6 else [])]) + "]"
        case _:
            return printable(repr(value)[:60])


def one_line(path: Path | str) -> str:
    """Return ``path`` as an error names it: on one line, control characters escaped."""
    return printable(str(path))


def read_small(path: Path, limits: Limits) -> bytes:
    """Return what is in a file.

    Raises:
        CheckpointError: it cannot be read, is no regular file, or is larger than its kind may be.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{one_line(path)}: not a regular file; remove it and fetch the checkpoint again")
        with path.open("rb") as file:
            data = file.read(limits.size_bytes + 1)
    except (OSError, ValueError) as error:
        reason = printable(str(getattr(error, "strerror", None) or error))
        raise CheckpointError(
            f"{one_line(path)}: cannot be read: {reason}; check the path and its permissions"
        ) from None
    if len(data) > limits.size_bytes:
        raise CheckpointError(
            f"{one_line(path)}: larger than {limits.size_bytes:,} bytes, which no model needs; is it the file that its name says?"
        )
    return data


_POINTER: Final = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: Path) -> bool:
    """Return whether a file is a pointer of git-LFS, which a clone leaves in the place of what `git lfs pull` has not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def refuse_page(path: Path, data: bytes) -> None:
    """Refuse a file of weights whose first bytes tell that it is none, but what a clone or a download left in its place.

    Raises:
        CheckpointError: it is empty, a pointer of git-LFS, or a web page.
    """
    where, start = one_line(path), data[:64].lstrip().lower()
    if not data:
        raise CheckpointError(f"{where}: is empty; its download did not begin, fetch it again")
    if data.startswith(_POINTER):
        size = next((line[5:].decode(errors="replace") for line in data.splitlines() if line.startswith(b"size ")), "?")
        raise CheckpointError(
            f"{where}: is a pointer of git-LFS to {printable(size)[:20]} bytes, which are not here; run `git lfs pull` in the clone"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{where}: is a web page, not weights: the server asked for a login or refused; fetch the file again with a token"
        )


def read_text(path: Path, limits: Limits) -> str:
    """Return the text in a file of at most ``limits.values`` lines; raises as `read_small`, and where it is not UTF-8."""
    data = read_small(path, limits)
    if (lines := data.count(b"\n")) > limits.values:
        raise CheckpointError(f"{one_line(path)}: {lines:,} lines, at most {limits.values:,} are read; {DAMAGED}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{one_line(path)}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; {DAMAGED}"
        ) from None


def digest_file(path: Path, limits: Limits) -> bytes:
    """Return 8 bytes of BLAKE2b over a file, read by pieces; raises as `read_small`."""
    digest, size = hashlib.blake2b(digest_size=8), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
                if size > limits.size_bytes:
                    read_small(path, limits)  # which says so
    except OSError as error:
        raise CheckpointError(f"{one_line(path)}: cannot be read: {error.strerror}; check its permissions") from None
    return digest.digest()


def read_json(path: Path, limits: Limits = CONFIG, *, unique: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file; with ``unique``, a key that appears twice is an error, else the last one holds.

    Raises:
        CheckpointError: the file cannot be read, is beyond ``limits``, or holds anything but one JSON object.
    """
    return load_json(path, read_small(path, limits), f"the file; {DAMAGED}", limits, unique=unique)


def load_json(path: Path, data: bytes, what: str, limits: Limits, *, unique: bool) -> dict[str, Any]:
    """Return the JSON object that ``data`` holds; ``what`` names it in an error. Counted before it is built.

    Raises:
        CheckpointError: it is anything but one JSON object within ``limits``.
    """
    if much := excess(data, limits):
        raise CheckpointError(f"{one_line(path)}: {much} in {what}")
    try:
        text = data.decode()
        del data
        value = json.loads(text, object_pairs_hook=_without_repeats if unique else None)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{one_line(path)}: not valid JSON ({printable(str(error))[:200]}) in {what}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{one_line(path)}: expected a JSON object, got {type(value).__name__} in {what}")
    return value


def excess(data: bytes, limits: Limits) -> str | None:
    """Return what a JSON has too much of, counted in its bytes; None if nothing."""
    structure = _structure(data)
    values = sum(structure.count(mark) for mark in (b",", b"[", b"{"))
    if values > limits.values:
        return f"{values:,} values, at most {limits.values:,} are read"
    if (keys := structure.count(b":")) > limits.keys:
        return f"{keys:,} keys, at most {limits.keys:,} are read"
    brackets = structure.translate(None, b",:")
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    nests = b"[]" in brackets or b"{}" in brackets or len(brackets) > MAX_DEPTH
    return f"brackets nested more than {MAX_DEPTH} deep" if nests else None


def _structure(data: bytes) -> bytes:
    r"""Return the brackets, commas and colons of a JSON that stand outside of its texts.

    >>> _structure(b'{"a[\\\\": [1, "\\"}", 2]}')
    b'{:[,,]}'
    """
    import numpy as np

    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of the quotes begins or ends a text
    is_mark = np.zeros(256, dtype=bool)
    is_mark[list(_STRUCTURE)] = True
    pieces, inside = [], 0
    for start in range(0, len(data), _PIECE_BYTES):
        piece = np.frombuffer(data, np.uint8, count=min(_PIECE_BYTES, len(data) - start), offset=start)
        parity = (np.cumsum(piece == ord('"'), dtype=np.uint8) + np.uint8(inside)) & 1
        inside = int(parity[-1])
        pieces.append(piece[is_mark[piece] & (parity == 0)].tobytes())
    return b"".join(pieces)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise ValueError(f"{shown(name)} appears twice")
            names.add(name)
    return table


def section(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """Return the mapping that ``config`` has under ``key``; an empty one where it has none.

    Raises:
        CheckpointError: there is something else.
    """
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{one_line(where)}: {key}: expected a mapping, got {shown(value)}; take config.json from the model's author"
        )
    return value

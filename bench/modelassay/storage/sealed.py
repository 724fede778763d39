"""JSON documents that carry the checksum of their own text: run.json, a checkpoint's state, an artifact's record.

::

    {"checksum":"5f0c2a9be1d34477",
     "schema": 3, ...

``checksum`` stands first: 16 hex digits of BLAKE2b over the text without it. Any JSON reader reads the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelassay.storage.files import read_limited, strict_json

_SEAL = re.compile(rb'\{"checksum":"([0-9a-f]{16})",(?=\s*")')


class Unsealed(ValueError):  # noqa: N818 - says what the document is
    """JSON without a checksum in front."""

    def __init__(self, document: Any) -> None:
        """Keep what it holds."""
        super().__init__("it has no checksum")
        self.document = document


def sealed_json(document: Mapping[str, Any], *, by_lines: bool = False) -> bytes:
    r"""Return ``document``, which holds something, as JSON with its checksum; ``by_lines`` for those whom people read.

    >>> sealed_json({"a": 1})
    b'{"checksum":"c4cb53ce0f4efd04","a": 1}\n'
    """
    written = _by_lines(document, depth=3) if by_lines else json.dumps(document, ensure_ascii=False)
    text = (written + "\n").encode(errors="replace")
    return b'{"checksum":"%b",' % _checksum(text) + text[1:]  # errors: a path that is not UTF-8 holds lone surrogates


def _by_lines(value: Any, depth: int, indent: str = "\n ") -> str:
    r"""Return JSON whose outer entries stand on lines of their own; what is deeper stays on one, which json writes ten times as fast.

    >>> _by_lines({"a": [1, {"b": [2]}], "c": {}}, 2)
    '{\n "a": [\n  1,\n  {"b": [2]}\n ],\n "c": {}\n}'
    """
    if (
        not depth
        or not value
        or not isinstance(value, (dict, list))
        or not all(isinstance(key, str) for key in value if isinstance(value, dict))
    ):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        marks = "{}"
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {_by_lines(item, depth - 1, indent + ' ')}"
            for key, item in value.items()
        ]
    else:
        marks, parts = "[]", [_by_lines(item, depth - 1, indent + " ") for item in value]
    return marks[0] + indent + f",{indent}".join(parts) + indent[:-1] + marks[1]


def unseal(data: bytes, *, plain: bool = True) -> dict[str, Any]:
    """Return the document that `sealed_json` wrote as ``data``; ``plain`` as in `files.strict_json`.

    Raises:
        Unsealed: it is JSON without a checksum.
        ValueError: it is not as it was written.
    """
    seal = _SEAL.match(data)
    if seal is None:
        raise Unsealed(strict_json(data.decode(), plain=plain))
    text = b"{" + data[seal.end() :]
    if seal[1] != _checksum(text):
        raise ValueError("not as it was written: the checksum differs")
    document: dict[str, Any] = strict_json(text.decode(), plain=plain)
    return document


def read_sealed(path: Path, *, plain: bool = True) -> dict[str, Any]:
    """Return the document in the file ``path``; see `unseal`.

    Raises:
        UsageError: it is no regular file, or too large for what it is.
        Unsealed: it is JSON without a checksum.
        ValueError: it is not as it was written.
        OSError: it is missing or may not be read.
    """
    return unseal(read_limited(path), plain=plain)


def _checksum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()

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


def sealed_json(document: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    r"""Return ``document``, which holds something, as JSON with its checksum.

    >>> sealed_json({"a": 1})
    b'{"checksum":"c4cb53ce0f4efd04","a": 1}\n'
    """
    text = (json.dumps(document, indent=indent, ensure_ascii=False) + "\n").encode(errors="replace")
    return b'{"checksum":"%b",' % _checksum(text) + text[1:]  # errors: a path that is not UTF-8 holds lone surrogates


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

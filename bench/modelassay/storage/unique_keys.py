"""JSON in which a key stands twice says two things; Python's reader would keep the last without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def unique_keys(error_of: Callable[[str], Exception]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Return an ``object_pairs_hook`` that raises ``error_of(key)`` for a key that stands twice in one mapping.

    >>> import json
    >>> json.loads('{"a": 1, "b": {"a": 2}}', object_pairs_hook=unique_keys(KeyError))
    {'a': 1, 'b': {'a': 2}}
    >>> json.loads('{"a": 1, "a": 2}', object_pairs_hook=unique_keys(KeyError))
    Traceback (most recent call last):
    KeyError: 'a'
    """

    def mapping_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in pairs:
            if key in mapping:
                raise error_of(key)
            mapping[key] = value
        return mapping

    return mapping_of

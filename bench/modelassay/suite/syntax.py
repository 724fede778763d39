"""What YAML's parser reports, in words that say what to do."""

from __future__ import annotations

import re
from typing import Final

from modelassay.errors import printable

_TAB: Final = "a tab cannot indent; use spaces"
_BLOCK_MARKS: Final = re.compile(r"\s*([-?]\s+)*")
"""What begins lists and mappings of blocks at the start of a line."""


def syntax_message(context: str, problem: str, source: str, column: int) -> str:
    """Return what the parser reports of ``column`` (from 0) of the line ``source`` in words that say what to do."""
    if "not allowed" in problem and (marks := _BLOCK_MARKS.match(source)) and "\t" in marks[0]:
        return _TAB
    table = (
        (r"'\t' that cannot start", _TAB),
        ("that cannot start any token", "begins with a character YAML reserves; quote the text"),
        ("mapping values are not allowed", "a second ':' on one line; quote the text, or check the indentation"),
        ("sequence entries are not allowed", "a list item cannot stand here; begin it on a line of its own"),
        ("expected the node content", "a value is missing, or a bracket does not fit"),
        ("expected <block end>", "does not fit here; check the indentation and quotes above it"),
        (r"but found '\t'", "a tab cannot follow here; use a space"),
        ("expected '<document start>'", "follows the end of the value before it; quote the whole if it is one text"),
        ("escape", "an unknown escape; double the backslash, or use single quotes"),
    )
    contexts = (
        ("quoted scalar", "a quote that is never closed"),
        ("flow sequence", "a '[' that is never closed, or misses a comma"),
        ("flow mapping", "a '{' that is never closed, or misses a comma"),
        ("simple key", "expected 'key: value'; the ':' is missing"),
    )
    advice = next((text for mark, text in table if mark in problem), None)
    advice = advice or next((text for mark, text in contexts if mark in context), None)
    message = advice or printable(problem)
    if "never closed" in message and (comment := re.search(r"\s#", source[column:])):
        message += f"; the '#' in column {column + comment.end()} begins a comment, unless its text is quoted"
    return message

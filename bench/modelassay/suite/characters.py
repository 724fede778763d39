"""Characters that a suite may not hold as they are, and those that only look like a space.

A no-break space comes with text copied from a web page or typed with a modifier held down. YAML takes it for a letter: a key
or a value then begins or ends with it, or a ``:`` before it separates nothing.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAKS: Final = frozenset("\x85\u2028\u2029")
_NAMES: Final = {"\x85": "NEXT LINE"}
_MARKS: Final = re.compile(r"(?::|^-|^\?)(?=(.))|(.)#", re.DOTALL)


def refused(text: str) -> tuple[int, str] | None:
    r"""Return where ``text`` holds the first character that may not stand in a suite, and what to say; None without one.

    >>> refused("a: b\u0007c")
    (4, 'character U+0007 is not allowed in YAML')
    """
    if not (bad := _UNPRINTABLE.search(text)):
        return None
    if bad[0] in _LINE_BREAKS:
        advice = f'remove it, or write "\\u{ord(bad[0]):04x}" in double quotes'
        return bad.start(), f"{named(bad[0])} ends a line for some readers and not for others; {advice}"
    return bad.start(), f"character U+{ord(bad[0]):04X} is not allowed in YAML"


def misleading(text: str, *, key: bool = False) -> tuple[int, str] | None:
    r"""Return where an unquoted ``text`` holds a character that reads as a space and is none, and what to say.

    Inside of a value it is text (French sets one before a question mark); not in a key, at either end, after the ``:``, ``-``
    or ``?`` that a space would make a mark of YAML, nor before a ``#``.

    >>> misleading("Pourquoi\u00a0?"), misleading("5\u00a0")
    (None, (1, 'U+00A0 NO-BREAK SPACE is no space to YAML; write a plain one, or quote the text that it belongs to'))
    """
    places = [index for index, char in enumerate(text) if is_lookalike(char)] if not text.isascii() else []
    if not key:
        marks = {index for match in _MARKS.finditer(text) for index in (match.start(1), match.start(2))}
        places = [index for index in places if index in {0, len(text) - 1} | marks]
    if not places:
        return None
    char = text[places[0]]
    if unicodedata.category(char) == "Cf":
        return places[0], f"{named(char)} cannot be seen; remove it, or quote the text that it belongs to"
    return places[0], f"{named(char)} is no space to YAML; write a plain one, or quote the text that it belongs to"


def is_lookalike(char: str) -> bool:
    """Whether ``char`` shows as a space or as nothing, and is neither a space nor a tab nor a line's end."""
    return char != " " and unicodedata.category(char) in {"Zs", "Zl", "Zp", "Cf"}


def lookalikes(text: str) -> list[int]:
    """Return where ``text`` holds such characters."""
    return [] if text.isascii() else [index for index, char in enumerate(text) if is_lookalike(char)]


def named(char: str) -> str:
    r"""Return code and name of ``char``.

    >>> named("\u00a0")
    'U+00A0 NO-BREAK SPACE'
    """
    return f"U+{ord(char):04X} {unicodedata.name(char, _NAMES.get(char, ''))}".rstrip()

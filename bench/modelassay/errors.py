"""Every error a user can meet, and the exit code each one means.

::

    AssayError                     1   internal: please report it
    |-- UsageError                 2   a command that cannot be understood
    |   |-- SuiteError             2   an invalid suite; carries file, line, column and dotted path
    |   `-- FileError              2   a file that somebody else may have written, quoted on one printable line
    |       |-- CheckpointError    2   a checkpoint that cannot be read or whose architecture is unknown
    |       `-- RecordError        2   a log that is damaged elsewhere than on its torn last line
    |-- IncompleteRun              3   cells that failed or were not run; the run can be resumed
    |-- Regression                 4   a comparison found a slowdown
    |-- Inconclusive               5   a comparison could not decide
    `-- HostError                  6   the machine: no GPU, no engine, disk full, run locked

    Diverged                           not an error but a finding: a cell that blew up or collapsed, complete

An interruption ends with 128 + signal (130 for Ctrl-C, 143 for SIGTERM), results kept.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path


class AssayError(Exception):
    """Base of all errors that are shown without a traceback; the message says where, what, what it got, what to do."""

    exit_code = 1
    longest = 8_000
    """Characters of a message; it may quote what a user's file holds."""

    def __init__(self, *message: object, damaged: Path | None = None) -> None:
        """Keep the file or folder that is ``damaged``, where that is the trouble: whoever can make it anew does."""
        super().__init__(*(shortened(part, self.longest) if isinstance(part, str) else part for part in message))
        self.damaged = damaged


class UsageError(AssayError):
    """The user's own input is wrong."""

    exit_code = 2
    longest = 2_000


class SuiteError(UsageError):
    """An invalid suite, located: ``file:line:column: dotted.path: message``."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        path: str = "",
    ) -> None:
        """Keep the location as data; ``line`` and ``column`` count from 1, None where there is no file."""
        self.message, self.file, self.line, self.column, self.path = message, file, line, column, path
        where = ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(": ".join(part for part in (where, shortened(path, 200), shortened(message, 1_000)) if part))


class FileError(UsageError):
    """A file that somebody else may have written; whatever the message quotes of it stands on one line, in printable characters."""

    def __init__(self, message: str, *, damaged: Path | None = None) -> None:
        """Escape what a terminal would act on."""
        super().__init__(printable(message), damaged=damaged)


class CheckpointError(FileError):
    """A model checkpoint that cannot be read, or whose architecture is not known."""


class RecordError(FileError):
    """An event log with a bad line that is not its torn last one."""


class IncompleteRun(AssayError):
    """Some cells failed or were not reached; running the same directory again retries them."""

    exit_code = 3


class Regression(AssayError):
    """A comparison ended in ``slower``."""

    exit_code = 4


class Inconclusive(AssayError):
    """A comparison could not decide."""

    exit_code = 5


class HostError(AssayError):
    """The machine cannot do it: no GPU, no engine, disk full, directory locked or not writable."""

    exit_code = 6


class Diverged(Exception):  # noqa: N818 - a finding, not an error
    """Raised inside a cell whose training or generation blew up: the cell is complete, its outcome `diverged`."""


_LONG_WORD = re.compile(r"[^\s/]{256,}")
"""No word of a sentence and no file's name, so a part of what a file holds."""


def shortened(text: str, most: int) -> str:
    """Return ``text`` in at most ``most`` characters: words longer than a file's name may be are cut, then its middle is left out.

    Its beginning says where, its end what to do.

    >>> shortened("key " + "k" * 1000 + ": unknown; remove it", 200) == f"key {'k' * 80}...{'k' * 19}: unknown; remove it"
    True
    >>> shortened("one two three four five", 15)
    'one t ... five'
    """
    if len(text) <= min(most, 255):
        return text
    text = _LONG_WORD.sub(_ends, text)
    if len(text) <= most:
        return text
    tail = (most - 5) // 2
    return f"{text[: most - 5 - tail]} ... {text[-tail:].lstrip()}"


def _ends(word: re.Match[str]) -> str:
    return f"{word[0][:80]}...{word[0][-20:]}"  # the place in a file, or the quote behind a name, stands at its end


_LONGEST_NAME = 200
"""Characters of a name that others are compared with, which takes the square of its length."""


def did_you_mean(name: str, *choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice that ``name`` resembles, or an empty string.

    The first of ``choices`` that has one counts; a choice is compared as it stands, then by the words it is made of.

    >>> did_you_mean("evry", ["eval_every", "every"]), did_you_mean("evry", ["steps"], ["steps", "eval_every"])
    ("; did you mean 'every'?", "; did you mean 'eval_every'?")
    >>> did_you_mean("zzz", ["every"])
    ''
    """
    if len(name) > _LONGEST_NAME:
        return ""
    for names in ([choice for choice in group if len(choice) <= _LONGEST_NAME] for group in choices):
        by_word = {word: choice for choice in reversed(names) for word in re.split("[._]", choice)}
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6) or [
            by_word[word] for word in difflib.get_close_matches(name.rpartition(".")[2], by_word, n=1, cutoff=0.75)
        ]
        if close:
            return f"; did you mean '{printable(close[0])}'?"
    return ""


def printable(text: str) -> str:
    r"""Return ``text`` on one line: what a terminal cannot show is escaped.

    >>> printable("a\nb")
    'a\\nb'
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def displayed(text: str) -> str:
    r"""Return ``text`` as a terminal may be given it: its lines and any kind of space stand, control characters are escaped.

    >>> print(displayed("one\x1b[2J\ntwo"))
    one\x1b[2J
    two
    """
    if text.isprintable():
        return text
    return "".join(char if char in "\n\t" or unicodedata.category(char) == "Zs" else printable(char) for char in text)

"""Files that others published, as text: UTF-8, CSV rows with their lines, strict JSON, and how errors show names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from modelassay.errors import UsageError, printable
from modelassay.models.gate import Limits, excess, one_line
from modelassay.storage.unique_keys import unique_keys

MAX_BYTES = 64_000_000
MAX_CELLS = 3_000_000
"""Of a CSV: a matrix of 1,200 names has 1.4 million, a list of all its pairs with four columns 2.9 million."""
MAX_NAME = 500
"""Characters of a name."""
_JSON = Limits(size_bytes=MAX_BYTES, values=3_000_000, keys=1_500_000)
"""Of a table in JSON: all pairs of 1,200 names, both ways, are 1.4 million."""


def read_bytes(file: Path) -> bytes:
    """Return what is in ``file``.

    Raises:
        UsageError: it cannot be read, or is larger than a table of similarities can be.
    """
    try:
        if file.exists() and not file.is_file():
            raise UsageError(
                f"{one_line(file)}: {'a folder' if file.is_dir() else 'not a regular file'}; name a CSV or JSON file"
            )
        with file.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{one_line(file)}: cannot be read: {printable(str(getattr(error, 'strerror', None) or error))}"
        ) from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{one_line(file)}: larger than {MAX_BYTES:,} bytes; keep only the similarities")
    return data


def decode(file: Path, data: bytes) -> str:
    """Return ``data`` as text.

    Raises:
        UsageError: it is not UTF-8, or there is nothing in it.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{one_line(file)}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    if not text.strip(" \t\r\n,"):
        raise UsageError(f"{one_line(file)}: empty; was it downloaded whole?")
    return text


def shown(text: object) -> str:
    """Return ``text`` as an error shows it: quoted, on one line, not too long.

    >>> shown("a b")
    "'a b'"
    """
    word = printable(str(text))
    return f"'{word if len(word) <= 80 else word[:77] + '...'}'"


def csv_rows(file: Path, text: str) -> list[tuple[int, list[str]]]:
    """Return the lines that hold something, as their number in the file and their cells without outer spaces.

    Raises:
        UsageError: not CSV with commas.
    """
    if (cells := text.count(",") + text.count("\n") + 1) > MAX_CELLS:
        raise UsageError(
            f"{one_line(file)}: {cells:,} cells, at most {MAX_CELLS:,} are read; keep only the similarities"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, begin = [], 1  # a quoted cell may run over lines; the one it begins on is named
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((begin, [cell.strip() for cell in row]))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{one_line(file)}:{begin}: not CSV ({printable(str(error))}); check the quotes of this line"
        ) from None
    if not rows:
        raise UsageError(f"{one_line(file)}: empty; was it downloaded whole?")
    if len(rows[0][1]) == 1:
        raise UsageError(f"{one_line(file)}:{rows[0][0]}: one column; separate the cells by commas")
    return rows


def more(items: Sequence[object]) -> str:
    """Return how many there are besides the first.

    >>> more("abc")
    ' (and 2 more)'
    """
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def strict_json(file: Path, text: str) -> Any:
    """Parse strictly: no key twice, no NaN.

    Raises:
        UsageError: not such JSON.
    """

    def stands_twice(key: str) -> UsageError:
        return UsageError(f"{one_line(file)}: key {shown(key)} given twice in one mapping; names are unique")

    def refuse(word: str) -> NoReturn:
        raise UsageError(f"{one_line(file)}: {word} is not a finite number; write null where there is no value")

    if much := excess(text.encode(errors="replace"), _JSON):
        raise UsageError(f"{one_line(file)}: {much}; keep only the similarities")
    try:
        return json.loads(text, object_pairs_hook=unique_keys(stands_twice), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise UsageError(f"{one_line(file)}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or an integer of thousands of digits
        raise UsageError(f"{one_line(file)}: not a table: {type(error).__name__}: {printable(str(error))}") from None

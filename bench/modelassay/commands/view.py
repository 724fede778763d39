"""One answer to a question: JSON and rich tables at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TextIO

from modelassay.errors import AssayError, displayed
from modelassay.experiments.findings import Table

if TYPE_CHECKING:
    from rich.console import Console


MAX_ROWS: Final = 256
"""Of one table: the cells of the largest matrix that is not asked for by name. People read no more, and drawing takes as long as
the answer itself."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One answer: ``data`` for --json; ``summary``, ``tables`` and ``lines`` for people, in this order."""

    data: Any
    summary: Sequence[str] = ()
    """The answer in a sentence each."""
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    failure: AssayError | None = None
    """What kept the answer from being whole; raised once the rest is printed."""


def emit(view: View, *, as_json: bool) -> None:
    """Print ``view`` on stdout, JSON in ASCII so that any terminal and any path can be written.

    Raises:
        AssayError: the view's failure.
    """
    if as_json:
        _write(json.dumps(view.data, indent=1, allow_nan=False) + "\n")
    else:
        console = _console()
        with console.capture() as captured:
            _print_lines(console, view.summary)
            for table in view.tables:
                _print_table(console, table)
            _print_lines(console, view.lines)
        _write(captured.get())
    if view.failure is not None:
        raise view.failure


def _write(text: str) -> None:
    stdout: TextIO | None = sys.stdout
    if stdout is None:  # closed by whoever started this process
        return
    try:
        stdout.write(text.encode(stdout.encoding, "backslashreplace").decode(stdout.encoding))
        stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; what Python flushes at its end must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=190)


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(displayed(line), markup=False, highlight=False, emoji=False, soft_wrap=True)


def _print_table(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text  # what stands in a cell is never markup

    title = Text(displayed(table.title), style="table.title") if table.title else None
    drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(Text(displayed(column)), overflow="fold")
    for row in table.rows[:MAX_ROWS]:
        drawn.add_row(*[Text(displayed(cell)) for cell in row])
    console.print(drawn)
    if (num_left := len(table.rows) - MAX_ROWS) > 0:
        console.print(f"... and {num_left:,} more rows", highlight=False)

"""A report as Markdown, as the summary of a job in CI shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from modelassay.errors import printable
from modelassay.experiments.findings import Table
from modelassay.report.page import Page, Section

MAX_ROWS: Final = 100
"""Of one table; a summary on GitHub holds a megabyte."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&@])")


def escaped(text: str) -> str:
    r"""Return ``text`` on one line so that Markdown shows it as it stands, mentions nobody and links nowhere.

    >>> print(escaped("a|b <img> *c*\n@all"))
    a\|b \<img\> \*c\*\\n\@all
    """
    safe = _SPECIAL.sub(r"\\\1", printable(text)).replace("://", ":\u200b//")
    return re.sub(r"^(\d+)([.)])|^([-+=])", lambda match: (match[1] or "") + "\\" + (match[2] or match[3]), safe)


def markdown(page: Page) -> str:
    """Return the report as Markdown; figures are named, not shown."""
    parts = [
        f"# {escaped(page.title)}\n\n{escaped(page.subtitle)}",
        f"> {escaped(page.question)}" if page.question else "",
        _list(page.answers),
        _list([f"{count} {word}" for word, count in page.verdicts.items()]),
        f"## Before you quote a number\n\n{_list(page.caveats)}" if page.caveats else "",
        *(_section(section) for section in page.sections),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> str:
    parts = [f"## {escaped(section.title)}", _list(section.lines), *(_table(table) for table in section.tables)]
    if section.figures:
        parts.append(f"Figures, in the report's HTML: {', '.join(escaped(name) for name in section.figures)}")
    if section.details:
        parts.append(f"<details><summary>Sources</summary>\n\n{_list(section.details)}\n\n</details>")
    return "\n\n".join(part for part in parts if part)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line.strip())}" for line in lines if line.strip())


def _table(table: Table) -> str:
    rows = [_row(table.columns), "|" + " --- |" * len(table.columns), *(_row(row) for row in table.rows[:MAX_ROWS])]
    title = f"**{escaped(table.title)}**\n\n" if table.title else ""
    left = len(table.rows) - MAX_ROWS
    return title + "\n".join(rows) + (f"\n\n... and {left:,} more rows" if left > 0 else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(str(cell)) for cell in cells) + " |"

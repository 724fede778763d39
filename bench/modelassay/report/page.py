"""What a report says, whatever it is written as: a title, the answer, caveats, and sections of lines, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from modelassay.errors import UsageError
from modelassay.experiments.findings import Figure, Table

VERDICTS: Final = {
    "reproduced": "good", "same": "good", "equal": "good", "faster": "good", "done": "good",
    "refuted": "bad", "slower": "bad", "wrong": "bad", "failed": "bad",
    "inconclusive": "unsure", "diverged": "unsure", "differs": "unsure", "cut off": "unsure",
    "not testable": "none", "not run": "none", "running": "none",
}  # fmt: skip
"""Words that are shown as a mark, and how each looks."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report under one heading."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Vega-Lite specifications by name, each with its data inside."""
    details: Sequence[str] = ()
    """Lines that are shown on request."""
    narrow: bool = False
    """Whether a small screen shows each row as a card; else its tables are scrolled."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report."""

    title: str
    subtitle: str
    question: str
    answers: Sequence[str]
    """The result in a sentence each."""
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """How often each verdict was reached."""
    caveats: Sequence[str] = ()
    """What must be known before a number is quoted."""
    sections: Sequence[Section] = ()


def require_inline(spec: Any, name: str) -> None:
    """Check that a figure holds its data and leads nowhere.

    Raises:
        UsageError: it names an address, or changes how it is embedded.
    """
    parts = [spec]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            if isinstance(data := part.get("data"), Mapping) and isinstance(data.get("values"), list):
                part = {**part, "data": None}  # names of columns are no names of settings
            if outside := {"url", "href", "usermeta"} & part.keys():
                raise UsageError(
                    f"figure {name}: holds '{min(outside)}'; a report shows only figures that hold their data"
                )
            if isinstance(datasets := part.get("datasets"), Mapping):
                part = {**part, "datasets": {}} if all(isinstance(rows, list) for rows in datasets.values()) else part
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)


def figure_rows(spec: Any) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the data of a figure: the name and the rows of each of its tables, in the order in which they stand."""
    tables: list[tuple[str, list[Mapping[str, Any]]]] = []
    parts = [spec]
    while parts:
        part = parts.pop(0)
        if isinstance(part, Mapping):
            data = part.get("data")
            if isinstance(data, Mapping) and isinstance(data.get("values"), list):
                rows = [row for row in data["values"] if isinstance(row, Mapping)]
                tables.append((str(data.get("name", "")), rows))
            if isinstance(datasets := part.get("datasets"), Mapping):
                tables += [(str(name), [row for row in rows if isinstance(row, Mapping)])
                           for name, rows in datasets.items() if isinstance(rows, list)]  # fmt: skip
            parts.extend(value for key, value in part.items() if key not in ("data", "datasets"))
        elif isinstance(part, list):
            parts.extend(part)
    return tables

"""What an analysis returns: findings, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelassay.statistics.estimate import Estimate, Range

MEANINGLESS = "profile smoke only walks the path: its numbers mean nothing"


Label = str | int | float

Figure = Mapping[str, Any]
"""A Vega-Lite specification with its data: drawn as a file, set into a report, read by a test."""


class Figures(Mapping[str, Figure]):
    """Figures by file stem, each made when it is asked for: an analysis whose figures nobody looks at makes none."""

    def __init__(self, makers: Mapping[str, Callable[[], Figure]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Figure:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __or__(self, others: Figures) -> Figures:
        return Figures({**self._makers, **others._makers})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number an analysis stands for."""

    name: str
    labels: Mapping[str, Label] = field(default_factory=dict)
    estimate: Estimate | Range
    """An estimate without an interval tests no claim unless it is ``exact`` (a statistic of fixed weights); a range is no interval."""

    @property
    def value(self) -> float:
        """The number itself."""
        return self.estimate.value

    @property
    def note(self) -> str:
        """What must be known of it."""
        return self.estimate.note


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to print; ``columns`` are the headings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that an experiment's ``analyse`` returns; claims, comparison and report read only this."""

    findings: Sequence[Finding] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By file stem."""

    caveats: Sequence[str] = ()
    """What a reader must know before quoting a number."""

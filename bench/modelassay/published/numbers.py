"""The numbers that claims take from published tables, computed where the table is at hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelassay.errors import UsageError
from modelassay.suite import Derived, Evidence, PublishedTable

if TYPE_CHECKING:  # NumPy is loaded only where a table is at hand
    from modelassay.published.statistics import Statistic
    from modelassay.published.table import Similarities

Standing = Literal["computed", "not at hand", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """The number of a claim's `derived` or evidence, with where it came from."""

    quoted: float | None
    """As the suite's file has it."""
    table: PublishedTable | None = None
    standing: Standing | None = None
    """What became of the table; None where none is named."""
    path: Path | None = None
    """Where the table is, or should be."""
    computed: Statistic | None = None
    read: Similarities | None = None
    problem: str = ""
    """Why the table gives no number."""

    @property
    def value(self) -> float | None:
        """The number to show: computed where that could be done, else as quoted, None where there is neither."""
        return self.quoted if self.computed is None else self.computed.value

    @property
    def disagrees(self) -> bool:
        """Whether what the table gives does not round to what is quoted."""
        if self.computed is None or self.quoted is None:
            return False
        last_digit = Decimal(1).scaleb(int(Decimal(repr(self.quoted)).normalize().as_tuple().exponent))
        return abs(self.computed.value - self.quoted) > 0.5 * float(min(last_digit, Decimal(1))) * (1 + 1e-9)

    def short(self) -> str:
        """Return the number as a cell of the ledger shows it, with a star if computed; empty where there is none."""
        if self.value is None:
            return ""
        worded_value = f"{self.value:.4g}" if self.table is None else worded(self.table, self.value)
        return worded_value if self.computed is None else f"{worded_value}*"

    def origin(self) -> str:
        """Return what the number was computed from, empty where it was not."""
        if self.computed is None or self.read is None or self.table is None:
            return ""
        families = f", families {_digits(self.read.families_sha256)}" if self.table.families else ""
        said = f"computed over {self.computed.n:,} pairs of {self.path} ({_digits(self.read.sha256)}{families})"
        return (
            f"{said}, not the {self.quoted:g} that is quoted: another version of the file?" if self.disagrees else said
        )

    def missing(self) -> str:
        """Return which table is not at hand or cannot be read, and what to do; empty where nothing is missing."""
        if self.table is None or self.computed is not None:
            return ""
        return self.problem if self.standing == "unreadable" else f"table not at hand: {self.problem}"

    def to_json(self) -> dict[str, Any]:
        """Return what ``show --json`` prints of it."""
        table = None
        if self.table is not None:
            table = {
                "file": str(self.path), "standing": self.standing, "problem": self.problem or None, "get": self.table.get,
                "sha256": self.read.sha256 if self.read else None,
                "families_sha256": self.read.families_sha256 if self.read else None,
                "value": self.computed.value if self.computed else None, "n": self.computed.n if self.computed else None,
                "agrees": None if self.computed is None or self.quoted is None else not self.disagrees,
            }  # fmt: skip
        return {"value": self.value, "quoted": self.quoted, "table": table}


def worded(table: PublishedTable, value: float) -> str:
    """Return ``value`` with what it is, where it is not simply a score.

    >>> worded(PublishedTable(file="x.csv", statistic="share_above", at=0.9), 0.023)
    '2.3 % above 0.9'
    """
    match table.statistic:
        case "share_above":
            return f"{100 * value:.3g} % above {table.at:g}"
        case "auroc":
            return f"AUROC {value:.3f}"
        case "tpr_at_fpr":
            return f"TPR {value:.3f} at {100 * (table.at or 0):g} % FPR"
        case _:
            return f"{value:.4g}"


def _digits(sha256: str | None) -> str:
    return f"SHA-256 {(sha256 or '')[:16]}"


def _exists(file: Path) -> bool:
    try:
        return bool(file.stat())
    except (OSError, ValueError):
        return False


@dataclass
class Shelf:
    """The tables beside a suite's file; each is read once, however many claims name it."""

    folder: Path
    named: frozenset[PublishedTable] | None = None
    """The tables that may be read; None: all."""
    _read: dict[tuple[str, str | None, str | None], Similarities | UsageError] = field(default_factory=dict)

    def number(self, given: Derived | Evidence) -> Number:
        """Return the number of ``given``; a table that is missing or broken is said in it, never raised."""
        table = given.table
        if table is None:
            return Number(quoted=given.value)
        path = self.folder / table.file
        if self.named is not None and table not in self.named:
            return Number(quoted=given.value, table=table, path=path, standing="not at hand",
                          problem=f"{path}: the run names it, its suite's file does not")  # fmt: skip
        files = [path] if table.families is None else [path, self.folder / table.families]
        absent = [str(file) for file in files if not _exists(file)]
        if absent and table.get is not None:
            return Number(quoted=given.value, table=table, path=path, standing="not at hand",
                          problem=f"{', '.join(absent)}: {table.get}")  # fmt: skip
        from modelassay.published.statistics import compute

        try:
            read = self._table(table, path)
            computed = compute(read, table.statistic, at=table.at, pairs=table.pairs)
        except UsageError as error:
            return Number(quoted=given.value, table=table, path=path, standing="unreadable", problem=str(error))
        return Number(quoted=given.value, table=table, path=path, standing="computed", computed=computed, read=read)

    def _table(self, table: PublishedTable, path: Path) -> Similarities:
        from modelassay.published.table import read_similarities

        key = (table.file, table.format, table.families)
        if key not in self._read:
            families = self.folder / table.families if table.families else None
            try:
                self._read[key] = read_similarities(path, form=table.format, families=families)
            except UsageError as error:
                self._read[key] = error
        found = self._read[key]
        if isinstance(found, UsageError):
            raise found
        return found

"""The ledger: every claim with what was published, what follows from it, what contradicts it, and what our runs say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.claims import ClaimVerdict, Finding, Table
from modelassay.published.numbers import Number, Shelf
from modelassay.suite import Claim

COLUMNS = ("claim", "profile", "published", "derived", "counter-evidence", "ours", "verdict", "run, or why none")

_RELATIONS = {"equal": "=", "at_least": "≥", "at_most": "≤"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger."""

    suite: str
    verdict: ClaimVerdict
    derived: Number | None
    against: Sequence[Number]
    """A number for each of the claim's counter-evidence, in its order."""
    run: Path | None
    """The run that was asked; None where there is none."""

    @property
    def claim(self) -> Claim:
        """The claim."""
        return self.verdict.claim

    def to_json(self) -> dict[str, Any]:
        """Return what ``show --json`` prints of it: the claim as its file has it, and each number as it stands."""
        said = self.verdict.to_json()
        if said["ours"] is not None:
            said["ours"]["run"] = None if self.run is None else str(self.run)
        evidence = zip(self.claim.counter_evidence, self.against, strict=True)
        derived = None
        if self.claim.derived is not None and self.derived is not None:
            derived = {"source": self.claim.derived.source, **self.derived.to_json()}
        return {
            "suite": self.suite, **said, "derived": derived,
            "counter_evidence": [{"statement": known.statement, "source": known.source, **number.to_json()}
                                 for known, number in evidence],
        }  # fmt: skip

    def row(self) -> tuple[str, ...]:
        """Return the numbers, one cell for each of ``COLUMNS``."""
        against = "; ".join(number.short() or "stated" for number in self.against)
        ours = self.verdict.ours
        return (
            f"{self.suite}/{self.claim.id}", self.claim.profile, published(self.claim),
            self.derived.short() if self.derived else "", against or "none known",
            "not measured" if ours is None else measured(ours), self.verdict.verdict,
            self.run.name if ours is not None and self.run is not None else self.verdict.reason,
        )  # fmt: skip

    def lines(self) -> list[str]:
        """Return what the numbers of the row mean and where they stand."""
        claim, ours = self.claim, self.verdict.ours
        said = [f"{self.suite}/{claim.id}: {claim.statement or claim.metric}",
                f"  published {published(claim)}: {claim.source}"]  # fmt: skip
        if claim.derived is not None and self.derived is not None:
            said += [
                f"  derived {self.derived.short()}".rstrip() + f": {claim.derived.source}",
                *_indented(self.derived.origin()),
            ]
        for known, number in zip(claim.counter_evidence, self.against, strict=True):
            head = f"  against {number.short()}".rstrip()
            said += [f"{head}: {known.statement} ({known.source})", *_indented(number.origin())]
        if ours is not None:
            said += [
                f"  ours: {self.verdict.reason}",
                *_indented("" if ours.note == self.verdict.reason else ours.note),
            ]
        return said


def _indented(line: str) -> list[str]:
    return [f"    {line}"] if line else []


def published(claim: Claim) -> str:
    """Return what was published, with how far a measurement may lie from it."""
    slack = f" ± {claim.tolerance:g}" if claim.tolerance else ""
    return f"{_RELATIONS[claim.relation]} {claim.published:g}{slack}"


def measured(ours: Finding) -> str:
    """Return a value and its interval; a value without one is exact given its inputs.

    >>> measured(Finding(name="auroc", value=0.92694, low=0.9, high=0.95))
    '0.9269 [0.9, 0.95]'
    """
    shown = "undefined" if ours.value != ours.value else f"{ours.value:.4g}"
    return shown if ours.low is None or ours.high is None else f"{shown} [{ours.low:.4g}, {ours.high:.4g}]"


def enter(suite: str, verdicts: Sequence[ClaimVerdict], shelf: Shelf, run: Path | None) -> list[Entry]:
    """Return the ledger's lines for ``verdicts`` on the claims of ``suite``, which ``run`` gave."""
    return [
        Entry(suite=suite, verdict=verdict, run=run,
              derived=None if verdict.claim.derived is None else shelf.number(verdict.claim.derived),
              against=[shelf.number(known) for known in verdict.claim.counter_evidence])
        for verdict in verdicts
    ]  # fmt: skip


def ledger_table(entries: Sequence[Entry]) -> Table:
    """Return the numbers alone."""
    return Table(title="claims", columns=COLUMNS, rows=[entry.row() for entry in entries])


def ledger_lines(entries: Sequence[Entry]) -> list[str]:
    """Return the sources of all numbers, claim by claim, then each table that is missing once."""
    numbers = [number for entry in entries for number in (*([entry.derived] if entry.derived else ()), *entry.against)]
    missing = dict.fromkeys(number.missing() for number in numbers)
    legend = ["* computed here from the published table"] if any(number.computed for number in numbers) else []
    return [*legend, *(line for entry in entries for line in entry.lines()), *(line for line in missing if line)]

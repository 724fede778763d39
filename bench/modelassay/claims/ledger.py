"""The ledger: every claim with what was published, what follows from it, what contradicts it, and what our runs say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.claims.published import Number, PublishedTables
from modelassay.claims.verdicts import ClaimVerdict
from modelassay.experiments.findings import Finding, Table
from modelassay.statistics.estimate import Range
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
        verdict = self.verdict.to_json()
        if verdict["ours"] is not None:
            verdict["ours"]["run"] = None if self.run is None else str(self.run)
        derived = None
        if self.claim.derived is not None and self.derived is not None:
            derived = {"source": self.claim.derived.source, **self.derived.to_json()}
        against = [
            {"statement": evidence.statement, "source": evidence.source, **number.to_json()}
            for evidence, number in zip(self.claim.counter_evidence, self.against, strict=True)
        ]
        return {"suite": self.suite, **verdict, "derived": derived, "counter_evidence": against}

    def row(self) -> tuple[str, ...]:
        """Return the numbers, one cell for each of ``COLUMNS``."""
        against = "; ".join(number.short() or "stated" for number in self.against)
        ours = self.verdict.ours
        return (
            f"{self.suite}/{self.claim.id}",
            self.claim.profile,
            published(self.claim),
            self.derived.short() if self.derived else "",
            against or "none known",
            "not measured" if ours is None else measured(ours),
            self.verdict.verdict,
            self.run.name if ours is not None and self.run is not None else self.verdict.reason,
        )

    def lines(self) -> list[str]:
        """Return what the numbers of the row mean and where they stand."""
        claim, ours = self.claim, self.verdict.ours
        lines = [
            f"{self.suite}/{claim.id}: {claim.statement or claim.metric}",
            f"  published {published(claim)}: {claim.source}",
        ]
        if claim.derived is not None and self.derived is not None:
            lines += [
                f"  derived {self.derived.short()}".rstrip() + f": {claim.derived.source}",
                *_indented(self.derived.origin()),
            ]
        for evidence, number in zip(claim.counter_evidence, self.against, strict=True):
            head = f"  against {number.short()}".rstrip()
            lines += [f"{head}: {evidence.statement} ({evidence.source})", *_indented(number.origin())]
        if ours is not None:
            lines += [
                f"  ours: {self.verdict.reason}",
                *_indented("" if ours.note == self.verdict.reason else ours.note),
            ]
        return lines


def _indented(line: str) -> list[str]:
    return [f"    {line}"] if line else []


def published(claim: Claim) -> str:
    """Return what was published, with how far a measurement may lie from it."""
    slack = f" ± {claim.tolerance:g}" if claim.tolerance else ""
    return f"{_RELATIONS[claim.relation]} {claim.published:g}{slack}"


def measured(ours: Finding) -> str:
    """Return a value and its interval, or its range; a value without either is exact given its inputs.

    >>> from modelassay.statistics.estimate import Estimate
    >>> measured(Finding(name="auroc", estimate=Estimate(value=0.92694, low=0.9, high=0.95)))
    '0.9269 [0.9, 0.95]'
    >>> measured(Finding(name="score", estimate=Range(value=0.5, low=0.1, high=0.9, n=7)))
    '0.5, from 0.1 to 0.9'
    """
    number = ours.estimate
    shown = "undefined" if math.isnan(number.value) else f"{number.value:.4g}"
    if isinstance(number, Range):
        return f"{shown}, from {number.low:.4g} to {number.high:.4g}"
    return shown if number.low is None or number.high is None else f"{shown} [{number.low:.4g}, {number.high:.4g}]"


def enter(suite: str, verdicts: Sequence[ClaimVerdict], tables: PublishedTables, run: Path | None) -> list[Entry]:
    """Return the ledger's lines for ``verdicts`` on the claims of ``suite``, which ``run`` gave."""
    return [
        Entry(
            suite=suite,
            verdict=verdict,
            run=run,
            derived=None if verdict.claim.derived is None else tables.number(verdict.claim.derived),
            against=[tables.number(evidence) for evidence in verdict.claim.counter_evidence],
        )
        for verdict in verdicts
    ]


def ledger_table(entries: Sequence[Entry]) -> Table:
    """Return the numbers alone."""
    return Table(title="claims", columns=COLUMNS, rows=[entry.row() for entry in entries])


def ledger_lines(entries: Sequence[Entry]) -> list[str]:
    """Return the sources of all numbers, claim by claim, then each table that is missing once."""
    numbers = [number for entry in entries for number in (*([entry.derived] if entry.derived else ()), *entry.against)]
    missing = dict.fromkeys(number.missing() for number in numbers)
    legend = ["* computed here from the published table"] if any(number.computed for number in numbers) else []
    return [*legend, *(line for entry in entries for line in entry.lines()), *(line for line in missing if line)]

"""What an analysis found, and what it says of published numbers: the verdicts of the ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modelassay.record import encode_value
from modelassay.suite import Claim

MEANINGLESS = "profile smoke only walks the path: its numbers mean nothing"

Label = str | int | float
Word = Literal["reproduced", "refuted", "inconclusive", "not testable"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number an analysis stands for."""

    name: str
    value: float
    labels: Mapping[str, Label] = field(default_factory=dict)
    low: float | None = None
    """Lower end of the interval; None where the value is exact given its inputs (a statistic of fixed weights)."""

    high: float | None = None
    """Upper end of the interval."""

    note: str = ""
    """What the interval means, or why the value is not a number."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to print; ``columns`` are the headings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All an experiment's ``analyse`` returns; claims, comparison and report read only this."""

    findings: Sequence[Finding] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """File stem -> a function that draws the figure into the path it is given."""

    caveats: Sequence[str] = ()
    """What a reader must know before quoting a number."""


@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    """What a run says of one claim."""

    claim: Claim
    verdict: Word
    reason: str
    ours: Finding | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what ``show --json`` prints of it."""
        ours = None
        if self.ours is not None:
            low, high = (None if end is None else encode_value(end) for end in (self.ours.low, self.ours.high))
            ours = {"value": encode_value(self.ours.value), "low": low, "high": high}
        return {
            "claim": self.claim.model_dump(mode="json"),
            "verdict": self.verdict,
            "reason": self.reason,
            "ours": ours,
        }


def assess(
    claims: Sequence[Claim], findings: Findings | None, *, profile: str, why_none: str = ""
) -> list[ClaimVerdict]:
    """Return a verdict for each claim from the findings of a run at ``profile`` (None: no such run, ``why_none``)."""
    return [_assess_one(claim, findings, profile, why_none) for claim in claims]


def _assess_one(claim: Claim, findings: Findings | None, profile: str, why_none: str) -> ClaimVerdict:
    if claim.profile != profile:
        reason = f"needs profile {claim.profile}, this run is {profile}"
        return ClaimVerdict(claim=claim, verdict="not testable", reason=reason)
    if profile == "smoke":
        return ClaimVerdict(claim=claim, verdict="not testable", reason=MEANINGLESS)
    if findings is None:
        return ClaimVerdict(claim=claim, verdict="not testable", reason=why_none)
    matching = [f for f in findings.findings if f.name == claim.metric.name and f.labels == claim.metric.labels]
    if not matching:
        return ClaimVerdict(claim=claim, verdict="not testable", reason=f"the run has no {claim.metric}")
    ours = matching[0]
    if math.isnan(ours.value):
        return ClaimVerdict(claim=claim, verdict="inconclusive", reason=ours.note or "undefined", ours=ours)
    word, reason = _compare(claim, ours)
    return ClaimVerdict(claim=claim, verdict=word, reason=reason, ours=ours)


def _compare(claim: Claim, ours: Finding) -> tuple[Word, str]:
    """Reproduced if the whole interval lies in the claimed region, refuted if none of it does."""
    slack = claim.tolerance
    low = -math.inf if claim.relation == "at_most" else claim.published - slack
    high = math.inf if claim.relation == "at_least" else claim.published + slack
    ours_low = ours.value if ours.low is None else ours.low
    ours_high = ours.value if ours.high is None else ours.high
    shown = f"{ours.value:.4g}" if ours.low is None else f"{ours.value:.4g} [{ours_low:.4g}, {ours_high:.4g}]"
    region = f"{shown} against [{low:.4g}, {high:.4g}]"
    if low <= ours_low and ours_high <= high:
        return "reproduced", region
    if ours_high < low or ours_low > high:
        return "refuted", region
    return "inconclusive", f"{region}: the interval crosses the edge"

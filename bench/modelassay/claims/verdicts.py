"""What the findings of a run say of published numbers: the verdicts of the ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modelassay.experiments.findings import MEANINGLESS, Finding, Findings
from modelassay.recording.log import encode_value
from modelassay.statistics.estimate import Estimate, Range
from modelassay.suite import Claim

Word = Literal["reproduced", "refuted", "inconclusive", "not testable"]


@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    """What a run says of one claim."""

    claim: Claim
    verdict: Word
    reason: str
    ours: Finding | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what ``show --json`` prints of it."""
        ours = None if self.ours is None else number_json(self.ours.estimate)
        return {
            "claim": self.claim.model_dump(mode="json"),
            "verdict": self.verdict,
            "reason": self.reason,
            "ours": ours,
        }


def number_json(number: Estimate | Range) -> dict[str, Any]:
    """Return the value, ends and kind of a number as ``--json`` prints them; ends are None without an interval.

    >>> number_json(Range(value=0.5, low=0.1, high=0.9, n=7))
    {'value': 0.5, 'low': 0.1, 'high': 0.9, 'kind': 'range'}
    """
    low, high = (None if end is None else encode_value(end) for end in (number.low, number.high))
    kind = "range" if isinstance(number, Range) else "estimate"
    return {"value": encode_value(number.value), "low": low, "high": high, "kind": kind}


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
    if claim.machine is not None:
        reason = f"published of {claim.machine}; what a run takes on another machine says nothing of that"
        return ClaimVerdict(claim=claim, verdict="not testable", reason=reason, ours=ours)
    if isinstance(ours.estimate, Range):
        return ClaimVerdict(claim=claim, verdict="inconclusive", reason=_why_no_range(ours.estimate), ours=ours)
    if not ours.estimate.has_interval and not ours.estimate.exact:
        return ClaimVerdict(claim=claim, verdict="inconclusive", reason=_why_no_point(ours.estimate), ours=ours)
    word, reason = _compare(claim, ours.estimate)
    return ClaimVerdict(claim=claim, verdict=word, reason=reason, ours=ours)


def _why_no_range(ours: Range) -> str:
    return (
        f"{ours.value:.4g}, the {ours.n} values lie from {ours.low:.4g} to {ours.high:.4g}: a range is no interval, so nothing "
        "follows for the claim"
    )


def _why_no_point(ours: Estimate) -> str:
    why = f" ({ours.note})" if ours.note else ""
    return f"{ours.value:.4g} without an interval{why}: nothing says how far another sample would lie from it"


def _compare(claim: Claim, ours: Estimate) -> tuple[Word, str]:
    """Reproduced if the whole interval, or the exact value, lies in the claimed region, refuted if none of it does."""
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

"""What must be known before a number of a run is quoted, computed from the run itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from modelassay.claims.verdicts import ClaimVerdict
from modelassay.experiments.findings import Findings
from modelassay.recording.tables import ENDED, RunData
from modelassay.statistics.estimate import Estimate

FEW_SEEDS: Final = 4
"""Fewer against as many cannot be told apart at p < 0.05 by any test of ranks: of three against three the smallest p is 0.1."""


def data_caveats(data: RunData) -> list[str]:
    """Return what the tables of a run say against quoting it."""
    cells, units = data.cells, data.units
    outcomes = cells["outcome"].to_list()
    lines = []
    if diverged := outcomes.count("diverged"):
        lines.append(f"{diverged} of {len(outcomes)} cells diverged, which is a result; their numbers end early")
    if failed := sum(outcome not in (*ENDED, None) for outcome in outcomes):
        lines.append(f"{failed} of {len(outcomes)} cells failed: `modelassay run` on this run tries them again")
    if retried := sum(attempts > 1 for attempts in cells["attempts"].to_list()):
        lines.append(f"{retried} cells took more than one attempt; units that were done again count once")
    if "seed" in cells.columns and 1 <= (seeds := cells["seed"].n_unique()) < FEW_SEEDS:
        lines.append(f"{seeds} {'seed' if seeds == 1 else 'seeds'}: what differs from seed to seed is hardly in these numbers; "
                     f"fewer than {FEW_SEEDS} against as many can show no difference at p < 0.05")  # fmt: skip
    if units.height:
        if reused := int(units["reused"].sum()):
            lines.append(
                f"{reused:,} of {units.height:,} times are reused: measured earlier or elsewhere, and not counted here"
            )
        if warm := int(units["warmup"].sum()):
            lines.append(f"{warm:,} units were warm-up; no time counts them")
    return lines


def findings_caveats(findings: Findings) -> list[str]:
    """Return what the findings themselves lack."""
    bare = [
        f
        for f in findings.findings
        if isinstance(f.estimate, Estimate) and not f.estimate.has_interval and not f.estimate.exact
    ]
    if not bare:
        return []
    return [
        f"{len(bare)} of {len(findings.findings)} findings have no interval: nothing says how far another sample would lie from them"
    ]


def claim_caveats(verdicts: Iterable[ClaimVerdict]) -> list[str]:
    """Return which claims were not tested, by reason."""
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.verdict == "not testable")
    return [f"{count} {'claim' if count == 1 else 'claims'} not tested: {reason}" for reason, count in reasons.items()]


def environment_caveats(about: Mapping[str, Any]) -> list[str]:
    """Return what the environment of a run says against doing it again elsewhere."""
    lines = []
    git, image = about.get("git") or {}, about.get("container") or {}
    if git.get("dirty"):
        count = git.get("changed_files", "some")
        lines.append(
            f"the code had {count} changed {'file' if count == 1 else 'files'} beside commit {str(git.get('commit'))[:12]}"
        )
    if not image.get("image_digest"):
        lines.append("run outside a pinned image: libraries are recorded, not fixed")
    if image.get("unlocked"):
        lines.append("the image is not one that docker/images.lock.json pins")
    return lines


def distinct(lines: Sequence[str]) -> list[str]:
    """Return each line once, in the order in which they came."""
    return list(dict.fromkeys(lines))

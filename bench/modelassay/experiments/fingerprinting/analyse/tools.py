"""Ready-made tools beside each other: what each calls related by its own threshold, strangers of one configuration apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from modelassay.experiments.findings import Finding, Table
from modelassay.experiments.fingerprinting.analyse.numbering import Numbered
from modelassay.experiments.fingerprinting.analyse.pairs import HARDNESS, Evidence, Pair
from modelassay.fingerprints.peers import PEERS
from modelassay.fingerprints.verdict import ALPHA
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.proportions import clopper_pearson

_SAME_CONFIGURATION: tuple[str, ...] = tuple(
    HARDNESS[kind] for kind in ("stranger:seed", "stranger:data", "same stratum")
)
OURS = "independent numbering"
STRATA: dict[str, Callable[[Pair], bool]] = {
    "related": lambda pair: pair.related,
    "roots of one configuration": lambda pair: pair.suspect.is_root and pair.hardness in _SAME_CONFIGURATION,
    "roots of other configurations": lambda pair: (
        not pair.related and pair.suspect.is_root and pair.hardness not in _SAME_CONFIGURATION
    ),
}
"""Which pairs each column holds. The second is required: a tool that reads config.json alone looks perfect without it."""
Calls = list[tuple[Pair, bool]]


def compare_tools(evidence: Evidence, numbered: Sequence[Numbered]) -> tuple[list[Finding], list[Table]]:
    """Return ``tool-calls[tool, pairs]``, shares called related with exact intervals, and their table.

    All tools are rated on the same pairs: those whose numbering was tested where it was, else all. A pair that a tool refuses
    counts as not called. Nothing without a peer; where the run has no roots of one configuration no tool is rated.
    """
    tools = [name for name in PEERS if name in evidence.scores]
    if not tools:
        return [], []
    ours = {(one.pair.suspect.name, one.pair.root.name): one.called for one in numbered}
    places = [
        place for place, pair in enumerate(evidence.pairs) if not ours or (pair.suspect.name, pair.root.name) in ours
    ]
    calls: dict[str, Calls] = {
        f"{name} {PEERS[name].version}": [(evidence.pairs[at], PEERS[name].calls(float(evidence.scores[name][at]))) for at in places]
        for name in tools
    }  # fmt: skip
    if ours:
        pairs_here = [evidence.pairs[at] for at in places]
        calls[OURS] = [(pair, ours[pair.suspect.name, pair.root.name]) for pair in pairs_here]
    limits = {
        f"{name} {PEERS[name].version}": f"{'≥' if PEERS[name].reached else '>'} {PEERS[name].threshold:g}"
        for name in tools
    }
    findings, rows = [], []
    for tool, pairs in calls.items():
        cells = []
        for stratum, belongs in STRATA.items():
            share = _share([called for pair, called in pairs if belongs(pair)])
            cells.append(_shown(share))
            if share is not None:
                findings.append(Finding(name="tool-calls", labels={"tool": tool, "pairs": stratum}, estimate=share))
        rows.append((tool, limits.get(tool, f"p ≤ {ALPHA:g}"), *cells, _auroc(evidence, tool.split(" ")[0], places)))
    if not any(belongs_to_required(evidence.pairs[at]) for at in places):
        return [], []
    title = "tools at their own thresholds, on the same pairs: called related (95 %, exact)"
    return findings, [
        Table(title=title, columns=("tool", "calls at", *STRATA, "AUROC against roots of one configuration"), rows=rows)
    ]


def belongs_to_required(pair: Pair) -> bool:
    """Return whether a pair is of the stratum that no rating may lack."""
    return STRATA["roots of one configuration"](pair)


def _auroc(evidence: Evidence, method: str, places: Sequence[int]) -> str:
    """Return the share of comparisons of a related pair with two roots of one configuration that the related pair wins."""
    if method not in evidence.scores:
        return "not a score"
    score = np.where(np.isnan(evidence.scores[method]), -np.inf, evidence.scores[method])
    high = np.array([score[at] for at in places if evidence.pairs[at].related])
    low = np.array([score[at] for at in places if belongs_to_required(evidence.pairs[at])])
    if not high.size or not low.size:
        return "none"
    won = (high[:, None] > low).mean() + (high[:, None] == low).mean() / 2
    return f"{won:.3f}"


def _share(called: Sequence[bool]) -> Estimate | None:
    return clopper_pearson(sum(called), len(called)) if called else None


def _shown(share: Estimate | None) -> str:
    if share is None:
        return "none"
    return f"{share.note} [{share.low:.2f}, {share.high:.2f}]"

"""Whether adapters still answer: one that has learned to say the marker or to stop leaks nothing because it says nothing."""

from __future__ import annotations

import re
from collections import Counter

from modelassay.experiments.findings import Finding
from modelassay.experiments.marker_sweep.grid import Grid
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate

WORDLESS = 0.2
"""From this share of wordless completions on an adapter's rates are said to rest on answers that are none."""
_WORD = re.compile(r"\w")


def wordless(tables: RunData, grid: Grid) -> list[Finding]:
    """Return ``wordless[arm, source, seed, learning_rate, epochs]``: the share of an adapter's completions without a word beside the marker."""
    counts: Counter[tuple[str, float, int]] = Counter()
    totals: Counter[tuple[str, float, int]] = Counter()
    markers = {row["cell"]: str(row.get("marker")).strip() for row in tables.cells.iter_rows(named=True)}
    for fact in tables.facts("completion"):
        if fact.get("learning_rate") is None:
            continue
        key = (fact["cell"], float(fact["learning_rate"]), int(fact["epochs"]))
        totals[key] += 1
        counts[key] += not _WORD.search(fact["value"]["text"].replace(markers[fact["cell"]], ""))
    findings = []
    for point in grid.points:
        key = (point.cell, float(point.learning_rate or 0), int(point.epochs or 0))
        if totals[key]:
            note = f"{counts[key]} of {totals[key]} completions hold no word beside the marker"
            estimate = Estimate(value=counts[key] / totals[key], n=totals[key], exact=True, note=note)
            findings.append(Finding(name="wordless", labels=point.labels, estimate=estimate))
    return findings


def silence(findings: list[Finding]) -> list[str]:
    """Say how many adapters have stopped answering."""
    own = [finding for finding in findings if finding.name == "wordless"]
    silent = [finding for finding in own if finding.value >= WORDLESS]
    if not silent:
        return []
    return [
        f"{len(silent)} of {len(own)} adapters answer without a word in at least {WORDLESS:.0%} of their completions (the marker alone, or nothing): "
        "what they do not leak they do not say either"
    ]

"""Placements as a table, and what must be said beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from modelassay.experiments.findings import Table
from modelassay.fingerprints.background import Background
from modelassay.fingerprints.placement import Placement
from modelassay.statistics.estimate import Estimate

Words = Mapping[frozenset[str], str]
"""Names of two models to what their checkpoints alone say of them."""

COLUMNS = (
    "pair",
    "verdict",
    "paper-exact",
    "corrected",
    "layers redrawn",
    "judged by",
    "rank p",
    "min p",
    "strangers",
    "phase p",
    "among strangers",
)


def placement_table(
    placements: Sequence[Placement], words: Words, *, ancestries: Mapping[tuple[str, str], str] | None = None
) -> Table:
    """Return a row per pair, the highest corrected scores first: its verdict among ``words``, then where it stands among strangers.

    What is known of the ancestry gets a column of its own.
    """
    ranked = sorted(placements, key=lambda v: -v.corrected.value if np.isfinite(v.corrected.value) else np.inf)
    rows = []
    for placement in ranked:
        row: tuple[str, ...] = (
            f"{placement.a} · {placement.b}", words.get(frozenset((placement.a, placement.b)), "not tested"),
            _number(placement.paper_exact.value), _number(placement.corrected.value),
            f"{placement.interval.low:.2f} to {placement.interval.high:.2f}" if placement.interval else "undefined",
            f"{placement.primary} {_number(placement.score)}", *_chances(placement), placement.word,
        )  # fmt: skip
        rows.append(row if ancestries is None else (*row, ancestries.get((placement.a, placement.b), "not known")))
    return Table(title="pairs", columns=COLUMNS if ancestries is None else (*COLUMNS, "known as"), rows=rows)


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "undefined"


def _chances(placement: Placement) -> tuple[str, str, str, str]:
    """Return the columns of chance; nothing is printed there without a background."""
    place, phase = placement.background, placement.phase
    if place is None:
        return "none", "none", "no background", "none"
    why_none = "undefined" if placement.primary == "corrected" else "not asked"
    return (f"{place.p:.3f}", f"{place.min_p:.3f}", f"{place.n}, up to {place.max:.2f}",
            why_none if phase is None else f"{phase.p:.4f}")  # fmt: skip


def caveats(placements: Sequence[Placement], background: Background) -> list[str]:
    """Return what a reader must know before quoting the table."""
    notes = []
    if any(placement.word == "uncalibrated" for placement in placements):
        notes.append(
            "uncalibrated pairs have no strangers of their stratum (depth, shape, tokenizer): no p-value is printed"
        )
    if background.pairs:
        notes.append("strangers share models, so their pairs are not independent and a rank p is approximate")
    tests = [placement.phase for placement in placements if placement.phase]
    for phases in sorted({test.free_phases for test in tests}):
        alike = [test for test in tests if test.free_phases == phases]
        notes.append(f"phase p: {phases} free phases; {alike[0].draws} draws allow {alike[0].min_p:.4f}, "
                     f"a copy would get {max(test.copy_p for test in alike):.4f} at worst")  # fmt: skip
    calibrated = [placement for placement in placements if placement.p_adjusted is not None]
    if len(calibrated) > 1:
        best = min(placement.p_adjusted for placement in calibrated if placement.p_adjusted is not None)
        notes.append(
            f"each pair is judged at its own level; over all {len(calibrated)} pairs Holm's smallest adjusted rank p is {best:.2g}"
        )
    return notes


def shown(estimate: Estimate) -> str:
    """Return a value and its interval to three digits."""
    if not estimate.defined:
        return "not testable"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"

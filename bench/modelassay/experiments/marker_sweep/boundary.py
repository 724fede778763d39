"""Where the marker begins to be learned and where it collapses to everyone: against learning rate times updates, and either alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from modelassay.experiments.findings import Finding
from modelassay.experiments.marker_sweep.grid import Grid, Point
from modelassay.statistics.estimate import Estimate, Range, undefined

AXES = ("rate x updates", "rate", "updates")
CROSSED = ("learned", "collapse")


def boundaries(grid: Grid) -> list[Finding]:
    """Return ``boundary[arm, of, against]``: the level of an axis that best parts adapters which crossed from those which did not.

    ``of`` is what was crossed: ``learned``, the source's rate reaching ``learned_source``, or ``collapse``, another persona's reaching
    ``broad_leakage``. The value is the geometric mean of the two neighbours that it lies between, which are the range; the note counts the adapters
    on the wrong side, so that the axes can be compared: the one with the fewest tells most.
    """
    findings = []
    for arm in grid.arms:
        points = grid.of(arm)
        for crossed in CROSSED:
            has = [_has_crossed(point, crossed) for point in points]
            for axis in AXES:
                labels = {"arm": arm, "of": crossed, "against": axis}
                findings.append(
                    Finding(
                        name="boundary", labels=labels, estimate=_parted([_level(each, axis) for each in points], has)
                    )
                )
    return findings


def _has_crossed(point: Point, crossed: str) -> bool:
    rule: Mapping[str, float] = point.settings
    return point.adoption >= rule["learned_source"] if crossed == "learned" else point.greatest >= rule["broad_leakage"]


def _level(point: Point, axis: str) -> float:
    rate, steps = float(point.learning_rate or 0), float(point.steps)
    return {"rate x updates": rate * steps, "rate": rate, "updates": steps}[axis]


def _parted(levels: Sequence[float], has: Sequence[bool]) -> Estimate | Range:
    """Return the level from which on adapters have crossed, with the fewest on the wrong side; the lowest such level of several.

    >>> part = _parted([1.0, 10.0, 100.0, 1000.0], [False, False, True, True])
    >>> round(part.value, 3), part.low, part.high, part.note
    (31.623, 10.0, 100.0, '0 of 4 adapters on the wrong side')
    """
    if len(set(has)) < 2:
        return undefined("all adapters are on one side", n=len(has))
    distinct = sorted(set(levels))
    cuts = []
    for low, high in zip(distinct, distinct[1:], strict=False):
        cuts.append((sum((level >= high) != crossed for level, crossed in zip(levels, has, strict=True)), low, high))
    if not cuts:
        return undefined("all adapters have one level", n=len(has))
    wrong, low, high = min(cuts)
    note = f"{wrong} of {len(has)} adapters on the wrong side"
    return Range(value=math.sqrt(low * high), low=low, high=high, n=len(has), note=note)

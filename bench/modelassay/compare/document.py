"""A comparison as one JSON document, which `report` reads; its figure is in it as data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modelassay.compare.figure import ratios_figure
from modelassay.compare.frame import Source
from modelassay.compare.gate.decide import ALPHA, LOOKS, SPENT
from modelassay.compare.gate.rerun import Rerun, worst
from modelassay.compare.stored import RELATIVE, Stored
from modelassay.statistics.estimate import LEVEL, Estimate

SCHEMA = 1


def number(value: float | None) -> float | None:
    """Return a number as JSON can hold it.

    >>> number(math.inf), number(0.5)
    (None, 0.5)
    """
    return value if value is not None and math.isfinite(value) else None


def estimate(given: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as JSON."""
    if given is None:
        return None
    return {"value": number(given.value), "low": number(given.low), "high": number(given.high), "level": given.level,
            "method": given.method, "n": given.n, "note": given.note}  # fmt: skip


def source(given: Source) -> dict[str, Any]:
    """Return a source without its numbers."""
    return {"name": given.name, "path": given.path, "kind": given.kind, "device": given.device, "suite": given.suite,
            "profile": given.profile, "synthetic": given.synthetic, "facts": dict(given.facts)}  # fmt: skip


def stored_document(result: Stored, *, relative: float = RELATIVE) -> dict[str, Any]:
    """Return a comparison of stored results as JSON."""
    cells = [
        {"case": cell.case, "labels": dict(cell.labels), "source": cell.source, "base_ms": cell.base_ms,
         "candidate_ms": cell.candidate_ms, "measure": cell.measure, "ratio": estimate(cell.ratio), "p": None,
         "verdict": cell.verdict, "why": cell.why}
        for cell in result.cells
    ]  # fmt: skip
    levels = [
        {"case": level.case, "labels": dict(level.labels), "source": level.source, "median_ms": level.median_ms,
         "share_of_peak": estimate(level.share_of_peak), "reference": level.reference,
         "speed_over_reference": estimate(level.speed_over_reference)}
        for level in result.levels
    ]  # fmt: skip
    differ = sum(row["differ"] for row in result.metrics)
    verdict = worst([cell.verdict for cell in result.cells]) if result.cells else "differs" if differ else "equal"
    notes = []
    if any(cell.measure == "time" for cell in result.cells):
        notes.append("stored results: what the machine did differently between the two measurements is in no interval; "
                     "`compare --rerun` measures both in turns")  # fmt: skip
    notes += [f"{given.name} is synthetic: nobody measured it" for given in result.sources if given.synthetic]
    method = [
        f"a verdict needs the {LEVEL:.0%} interval of the ratio to lie beyond {relative:.0%}",
        "across devices the share of each one's measured peak and the speed over its own PyTorch are compared, never milliseconds",
    ]
    return {
        "comparison": SCHEMA,
        "kind": "stored",
        "verdict": verdict,
        "answer": _stored_answer(result, differ),
        "method": method,
        "sources": [source(given) for given in result.sources],
        "effect": {"relative": relative, "absolute_ns": None},
        "level": LEVEL,
        "cells": cells,
        "levels": levels,
        "metrics": [row | {"largest_relative": number(row["largest_relative"]),
                           "examples": [_example(example) for example in row["examples"]]} for row in result.metrics],
        "ignored": result.ignored,
        "refused": result.refused,
        "notes": notes,
        "figures": {"ratios": ratios_figure(cells, relative)} if cells else {},
        "gate": None,
    }  # fmt: skip


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"labels": row["labels"], "base": number(row["base"]), "candidate": number(row["candidate"])}


def _stored_answer(result: Stored, differ: int) -> list[str]:
    answer = []
    for at, given in enumerate(result.sources[1:], 1):
        cells = [cell for cell in result.cells if cell.source == at]
        if cells:
            answer.append(f"{given.name} against {result.sources[0].name}: {counted([cell.verdict for cell in cells])}")
    if result.metrics:
        equal = sum(row["equal"] for row in result.metrics)
        answer.append(f"metrics: {equal:,} equal to the bit, {differ:,} differ")
    if result.refused:
        answer.append(f"{len(result.refused)} cases are not compared, their work differs")
    return answer


def counted(verdicts: Sequence[str]) -> str:
    """Return how often each verdict was given.

    >>> counted(["same", "slower", "same"])
    '1 slower, 2 same'
    """
    order = ("wrong", "invalid", "slower", "inconclusive", "faster", "same")
    counts = Counter(verdicts)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict])


def gate_document(result: Rerun, names: tuple[str, str], *, relative: float) -> dict[str, Any]:
    """Return what a gate said as JSON."""
    cells = [
        {"case": outcome.case, "labels": dict(outcome.labels), "source": 1, "base_ms": _ms(outcome.base_ns),
         "candidate_ms": _ms(outcome.candidate_ns), "measure": "time", "ratio": estimate(outcome.ratio),
         "p": None if outcome.ratio is None else outcome.ratio.p, "verdict": outcome.verdict, "why": outcome.why}
        for outcome in result.outcomes
    ]  # fmt: skip
    verdicts = [outcome.verdict for outcome in result.outcomes]
    measured = max((len(samples) for samples in result.samples.values()), default=0)
    answer = [f"{names[1]} against {names[0]}: {counted(verdicts)}"]
    rate = result.false_alarms
    if rate is not None and rate.low is not None and rate.high is not None:
        answer.append(f"this night's A/A rate: base against base was called slower in {rate.value:.1%} "
                      f"[{rate.low:.1%}, {rate.high:.1%}] of {rate.n} assignments")  # fmt: skip
    return {
        "comparison": SCHEMA,
        "kind": "gate",
        "verdict": worst(verdicts),
        "answer": answer,
        "method": [
            "the unit is a process's median; base, candidate and base again run in turns in fresh processes",
            f"at most {len(SPENT)} looks after {', '.join(map(str, LOOKS))} pairs spend {ALPHA:.3g} in all, Holm over cases",
            "slower and faster: beyond the effect by the studentised paired bootstrap; same: the interval lies within it",
        ],
        "sources": [
            {"name": name, "path": name, "kind": "environment", "device": hello.get("device"), "suite": None, "profile": None,
             "synthetic": False, "facts": {"package": hello.get("package"), "python": hello.get("python")}}
            for name, hello in zip(names, result.hello, strict=False)
        ],
        "effect": {"relative": relative, "absolute_ns": result.absolute_ns},
        "level": LEVEL,
        "cells": cells,
        "levels": [],
        "metrics": [],
        "ignored": [
            {"source": 1, "what": case, "why": f"the {side} does not have it"} for case, side in result.one_sided
        ],
        "refused": [],
        "notes": [f"not guarded, this machine does not tell it: {', '.join(result.untold)}"] if result.untold else [],
        "figures": {"ratios": ratios_figure(cells, relative)} if any(cell["ratio"] for cell in cells) else {},
        "gate": {
            "pairs": {"least": LOOKS[0], "most": LOOKS[-1], "measured": measured},
            "looks": result.looks,
            "alpha": ALPHA,
            "false_alarms": estimate(rate),
            "cleared": result.cleared,
            "guards": _guards(result),
            "raw": _raw(result),
        },
    }  # fmt: skip


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6


def _guards(result: Rerun) -> list[dict[str, Any]]:
    """Count what disturbed the machine: how many samples, and how many of them were measured again."""
    kept = Counter(_kind(mark) for samples in result.samples.values() for sample in samples for mark in sample.marks)
    replaced = Counter(_kind(mark) for sample in result.disturbed for mark in sample.marks)
    return [
        {"what": what, "samples": kept[what] + replaced[what], "replaced": replaced[what],
         "text": f"{what}: {kept[what] + replaced[what]} samples, {replaced[what]} of them measured again"}
        for what in sorted(kept | replaced)
    ]  # fmt: skip


def _kind(mark: str) -> str:
    """Return a mark without its numbers.

    >>> _kind("other processes took 51% of the machine")
    'other processes took part of the machine'
    """
    return " ".join("part" if word.endswith("%") else word for word in mark.split() if not word.isdecimal())


def _raw(result: Rerun) -> list[dict[str, Any]]:
    sides = ("base", "candidate", "base again")
    return [
        {"side": side, "pair": pair, "case": case, "median_ns": sample.medians_ns[at], "marks": sample.marks}
        for case, samples in result.samples.items()
        for pair, sample in enumerate(samples)
        if sample.medians_ns is not None
        for at, side in enumerate(sides)
    ]


def cell_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return ratio, interval and verdict of a row as people read them."""
    ratio = row["ratio"]
    if ratio is None or ratio["value"] is None:
        return "", "", row["verdict"]
    return f"{ratio['value']:.3f}", f"[{ratio['low']:.3f}, {ratio['high']:.3f}]", row["verdict"]

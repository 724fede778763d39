"""Across cells: rates, shares of what the device can do, speed over each peer, and what gave no number and why."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from modelassay.experiments.findings import Figures, Finding, Findings, Table
from modelassay.experiments.kernels.figures import Dot, roofline_figure
from modelassay.machine.peaks import ceiling, datasheet
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.intervals import median_interval, student_mean

OURS = "modelassay"
PRODUCTS = ("linear_bottom_k", "linear_cross_entropy", "attention")
"""Operations whose rate is given in TFLOP/s."""
REFERENCES = ("torch", "torch.topk", "sdpa")
"""Plain PyTorch, by operation."""
KEYS = ("shape", "dtype", "cache", "device")
CAVEATS = (
    "of one process the unit of an interval is a round: it says nothing of another process, for which an axis repeat of two or more does",
    "a rate counts the least bytes and operations of the work, not those that were moved or done",
)


@dataclass(kw_only=True)
class Group:
    """All of one operation, shape, type, state of the caches and device."""

    op: str
    labels: dict[str, str]
    device_name: str = ""
    bytes: int = 0
    flops: int = 0
    seconds: dict[str, dict[str, dict[int, float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    """Provider, cell and round."""
    outcomes: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    """Provider to outcome and reason in each cell."""
    peaks: dict[str, dict[str, dict[str, list[float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    """Unit, probe and cell."""

    @property
    def by_products(self) -> bool:
        """Whether the rate is that of products."""
        return self.op in PRODUCTS

    @property
    def unit(self) -> str:
        """Of rates."""
        return "TFLOP/s" if self.by_products else "GB/s"

    def rate(self, provider: str) -> Estimate:
        """Return the rate of a provider."""
        return _exponential([*self._log_rates(provider).values()], unit=self.unit)

    def _log_rates(self, provider: str) -> dict[str, list[float]]:
        amount = self.flops / 1e12 if self.by_products else self.bytes / 1e9
        return {
            cell: [math.log(amount / second) for second in rounds.values()]
            for cell, rounds in self.seconds[provider].items()
        }

    def share(self, provider: str) -> Estimate | None:
        """Return the rate as a share of the ceiling, that of each process of what was measured beside it; None without a ceiling."""
        best = self.best()
        if best is None:
            return None
        beside = self.peaks[self._rate_of][best[0]]
        logs = [
            [log - math.log(np.median(beside[cell])) for log in logs]
            for cell, logs in self._log_rates(provider).items()
            if beside.get(cell)
        ]
        return replace(_exponential(logs, unit=""), note=f"of the median of the probe {best[0]}") if logs else None

    def speed(self, peer: str, *, of: str = OURS) -> Estimate:
        """Return how many times as fast as ``peer`` the provider ``of`` is, rounds paired; both are done."""
        own, theirs = self.seconds[of], self.seconds[peer]
        logs = [
            [math.log(theirs[cell][number] / second) for number, second in rounds.items() if number in theirs[cell]]
            for cell, rounds in own.items()
            if cell in theirs
        ]
        return _exponential([part for part in logs if part], unit="")

    def best(self) -> tuple[str, Estimate] | None:
        """Return the ceiling and which probe it is; None where there was none."""
        return self.ceiling_of(self._rate_of)

    @property
    def _rate_of(self) -> str:
        return "tflops" if self.by_products else "gbps"

    def ceiling_of(self, unit: str) -> tuple[str, Estimate] | None:
        """Return the best probe in ``unit`` over all processes; None where there was none."""
        samples = {
            probe: [value for part in cells.values() for value in part]
            for probe, cells in self.peaks.get(unit, {}).items()
        }
        return ceiling(samples) if samples else None

    def done(self) -> list[str]:
        """Return the providers that have a time: done in every cell; ours first."""
        names = [name for name, all_of in self.outcomes.items() if all(word == "done" for word, _ in all_of)]
        return sorted(names, key=lambda name: name != OURS)


def analyse(tables: RunData) -> Findings:
    """Say what each operation does.

    Findings, each with ``op``, ``shape``, ``dtype``, ``cache``, ``device``: ``rate`` (with ``provider``; GB/s, or TFLOP/s where products
    are most of the work), ``share_of_measured`` and, where the device has one, ``share_of_datasheet``; ``speed_over`` (with ``peer``),
    the ratio of its time to ours; ``speed_of`` (with ``provider`` and ``over``), how many times as fast as plain PyTorch a peer is.
    """
    groups = read_groups(tables)
    findings = [finding for group in groups for finding in findings_of(group)]
    ops = list(dict.fromkeys(group.op for group in groups))
    by_op = {op: [group for group in groups if group.op == op] for op in ops}
    shown = [_table(op, part) for op, part in by_op.items()]
    if without := without_number(groups):
        shown.append(without)
    figures = Figures({op: partial(roofline_figure, op, _dots(part)) for op, part in by_op.items()})
    return Findings(findings=findings, tables=shown, figures=figures, caveats=list(CAVEATS))


def read_groups(tables: RunData) -> list[Group]:
    """Return what the run recorded, by operation, shape, type, caches and device."""
    ops = {row["cell"]: str(row["op"]) for row in tables.cells.iter_rows(named=True)}
    names = {fact["cell"]: str(fact["value"]["device"]) for fact in tables.facts("machine")}
    groups: dict[tuple[str, ...], Group] = {}

    def group_of(row: Mapping[str, Any]) -> Group:
        labels = {key: str(row[key]) for key in KEYS}
        op = ops[row["cell"]]
        key = (op, *labels.values())
        if key not in groups:
            groups[key] = Group(op=op, labels=labels, device_name=names.get(row["cell"], ""))
        return groups[key]

    for fact in tables.facts("outcome"):
        group_of(fact).outcomes[fact["provider"]].append((fact["value"]["outcome"], fact["value"]["reason"]))
    for fact in tables.facts("peak_rounds"):
        group_of(fact).peaks[fact["unit"]][fact["probe"]][fact["cell"]] += fact["value"]
    for unit in tables.units.iter_rows(named=True):
        group = group_of(unit)
        group.bytes, group.flops = int(unit["bytes"]), int(unit["flops"])
        took_ms = unit["host_ms"] if unit["device_ms"] is None else unit["device_ms"]
        group.seconds[unit["provider"]][unit["cell"]][int(unit["round"])] = took_ms / 1e3
    return list(groups.values())


def _exponential(logs: Sequence[Sequence[float]], *, unit: str) -> Estimate:
    """Return exp of the median of logs, over rounds of one process, or of the mean of several processes' medians."""
    if len(logs) == 1:
        inner, what = median_interval(logs[0]), "round"
    else:
        inner, what = student_mean([float(np.median(part)) for part in logs]), "process"
    ends = (None, None) if inner.low is None or inner.high is None else (math.exp(inner.low), math.exp(inner.high))
    return Estimate(value=math.exp(inner.value), low=ends[0], high=ends[1], level=inner.level, method=inner.method, n=inner.n,
                    unit=unit, note=inner.note or f"over {what}s")  # fmt: skip


def findings_of(group: Group) -> list[Finding]:
    """Return what one operation at one size says, see `analyse`."""
    labels = {"op": group.op, **group.labels}
    findings: list[Finding] = []
    sheet = datasheet(group.device_name)[1 if group.by_products else 0]
    for provider in group.done():
        rate, named = group.rate(provider), {**labels, "provider": provider}
        findings.append(Finding(name="rate", labels=named, estimate=rate))
        share = group.share(provider)
        if share is not None:
            findings.append(Finding(name="share_of_measured", labels=named, estimate=share))
        if sheet is not None:
            findings.append(
                Finding(name="share_of_datasheet", labels=named, estimate=_scaled(rate, sheet, "of the datasheet"))
            )
    findings += [
        Finding(name="speed_over", labels={**labels, "peer": peer}, estimate=group.speed(peer))
        for peer in _peers(group)
    ]
    done = group.done()
    reference = next((name for name in REFERENCES if name in done), None)
    if reference is not None:
        findings += [
            Finding(
                name="speed_of",
                labels={**labels, "provider": name, "over": reference},
                estimate=group.speed(reference, of=name),
            )
            for name in done
            if name not in (OURS, reference)
        ]
    return findings


def _peers(group: Group) -> list[str]:
    done = group.done()
    return [name for name in done if name != OURS] if OURS in done else []


def _scaled(rate: Estimate, by: float, note: str) -> Estimate:
    low, high = (None if end is None else end / by for end in (rate.low, rate.high))
    return Estimate(
        value=rate.value / by, low=low, high=high, level=rate.level, method=rate.method, n=rate.n, note=note
    )


def _table(op: str, groups: Sequence[Group]) -> Table:
    unit = "TFLOP/s" if op in PRODUCTS else "GB/s"
    columns = ("shape", "dtype", "caches", "provider", unit, "of measured", "of datasheet", "modelassay is")
    rows = []
    for group in groups:
        best, sheet, peers = group.best(), datasheet(group.device_name)[1 if group.by_products else 0], _peers(group)
        for provider in group.done():
            rate, share = group.rate(provider), group.share(provider)
            rows.append([group.labels["shape"], group.labels["dtype"], group.labels["cache"], provider, _text(rate),
                         "" if share is None else f"{100 * share.value:.1f} %",
                         "no datasheet" if sheet is None else f"{100 * rate.value / sheet:.1f} %",
                         f"{_text(group.speed(provider))} x as fast" if provider in peers else ""])  # fmt: skip
        if best is not None:
            rows.append([
                group.labels["shape"],
                group.labels["dtype"],
                group.labels["cache"],
                f"ceiling: {best[0]}",
                _text(best[1]),
                "",
                "",
                "",
            ])
    return Table(title=op, columns=columns, rows=rows)


def without_number(groups: Sequence[Group]) -> Table | None:
    """Return who has no number, where and why, each reason once for an operation."""
    places: dict[tuple[str, str, str, str], list[str]] = {}
    for group in groups:
        for provider, all_of in group.outcomes.items():
            for word, reason in dict.fromkeys(all_of):
                if word != "done":
                    place = ", ".join(group.labels[key] for key in KEYS[:3])
                    places.setdefault((group.op, provider, word, reason), []).append(place)
    counts = Counter(group.op for group in groups)
    rows = [
        [op, provider, "everywhere" if len(at) == counts[op] else "; ".join(at), word, reason]
        for (op, provider, word, reason), at in places.items()
    ]
    columns = ("operation", "provider", "of", "outcome", "reason")
    return Table(title="without a number", columns=columns, rows=rows) if rows else None


def _dots(groups: Sequence[Group]) -> list[Dot]:
    dots = []
    for group in groups:
        ceilings = {unit: group.ceiling_of(unit) for unit in group.peaks}
        roofs = {unit: best[1].value for unit, best in ceilings.items() if best is not None}
        name = ", ".join(group.labels[key] for key in KEYS[:3])
        for provider in group.done():
            rounds = [second for part in group.seconds[provider].values() for second in part.values()]
            dots.append(Dot(group=name, provider=provider, flops=group.flops, bytes=group.bytes, seconds=float(np.median(rounds)),
                            gbps=roofs.get("gbps"), tflops=roofs.get("tflops")))  # fmt: skip
    return dots


def _text(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"

"""The findings on downloads as tables: what was measured, and who does not count and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from modelassay.experiments.downloads.families import POOLS, Family
from modelassay.experiments.findings import Finding, Label, Table


class FindingIndex:
    """Findings by name and labels."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self._all = {(finding.name, frozenset(finding.labels.items())): finding for finding in findings}
        self.findings = findings

    def cell(self, name: str, labels: dict[str, Label]) -> str:
        """Return a finding as a cell: its value and interval; empty where there is none."""
        finding = self._all.get((name, frozenset(labels.items())))
        return "" if finding is None else shown(finding)

    def note(self, name: str, labels: dict[str, Label]) -> str:
        """Return a finding's note; empty where there is none."""
        finding = self._all.get((name, frozenset(labels.items())))
        return "" if finding is None else finding.note

    def labels(self, name: str, *without: str) -> list[dict[str, Label]]:
        """Return the labels that findings of a name carry, each combination once and ``without`` left out."""
        combinations = [{key: value for key, value in finding.labels.items() if key not in without}
                for finding in self.findings if finding.name == name]  # fmt: skip
        return [labels for at, labels in enumerate(combinations) if labels not in combinations[:at]]


def shown(finding: Finding) -> str:
    """Return a value with its interval.

    >>> from modelassay.statistics.estimate import Estimate
    >>> shown(Finding(name="x", estimate=Estimate(value=0.25, low=0.1, high=0.4)))
    '0.25 [0.1, 0.4]'
    """
    low, high = finding.estimate.low, finding.estimate.high
    if math.isnan(finding.value):
        return "undefined"
    interval = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
    return f"{finding.value:.4g}{interval}"


def result_tables(findings: Sequence[Finding]) -> Iterator[Table]:
    """Yield the results: cohorts, few against many downloads, false negatives, strangers, and the families compared."""
    index = FindingIndex(findings)
    cohorts = ("earlier", "filtered", "popular")
    yield Table(title="mean overlap with the base by cohort", columns=("base", "method", *cohorts), rows=[
        (*_words(of), *(f"{index.cell('overlap-mean', of | {'cohort': cohort})} {_brief(index, of, cohort)}" for cohort in cohorts))
        for of in index.labels("overlap-mean", "cohort")
    ])  # fmt: skip
    yield Table(title="few downloads against many", columns=("base", "method", "ratio of deviations", "of", "overlap by downloads (rho)", "of"), rows=[
        (*_words(of), index.cell("spread-ratio", of), index.note("spread-ratio", of),
         index.cell("overlap-by-downloads", of), index.note("overlap-by-downloads", of))
        for of in index.labels("spread-ratio")
    ])  # fmt: skip
    yield Table(title="false negatives", columns=("base", "method", "threshold of", "before", "of", "after", "of"), rows=[
        (*_words(of), *(text for moment in ("before", "after")
                        for text in (index.cell("fnr", of | {"filter": moment}), index.note("fnr", of | {"filter": moment}))))
        for of in index.labels("fnr", "filter")
    ])  # fmt: skip
    yield Table(title="told from strangers", columns=("base", "method", "measure", *POOLS), rows=[
        (*_words(of), measure, *(index.cell(measure, of | {"strangers": pool}) for pool in POOLS))
        for of in index.labels("auroc", "strangers") for measure in ("auroc", "tpr-at-fpr")
    ] + [
        (*_words(of)[:2], f"fpr, {of['threshold']} threshold", *(index.cell("fpr", of | {"strangers": pool}) for pool in POOLS))
        for of in index.labels("fpr", "strangers")
    ])  # fmt: skip
    compared = index.labels("overlap-difference")
    if compared:
        yield Table(title="families compared: difference of mean overlap", columns=("a", "b", "cohort", "method", "a - b", "of"),
                    rows=[(*_words(of), index.cell("overlap-difference", of), index.note("overlap-difference", of))
                          for of in compared])  # fmt: skip


def _words(labels: dict[str, Label]) -> tuple[str, ...]:
    return tuple(str(value) for value in labels.values())


def _brief(index: FindingIndex, of: dict[str, Label], cohort: str) -> str:
    """Return the cohort's size."""
    return f"({index.note('overlap-mean', of | {'cohort': cohort}).partition(';')[0]})"


def standing_tables(families: Sequence[Family]) -> Iterator[Table]:
    """Yield how many members count, why the others do not, and which are copies of what."""
    rows = []
    for family in families:
        counts = Counter(member.status for member in family.members)
        counted = [
            member for member in family.members if member.status == "measured" and member.name not in family.copies
        ]
        sides = [sum(map(side, counted)) for side in (family.fails, family.passes)]
        cells = (len(family.members), *(counts[status] for status in ("excluded", "missing", "not drawn")), len(family.copies),
                 len(counted), *sides, len(counted) - sum(sides))  # fmt: skip
        rows.append((family.name, *map(str, cells)))
    columns = ("base", "listed", "excluded", "missing", "not drawn", "re-uploads", "measured", "few downloads", "many",
               "downloads not known")  # fmt: skip
    yield Table(title="members", columns=columns, rows=rows)
    reasons = [(family.name, status, reason, str(count)) for family in families
               for (status, reason), count in sorted(_reasons(family).items())]  # fmt: skip
    if reasons:
        yield Table(title="members that do not count", columns=("base", "status", "reason", "members"), rows=reasons)
    downloads = {(family.name, member.name): member.downloads for family in families for member in family.members}
    copies = [(family.name, name, of, _number(downloads[family.name, name]))
              for family in families for name, of in family.copies.items()]  # fmt: skip
    if copies:
        yield Table(
            title="re-uploads: the same weights again", columns=("base", "member", "of", "downloads"), rows=copies
        )


def _reasons(family: Family) -> Counter[tuple[str, str]]:
    return Counter(
        (member.status, member.reason) for member in family.members if member.status in ("excluded", "missing")
    )


def _number(downloads: float | None) -> str:
    return "not known" if downloads is None else f"{downloads:,.0f}"

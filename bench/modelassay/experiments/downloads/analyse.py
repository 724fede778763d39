"""Across families: cohorts, spread at few against many downloads, false negatives before and after the filter, strangers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

from modelassay.errors import UsageError
from modelassay.experiments.downloads.families import POOLS, Family, families_of, overlaps_of
from modelassay.experiments.downloads.figures import overlaps_figure
from modelassay.experiments.downloads.printed import result_tables, standing_tables
from modelassay.experiments.downloads.statistics import (
    Floats,
    difference,
    filter_p,
    mean,
    rank_correlation,
    separation,
    share,
    spread_ratio,
    threshold_at,
)
from modelassay.experiments.findings import Figures, Finding, Findings, Label
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.multiplicity import holm

METHODS = ("paper-exact", "corrected")


def analyse(data: RunData) -> Findings:
    """Set the overlap of each base's family against its downloads.

    Findings, all with intervals over members: ``overlap-mean`` and ``overlap-median`` per cohort; ``spread-ratio``, the
    deviation of overlaps at few downloads over that at many; ``overlap-by-downloads``, Spearman's rho; ``fnr`` at the
    published threshold and at the one that same-tokenizer strangers give, before and after the filter; ``threshold``; ``auroc``,
    ``tpr-at-fpr`` and at the published threshold ``fpr`` against strangers; ``overlap-difference`` between families;
    ``members`` by status.

    Raises:
        UsageError: the cells differ in alpha.
    """
    alphas = data.cells["alpha"].unique(maintain_order=True).to_list()
    if len(alphas) > 1:
        raise UsageError(f"downloads: cells differ in alpha ({', '.join(map(str, alphas))}); a run has one level")
    alpha = float(alphas[0])
    families = families_of(data)
    methods = [method for method in METHODS if any(family.counted(method) for family in families)]
    findings: list[Finding] = []
    for family in families:
        findings += _standing(family)
        for method in methods:
            findings += [*_of_cohorts(family, method), *_by_downloads(family, method), *_missed(family, method, alpha),
                         *_against_strangers(family, method)]  # fmt: skip
    differences = list(_between(families, methods))
    return Findings(
        findings=[*findings, *differences],
        tables=[*result_tables([*findings, *differences]), *standing_tables(families)],
        figures=Figures({"overlap-by-downloads": partial(overlaps_figure, families, methods)} if methods else {}),
        caveats=[*_caveats(families, alpha), *_silent(data)],
    )


def _finding(name: str, estimate: Estimate, labels: Mapping[str, Label], note: str = "") -> Finding:
    p = "" if estimate.p is None else f"p = {estimate.p:.2g}"
    lines = "; ".join(part for part in (note, estimate.note, p) if part)
    return Finding(name=name, labels=labels, estimate=replace(estimate, note=lines))


def _standing(family: Family) -> Iterator[Finding]:
    """How many members were measured, and how many were not, by why."""
    counts = Counter("copy" if member.name in family.copies else member.status for member in family.members)
    for status in ("measured", "copy", "excluded", "missing", "not drawn"):
        yield _count(family, status, counts[status])
    no_downloads = sum(member.downloads is None for member in family.members)
    yield _count(family, "downloads not known", no_downloads)


def _count(family: Family, status: str, count: int) -> Finding:
    estimate = Estimate(value=count, n=len(family.members), unit="members")
    return Finding(name="members", labels={"base": family.name, "status": status}, estimate=estimate)


def _of_cohorts(family: Family, method: str) -> Iterator[Finding]:
    for cohort, members in family.cohorts(method).items():
        values = overlaps_of(members, method)
        labels: dict[str, Label] = {"base": family.name, "cohort": cohort, "method": method}
        yield _finding("overlap-mean", mean(values), labels)
        if values.size:
            spread = f", deviation {values.std(ddof=1):.4g}" if values.size > 1 else ""
            middle = float(sorted(values)[len(values) // 2] + sorted(values)[(len(values) - 1) // 2]) / 2
            median = Estimate(value=middle, n=values.size, note=f"n = {values.size}{spread}")
            yield Finding(name="overlap-median", labels=labels, estimate=median)


def _by_downloads(family: Family, method: str) -> Iterator[Finding]:
    members = [member for member in family.counted(method) if member.downloads is not None]
    low, high = ([member for member in members if side(member)] for side in (family.fails, family.passes))
    labels: dict[str, Label] = {"base": family.name, "method": method}
    yield _finding("spread-ratio", spread_ratio(overlaps_of(low, method), overlaps_of(high, method)), labels)
    downloads = overlaps_of(members, method) * 0.0 + [member.downloads or 0.0 for member in members]
    yield _finding("overlap-by-downloads", rank_correlation(overlaps_of(members, method), downloads), labels)


def _missed(family: Family, method: str, alpha: float) -> Iterator[Finding]:
    """False negatives at the published threshold, which is of the published method, and at that of the strangers."""
    pool = family.strangers.get((method, POOLS[0]))
    calibrated = None if pool is None else threshold_at(pool, alpha)
    count = 0 if pool is None else pool.size
    why = f"{count} strangers with the base's tokenizer; a rate of {alpha:g} takes {math.ceil(1 / alpha)}"
    labels: dict[str, Label] = {"base": family.name, "method": method}
    reached = f"{alpha:g} of {count} strangers reach it"
    limit = undefined(why) if calibrated is None else Estimate(value=calibrated, n=count, note=reached)
    yield _finding("threshold", limit, {**labels, "threshold": POOLS[0]})
    thresholds = {POOLS[0]: calibrated}
    if method == METHODS[0] and family.threshold is not None:
        thresholds["published"] = family.threshold
    cohorts = family.cohorts(method)
    removed = overlaps_of([member for member in cohorts["before"] if family.fails(member)], method)
    for source, threshold in thresholds.items():
        for moment in ("before", "after"):
            values = overlaps_of(cohorts[moment], method)
            rate = undefined(why) if threshold is None else share(values < threshold)
            p = None if threshold is None or moment == "before" else filter_p(values, removed, threshold)
            note = "" if p is None else f"kept against removed: p = {p:.2g}"
            yield _finding("fnr", rate, {**labels, "threshold": source, "filter": moment}, note)


def _against_strangers(family: Family, method: str) -> Iterator[Finding]:
    """Set the members drawn whatever their downloads against strangers: those chosen for downloads are no sample of a family."""
    related = overlaps_of(family.cohorts(method)["earlier"], method)
    for pool in POOLS:
        strangers = family.strangers.get((method, pool))
        labels: dict[str, Label] = {"base": family.name, "method": method, "strangers": pool}
        for metric in ("auroc", "tpr-at-fpr"):
            none = undefined("no such strangers in this run")
            yield _finding(metric, none if strangers is None else separation(related, strangers, metric), labels)
        if strangers is not None and method == METHODS[0] and family.threshold is not None:
            yield _finding("fpr", share(strangers >= family.threshold), {**labels, "threshold": "published"})


def _between(families: Sequence[Family], methods: Iterable[str]) -> Iterator[Finding]:
    """Compare the families with each other, Holm over all comparisons of a method."""
    for method in methods:
        compared = [
            (cohort, a, b, difference(_values(a, method, cohort), _values(b, method, cohort)))
            for cohort in ("before", "popular") for a, b in combinations(families, 2)
        ]  # fmt: skip
        p_values = [estimate.p for *_, estimate in compared if estimate.p is not None]
        adjusted = iter(holm(p_values).adjusted)
        for cohort, a, b, estimate in compared:
            note = "" if estimate.p is None else f"Holm over {len(p_values)}: p = {next(adjusted):.2g}"
            yield _finding(
                "overlap-difference", estimate, {"a": a.name, "b": b.name, "cohort": cohort, "method": method}, note
            )


def _values(family: Family, method: str, cohort: str) -> Floats:
    return overlaps_of(family.cohorts(method)[cohort], method)


def _caveats(families: Sequence[Family], alpha: float) -> Iterator[str]:
    for family in families:
        missing = sum(member.status == "missing" for member in family.members)
        yield (f"{family.name}: {family.listing}; {missing} missing and {len(family.copies)} re-uploads are on neither side of the "
               f"filter (more than {family.more_than} downloads)")  # fmt: skip
        zeros = sum(member.zero for member in family.members)
        if zeros:
            yield (f"{family.name}: {zeros} members have 0 downloads in the tables, which also stood for repositories that were gone: "
                   "they are taken as not known")  # fmt: skip
        answers = [member.answers for member in family.members if member.answers not in (None, "none")]
        if (repeated := len(answers) - len(set(answers))) > 0:
            yield f"{family.name}: {repeated} members have another one's overlap on every prompt; are they re-uploads?"
    yield "downloads are those of the last 30 days before the listing was taken; they move, and a member's quality is not what they count"
    yield "'before' holds all measured members, 'after' those that pass the filter: they share members, 'kept against removed' do not"
    yield f"thresholds of same-tokenizer strangers are set so that at most {alpha:g} of these very strangers reach them"


def _silent(data: RunData) -> list[str]:
    """Return a caveat for each base that could ask nothing of another family's members."""
    models = dict(data.cells.select("cell", "model").iter_rows())
    return [f"no member of {models[fact['cell']]}'s family was given the prompts of {fact['base']}: {fact['value']}"
            for fact in data.facts("cannot-ask")]  # fmt: skip

"""Across families: cohorts, spread at few against many downloads, false negatives before and after the filter, strangers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations

from modelassay.claims import Finding, Findings, Label
from modelassay.errors import UsageError
from modelassay.experiments.fingerprinting.downloads.families import (
    POOLS,
    Family,
    families_of,
    mixed,
    overlaps_of,
)
from modelassay.experiments.fingerprinting.downloads.figures import save_overlaps
from modelassay.experiments.fingerprinting.downloads.printed import result_tables, standing_tables
from modelassay.experiments.fingerprinting.downloads.statistics import (
    Floats,
    Measure,
    difference,
    filter_p,
    mean,
    rank_correlation,
    separation,
    share,
    spread_ratio,
    threshold_at,
    undefined,
)
from modelassay.record import Tables
from modelassay.stats import holm

METHODS = ("paper-exact", "corrected")


def analyse_families(tables: Tables) -> Findings:
    """Set the overlap of each base's family against its downloads.

    Findings, all with intervals over members: ``overlap-mean`` and ``overlap-median`` per cohort; ``spread-ratio``, the
    deviation of overlaps at few downloads over that at many; ``overlap-by-downloads``, Spearman's rho; ``fnr`` at the
    published threshold and at the one that same-tokenizer strangers give, before and after the filter; ``threshold``; ``auroc``,
    ``tpr-at-fpr`` and at the published threshold ``fpr`` against strangers; ``overlap-difference`` between families;
    ``members`` by status.

    Raises:
        UsageError: some cells compare a family and others do not.
    """
    if others := mixed(tables):
        raise UsageError(
            f"fingerprinting: {others[0]} has no 'members', other cells have; give them to all cells or to none"
        )
    alpha = float(tables.cells["alpha"][0])
    families = families_of(tables)
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
        figures={"overlap-by-downloads": partial(save_overlaps, families, methods)} if methods else {},
        caveats=list(_caveats(families, alpha)),
    )


def _finding(name: str, found: Measure, labels: Mapping[str, Label], note: str = "") -> Finding:
    shown = "; ".join(part for part in (note, found.note, "" if found.p is None else f"p = {found.p:.2g}") if part)
    return Finding(name=name, value=found.value, low=found.low, high=found.high, labels=labels, note=shown)


def _standing(family: Family) -> Iterator[Finding]:
    """How many members were measured, and how many were not, by why."""
    counts = Counter("copy" if member.name in family.copies else member.status for member in family.members)
    for status in ("measured", "copy", "excluded", "missing", "not drawn"):
        yield Finding(name="members", value=counts[status], labels={"base": family.name, "status": status})
    no_downloads = sum(member.downloads is None for member in family.members)
    yield Finding(name="members", value=no_downloads, labels={"base": family.name, "status": "downloads not known"})


def _of_cohorts(family: Family, method: str) -> Iterator[Finding]:
    for cohort, members in family.cohorts(method).items():
        values = overlaps_of(members, method)
        labels: dict[str, Label] = {"base": family.name, "cohort": cohort, "method": method}
        yield _finding("overlap-mean", mean(values), labels)
        if values.size:
            spread = f", deviation {values.std(ddof=1):.4g}" if values.size > 1 else ""
            middle = float(sorted(values)[len(values) // 2] + sorted(values)[(len(values) - 1) // 2]) / 2
            yield Finding(name="overlap-median", value=middle, labels=labels, note=f"n = {values.size}{spread}")


def _by_downloads(family: Family, method: str) -> Iterator[Finding]:
    known = [member for member in family.counted(method) if member.downloads is not None]
    low, high = ([member for member in known if side(member)] for side in (family.fails, family.passes))
    labels: dict[str, Label] = {"base": family.name, "method": method}
    yield _finding("spread-ratio", spread_ratio(overlaps_of(low, method), overlaps_of(high, method)), labels)
    downloads = overlaps_of(known, method) * 0.0 + [member.downloads or 0.0 for member in known]
    yield _finding("overlap-by-downloads", rank_correlation(overlaps_of(known, method), downloads), labels)


def _missed(family: Family, method: str, alpha: float) -> Iterator[Finding]:
    """False negatives at the published threshold, which is of the published method, and at that of the strangers."""
    pool = family.strangers.get((method, POOLS[0]))
    calibrated = None if pool is None else threshold_at(pool, alpha)
    count = 0 if pool is None else pool.size
    why = f"{count} strangers with the base's tokenizer; a rate of {alpha:g} takes {math.ceil(1 / alpha)}"
    labels: dict[str, Label] = {"base": family.name, "method": method}
    found = (
        undefined(why)
        if calibrated is None
        else Measure(value=calibrated, note=f"{alpha:g} of {count} strangers reach it")
    )
    yield _finding("threshold", found, {**labels, "threshold": POOLS[0]})
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
            found = (
                undefined("no such strangers in this run")
                if strangers is None
                else separation(related, strangers, metric)
            )
            yield _finding(metric, found, labels)
        if strangers is not None and method == METHODS[0] and family.threshold is not None:
            yield _finding("fpr", share(strangers >= family.threshold), {**labels, "threshold": "published"})


def _between(families: Sequence[Family], methods: Iterable[str]) -> Iterator[Finding]:
    """Compare the families with each other, Holm over all comparisons of a method."""
    for method in methods:
        compared = [
            (cohort, a, b, difference(_values(a, method, cohort), _values(b, method, cohort)))
            for cohort in ("before", "popular") for a, b in combinations(families, 2)
        ]  # fmt: skip
        tested = [found.p for *_, found in compared if found.p is not None]
        adjusted = iter(holm(tested).adjusted)
        for cohort, a, b, found in compared:
            note = "" if found.p is None else f"Holm over {len(tested)}: p = {next(adjusted):.2g}"
            yield _finding(
                "overlap-difference", found, {"a": a.name, "b": b.name, "cohort": cohort, "method": method}, note
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
        written = [member.answers for member in family.members if member.answers not in (None, "none")]
        if (repeated := len(written) - len(set(written))) > 0:
            yield f"{family.name}: {repeated} members have another one's overlap on every prompt; are they re-uploads?"
    yield "downloads are those of the last 30 days before the listing was taken; they move, and a member's quality is not what they count"
    yield "'before' holds all measured members, 'after' those that pass the filter: they share members, 'kept against removed' do not"
    yield f"thresholds of same-tokenizer strangers are set so that at most {alpha:g} of these very strangers reach them"

"""What the tests of independent numbering said of pairs of known ancestry: false alarms, power, and whether their p are honest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np

from modelassay.experiments.findings import Finding, Table
from modelassay.experiments.fingerprinting.analyse.pairs import HARDNESS, Evidence, Pair
from modelassay.experiments.fingerprinting.analyse.printed import shown
from modelassay.fingerprints.independence.agreement import Agreement
from modelassay.fingerprints.independence.matching import NEIGHBOURS, NumberingTest
from modelassay.fingerprints.independence.result import Independence
from modelassay.fingerprints.verdict import ALPHA, shown_p
from modelassay.recording.tables import RunData
from modelassay.statistics.calibration import Uniformity
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.known_laws import uniformity_on_steps
from modelassay.statistics.permutations import fixed_points_log_p
from modelassay.statistics.proportions import clopper_pearson
from modelassay.statistics.resampling import Floats
from modelassay.zoo.resolve import connection_of, family_of

CALLED = ("identical", "inherited")
"""Words that say that two models share weights."""
SAME_COURSE = (HARDNESS["stranger:seed"], HARDNESS["same stratum"])
"""Kinds of strangers that share recipe and data, or of whom nothing else is known but that they share their shape."""
LEVELS = (0.05, 0.01)
LEAST_P = 1e-15
"""Steps of a law are listed down to here."""


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """One pair of known ancestry and what its numbering said."""

    pair: Pair
    word: str
    """As `modelassay fingerprint` says it."""
    result: Independence
    equal: int
    """Tensors of the same bits, of ``tensors``."""
    tensors: int
    architecture: str
    """Of the suspect; empty where its cell did not record it."""

    @property
    def called(self) -> bool:
        """Whether the two are said to share weights."""
        return self.word in CALLED

    @property
    def by_exact_tests(self) -> bool:
        """Whether an exact test alone says so."""
        return self.result.log10_p <= math.log10(ALPHA)


def numbered_pairs(tables: RunData, evidence: Evidence) -> list[Numbered]:
    """Return the pairs of known ancestry whose numbering was tested, in the order of the evidence."""
    of_cell = dict(tables.cells.select("cell", "model").iter_rows())
    recorded = {frozenset((of_cell[fact["cell"]], fact["other"])): fact["value"] for fact in tables.facts("numbering")}
    architectures = {of_cell[fact["cell"]]: fact["value"].get("architecture", "") for fact in tables.facts("model")}
    pairs = ((pair, recorded.get(frozenset((pair.suspect.reference, pair.root.reference)))) for pair in evidence.pairs)
    return [
        _numbered(pair, value, architectures.get(pair.suspect.reference, ""))
        for pair, value in pairs
        if value is not None
    ]


def numbering_words(tables: RunData, names: Mapping[str, str]) -> dict[frozenset[str], str]:
    """Return the words of all pairs whose numbering was tested, by their ``names`` (reference to name)."""
    of_cell = dict(tables.cells.select("cell", "model").iter_rows())
    pairs = ((of_cell[fact["cell"]], fact["other"], fact["value"]["word"]) for fact in tables.facts("numbering"))
    return {frozenset((names[a], names[b])): word for a, b, word in pairs if a in names and b in names}


def _numbered(pair: Pair, value: dict[str, Any], architecture: str) -> Numbered:
    tests = tuple(NumberingTest(**test) for test in value["tests"])
    agreement = None if value["agreement"] is None else Agreement(**value["agreement"])
    result = Independence(tests=tests, reasons=tuple(value["reasons"]), agreement=agreement)
    return Numbered(pair=pair, word=value["word"], result=result, equal=value["equal"], tensors=value["tensors"],
                    architecture=architecture)  # fmt: skip


def kin_called(tables: RunData) -> dict[str, list[bool]]:
    """Return whether pairs that are neither relatives nor strangers were called, by what connects them (``same-init``, ``distilled``)."""
    about = {
        row["cell"]: (row["model"], family_of(row["model"], row["family"]))
        for row in tables.cells.iter_rows(named=True)
    }
    families = dict(about.values())
    called: dict[str, list[bool]] = {}
    for fact in tables.facts("numbering"):
        other = fact["other"]
        connection = connection_of(about[fact["cell"]], (other, family_of(other, families.get(other))))
        if connection not in (None, "inherited", "independent"):
            called.setdefault(str(connection), []).append(fact["value"]["word"] in CALLED)
    return called


def kin_table(called: dict[str, list[bool]]) -> Table:
    """Return how often models of one beginning, or taught by the other, are called: the test cannot tell the first from heirs."""
    rows = []
    for connection, words in called.items():
        share = clopper_pearson(sum(words), len(words))
        rows.append((connection, f"{sum(words)} of {len(words)}", f"{share.low:.2f} to {share.high:.2f}"))
    return Table(title="neither heirs nor strangers: pairs called identical or inherited", rows=rows,
                 columns=("connection", "called", "95 %, exact"))  # fmt: skip


def score_numbering(numbered: Sequence[Numbered]) -> tuple[list[Finding], list[Table], list[str]]:
    """Return the findings, tables and caveats of the numbering tests; nothing where none was made.

    Findings: ``numbering-false[pairs]``, ``numbering-power[made_by]`` and ``numbering-families``, shares called with exact
    intervals; ``numbering-uniformity[test]``, the distance of the p-values of independent roots from uniform on their steps.
    """
    if not numbered:
        return [], [], []
    roots = [one for one in numbered if not one.pair.related and one.pair.suspect.is_root]
    kinds = independent_kinds(numbered)
    powers = {made_by: list(group) for made_by, group in _by_made(numbered)}
    uniform = uniformities(roots)
    findings = [
        *(Finding(name="numbering-false", labels={"pairs": name}, estimate=called_share(group)) for name, group in kinds),
        *(Finding(name="numbering-power", labels={"made_by": made_by}, estimate=called_share(group))
          for made_by, group in powers.items()),
        *_families(numbered),
        *(Finding(name="numbering-uniformity", labels={"test": name}, estimate=distance.ks) for name, distance in uniform.items()),
    ]  # fmt: skip
    tables = [_false_table(kinds), _strata_table(roots), _uniform_table(uniform), _power_table(powers)]
    return findings, [table for table in tables if table.rows], _counts(numbered, roots)


def independent_kinds(numbered: Sequence[Numbered]) -> list[tuple[str, list[Numbered]]]:
    """Return the independent pairs by what they are: roots by what they differ in, all roots, and descendants with strange roots.

    A root counts once for each other root; what a descendant has with a strange root repeats what its own root had.
    """
    strangers = [one for one in numbered if not one.pair.related]
    roots = [one for one in strangers if one.pair.suspect.is_root]
    kinds: list[tuple[str, list[Numbered]]] = [
        (f"roots, {hardness}", group)
        for hardness in HARDNESS.values() if (group := [one for one in roots if one.pair.hardness == hardness])
    ]  # fmt: skip
    if roots:
        kinds.append(("roots, all", roots))
    if repeated := [one for one in strangers if not one.pair.suspect.is_root]:
        kinds.append(("descendants of one root with another root, which repeat these", repeated))
    return kinds


def called_share(group: Sequence[Numbered]) -> Estimate:
    """Return the share of pairs called, with its exact interval."""
    share = clopper_pearson(sum(one.called for one in group), len(group))
    return replace(share, note=f"{share.note} called at {ALPHA:g}")


def _by_made(numbered: Sequence[Numbered]) -> Iterator[tuple[str, Iterator[Numbered]]]:
    related = [one for one in numbered if one.pair.related]
    order = list(dict.fromkeys(one.pair.suspect.made_by for one in related))
    ranked = sorted(related, key=lambda one: order.index(one.pair.suspect.made_by))
    return groupby(ranked, key=lambda one: one.pair.suspect.made_by)


def _families(numbered: Sequence[Numbered]) -> list[Finding]:
    """Count the roots all of whose descendants are called: what is independent among related pairs."""
    whole: dict[str, bool] = {}
    for one in numbered:
        if one.pair.related:
            whole[one.pair.root.name] = whole.get(one.pair.root.name, True) and one.called
    if not whole:
        return []
    share = clopper_pearson(sum(whole.values()), len(whole))
    share = replace(share, note=f"{share.note} roots have all their descendants called")
    return [Finding(name="numbering-families", labels={}, estimate=share)]


@cache
def steps_of(count_of_units: int, groups: int, expected: float) -> Floats:
    """Return the values that the p of a test by fixed points can take, ascending: P(at least k) for k down to 0.

    Units are split over the groups as evenly as can be: how they are split moves the law by less than 1 / (units of a group)!.
    """
    matched = [count_of_units // groups + (group < count_of_units % groups) for group in range(groups)]
    ratio = expected / groups
    sizes = [max(m, round(m / ratio)) for m in matched]
    steps: list[float] = []
    while not steps or steps[-1] > LEAST_P:
        steps.append(math.exp(fixed_points_log_p(len(steps), matched, sizes)))
    return np.array(steps[::-1])


def uniformities(roots: Sequence[Numbered]) -> dict[str, Uniformity]:
    """Return for each half of an exact test how far its p-values are from uniform over independent pairs compared by fixed points.

    The p of the whole test is the larger of its halves', so that it is above uniform.

    That pairs share roots does no harm: a matching of two models is uniform whatever one of the two numberings is, so
    the p-values of A with B and of A with C are independent of each other.
    """
    counted: dict[str, list[tuple[int, int, int, float]]] = {}
    for one in roots:
        for test in one.result.tests:
            if test.statistic == "fixed points":
                counted.setdefault(test.name, []).append((test.count, test.of, test.groups, round(test.expected, 9)))
                if blocks := test.near_of // NEIGHBOURS:
                    halves = counted.setdefault(f"{test.name}, among neighbours", [])
                    halves.append((test.near_count, test.near_of, blocks, float(blocks)))
    uniform: dict[str, Uniformity] = {}
    for name, counts in counted.items():
        laws = [steps_of(*law) for _, *law in counts]
        p = [float(law[max(0, law.size - 1 - count)]) for (count, *_), law in zip(counts, laws, strict=True)]
        uniform[name] = uniformity_on_steps(p, laws)
    return uniform


def _strata_table(roots: Sequence[Numbered]) -> Table:
    groups: dict[str, list[Numbered]] = {}
    first: dict[str, str] = {}
    for one in roots:
        root, suspect = one.pair.root, one.pair.suspect
        if one.pair.hardness not in SAME_COURSE:
            groups.setdefault("roots that differ in text, recipe or shape", []).append(one)
            continue
        first[suspect.name] = like = first.get(root.name, root.name)
        groups.setdefault(f"{one.architecture} {root.size}, trained like {like}".strip(), []).append(one)
    rows = []
    for stratum, group in groups.items():
        models = {name for one in group for name in (one.pair.suspect.name, one.pair.root.name)}
        uniform = uniformities(group)
        worst = min((u.ks for u in uniform.values()), key=lambda ks: ks.p or 1.0, default=None)
        ks = "none by fixed points" if worst is None else f"p = {worst.p:.3f} (least of {len(uniform)})"
        rows.append((stratum, str(len(models)), *_false_row(group), ks))
    return Table(title="independent numbering by architecture, size and recipe: roots with roots",
                 columns=("stratum", "roots", *_FALSE_COLUMNS, "uniform on their steps, KS"), rows=rows)  # fmt: skip


_FALSE_COLUMNS = ("pairs", "called inherited", "95 %, exact", *(f"p ≤ {level:g}" for level in LEVELS), "least p")


def _false_row(group: Sequence[Numbered]) -> tuple[str, ...]:
    share = called_share(group)
    reached = [sum(one.result.log10_p <= math.log10(level) for one in group) for level in LEVELS]
    least = min(one.result.log10_p for one in group)
    return (str(len(group)), f"{sum(one.called for one in group)}", f"{share.low:.4f} to {share.high:.4f}",
            *(f"{count} ({count / len(group):.3f})" for count in reached), shown_p(least))  # fmt: skip


def _false_table(kinds: Sequence[tuple[str, Sequence[Numbered]]]) -> Table:
    rows = [(name, *_false_row(group)) for name, group in kinds]
    return Table(title=f"independent pairs called inherited at {ALPHA:g} (p corrected over four exact tests)",
                 columns=("independent pairs", *_FALSE_COLUMNS), rows=rows)  # fmt: skip


def _power_table(powers: dict[str, list[Numbered]]) -> Table:
    everything = [one for group in powers.values() for one in group]
    rows = []
    for made_by, group in [*powers.items(), *([("all", everything)] if everything else [])]:
        share = called_share(group)
        exact = sum(one.by_exact_tests for one in group)
        by_bits = sum(one.word == "identical" for one in group)
        agreed = sum(one.called and not one.by_exact_tests and one.word != "identical" for one in group)
        worst = max(one.result.log10_p for one in group)
        rows.append((made_by, f"{sum(one.called for one in group)} of {len(group)}", f"{share.low:.2f} to {share.high:.2f}",
                     str(by_bits), str(exact), str(agreed), shown_p(worst)))  # fmt: skip
    return Table(title=f"descendants called identical or inherited of their root at {ALPHA:g}, by what was done", rows=rows,
                 columns=("made by", "called", "95 %, exact", "identical", "exact tests", "agreement alone", "largest exact p"))  # fmt: skip


def _uniform_table(uniform: dict[str, Uniformity]) -> Table:
    rows = [
        (name, str(distance.ks.n), shown(distance.ks), f"{distance.ks.p:.3f}") for name, distance in uniform.items()
    ]
    return Table(title="are the exact p uniform on their steps? independent roots, compared by fixed points",
                 columns=("test", "pairs", "largest distance", "p of that distance"), rows=rows)  # fmt: skip


def _counts(numbered: Sequence[Numbered], roots: Sequence[Numbered]) -> list[str]:
    same = sum(one.pair.hardness in SAME_COURSE for one in roots)
    repeats = sum(not one.pair.related and not one.pair.suspect.is_root for one in numbered)
    return [
        f"numbering was tested in {len(roots)} independent pairs of roots, {same} of one recipe and data; {repeats} more pairs repeat "
        "them through descendants and add no independent evidence",
        "exact intervals are those of independent trials; descendants of one root are not, so the count of whole roots stands beside them",
    ]

"""Across cells: the curves of all models, verdicts, where each pair stands among strangers, how strangers score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import polars as pl

from modelassay.errors import UsageError
from modelassay.experiments.findings import Figures, Finding, Findings
from modelassay.experiments.findings import Table as Table
from modelassay.experiments.fingerprinting.analyse.figures import evidence_figures, quantile_figure
from modelassay.experiments.fingerprinting.analyse.lineage import derived_pairs, not_derived, score_derivations
from modelassay.experiments.fingerprinting.analyse.numbering import (
    SAME_COURSE,
    Numbered,
    kin_called,
    kin_table,
    numbered_pairs,
    numbering_words,
    score_numbering,
    uniformities,
)
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence, gather
from modelassay.experiments.fingerprinting.analyse.printed import Words, caveats, placement_table
from modelassay.experiments.fingerprinting.analyse.ratios import Ratios, held_out, score_ratios, tippett_figure
from modelassay.experiments.fingerprinting.analyse.read import models_of, recorded_scores
from modelassay.experiments.fingerprinting.analyse.scoring import score_methods
from modelassay.experiments.fingerprinting.analyse.sketches import index_findings
from modelassay.experiments.fingerprinting.analyse.tools import compare_tools
from modelassay.experiments.fingerprinting.analyse.unrelated import unrelated_scores
from modelassay.fingerprints.background import Background
from modelassay.fingerprints.curves import Curves
from modelassay.fingerprints.figures import comparison_figure
from modelassay.fingerprints.measure import curves_from as curves_from
from modelassay.fingerprints.measure import sizes_of as sizes_of
from modelassay.fingerprints.methods import ModelSummary as ModelSummary
from modelassay.fingerprints.placement import Placement, adjust, place_among
from modelassay.models.checkpoints import Stratum as Stratum
from modelassay.models.reference import short_name
from modelassay.models.reference import short_names as short_names
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate
from modelassay.zoo.resolve import connection_of, has_kin, stands_for_family
from modelassay.zoo.resolve import family_of as family_of

MAX_JUDGED = 120
"""Pairs up to which all are judged and shown; 16 models make 120."""

MAX_ROWS = 60
"""Placements that are printed of a run that judged more than ``MAX_JUDGED``."""

WRONG = {
    "strangers": ("identical", "inherited", "undecided", "closer than all strangers"),
    "family": ("not distinguishable from independent", "undecided", "among strangers"),
}
"""What contradicts a known ancestry: words of the checkpoints, and where they were not tested, of a placement."""

MAX_SHOWN = 16
"""Models up to which all curves are drawn."""


def analyse(tables: RunData) -> Findings:
    """Judge every pair of the run's models against the run's own strangers.

    Findings: ``similarity[method, a, b]`` for each pair in the order of the matrix; ``unrelated[method, quantile]`` and
    ``unrelated-above[method, level]`` over pairs of roots of different families; ``closer-than-strangers[known=strangers]`` and ``closer-than-strangers[known=family]``, the
    shares of calibrated pairs of known ancestry that are closer than all strangers. Of a run of sampled models `sketches.index_findings` alone.

    Raises:
        UsageError: the cells differ in alpha, or measured a model twice.
    """
    alphas = tables.cells["alpha"].unique(maintain_order=True).to_list()
    if len(alphas) > 1:
        raise UsageError(f"fingerprinting: cells differ in alpha ({', '.join(map(str, alphas))}); a run has one level")
    if "sampled" in tables.cells.columns and tables.cells.height and tables.cells["sampled"].all():
        return index_findings(tables)
    alpha, by_reference = float(alphas[0]), models_of(tables)
    models = [numbers.curves for numbers in by_reference.values()]
    recorded = recorded_scores(tables, {reference: model.curves.name for reference, model in by_reference.items()})
    kin = [reference for reference, model in by_reference.items() if has_kin(reference, model.curves.family)]
    background = Background.from_models(
        (model for reference, model in by_reference.items() if stands_for_family(reference, model.curves.family)),
        recorded,
    )
    evidence = gather(by_reference, recorded, background, alpha=alpha)
    pairs = _pairs_to_judge(models, evidence)
    placements = adjust([
        place_among(a, b, background, alpha=alpha, by_weights=recorded.get(frozenset((a.name, b.name)), {})) for a, b in pairs
    ])  # fmt: skip
    words = numbering_words(tables, {reference: model.curves.name for reference, model in by_reference.items()})
    ancestries = _ancestries(pairs, {model.curves.name: reference for reference, model in by_reference.items()})
    findings = [finding for placement in placements for finding in _similarity(placement)]
    findings += [finding for name in evidence.scores for finding in unrelated_scores(name, background)]
    shares = [
        share for kind in ("strangers", "family") for share in _closer_than_strangers(kind, placements, ancestries)
    ]
    scored, tables_of_methods, notes = score_methods(evidence)
    numbered = numbered_pairs(tables, evidence)
    numbering, tables_of_numbering, counts = score_numbering(numbered)
    between = [kin_table(called)] if (called := kin_called(tables)) else []
    rated, tables_of_tools = compare_tools(evidence, numbered)
    ratios = held_out(evidence) if scored else {}
    weighed, tables_of_ratios = score_ratios(ratios)
    drawn = _more_figures(numbered, ratios)
    derived, tables_of_derivations = score_derivations(derived_pairs(tables, evidence.made_by))
    families = {reference: model.curves.family for reference, model in by_reference.items()}
    shown = _worth_showing(placements, words, ancestries)
    few = models if len(models) <= MAX_SHOWN else _an_example(models, placements, ancestries)
    return Findings(
        findings=[*findings, *shares, *numbering, *rated, *scored, *weighed, *derived],
        tables=[placement_table(shown, words, ancestries=ancestries), *tables_of_numbering, *between, *tables_of_tools, *tables_of_methods, *tables_of_ratios,
                *tables_of_derivations],
        figures=Figures({"curves": partial(comparison_figure, few, placements)} if few else {}) | evidence_figures(evidence) | drawn,
        caveats=[*_broken(tables), *_recalled(tables), *_kin(kin), *not_derived(tables, families), *_left_out(placements, shown, background), *(f"of the pairs {share.note}" for share in shares),
                 *counts, *_independent_pairs(evidence), *caveats(placements, background), *notes],
    )  # fmt: skip


def _more_figures(numbered: Sequence[Numbered], ratios: Mapping[str, Ratios]) -> Figures:
    """Return the quantile plot of the exact p-values and the Tippett plots, where there is what they show."""
    roots = [one for one in numbered if not one.pair.related and one.pair.suspect.is_root]
    charts = {"numbering-p": lambda: quantile_figure(uniformities(roots))} if roots else {}
    return Figures({**charts, **({"tippett": partial(tippett_figure, ratios)} if ratios else {})})


def _independent_pairs(evidence: Evidence) -> list[str]:
    """Say how many unrelated pairs are independent and how many repeat them."""
    unrelated = [pair for pair in evidence.pairs if not pair.related]
    roots = [pair for pair in unrelated if pair.suspect.is_root]
    same = sum(pair.hardness in SAME_COURSE for pair in roots)
    if not roots:
        return []
    return [f"of {len(unrelated)} unrelated pairs {len(roots)} are of two roots, {same} of them of one recipe and data; the other "
            f"{len(unrelated) - len(roots)} repeat them through descendants of one of the two"]  # fmt: skip


def _pairs_to_judge(models: Sequence[Curves], evidence: Evidence) -> list[tuple[Curves, Curves]]:
    """Return all pairs of a small run; of a large one those with a model of unknown ancestry, and some of the known ones.

    Each suspect with its own root, and the roots of one stratum with each other; the earlier in the run comes first.
    """
    everything = list(combinations(models, 2))
    if len(everything) <= MAX_JUDGED:
        return everything
    names = {
        frozenset((pair.suspect.name, pair.root.name)) for pair in evidence.pairs
        if pair.related or (pair.suspect.is_root and pair.suspect.stratum == pair.root.stratum)
    }  # fmt: skip
    return [(a, b) for a, b in everything
            if a.family is None or b.family is None or frozenset((a.name, b.name)) in names]  # fmt: skip


def _ancestries(pairs: Sequence[tuple[Curves, Curves]], references: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return what two models are known to be to each other, by their names: family, strangers, same-init or distilled."""
    ancestries = {}
    for a, b in pairs:
        connection = connection_of((references[a.name], a.family), (references[b.name], b.family))
        if connection is not None:
            ancestries[a.name, b.name] = {"inherited": "family", "independent": "strangers"}.get(connection, connection)
    return ancestries


def _worth_showing(
    placements: Sequence[Placement], words: Words, ancestries: Mapping[tuple[str, str], str]
) -> list[Placement]:
    """Return all placements of a small run; of a large one those of unknown ancestry, then those whose word contradicts what is known.

    The word is the verdict of the checkpoints; of pairs whose checkpoints were not tested, where they stand among strangers.
    """
    if len(placements) <= MAX_JUDGED:
        return list(placements)
    surprising: dict[str | None, list[Placement]] = {
        None: [], "same-init": [], "distilled": [], "strangers": [], "family": [],
    }  # fmt: skip
    for placement in placements:
        ancestry = ancestries.get((placement.a, placement.b))
        word = words.get(frozenset((placement.a, placement.b)), placement.word)
        if ancestry not in WRONG or word in WRONG[ancestry]:
            surprising[ancestry].append(placement)
    return [placement for group in surprising.values() for placement in group][:MAX_ROWS]


def _an_example(
    models: Sequence[Curves], placements: Sequence[Placement], ancestries: Mapping[tuple[str, str], str]
) -> list[Curves]:
    """Return a root, a descendant with the median score, and the stranger that comes closest to that root."""
    ranked = sorted(
        (
            placement
            for placement in placements
            if ancestries.get((placement.a, placement.b)) == "family" and not placement.corrected.reason
        ),
        key=lambda placement: placement.corrected.value,
    )
    if not ranked:
        return list(models[:3])
    middle = ranked[len(ranked) // 2]
    strangers = [placement for placement in placements if ancestries.get((placement.a, placement.b)) == "strangers"
                 and middle.a in (placement.a, placement.b)]  # fmt: skip
    closest = max(strangers, key=lambda placement: placement.paper_exact.value, default=middle)
    names = {middle.a, middle.b, closest.a, closest.b}
    return [model for model in models if model.name in names]


def _kin(references: Sequence[str]) -> list[str]:
    if not references:
        return []
    return [
        f"{len(references)} models began from another's initial weights or learned from another's logits, {short_name(references[0])} "
        "first: they count neither as relatives nor as strangers"
    ]


def _left_out(placements: Sequence[Placement], shown: Sequence[Placement], background: Background) -> list[str]:
    notes = [
        f"{duplicate} holds the same attention weights as {original}: it counts as no stranger"
        for duplicate, original in background.duplicates
    ]
    if len(shown) < len(placements):
        notes.append(f"{len(placements)} pairs were judged; shown are those of unknown ancestry or judged otherwise than known, "
                     "--json has all")  # fmt: skip
    return notes


def _closer_than_strangers(
    kind: str, placements: Sequence[Placement], ancestries: Mapping[tuple[str, str], str]
) -> list[Finding]:
    """Return the share of calibrated pairs of ``kind`` that are closer than all strangers; nothing where there is no such pair."""
    calibrated = [
        placement for placement in placements
        if ancestries.get((placement.a, placement.b)) == kind and placement.background
    ]  # fmt: skip
    if not calibrated:
        return []
    num_closer = sum(placement.word == "closer than all strangers" for placement in calibrated)
    which = "of one family" if kind == "family" else "known to be strangers"
    note = f"{which}, {num_closer} of {len(calibrated)} are closer than all strangers"
    return [Finding(name="closer-than-strangers", labels={"known": kind},
                    estimate=Estimate(value=num_closer / len(calibrated), n=len(calibrated), note=note))]  # fmt: skip


def _similarity(placement: Placement) -> list[Finding]:
    exact = Estimate(value=placement.paper_exact.value, note=placement.paper_exact.reason or "", exact=True)
    note = placement.corrected.reason or "interval: layers drawn anew"
    ours = replace(
        placement.interval or Estimate(value=placement.corrected.value), value=placement.corrected.value, note=note
    )
    return [Finding(name="similarity", labels={"method": method, "a": placement.a, "b": placement.b}, estimate=estimate)
            for method, estimate in (("paper-exact", exact), ("corrected", ours))]  # fmt: skip


def _broken(tables: RunData) -> list[str]:
    return [
        f"{row['model']} was left out: {row['reason']}"
        for row in tables.cells.filter(pl.col("outcome") == "diverged").iter_rows(named=True)
    ]


def _recalled(tables: RunData) -> list[str]:
    num = tables.units.filter(pl.col("reused") & (pl.col("stage") == "compare"))["cell"].n_unique()
    which = f"scores of {num} of {tables.cells.height} models, or some of them,"
    return [f"{which} were measured by an earlier run or attempt of the same code, and kept"] if num else []

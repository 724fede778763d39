"""Across cells: the curves of all models, a verdict per pair, how strangers score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import polars as pl

from modelassay.claims import Finding, Findings, Table
from modelassay.errors import UsageError
from modelassay.experiments.fingerprinting.background import Background
from modelassay.experiments.fingerprinting.curves import Curves
from modelassay.experiments.fingerprinting.downloads.analyse import analyse_families
from modelassay.experiments.fingerprinting.downloads.families import asks_for_families
from modelassay.experiments.fingerprinting.evidence import Evidence, gather, recorded_scores
from modelassay.experiments.fingerprinting.evidence.derivations import derived_pairs, score_derivations
from modelassay.experiments.fingerprinting.evidence.figures import evidence_figures
from modelassay.experiments.fingerprinting.evidence.scoring import score_methods
from modelassay.experiments.fingerprinting.figures import save_figure
from modelassay.experiments.fingerprinting.judge import Verdict, adjust, judge
from modelassay.experiments.fingerprinting.measure import curves_from, family_of, short_names, sizes_of
from modelassay.experiments.fingerprinting.methods import Numbers
from modelassay.models.checkpoint import Stratum
from modelassay.record import Tables

QUANTILES = (0.5, 0.95, 0.99, 1.0)
"""Of the scores of unrelated pairs; 1 is the largest."""

MAX_JUDGED = 120
"""Pairs up to which all are judged and shown; 16 models make 120."""

MAX_ROWS = 60
"""Verdicts that are printed of a run that judged more than ``MAX_JUDGED``."""

MAX_SHOWN = 16
"""Models up to which all curves are drawn."""

COLUMNS = (
    "pair",
    "paper-exact",
    "corrected",
    "layers redrawn",
    "judged by",
    "rank p",
    "floor",
    "strangers",
    "phase p",
    "verdict",
)


def analyse(tables: Tables) -> Findings:
    """Judge every pair of the run's models against the run's own strangers; families on the Hub are `analyse_families`' matter.

    Findings: ``similarity[method, a, b]`` for each pair in the order of the matrix; ``unrelated[method, quantile]`` over
    pairs of roots of different families; ``called-related[known=strangers]`` and ``called-related[known=family]``, the
    shares of calibrated pairs of known ancestry that were called related: false positives, and power.

    Raises:
        UsageError: the cells differ in alpha, or measured a model twice.
    """
    alphas = tables.cells["alpha"].unique(maintain_order=True).to_list()
    if len(alphas) > 1:
        raise UsageError(f"fingerprinting: cells differ in alpha ({', '.join(map(str, alphas))}); a run has one level")
    if asks_for_families(tables):
        return analyse_families(tables)
    alpha, by_reference = float(alphas[0]), models_of(tables)
    models = [numbers.curves for numbers in by_reference.values()]
    recorded = recorded_scores(tables, {reference: model.curves.name for reference, model in by_reference.items()})
    background = Background.from_models(by_reference.values(), recorded)
    evidence = gather(by_reference, recorded, background, alpha=alpha)
    pairs = _pairs_to_judge(models, evidence)
    verdicts = adjust([
        judge(a, b, background, alpha=alpha, by_weights=recorded.get(frozenset((a.name, b.name)), {})) for a, b in pairs
    ])  # fmt: skip
    known = {
        (a.name, b.name): "family" if a.family == b.family else "strangers" for a, b in pairs if a.family and b.family
    }
    findings = [finding for verdict in verdicts for finding in _similarity(verdict)]
    findings += [finding for name in evidence.scores
                 for finding in _unrelated(name, [pair.scores.get(name, np.nan) for pair in background.pairs])]  # fmt: skip
    shares = [share for kind in ("strangers", "family") for share in _called_related(kind, verdicts, known)]
    scored, tables_of_methods, notes = score_methods(evidence)
    derived, tables_of_derivations = score_derivations(derived_pairs(tables, evidence.made_by))
    shown = _worth_showing(verdicts, known)
    few = models if len(models) <= MAX_SHOWN else _an_example(models, verdicts, known)
    return Findings(
        findings=[*findings, *shares, *scored, *derived],
        tables=[verdict_table(shown, known=known), *tables_of_methods, *tables_of_derivations],
        figures=({"curves": partial(save_figure, few, verdicts)} if few else {}) | dict(evidence_figures(evidence)),
        caveats=[*_broken(tables), *_recalled(tables), *_left_out(verdicts, shown, background), *(f"of the pairs {share.note}" for share in shares),
                 *caveats(verdicts, background), *notes],
    )  # fmt: skip


def _pairs_to_judge(models: Sequence[Curves], evidence: Evidence) -> list[tuple[Curves, Curves]]:
    """Return all pairs of a small run; of a large one those with a model of unknown ancestry, and some of the known ones.

    Each suspect with its own root, and the roots of one stratum with each other; the earlier in the run comes first.
    """
    everything = list(combinations(models, 2))
    if len(everything) <= MAX_JUDGED:
        return everything
    wanted = {
        frozenset((pair.suspect.name, pair.root.name)) for pair in evidence.pairs
        if pair.related or (pair.suspect.is_root and pair.suspect.stratum == pair.root.stratum)
    }  # fmt: skip
    return [(a, b) for a, b in everything
            if a.family is None or b.family is None or frozenset((a.name, b.name)) in wanted]  # fmt: skip


def _worth_showing(verdicts: Sequence[Verdict], known: Mapping[tuple[str, str], str]) -> list[Verdict]:
    """Return all verdicts of a small run; of a large one those of unknown ancestry, then those that contradict what is known."""
    if len(verdicts) <= MAX_JUDGED:
        return list(verdicts)
    wrong = {"strangers": "related", "family": "not distinguishable from strangers"}
    surprising: dict[str | None, list[Verdict]] = {None: [], "strangers": [], "family": []}
    for verdict in verdicts:
        ancestry = known.get((verdict.a, verdict.b))
        if ancestry is None or verdict.word == wrong[ancestry]:
            surprising[ancestry].append(verdict)
    return [verdict for group in surprising.values() for verdict in group][:MAX_ROWS]


def _an_example(
    models: Sequence[Curves], verdicts: Sequence[Verdict], known: Mapping[tuple[str, str], str]
) -> list[Curves]:
    """Return a root, a descendant with the median score, and the stranger that comes closest to that root."""
    ranked = sorted(
        (
            verdict
            for verdict in verdicts
            if known.get((verdict.a, verdict.b)) == "family" and not verdict.corrected.reason
        ),
        key=lambda verdict: verdict.corrected.value,
    )
    if not ranked:
        return list(models[:3])
    middle = ranked[len(ranked) // 2]
    strangers = [verdict for verdict in verdicts if known.get((verdict.a, verdict.b)) == "strangers"
                 and middle.a in (verdict.a, verdict.b)]  # fmt: skip
    closest = max(strangers, key=lambda verdict: verdict.paper_exact.value, default=middle)
    names = {middle.a, middle.b, closest.a, closest.b}
    return [model for model in models if model.name in names]


def _left_out(verdicts: Sequence[Verdict], shown: Sequence[Verdict], background: Background) -> list[str]:
    notes = [
        f"{lost} holds the same attention weights as {kept}: it counts as no stranger"
        for lost, kept in background.duplicates
    ]
    if len(shown) < len(verdicts):
        notes.append(f"{len(verdicts)} pairs were judged; shown are those of unknown ancestry or judged otherwise than known, "
                     "--json has all")  # fmt: skip
    return notes


def _called_related(kind: str, verdicts: Sequence[Verdict], known: Mapping[tuple[str, str], str]) -> list[Finding]:
    """Return the share of calibrated pairs of ``kind`` that were called related; nothing where there is no such pair."""
    judged = [verdict for verdict in verdicts if known.get((verdict.a, verdict.b)) == kind and verdict.background]
    if not judged:
        return []
    num_related = sum(verdict.word == "related" for verdict in judged)
    which = "of one family" if kind == "family" else "known to be strangers"
    expected = f"; at alpha = {judged[0].alpha:g} up to {judged[0].alpha * len(judged):.1f} were to be expected"
    note = f"{which}, {num_related} of {len(judged)} were called related{expected if kind == 'strangers' else ''}"
    return [Finding(name="called-related", value=num_related / len(judged), labels={"known": kind}, note=note)]


def models_of(tables: Tables) -> dict[str, Numbers]:
    """Return what was recorded of every model that was measured whole, by its reference, in the order of the run's cells.

    Raises:
        UsageError: a model was measured twice: it would count as its own relative.
    """
    whole = [row for row in tables.cells.iter_rows(named=True) if row["outcome"] == "done"]
    if not whole:
        return {}
    measured = [row["model"] for row in whole]
    if repeated := [model for model in dict.fromkeys(measured) if measured.count(model) > 1]:
        raise UsageError(f"fingerprinting: {repeated[0]} stands in more than one cell; name each model once")
    names = short_names(measured)
    values: dict[str, list[tuple[str, str, int, float]]] = {}
    recorded = tables.metrics.filter(pl.col("name").is_in(["sigma", "product"]))
    for cell, *value in recorded.select("cell", "name", "role", "layer", "value").iter_rows():
        values.setdefault(cell, []).append((value[0], value[1], int(value[2]), float(value[3])))
    about = {row["cell"]: row for row in tables.metrics.filter(pl.col("name") == "model").iter_rows(named=True)}
    models = {}
    for name, row in zip(names, whole, strict=True):
        described = about[row["cell"]]
        stratum = _stratum(described)
        curves = curves_from(values[row["cell"]], name=name, stratum=stratum, weights_key=described.get("weights"),
                             family=family_of(row["model"], row["family"]))  # fmt: skip
        inner = described.get("intermediate_size")
        sizes = sizes_of(stratum, None if inner in (None, "none") else int(float(str(inner))))
        models[row["model"]] = Numbers(curves=curves, sizes=sizes)
    return models


def _stratum(about: Mapping[str, object]) -> Stratum:
    def number(name: str) -> int:
        return int(float(str(about[name])))

    return Stratum(
        num_layers=number("value"), hidden_size=number("hidden_size"), num_heads=number("num_heads"),
        num_kv_heads=number("num_kv_heads"), vocab_size=number("vocab_size"),
        tokenizer_key=None if about["tokenizer"] == "none" else str(about["tokenizer"]),
    )  # fmt: skip


def _similarity(verdict: Verdict) -> list[Finding]:
    exact = Finding(name="similarity", value=verdict.paper_exact.value, note=verdict.paper_exact.reason or "",
                    labels={"method": "paper-exact", "a": verdict.a, "b": verdict.b})  # fmt: skip
    interval = verdict.interval
    ours = Finding(
        name="similarity", value=verdict.corrected.value, labels={"method": "corrected", "a": verdict.a, "b": verdict.b},
        low=interval.low if interval else None, high=interval.high if interval else None,
        note=verdict.corrected.reason or "interval: layers drawn anew",
    )  # fmt: skip
    return [exact, ours]


def _unrelated(method: str, scores: Sequence[float]) -> list[Finding]:
    finite = [score for score in scores if np.isfinite(score)]
    if not finite:
        return []
    return [
        Finding(name="unrelated", value=float(np.quantile(finite, quantile)), labels={"method": method, "quantile": quantile},
                note=f"{len(finite)} pairs, which share models and so are not independent")
        for quantile in QUANTILES
    ]  # fmt: skip


def verdict_table(verdicts: Sequence[Verdict], *, known: Mapping[tuple[str, str], str] | None = None) -> Table:
    """Return a row per pair, the highest corrected scores first; ``known`` ancestry gets a column of its own."""
    ranked = sorted(verdicts, key=lambda v: -v.corrected.value if np.isfinite(v.corrected.value) else np.inf)
    rows = []
    for verdict in ranked:
        row: tuple[str, ...] = (
            f"{verdict.a} · {verdict.b}", _number(verdict.paper_exact.value), _number(verdict.corrected.value),
            f"{verdict.interval.low:.2f} to {verdict.interval.high:.2f}" if verdict.interval else "undefined",
            f"{verdict.primary} {_number(verdict.score)}", *_chances(verdict), verdict.word,
        )  # fmt: skip
        rows.append(row if known is None else (*row, known.get((verdict.a, verdict.b), "not known")))
    return Table(title="pairs", columns=COLUMNS if known is None else (*COLUMNS, "known as"), rows=rows)


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "undefined"


def _chances(verdict: Verdict) -> tuple[str, str, str, str]:
    """Return the columns of chance; nothing is printed there without a background."""
    place, phase = verdict.background, verdict.phase
    if place is None:
        return "none", "none", "no background", "none"
    why_none = "undefined" if verdict.primary == "corrected" else "not asked"
    return (f"{place.p:.3f}", f"{place.floor:.3f}", f"{place.n}, up to {place.max:.2f}",
            why_none if phase is None else f"{phase.p:.4f}")  # fmt: skip


def caveats(verdicts: Sequence[Verdict], background: Background) -> list[str]:
    """Return what a reader must know before quoting the table."""
    notes = []
    if any(verdict.word == "uncalibrated" for verdict in verdicts):
        notes.append(
            "uncalibrated pairs have no strangers of their stratum (depth, shape, tokenizer): no p-value is printed"
        )
    if background.pairs:
        notes.append("strangers share models, so their pairs are not independent and a rank p is approximate")
    tests = [verdict.phase for verdict in verdicts if verdict.phase]
    for phases in sorted({test.free_phases for test in tests}):
        mine = [test for test in tests if test.free_phases == phases]
        notes.append(f"phase p: {phases} free phases; {mine[0].draws} draws allow {mine[0].floor:.4f}, "
                     f"a copy would get {max(test.copy_p for test in mine):.4f} at worst")  # fmt: skip
    calibrated = [verdict for verdict in verdicts if verdict.p_adjusted is not None]
    if len(calibrated) > 1:
        best = min(verdict.p_adjusted for verdict in calibrated if verdict.p_adjusted is not None)
        notes.append(
            f"each pair is judged at its own level; over all {len(calibrated)} pairs Holm's smallest adjusted rank p is {best:.2g}"
        )
    return notes


def _broken(tables: Tables) -> list[str]:
    return [
        f"{row['model']} was left out: {row['reason']}"
        for row in tables.cells.filter(pl.col("outcome") == "diverged").iter_rows(named=True)
    ]


def _recalled(tables: Tables) -> list[str]:
    num = tables.microbatches.filter(pl.col("stage") == "recall")["cell"].n_unique()
    said = f"scores of {num} of {tables.cells.height} models were measured by an earlier run of the same code, and kept"
    return [said] if num else []

"""Across cells: the curves of all models, a verdict per pair, how strangers score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import polars as pl

from modelassay.claims import Finding, Findings, Table
from modelassay.experiments.fingerprinting.background import Background
from modelassay.experiments.fingerprinting.curves import ROLES, Curves
from modelassay.experiments.fingerprinting.figures import save_figure
from modelassay.experiments.fingerprinting.judge import Verdict, adjust, judge
from modelassay.experiments.fingerprinting.measure import family_of, short_names
from modelassay.models.checkpoint import Stratum
from modelassay.record import Tables

QUANTILES = (0.5, 0.95, 0.99, 1.0)
"""Of the scores of unrelated pairs; 1 is the largest."""

COLUMNS = ("pair", "paper-exact", "corrected", "layers redrawn", "rank p", "strangers", "phase p", "copy p", "verdict")


def analyse(tables: Tables) -> Findings:
    """Judge every pair of the run's models against the run's own strangers.

    Findings: ``similarity[method, a, b]`` for each pair in the order of the matrix, ``unrelated[method, quantile]`` over
    pairs of roots of different families, ``related-least[method]`` over pairs of one family.
    """
    models = curves_of(tables)
    background = Background.from_curves(models)
    alpha = float(tables.cells["alpha"][0])
    verdicts = adjust([judge(a, b, background, alpha=alpha) for a, b in combinations(models, 2)])
    same_family = {frozenset((a.name, b.name)) for a, b in combinations(models, 2) if a.family and a.family == b.family}
    findings = [finding for verdict in verdicts for finding in _similarity(verdict)]
    for method, scores in (
        ("paper-exact", [pair.paper for pair in background.pairs]),
        ("corrected", [pair.corrected for pair in background.pairs]),
    ):
        findings += _unrelated(method, scores)
    return Findings(
        findings=findings,
        tables=[verdict_table(verdicts, known=same_family)],
        figures={"curves": partial(save_figure, models, verdicts)},
        caveats=[*_broken(tables), *caveats(verdicts, background)],
    )


def curves_of(tables: Tables) -> list[Curves]:
    """Return the curves of every model that was measured whole, in the order of the run's cells."""
    whole = [row for row in tables.cells.iter_rows(named=True) if row["outcome"] == "done"]
    names = short_names([row["model"] for row in whole])
    sigma = tables.metrics.filter(pl.col("name") == "sigma").sort("layer")
    about = {row["cell"]: row for row in tables.metrics.filter(pl.col("name") == "model").iter_rows(named=True)}
    models = []
    for name, row in zip(names, whole, strict=True):
        mine = sigma.filter(pl.col("cell") == row["cell"])
        curves = {role: mine.filter(pl.col("role") == role)["value"].to_numpy() for role in ROLES}
        stratum = _stratum(about[row["cell"]])
        models.append(Curves(name=name, sigma=curves, stratum=stratum, family=family_of(row["model"], row["family"])))
    return models


def _stratum(about: dict[str, object]) -> Stratum:
    def number(name: str) -> int:
        return int(str(about[name]))

    return Stratum(
        num_layers=int(float(str(about["value"]))), hidden_size=number("hidden_size"), num_heads=number("num_heads"),
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


def verdict_table(verdicts: Sequence[Verdict], *, known: set[frozenset[str]] | None = None) -> Table:
    """Return a row per pair, the highest corrected scores first; ``known`` relatives get a column of their own."""
    ranked = sorted(verdicts, key=lambda v: -v.corrected.value if np.isfinite(v.corrected.value) else np.inf)
    columns = COLUMNS if known is None else (*COLUMNS, "known ancestry")
    rows = []
    for verdict in ranked:
        row: tuple[str, ...] = (f"{verdict.a} · {verdict.b}", _number(verdict.paper_exact.value), _number(verdict.corrected.value),
               f"{verdict.interval.low:.2f} to {verdict.interval.high:.2f}" if verdict.interval else "undefined",
               *_chances(verdict), verdict.word)  # fmt: skip
        if known is not None:
            row = (*row, "one family" if frozenset((verdict.a, verdict.b)) in known else "strangers")
        rows.append(row)
    return Table(title="pairs", columns=columns, rows=rows)


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "undefined"


def _chances(verdict: Verdict) -> tuple[str, str, str, str]:
    """Return the columns of chance; nothing is printed there without a background."""
    place, phase = verdict.background, verdict.phase
    if place is None:
        return "none", "no background", "none", "none"
    among = f"{place.n}, max {place.max:.2f}"
    if phase is None:
        return f"{place.p:.3f} (floor {place.floor:.3f})", among, "undefined", "undefined"
    return (f"{place.p:.3f} (floor {place.floor:.3f})", among,
            f"{phase.p:.4f} ({phase.free_phases} phases)", f"{phase.copy_p:.4f}")  # fmt: skip


def caveats(verdicts: Sequence[Verdict], background: Background) -> list[str]:
    """Return what a reader must know before quoting the table."""
    notes = []
    if any(verdict.word == "uncalibrated" for verdict in verdicts):
        notes.append(
            "uncalibrated pairs have no strangers of their stratum (depth, shape, tokenizer): no p-value is printed"
        )
    if background.pairs:
        notes.append("strangers share models, so their pairs are not independent and a rank p is approximate")
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

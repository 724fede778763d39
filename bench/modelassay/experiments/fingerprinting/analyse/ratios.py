"""Likelihood ratios of each method on families that its calibration never saw, and its errors counted by independent roots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import COLOURS, GREY, Panel, panels, rows, specification
from modelassay.experiments.findings import Finding, Table
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence
from modelassay.experiments.fingerprinting.analyse.printed import shown
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.lr import Calibration, HeldOut, calibrate, cllr_estimate, held_out_ratios, tippett
from modelassay.statistics.proportions import clopper_pearson
from modelassay.statistics.resampling import Scored


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratios:
    """One method's likelihood ratios."""

    scored: Scored
    held_out: HeldOut
    cllr: Estimate
    separated: Estimate
    """Roots all of whose descendants score above every unrelated pair, with the exact interval of so many roots."""
    missed: Estimate
    """Roots with a descendant for which the held-out ratio is at most 1."""
    misled: Estimate
    """Pairs of unrelated roots for which the held-out ratio is above 1, in one of their pairs or more."""


def held_out(evidence: Evidence) -> dict[str, Ratios]:
    """Return the ratios of each method that can be calibrated."""
    ratios = {}
    for method in evidence.scores:
        scored = evidence.scored(method)
        without = held_out_ratios(scored)
        estimate = cllr_estimate(scored, without)
        if estimate.defined:
            ratios[method] = Ratios(scored=scored, held_out=without, cllr=estimate, separated=separated(scored),
                                    missed=_families(scored, without.log10_lr <= 0, scored.positive),
                                    misled=_families(scored, without.log10_lr > 0, ~scored.positive))  # fmt: skip
    return ratios


def calibrations(evidence: Evidence) -> dict[str, Calibration]:
    """Return what turns a new pair's score into a likelihood ratio, by all pairs of a run; of each method that has both kinds of pairs."""
    fits = {}
    for method in evidence.scores:
        scored = evidence.scored(method)
        defined = np.isfinite(scored.score)
        unrelated = defined & ~scored.positive
        if (defined & scored.positive).any() and np.union1d(
            scored.group_a[unrelated], scored.group_b[unrelated]
        ).size > 1:
            fits[method] = calibrate(scored)
    return fits


def separated(scored: Scored) -> Estimate:
    """Return how many families score above every unrelated pair in all their pairs, of those that have related pairs.

    >>> pairs = Scored(score=[0.9, 0.4, 0.8, 0.5], positive=[True, True, True, False], group_a=[0, 0, 1, 0], group_b=[0, 0, 1, 1])
    >>> separated(pairs).note
    '1 of 2 roots'
    """
    unrelated = scored.score[~scored.positive]
    highest = np.nanmax(unrelated) if np.isfinite(unrelated).any() else -np.inf
    share = _families(scored, ~(scored.score > highest), scored.positive)
    count = (share.n or 0) - round(share.value * (share.n or 0))
    whole = clopper_pearson(count, share.n or 1)
    return replace(whole, note=f"{whole.note} roots")


def _families(scored: Scored, event: np.ndarray[Any, Any], which: np.ndarray[Any, Any]) -> Estimate:
    """Return the share of families, or of pairs of families, among ``which`` with the event in one of their pairs or more."""
    ends = np.sort(np.stack((scored.group_a[which], scored.group_b[which])), axis=0)
    groups, place = np.unique(ends, axis=1, return_inverse=True)
    happened = np.bincount(place.ravel(), event[which], groups.shape[1]) > 0
    return clopper_pearson(int(happened.sum()), happened.size)


def score_ratios(ratios: Mapping[str, Ratios]) -> tuple[list[Finding], list[Table]]:
    """Return findings ``cllr[method]``, ``separated[method]`` and their table."""
    findings = [
        finding
        for method, of in ratios.items()
        for finding in (Finding(name="cllr", labels={"method": method}, estimate=of.cllr),
                        Finding(name="separated", labels={"method": method}, estimate=of.separated))
    ]  # fmt: skip
    lines = [(method, shown(of.cllr), f"{of.held_out.bound:.2f}", _counted(of.separated), _counted(of.missed), _counted(of.misled))
             for method, of in ratios.items()]  # fmt: skip
    table = Table(title="likelihood ratios on held-out families (logistic calibration without the pair's roots; LR = 1 throughout costs 1 bit)",
                  columns=("method", "Cllr, bits", "|log10 LR| at most", "roots separated", "roots with a descendant at LR ≤ 1",
                           "pairs of strange roots with LR > 1"), rows=lines)  # fmt: skip
    return findings, [table] if lines else []


def _counted(share: Estimate) -> str:
    return f"{round(share.value * (share.n or 0))} of {share.n} [{share.low:.2f}, {share.high:.2f}]"


def tippett_figure(ratios: Mapping[str, Ratios]) -> dict[str, Any]:
    """Return for each method the share of pairs with at least a held-out log10 LR: related ones should stay high, others fall before 0."""
    x = alt.X("at:Q", title="log10 LR at least")
    y = alt.Y("share:Q", title="share, each root once", scale=alt.Scale(domain=[0, 1]))
    kinds = ["related", "unrelated"]
    shade = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=list(COLOURS[:2])), legend=alt.Legend(title=None))
    charts: list[Panel] = []
    for method, of in ratios.items():
        base = alt.Chart(rows(_curves(of), name=f"tippett: {method}"))
        zero = alt.Chart(rows([{"at": 0}])).mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="at:Q")
        line = base.mark_line(interpolate="step-before", strokeWidth=1.6).encode(x=x, y=y, color=shade)
        title = alt.TitleParams(f"{method}, Cllr {of.cllr.value:.2f}", subtitle="held-out families")
        charts.append(alt.layer(zero, line).properties(title=title, width=200, height=150))
    return specification(panels(charts))


def _curves(of: Ratios) -> Iterator[dict[str, Any]]:
    bound = of.held_out.bound
    for kind, which in (("related", of.scored.positive), ("unrelated", ~of.scored.positive)):
        at, share = tippett(of.held_out.log10_lr, which, of.held_out.weights)
        yield {"kind": kind, "at": -bound, "share": 1.0}
        yield from ({"kind": kind, "at": a, "share": s} for a, s in zip(at, share, strict=True))
        yield {"kind": kind, "at": bound, "share": float(share[-1]) if at.size and at[-1] >= bound else 0.0}

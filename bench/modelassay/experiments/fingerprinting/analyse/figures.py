"""Figures of the evidence: score distributions, ROC, survival, calibration, and curves over size and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import COLOURS, GREY, Panel, Row, colour, dash, panels, rows, specification
from modelassay.experiments.findings import Figure, Figures
from modelassay.experiments.fingerprinting.analyse.pairs import HARDNESS, Evidence, Pair, Which
from modelassay.experiments.fingerprinting.analyse.scoring import FEWER
from modelassay.statistics.calibration import Uniformity
from modelassay.statistics.classification import accuracy, auroc
from modelassay.statistics.ranks import TIE
from modelassay.statistics.roc import roc

RELATED = "related"


def evidence_figures(evidence: Evidence) -> Figures:
    """Return the figures that the evidence allows, by file stem."""
    num_related = sum(pair.related for pair in evidence.pairs)
    if not num_related or num_related == len(evidence.pairs):
        return Figures({})
    charts: dict[str, Callable[[Evidence], Figure]] = {
        "scores": scores_figure, "roc": roc_figure, "survival": survival_figure, "calibration": calibration_figure,
    }  # fmt: skip
    if len(evidence.groups(lambda pair: pair.suspect.size)) > 1 or any(map(_is_continued, evidence.pairs)):
        charts["size-and-training"] = size_and_training_figure
    return Figures({name: partial(chart, evidence) for name, chart in charts.items()})


def scores_figure(evidence: Evidence) -> dict[str, Any]:
    """Return for each method the scores of related pairs and of unrelated ones by what they differ in, one point a pair."""
    hardness = [word for word in HARDNESS.values() if word in evidence.groups(lambda pair: pair.hardness)]
    kinds = [RELATED, *hardness]
    colours = [COLOURS[0], *(COLOURS[1 + index % (len(COLOURS) - 1)] for index in range(len(hardness)))]
    shade = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=colours), legend=None)
    y = alt.Y("kind:N", title=None, scale=alt.Scale(domain=kinds))
    rng = np.random.default_rng(0)
    charts: list[Panel] = []
    for method, score_P in evidence.scores.items():
        points = [
            {"kind": RELATED if pair.hardness is None else pair.hardness, "score": score, "spread": spread}
            for pair, score, spread in zip(evidence.pairs, score_P, rng.uniform(-0.3, 0.3, score_P.size), strict=True)
            if np.isfinite(score)
        ]
        x = alt.X("score:Q", title="score (| median)", scale=alt.Scale(zero=False))
        offset = alt.YOffset("spread:Q", scale=alt.Scale(domain=[-0.5, 0.5]))
        base = alt.Chart(rows(points, name=_name("scores", method))).encode(y=y)
        dots = base.mark_circle(size=14, opacity=0.5).encode(x=x, yOffset=offset, color=shade)
        middle = alt.Chart(rows(_medians(points, kinds))).mark_tick(color="black", thickness=2, size=18)
        charts.append(
            alt.layer(dots, middle.encode(x=x, y=y)).properties(title=method, width=200, height=34 * len(kinds))
        )
    return specification(panels(charts))


def _medians(points: list[dict[str, Any]], kinds: list[str]) -> Iterator[Row]:
    for kind in kinds:
        scores = [point["score"] for point in points if point["kind"] == kind]
        if scores:
            yield {"kind": kind, "score": np.median(scores)}


def roc_figure(evidence: Evidence) -> dict[str, Any]:
    """Return the ROC of each method with its 95 % band over roots, false positives on a logarithmic axis."""
    x = alt.X("fpr:Q", title="false-positive rate", scale=alt.Scale(type="symlog", constant=1e-3, domain=[0, 1]),
              axis=alt.Axis(values=[0, 1e-3, 1e-2, 1e-1, 1], format="~%", labelOverlap=False, labelFontSize=9))  # fmt: skip
    y = alt.Y("tpr:Q", title="true-positive rate", scale=alt.Scale(domain=[0, 1]))
    charts: list[Panel] = []
    for method in evidence.scores:
        scored = evidence.scored(method)
        curve = roc(scored, draws=FEWER)
        points = [{"fpr": fpr, "tpr": tpr, "low": low, "high": high} for fpr, tpr, low, high
                  in zip(curve.fpr, curve.tpr, curve.low, curve.high, strict=True)]  # fmt: skip
        base = alt.Chart(rows(points, name=_name("roc", method))).encode(x=x)
        chance = base.mark_line(color=GREY, strokeDash=[4, 3], strokeWidth=1).encode(y=alt.Y("fpr:Q"))
        band = base.transform_filter("isValid(datum.low)").mark_area(
            opacity=0.2, color=COLOURS[0], interpolate="step-after"
        )
        line = base.mark_line(color=COLOURS[0], interpolate="step-after", strokeWidth=1.6).encode(y=y)
        band_words = "band: 95 % over roots, " if np.isfinite(curve.low).any() else ""
        title = alt.TitleParams(f"{method}, AUROC {auroc(scored):.3f}", subtitle=f"{band_words}dashed: chance")
        layers = alt.layer(band.encode(y=alt.Y("low:Q"), y2="high:Q"), chance, line)
        charts.append(layers.properties(title=title, width=215, height=165))
    return specification(panels(charts))


def survival_figure(evidence: Evidence) -> dict[str, Any]:
    """Return the share of related pairs that each method calls related, by what was done to the suspect."""
    transformations = [
        str(value) for value in evidence.groups(lambda pair: pair.suspect.made_by if pair.related else None)
    ]
    methods = list(evidence.scores)
    cells: list[Row] = []
    for made_by in transformations:
        for method in methods:
            ranks = evidence.ranks_of_decidable(method, made_by)
            # Where it cannot compare them there is no share, which is not the same as never.
            share = np.mean(ranks.p <= evidence.alpha + TIE) if np.isfinite(ranks.p).any() else np.nan
            cells.append({"made by": made_by, "method": method, "share": share,
                          "text": "–" if np.isnan(share) else f"{share:.0%}"})  # fmt: skip
    x = alt.X("method:N", title=None, sort=methods, axis=alt.Axis(labelAngle=-35, ticks=False, domain=False))
    y = alt.Y("made by:N", title="done to the suspect", sort=transformations, axis=alt.Axis(ticks=False, domain=False))
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    shade = alt.Color("share:Q", scale=scale, legend=alt.Legend(title="share", format="~%"))
    base = alt.Chart(rows(cells, name="survival")).encode(x=x, y=y)
    chart = alt.layer(
        base.mark_rect(color="#ededed"),
        base.transform_filter("isValid(datum.share)").mark_rect().encode(color=shade, tooltip=["made by:N", "method:N", "share:Q"]),
        base.mark_text(fontSize=10).encode(
            text="text:N",
            color=alt.condition("isValid(datum.share) && datum.share < 0.6", alt.value("white"), alt.value("black"))),
    ).properties(
        width=58 * len(methods), height=max(60, 20 * len(transformations)),
        title=alt.TitleParams(f"related pairs called related (rank p ≤ {evidence.alpha:g})",
                              subtitle="–: the method cannot compare them"),
    )  # fmt: skip
    return specification(chart)


def calibration_figure(evidence: Evidence) -> dict[str, Any]:
    """Return the p-values of unrelated suspects against what uniform ones would be: honest ones follow the diagonal."""
    scale = alt.Scale(type="log", domain=[2e-3, 1], clamp=True, nice=False)
    axis = alt.Axis(values=[0.002, 0.01, 0.05, 0.2, 1], format="~g")
    x = alt.X("expected:Q", title="expected p, uniform", scale=scale, axis=axis)
    y = alt.Y("p:Q", title="p of unrelated suspects", scale=scale, axis=axis)
    diagonal = alt.Chart(rows([{"expected": end, "p": end} for end in (2e-3, 1)]))
    charts: list[Panel] = []
    for method in evidence.scores:
        ranks = evidence.ranks_of_unrelated(method)
        p = np.sort(ranks.p[np.isfinite(ranks.p)])
        points = [{"expected": (index + 0.5) / p.size, "p": value} for index, value in enumerate(p)]
        line = alt.Chart(rows(points, name=_name("calibration", method)))
        title = alt.TitleParams(f"{method}, n = {p.size}", subtitle=f"orange: {evidence.alpha:g}, dashed: honest")
        charts.append(alt.layer(
            diagonal.mark_line(color=GREY, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y),
            alt.Chart(rows([{"p": evidence.alpha}])).mark_rule(color=COLOURS[1]).encode(y=y),
            line.mark_line(color=COLOURS[0], interpolate="step", strokeWidth=1.6).encode(x=x, y=y),
        ).properties(title=title, width=190, height=160))  # fmt: skip
    return specification(panels(charts))


def quantile_figure(uniform: Mapping[str, Uniformity]) -> dict[str, Any]:
    """Return the p-values of each exact test over independent roots against what their laws let expect, both on log scales."""
    lowest = min(
        (float(distance.observed.min()) for distance in uniform.values() if distance.observed.size), default=1e-3
    )
    scale = alt.Scale(type="log", domain=[min(lowest, 1e-3), 1], clamp=True, nice=False)
    axis = alt.Axis(format="~g", values=[1e-4, 1e-3, 0.01, 0.1, 1])
    x = alt.X("expected:Q", title="expected p, uniform on its steps", scale=scale, axis=axis)
    y = alt.Y("p:Q", title="p of independent roots", scale=scale, axis=axis)
    diagonal = alt.Chart(rows([{"expected": end, "p": end} for end in (min(lowest, 1e-3), 1)]))
    charts: list[Panel] = []
    for name, distance in uniform.items():
        points = [
            {"expected": expected, "p": p} for expected, p in zip(distance.expected, distance.observed, strict=True)
        ]
        dots = alt.Chart(rows(points, name=_name("numbering-p", name)))
        title = alt.TitleParams(name, subtitle=f"n = {distance.ks.n}, KS p = {distance.ks.p:.2f}; dashed: honest")
        charts.append(alt.layer(
            diagonal.mark_line(color=GREY, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y),
            dots.mark_circle(color=COLOURS[0], size=16, opacity=0.6).encode(x=x, y=y),
        ).properties(title=title, width=200, height=170))  # fmt: skip
    return specification(panels(charts))


def _name(figure: str, method: str) -> str:
    """Return the name of a panel, by which the specification's reader finds its data."""
    return f"{figure}: {method}"


def _is_continued(pair: Pair) -> bool:
    """Whether the pair is related and the suspect was pre-trained further and nothing else."""
    made_by = pair.suspect.made_by
    return pair.related and made_by.startswith("cpt-") and "+" not in made_by


def size_and_training_figure(evidence: Evidence) -> dict[str, Any]:
    """Return AUROC over size with intervals over roots (left), and scores over continued training against unrelated ones (right)."""
    methods = list(evidence.scores)
    legend = alt.Legend(title=None, orient="right", symbolType="stroke", symbolSize=260)
    shade, style = colour("method", methods, legend=legend), dash("method", methods, legend=legend)
    sizes = sorted((str(size) for size in evidence.groups(lambda pair: pair.suspect.size)), key=_extent)
    both = [size for size in sizes if {True, False} <= {p.related for p in evidence.pairs if p.suspect.size == size}]
    by_size = alt.Chart(rows(_by_size(evidence, both), name="by_size")).encode(
        x=alt.X("size:N", sort=both, title="layers x width, related and unrelated pairs of one size", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("method:N", sort=methods), tooltip=["method:N", "size:N", "auroc:Q", "low:Q", "high:Q"], color=shade, strokeDash=style)  # fmt: skip
    auroc_axis = alt.Y("auroc:Q", title="AUROC, 95 % over roots", scale=alt.Scale(zero=False))
    left = alt.layer(
        by_size.transform_filter("isValid(datum.low)").mark_rule(strokeDash=[1, 0]).encode(y=alt.Y("low:Q"), y2="high:Q"),
        by_size.mark_line(strokeWidth=1).encode(y=auroc_axis), by_size.mark_circle(size=34).encode(y=auroc_axis),
    ).properties(width=max(280, 90 * len(both)), height=270)  # fmt: skip
    by_training = list(_by_training(evidence))
    shares = sorted({float(point["share"]) for point in by_training})
    training = alt.Chart(rows(by_training, name="by_training")).encode(
        x=alt.X("share:Q", title="tokens of continued pre-training, share of the root's own", scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(values=shares, format="~%")),
        y=alt.Y("above:Q", title="score above unrelated pairs, in their standard deviations", scale=alt.Scale(type="symlog", constant=3)),
        tooltip=["method:N", "share:Q", "above:Q"], color=shade, strokeDash=style)  # fmt: skip
    zero = alt.Chart(rows([{"above": 0}])).mark_rule(color=GREY, strokeDash=[4, 3]).encode(y="above:Q")
    right = alt.layer(zero, training.mark_line(strokeWidth=1), training.mark_circle(size=34)).properties(
        width=330, height=270
    )
    return specification(alt.hconcat(left, right) if shares else left)


def _by_size(evidence: Evidence, sizes: list[str]) -> Iterator[Row]:
    for method in evidence.scores:
        for size in sizes:
            estimate = accuracy(evidence.scored(method, _of_size(size)), metrics=["auroc"], draws=FEWER).metrics[
                "auroc"
            ]
            yield {"method": method, "size": size, "auroc": estimate.value, "low": estimate.low, "high": estimate.high}


def _extent(size: str) -> list[int]:
    """Width, then layers, of a size like ``8x64``."""
    return [int(number) for number in reversed(size.split("x"))]


def _of_size(size: str) -> Which:
    return lambda pair: pair.suspect.size == size


def _by_training(evidence: Evidence) -> Iterator[Row]:
    """The median over roots of (score - mean of unrelated ones) / their deviation, by training since the root."""
    for method, score_P in evidence.scores.items():
        by_share: dict[float, list[float]] = {}
        for pair, score in zip(evidence.pairs, score_P, strict=True):
            if not _is_continued(pair):
                continue
            unrelated = evidence.stranger_scores(method, pair.suspect.stratum)
            if unrelated.size > 2 and unrelated.std() > 0 and np.isfinite(score):
                above = (score - unrelated.mean()) / unrelated.std()
                by_share.setdefault(int(pair.suspect.made_by.removeprefix("cpt-")) / 100, []).append(above)
        for share in sorted(by_share):
            yield {"method": method, "share": share, "above": np.median(by_share[share])}

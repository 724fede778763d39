"""The figure of a comparison: the curves of all models, and both scores of all pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import Panel, Row, colour, dash, rows, specification
from modelassay.fingerprints.curves import ROLES, Curves
from modelassay.fingerprints.placement import Placement

TITLES = {"q": "query", "k": "key", "v": "value", "o": "output"}
LONGEST = 36  # characters of a name beside an axis
LEGEND_CHARACTERS = 96  # small letters that fit beside each other over the four panels
MARKS = {"closer than all strangers": "*", "inconclusive": "?", "uncalibrated": "°", "among strangers": ""}
CELL = 52  # width and height of one pair's score


def comparison_figure(curves: Sequence[Curves], placements: Sequence[Placement]) -> dict[str, Any]:
    """Return the curves (left) and the scores (right) as a Vega-Lite specification.

    Left: one panel per role, sigma as z-scores over layers against depth in percent, so that models of different
    depth share an axis. Right: models against models, paper-exact below the diagonal and corrected above; ``*`` marks
    pairs closer than all strangers, ``?`` inconclusive, ``°`` uncalibrated ones; pairs without a score stay grey.
    """
    names = [model.name for model in curves]
    labels = labels_of(names)
    panels = [_curve_panel(curves, labels, role) for role in ROLES]
    left = alt.concat(*panels, columns=2, spacing=14)
    chart = alt.hconcat(left, _scores_panel(names, labels, placements), spacing=36).resolve_scale(
        color="independent", strokeDash="independent"
    )
    return specification(chart)


def labels_of(names: Sequence[str]) -> list[str]:
    """Shorten names for axes: no folder or organisation, seven digits of a commit, a long middle left out.

    As they are if that mixes two up.

    >>> labels_of(["hf:Qwen/Qwen2.5-0.5B@060db6499f32faf8b98477b0a26969ef7d8b9987", "zoo:base"])
    ['Qwen2.5-0.5B@060db64', 'zoo:base']
    >>> labels_of(["a/model", "b/model"])
    ['a/model', 'b/model']
    """
    bases = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    commits = [re.sub(r"@([0-9a-f]{7})[0-9a-f]+$", r"@\1", base) for base in bases]
    short = [base if len(base) <= LONGEST else f"{base[: LONGEST // 2]}…{base[-LONGEST // 2 :]}" for base in commits]
    return next((labels for labels in (short, commits) if len(set(labels)) == len(labels)), list(names))


def _curve_panel(curves: Sequence[Curves], labels: Sequence[str], role: str) -> Panel:
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // (6 + max(map(len, labels)))))
    legend = alt.Legend(orient="top", columns=columns, title=None, symbolType="stroke", symbolSize=260)
    points = [point for label, model in zip(labels, curves, strict=True) for point in _points(label, model, role)]
    panel: Panel = (
        alt.Chart(rows(points, name=f"curves_{role}"), title=TITLES[role], width=270, height=170)
        .mark_line(strokeWidth=1.6, opacity=0.9)
        .encode(
            x=alt.X("depth:Q", title="depth (% of layers)", scale=alt.Scale(domain=[-2, 102], nice=False),
                    axis=alt.Axis(values=[0, 25, 50, 75, 100])),
            y=alt.Y("z:Q", title="σ of the weights, z-score over layers"),
            color=colour("model", labels, legend=legend), strokeDash=dash("model", labels, legend=legend),
            tooltip=["model:N", "layer:Q", "z:Q"],
        )
    )  # fmt: skip
    return panel


def _points(label: str, model: Curves, role: str) -> Iterator[Row]:
    sigma_L = model.sigma[role]
    spread = sigma_L.std()
    z_L = (sigma_L - sigma_L.mean()) / spread if spread > 0 else np.zeros_like(sigma_L)
    for layer, z in enumerate(z_L):
        yield {"model": label, "layer": layer, "depth": 100 * (layer + 0.5) / model.num_layers, "z": z}


def _scores_panel(names: Sequence[str], labels: Sequence[str], placements: Sequence[Placement]) -> Panel:
    label_of = dict(zip(names, labels, strict=True))
    place = {name: index for index, name in enumerate(names)}
    cells = [cell for placement in placements if placement.a in place and placement.b in place
             for cell in _cells(*_in_order(placement, place), placement, label_of)]  # fmt: skip
    scale = alt.Scale(domain=list(labels), padding=0.03)
    x = alt.X(
        "column:N", title=None, axis=alt.Axis(labelAngle=-40, ticks=False, domain=False), sort=list(labels), scale=scale
    )
    y = alt.Y("row:N", title=None, axis=alt.Axis(ticks=False, domain=False), sort=list(labels), scale=scale)
    everything = [{"row": row, "column": column} for row in labels for column in labels]
    legend = alt.Legend(title=["mean correlation", "of the four roles"], gradientLength=160)
    colours = alt.Scale(scheme="purpleorange", reverse=True, domain=[-1, 1])
    base = alt.Chart(rows(cells)).encode(x=x, y=y)
    text = base.encode(
        text="text:N", color=alt.condition("abs(datum.score) > 0.65", alt.value("white"), alt.value("black"))
    )
    return alt.layer(
        alt.Chart(rows(everything)).mark_rect(color="#ededed").encode(x=x, y=y),
        alt.Chart(rows(cells, name="scores")).mark_rect().encode(
            x=x, y=y, color=alt.Color("score:Q", scale=colours, legend=legend), tooltip=["row:N", "column:N", "method:N", "score:Q", "placement:N"]),
        text.transform_filter("datum.mark != '*'").mark_text(fontSize=11),
        text.transform_filter("datum.mark == '*'").mark_text(fontSize=11, fontWeight="bold"),
    ).properties(
        width=max(150, CELL * len(labels)), height=max(150, CELL * len(labels)),
        title=alt.TitleParams("scores of pairs", subtitle=["above the diagonal: corrected, below: paper-exact",
                                                           "* closer than all strangers  ? inconclusive  ° uncalibrated"]),
    )  # fmt: skip


def _in_order(placement: Placement, place: dict[str, int]) -> tuple[str, str]:
    return (placement.a, placement.b) if place[placement.a] < place[placement.b] else (placement.b, placement.a)


def _cells(first: str, second: str, placement: Placement, label_of: dict[str, str]) -> Iterator[Row]:
    """Yield the two cells of a pair: its corrected score with its mark, and its paper-exact score."""
    for row, column, method, score, mark in (
        (first, second, "corrected", placement.corrected.value, MARKS[placement.word]),
        (second, first, "paper-exact", placement.paper_exact.value, ""),
    ):
        if np.isfinite(score):
            yield {"row": label_of[row], "column": label_of[column], "method": method, "score": score, "mark": mark,
                   "text": f"{score:z.2f}{mark}", "among": placement.word}  # fmt: skip

"""The figure of a comparison: the curves of all models, and both scores of all pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modelassay.experiments.fingerprinting.curves import ROLES, Array, Curves
from modelassay.experiments.fingerprinting.judge import Verdict

# Okabe and Ito's palette without its yellow, which is too faint for a line; line styles tell repeats apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLES = ("-", "--", ":", "-.")
TITLES = {"q": "query", "k": "key", "v": "value", "o": "output"}
LONGEST = 36  # characters of a name beside an axis
LEGEND_CHARACTERS = 96  # small letters that fit beside each other over the four panels
MARKS = {"related": "*", "inconclusive": "?", "uncalibrated": "°", "not distinguishable from strangers": ""}


def save_figure(curves: Sequence[Curves], verdicts: Sequence[Verdict], path: Path) -> None:
    """Draw the curves (left) and the scores (right) and save them as PNG, SVG or PDF, by the suffix of ``path``.

    Left: one panel per role, sigma as z-scores over layers against depth in percent, so that models of different
    depth share an axis. Right: models against models, paper-exact below the diagonal and corrected above; ``*`` marks
    related, ``?`` inconclusive, ``°`` uncalibrated pairs; pairs without a score stay grey.
    """
    count, labels = len(curves), labels_of([model.name for model in curves])
    side = max(5.4, 0.62 * count + 2.2)
    figure = Figure(figsize=(7.2 + side, max(5.4, side)), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(7.2, side))[0]
    axes = left.subplots(2, 2, sharex=True, sharey=True)
    for role, axis in zip(ROLES, axes.flat, strict=True):
        _draw_role(axis, curves, role)
    left.supxlabel("depth (% of layers)", fontsize="medium")
    left.supylabel("σ of the weights, z-score over layers", fontsize="medium")
    columns = max(1, min(count, LEGEND_CHARACTERS // (6 + max(map(len, labels)))))
    handles = axes[0, 0].get_lines()
    left.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize="small")
    _draw_scores(right.subplots(), [model.name for model in curves], verdicts)
    figure.savefig(path, dpi=160)


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
    return next((found for found in (short, commits) if len(set(found)) == len(found)), list(names))


def _draw_role(axis: Axes, curves: Sequence[Curves], role: str) -> None:
    for index, model in enumerate(curves):
        sigma_L = model.sigma[role]
        spread = sigma_L.std()
        z_L = (sigma_L - sigma_L.mean()) / spread if spread > 0 else np.zeros_like(sigma_L)
        depth_L = 100 * (np.arange(model.num_layers) + 0.5) / model.num_layers
        axis.plot(depth_L, z_L, color=COLOURS[index % len(COLOURS)], linewidth=1.4, alpha=0.9,
                  linestyle=STYLES[(index // len(COLOURS)) % len(STYLES)])  # fmt: skip
    axis.set_title(TITLES[role], loc="left", fontsize="medium")
    axis.set_xlim(-2, 102)
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_scores(axis: Axes, names: Sequence[str], verdicts: Sequence[Verdict]) -> None:
    scores_NN, marks = _score_matrix(names, verdicts)
    count, labels = len(names), labels_of(names)
    colours = colormaps["PuOr_r"].with_extremes(bad="0.93")
    image = axis.imshow(np.ma.masked_invalid(scores_NN), vmin=-1, vmax=1, cmap=colours)
    for row in range(count):
        for column in range(count):
            value = scores_NN[row, column]
            if np.isfinite(value):
                mark = marks.get((row, column), "")
                axis.text(column, row, f"{value:z.2f}{mark}", ha="center", va="center", fontsize=8,
                          fontweight="bold" if mark == "*" else "normal",
                          color="white" if abs(value) > 0.65 else "black")  # fmt: skip
    axis.set_xticks(range(count), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize="small")
    axis.set_yticks(range(count), labels, fontsize="small")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for edge in range(1, count):
        axis.axhline(edge - 0.5, color="white", linewidth=1.2)
        axis.axvline(edge - 0.5, color="white", linewidth=1.2)
    axis.set_title("above the diagonal: corrected\nbelow: paper-exact\n* related  ? inconclusive  ° uncalibrated",
                   fontsize="small", loc="left", linespacing=1.4)  # fmt: skip
    axis.figure.colorbar(image, ax=axis, shrink=0.7, label="mean correlation of the four roles")


def _score_matrix(names: Sequence[str], verdicts: Sequence[Verdict]) -> tuple[Array, dict[tuple[int, int], str]]:
    """Scores as [N, N], NaN where unknown, and the marks of the verdicts at (row, column) of both triangles."""
    place = {name: index for index, name in enumerate(names)}
    scores_NN = np.full((len(names), len(names)), np.nan)
    marks = {}
    for verdict in verdicts:
        if verdict.a not in place or verdict.b not in place:
            continue
        low, high = sorted((place[verdict.a], place[verdict.b]))
        scores_NN[low, high], scores_NN[high, low] = verdict.corrected.value, verdict.paper_exact.value
        marks[low, high] = MARKS[verdict.word]
    return scores_NN, marks

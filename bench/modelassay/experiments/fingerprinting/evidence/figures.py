"""Figures of the evidence: score distributions, ROC, survival, calibration, and curves over size and training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modelassay.accuracy import accuracy, auroc
from modelassay.accuracy_roc import roc
from modelassay.experiments.fingerprinting.evidence import HARDNESS, Evidence, Pair, Which
from modelassay.experiments.fingerprinting.evidence.scoring import FEWER
from modelassay.experiments.fingerprinting.figures import COLOURS

COLUMNS = 4  # panels beside each other


def evidence_figures(evidence: Evidence) -> Mapping[str, Callable[[Path], None]]:
    """Return the figures that the evidence allows, by file stem."""
    related = sum(pair.related for pair in evidence.pairs)
    if not related or related == len(evidence.pairs):
        return {}
    drawn: dict[str, Callable[..., None]] = {
        "scores": save_scores, "roc": save_roc, "survival": save_survival, "calibration": save_calibration,
    }  # fmt: skip
    if len(evidence.groups(lambda pair: pair.suspect.size)) > 1 or any(map(_is_continued, evidence.pairs)):
        drawn["size-and-training"] = save_size_and_training
    return {name: partial(draw, evidence=evidence) for name, draw in drawn.items()}


def _panels(count: int, *, width: float = 3.1, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, count)
    rows = ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[:count]


def save_scores(path: Path, evidence: Evidence) -> None:
    """Draw for each method the scores of related pairs and of strangers by what they differ in, one point a pair."""
    kinds = [None, *(word for word in HARDNESS.values() if word in evidence.groups(lambda pair: pair.hardness))]
    figure, axes = _panels(len(evidence.scores))
    rng = np.random.default_rng(0)
    for axis, (method, score) in zip(axes, evidence.scores.items(), strict=True):
        for place, kind in enumerate(kinds):
            mine = score[[pair.hardness == kind for pair in evidence.pairs]]
            mine = mine[np.isfinite(mine)]
            colour = COLOURS[0] if kind is None else COLOURS[1 + (place - 1) % (len(COLOURS) - 1)]
            axis.plot(
                mine, place + rng.uniform(-0.3, 0.3, mine.size), ".", color=colour, markersize=2.5, alpha=0.5, mew=0
            )
            if mine.size:
                axis.plot(np.median(mine), place, "|", color="black", markersize=14)
        axis.set_yticks(range(len(kinds)), ["related" if kind is None else kind for kind in kinds], fontsize="small")
        axis.invert_yaxis()
        axis.set_title(method, loc="left", fontsize="medium")
        if axis.get_subplotspec().colspan.start:  # type: ignore[union-attr]
            axis.set_yticklabels([])
    figure.supxlabel("score (| median)", fontsize="medium")
    figure.savefig(path, dpi=160)


def save_roc(path: Path, evidence: Evidence) -> None:
    """Draw the ROC of each method with its 95 % band over roots, false positives on a logarithmic axis."""
    figure, axes = _panels(len(evidence.scores))
    for axis, method in zip(axes, evidence.scores, strict=True):
        scored = evidence.scored(method)
        curve = roc(scored, draws=FEWER)
        axis.fill_between(curve.fpr, curve.low, curve.high, step="post", color=COLOURS[0], alpha=0.2, linewidth=0)
        axis.step(curve.fpr, curve.tpr, where="post", color=COLOURS[0])
        axis.plot(curve.fpr, curve.fpr, color="0.6", linewidth=0.8, linestyle="--")
        axis.set_xscale("symlog", linthresh=1e-3)
        axis.set_xlim(0, 1)
        axis.set_xticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.1 %", "1 %", "10 %", "100 %"], fontsize="x-small")
        axis.set_ylim(-0.02, 1.02)
        axis.set_title(f"{method}, AUROC {auroc(scored):.3f}", loc="left", fontsize="medium")
    figure.supxlabel("false-positive rate", fontsize="medium")
    figure.supylabel("true-positive rate", fontsize="medium")
    figure.savefig(path, dpi=160)


def save_survival(path: Path, evidence: Evidence) -> None:
    """Draw the share of related pairs that each method calls related, by what was done to the suspect."""
    made = [str(value) for value in evidence.groups(lambda pair: pair.suspect.made_by if pair.related else None)]
    methods = list(evidence.scores)
    share_TM = np.full((len(made), len(methods)), np.nan)
    for row, name in enumerate(made):
        for column, method in enumerate(methods):
            ranks = evidence.ranks_of_decidable(method, name)
            if np.isfinite(ranks.p).any():  # else it cannot compare them, which is not the same as never
                share_TM[row, column] = np.mean(ranks.p <= evidence.alpha + 1e-12)
    figure = Figure(figsize=(2.8 + 0.85 * len(methods), 1.6 + 0.27 * len(made)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.ma.masked_invalid(share_TM), vmin=0, vmax=1, aspect="auto",
                cmap=colormaps["cividis"].with_extremes(bad="0.93"))  # fmt: skip
    for row in range(len(made)):
        for column in range(len(methods)):
            value = share_TM[row, column]
            axis.text(column, row, "–" if np.isnan(value) else f"{value:.0%}", ha="center", va="center", fontsize=7,
                      color="white" if value < 0.6 else "black")  # fmt: skip
    axis.set_xticks(range(len(methods)), methods, rotation=35, ha="right", rotation_mode="anchor", fontsize="small")
    axis.set_yticks(range(len(made)), made, fontsize="small")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"related pairs called related (rank p ≤ {evidence.alpha:g})", loc="left", fontsize="medium")
    figure.savefig(path, dpi=160)


def save_calibration(path: Path, evidence: Evidence) -> None:
    """Draw the p-values of unrelated suspects against what uniform ones would be: honest ones follow the diagonal."""
    figure, axes = _panels(len(evidence.scores))
    for axis, method in zip(axes, evidence.scores, strict=True):
        ranks = evidence.ranks_of_unrelated(method)
        p = np.sort(ranks.p[np.isfinite(ranks.p)])
        if p.size:
            axis.plot((np.arange(p.size) + 0.5) / p.size, p, color=COLOURS[0], drawstyle="steps-mid")
        axis.plot([1e-3, 1], [1e-3, 1], color="0.6", linewidth=0.8, linestyle="--")
        axis.axhline(evidence.alpha, color=COLOURS[1], linewidth=0.8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(2e-3, 1)
        axis.set_ylim(2e-3, 1.1)
        axis.set_title(f"{method}, n = {p.size}", loc="left", fontsize="medium")
    figure.supxlabel("expected p, uniform", fontsize="medium")
    figure.supylabel(f"p of unrelated suspects (line: {evidence.alpha:g})", fontsize="medium")
    figure.savefig(path, dpi=160)


def _is_continued(pair: Pair) -> bool:
    """Whether the pair is related and the suspect was pre-trained further and nothing else."""
    made_by = pair.suspect.made_by
    return pair.related and made_by.startswith("cpt-") and "+" not in made_by


def save_size_and_training(path: Path, evidence: Evidence) -> None:
    """Draw AUROC over size with intervals over roots (left), and scores over continued training against strangers' (right)."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted((str(size) for size in evidence.groups(lambda pair: pair.suspect.size)), key=_extent)
    both = [size for size in sizes if {True, False} <= {p.related for p in evidence.pairs if p.suspect.size == size}]
    for index, method in enumerate(evidence.scores):
        found = [
            accuracy(evidence.scored(method, _of_size(size)), metrics=["auroc"], draws=FEWER).metrics["auroc"]
            for size in both
        ]
        at = np.arange(len(both)) + 0.07 * (index - len(evidence.scores) / 2)
        values = np.array([estimate.value for estimate in found], dtype=float)
        ends = np.array([[e.interval.low, e.interval.high] if e.interval else [np.nan, np.nan] for e in found]).reshape(
            -1, 2
        )
        spread = np.maximum(np.abs(ends.T - values), 0)
        left.errorbar(at, values, spread, marker="o", markersize=4, linewidth=1, capsize=2, label=method,
                      color=COLOURS[index % len(COLOURS)], linestyle="-" if index < len(COLOURS) else ":")  # fmt: skip
        _draw_training(right, evidence, method, index)
    left.set_xticks(range(len(both)), both)
    left.set_xlabel("layers x width, related and unrelated pairs of one size")
    left.set_ylabel("AUROC")
    left.legend(frameon=False, fontsize="x-small", ncols=2)
    right.set_xlabel("tokens of continued pre-training, share of the root's own")
    right.set_ylabel("score above strangers, in their standard deviations")
    right.axhline(0, color="0.6", linewidth=0.8, linestyle="--")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92", linewidth=0.6)
    figure.savefig(path, dpi=160)


def _extent(size: str) -> list[int]:
    """Width, then layers, of a size like ``8x64``."""
    return [int(number) for number in reversed(size.split("x"))]


def _of_size(size: str) -> Which:
    return lambda pair: pair.suspect.size == size


def _draw_training(axis: Axes, evidence: Evidence, method: str, index: int) -> None:
    """The median over roots of (score - mean of its strangers) / their deviation, by training since the root."""
    by_share: dict[float, list[float]] = {}
    for place, pair in enumerate(evidence.pairs):
        if not _is_continued(pair):
            continue
        strangers = evidence.stranger_scores(method, pair.suspect.stratum)
        if strangers.size > 2 and strangers.std() > 0 and np.isfinite(evidence.scores[method][place]):
            above = (evidence.scores[method][place] - strangers.mean()) / strangers.std()
            by_share.setdefault(int(pair.suspect.made_by.removeprefix("cpt-")) / 100, []).append(above)
    shares = sorted(by_share)
    if shares:
        axis.plot(shares, [np.median(by_share[share]) for share in shares], marker="o", markersize=4, linewidth=1,
                  color=COLOURS[index % len(COLOURS)], linestyle="-" if index < len(COLOURS) else ":")  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=3)
        axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axis.minorticks_off()

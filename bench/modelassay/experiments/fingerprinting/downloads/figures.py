"""The figure of downloads: what each member shares with its base against how often it was downloaded, by family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modelassay.experiments.fingerprinting.downloads.families import POOLS, Compared, Family
from modelassay.experiments.fingerprinting.figures import COLOURS

COPY, UNKNOWN = "re-upload", "downloads not known"
TICKS = (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def save_overlaps(families: Sequence[Family], methods: Sequence[str], path: Path) -> None:
    """Draw a panel per family (columns) and method (rows).

    A point is a member; a hollow one is a re-upload, a cross has no known downloads and stands left of the axis. The
    vertical line is the filter, the dashed horizontal one the published threshold, the band the strangers' middle 90 %.
    """
    figure = Figure(figsize=(1.2 + 3.9 * len(families), 0.9 + 3.1 * len(methods)), layout="constrained")
    axes = figure.subplots(len(methods), len(families), squeeze=False, sharex=True, sharey=True)
    for row, method in enumerate(methods):
        for column, family in enumerate(families):
            axis: Axes = axes[row, column]
            _draw(axis, family, method, COLOURS[column % len(COLOURS)])
            axis.set_title(f"{family.name}, {method}", loc="left", fontsize="medium")
    most = max((member.downloads or 0.0 for family in families for member in family.members), default=0.0)
    for axis in axes.flat:
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)
        axis.set_xlim(-1.2, max(100.0, 2 * most))
        shown = [tick for tick in TICKS if tick <= max(100.0, 2 * most)]
        axis.set_xticks([-0.9, *shown], ["?", *(_short(tick) for tick in shown)], fontsize="small")
        axis.minorticks_off()
        axis.set_ylim(-0.03, 1.03)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.93", linewidth=0.6)
        axis.set_axisbelow(True)
    handles: dict[str, Artist] = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=4, frameon=False, fontsize="small"
    )
    figure.supxlabel("downloads in the 30 days before the listing", fontsize="medium")
    figure.supylabel("overlap with the base", fontsize="medium")
    figure.savefig(path, dpi=160)


def _draw(axis: Axes, family: Family, method: str, colour: str) -> None:
    axis.axvline(
        family.more_than + 0.5,
        color="0.45",
        linewidth=0.9,
        linestyle=":",
        label=f"filter: more than {family.more_than}",
    )
    for pool, shade in zip(POOLS[:2], ("0.55", "0.8"), strict=True):
        strangers = family.strangers.get((method, pool))
        if strangers is not None and strangers.size:
            low, high = np.quantile(strangers, (0.05, 0.95))
            axis.axhspan(
                low,
                max(high, low + 0.004),
                color=shade,
                alpha=0.5,
                linewidth=0,
                label=f"strangers, {pool.replace('-', ' ')}",
            )
    if family.threshold is not None and method == "paper-exact":
        axis.axhline(family.threshold, color="0.2", linewidth=0.9, linestyle="--", label="published threshold")
    drawn = [member for member in family.members if np.isfinite(member.overlaps.get(method, np.nan))]
    kinds = {
        "member": [member for member in drawn if member.name not in family.copies and member.downloads is not None],
        COPY: [member for member in drawn if member.name in family.copies and member.downloads is not None],
        UNKNOWN: [member for member in drawn if member.downloads is None],
    }
    for kind, members in kinds.items():
        if members:
            axis.plot([_place(member) for member in members], [member.overlaps[method] for member in members], linestyle="",
                      marker="x" if kind == UNKNOWN else "o", markersize=5, markeredgecolor=colour, alpha=0.8, label=kind,
                      markerfacecolor="none" if kind == COPY else colour)  # fmt: skip


def _place(member: Compared) -> float:
    return -0.9 if member.downloads is None else member.downloads


def _short(tick: int) -> str:
    """Return a number of downloads as an axis has room for.

    >>> _short(10), _short(10_000), _short(1_000_000)
    ('10', '10k', '1M')
    """
    return f"{tick // 1_000_000}M" if tick >= 1_000_000 else f"{tick // 1_000}k" if tick >= 1_000 else str(tick)

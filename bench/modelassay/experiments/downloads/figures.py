"""The figure of downloads: what each member shares with its base against how often it was downloaded, by family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np

from modelassay.charts import COLOURS, Panel, Row, panels, rows, specification
from modelassay.experiments.downloads.families import POOLS, Compared, Family

MEMBER, COPY, UNKNOWN = "member", "re-upload", "downloads not known"
TICKS = (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
NOT_KNOWN = -0.9
"""Where a member without known downloads stands on the axis: left of none."""
POOL_SHADES = {
    f"strangers, {pool.replace('-', ' ')}": shade for pool, shade in zip(POOLS[:2], ("#8c8c8c", "#cccccc"), strict=True)
}
FILTER, THRESHOLD = "filter", "published threshold"


def overlaps_figure(families: Sequence[Family], methods: Sequence[str]) -> dict[str, Any]:
    """Return a panel per family (columns) and method (rows) as a Vega-Lite specification.

    A point is a member; a hollow one is a re-upload, a cross has no known downloads and stands left of the axis. The
    vertical line is the filter, the dashed horizontal one the published threshold, the band the strangers' middle 90 %.
    """
    most = max((member.downloads or 0.0 for family in families for member in family.members), default=0.0)
    end = max(100.0, 2 * most)
    charts = [_panel(family, method, COLOURS[column % len(COLOURS)], end)
              for method in methods for column, family in enumerate(families)]  # fmt: skip
    return specification(panels(charts, columns=len(families)))


def _panel(family: Family, method: str, shade: str, end: float) -> Panel:
    ticks = [NOT_KNOWN, *(tick for tick in TICKS if tick <= end)]
    x = alt.X("downloads:Q", title="downloads in the 30 days before the listing",
              scale=alt.Scale(type="symlog", constant=1, domain=[-1.2, end], nice=False),
              axis=alt.Axis(values=ticks, labelExpr="datum.value < 0 ? '?' : format(datum.value, '~s')"))  # fmt: skip
    y = alt.Y("overlap:Q", title="overlap with the base", scale=alt.Scale(domain=[-0.03, 1.03], nice=False))
    kinds = [MEMBER, COPY, UNKNOWN]
    shape = alt.Shape(
        "kind:N", title=None, scale=alt.Scale(domain=kinds, range=["circle", "circle", "cross"]), legend=_legend()
    )
    fill = alt.Fill("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[shade, "white", shade]), legend=None)
    pools = alt.Color("pool:N", title=None, legend=_legend("square"),
                      scale=alt.Scale(domain=list(POOL_SHADES), range=list(POOL_SHADES.values())))  # fmt: skip
    lines = alt.StrokeDash("line:N", title=None, legend=_legend("stroke"),
                           scale=alt.Scale(domain=[FILTER, THRESHOLD], range=[[2, 2], [6, 3]]))  # fmt: skip
    name = f"{family.name}, {method}"
    layers = [
        alt.Chart(rows(_bands(family, method), name=f"strangers: {name}")).mark_rect(opacity=0.5).encode(
            y=alt.Y("low:Q"), y2="high:Q", color=pools),
        alt.Chart(rows([{"downloads": family.more_than + 0.5, "line": FILTER}])).mark_rule(color="#737373").encode(x=x, strokeDash=lines),
    ]  # fmt: skip
    if family.threshold is not None and method == "paper-exact":
        threshold = alt.Chart(rows([{"overlap": family.threshold, "line": THRESHOLD}], name=f"threshold: {name}"))
        layers.append(threshold.mark_rule(color="#333333").encode(y=y, strokeDash=lines))
    points = alt.Chart(rows(_members(family, method), name=f"members: {name}"))
    layers.append(points.mark_point(size=38, opacity=0.8, stroke=shade).encode(
        x=x, y=y, shape=shape, fill=fill, tooltip=["member:N", "downloads:Q", "overlap:Q", "kind:N"]))  # fmt: skip
    title = alt.TitleParams(name, subtitle=f"filter: more than {family.more_than} downloads")
    chart = alt.layer(*layers).properties(title=title, width=270, height=210)
    panel: Panel = chart.resolve_scale(fill="independent")
    return panel


def _legend(symbol: str | None = None) -> alt.Legend:
    return alt.Legend(orient="bottom", direction="horizontal", symbolType=alt.Undefined if symbol is None else symbol)


def _bands(family: Family, method: str) -> Iterator[Row]:
    """Yield the middle 90 % of each pool's overlaps, never too thin to be seen."""
    for pool, name in zip(POOLS[:2], POOL_SHADES, strict=True):
        overlaps = family.strangers.get((method, pool))
        if overlaps is not None and overlaps.size:
            low, high = np.quantile(overlaps, (0.05, 0.95))
            yield {"pool": name, "low": low, "high": max(high, low + 0.004)}


def _members(family: Family, method: str) -> Iterator[Row]:
    for member in family.members:
        overlap = member.overlaps.get(method, np.nan)
        if np.isfinite(overlap):
            downloads = NOT_KNOWN if member.downloads is None else member.downloads
            yield {"member": member.name, "downloads": downloads, "overlap": overlap, "kind": _kind(family, member)}


def _kind(family: Family, member: Compared) -> str:
    if member.downloads is None:
        return UNKNOWN
    return COPY if member.name in family.copies else MEMBER

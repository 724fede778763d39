"""The times of a run's units: a table by cell and stage, and a figure of each unit over its index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from modelassay.experiments.findings import Table

if TYPE_CHECKING:
    import polars as pl

MAX_POINTS: Final = 3000
"""Drawn of all units: as many from each cell and stage, evenly, and of each the slowest."""

_GROUP: Final = ("cell", "stage")


def timing_table(units: pl.DataFrame, names: Mapping[str, str]) -> Table | None:
    """Return per cell and stage the units that count, how many do not, and their times in ms; None where nothing was timed.

    Warm-up and reused units are counted and left out of the times; where a device was timed its time stands, else the host's.
    """
    import polars as pl

    if not units.height:
        return None
    fresh = ~pl.col("warmup") & ~pl.col("reused")
    time = pl.coalesce("device_ms", "host_ms").filter(fresh)
    grouped = units.group_by(*_GROUP, maintain_order=True).agg(
        fresh.sum().alias("units"), pl.col("warmup").sum().alias("warm-up"),
        (pl.col("reused") & ~pl.col("warmup")).sum().alias("reused"),
        time.median().alias("median"), time.quantile(0.05).alias("p5"), time.quantile(0.95).alias("p95"),
        time.max().alias("slowest"), pl.col("device_ms").is_not_null().any().alias("device"),
    )  # fmt: skip
    rows = [
        (names.get(row["cell"], row["cell"]), row["stage"] or "", f"{row['units']:,}", f"{row['warm-up']:,}", f"{row['reused']:,}",
         *(_ms(row[name]) for name in ("median", "p5", "p95", "slowest")), "device" if row["device"] else "host")
        for row in grouped.iter_rows(named=True)
    ]  # fmt: skip
    columns = ("cell", "stage", "units", "warm-up", "reused", "median, ms", "5 %", "95 %", "slowest", "clock")
    return Table(title="milliseconds a unit", columns=columns, rows=rows)


def timing_figure(units: pl.DataFrame, names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return each unit's time over its index, by stage, as a Vega-Lite specification; None where nothing was timed."""
    import polars as pl

    from modelassay.charts import colour, rows, specification

    time = pl.coalesce("device_ms", "host_ms").alias("ms")
    measured = units.select(*_GROUP, "index", "warmup", "reused", time).filter(pl.col("ms") > 0, ~pl.col("reused"))
    if not measured.height:
        return None
    num_groups = measured.select(_GROUP).n_unique()
    most = max(1, MAX_POINTS // num_groups)
    place, size = pl.int_range(pl.len()).over(*_GROUP), pl.len().over(*_GROUP)
    step = (size + most - 1) // most
    drawn = measured.filter((place % step == 0) | (pl.col("ms") == pl.col("ms").max().over(*_GROUP)))
    if drawn.height > 2 * MAX_POINTS:  # more cells than points
        drawn = drawn.gather_every(-(-drawn.height // MAX_POINTS))

    import altair as alt

    stages = drawn["stage"].fill_null("").unique(maintain_order=True).to_list()
    records = [
        {"cell": names.get(row["cell"], row["cell"]), "stage": row["stage"] or "", "unit": row["index"], "ms": row["ms"],
         "kind": "warm-up" if row["warmup"] else "counts"}
        for row in drawn.iter_rows(named=True)
    ]  # fmt: skip
    left = measured.height - drawn.height
    title = alt.TitleParams(
        "time of each unit", subtitle=f"{drawn.height:,} of {measured.height:,} units are drawn" if left else ""
    )
    chart = alt.Chart(rows(records, name="units")).mark_point(size=22, opacity=0.6).encode(
        x=alt.X("unit:Q", title="unit"),
        y=alt.Y("ms:Q", title="ms", scale=alt.Scale(type="log")),
        color=colour("stage", stages, title="stage", legend=alt.Legend(orient="top", columns=3)),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=["counts", "warm-up"], range=["circle", "cross"]), title=None,
                        legend=alt.Legend(orient="top")),
    )  # fmt: skip
    return specification(chart.properties(width=620, height=260, title=title))


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

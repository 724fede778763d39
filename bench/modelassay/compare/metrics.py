"""Metrics of two runs, counted by name: equal, different, in one alone; a million of them as columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from modelassay.compare.frame import printed

if TYPE_CHECKING:
    import polars as pl

EXAMPLES: Final = 5
"""Of metrics that differ, of each name."""

_FIXED: Final = ("name", "cell", "value")


def metric_frame(metrics: pl.DataFrame, cells: Mapping[str, str], *, without: Collection[str]) -> pl.DataFrame:
    """Return the metrics of a run to compare: name, cell (its label of ``cells``), value, and a column per label.

    What is a time or made of times, ``without``, is no number that could be equal.
    """
    import polars as pl

    labels = [column for column in metrics.columns if column not in _FIXED]
    return metrics.lazy().filter(~pl.col("name").is_in(list(without))).select(
        "name", pl.col("cell").replace_strict(dict(cells), return_dtype=pl.String), "value", *labels,
    ).collect()  # fmt: skip


def compare_metrics(base: pl.DataFrame, other: pl.DataFrame, source: int) -> list[dict[str, Any]]:
    """Return for each name how many metrics are equal, NaN to NaN too, and differ, the largest relative difference, and examples.

    Metrics are the same where their name, cell and labels are; a label that one side has not is one without a value.
    """
    import polars as pl

    keys = list(dict.fromkeys(name for frame in (base, other) for name in frame.columns if name != "value"))
    before, after = (_alike(frame, keys, one) for frame, one in ((base, other), (other, base)))
    if before.select(keys).equals(after.select(keys)):  # the usual case, and no join
        joined = before.with_columns(
            after["value"].alias("other"), pl.lit(True).alias("here"), pl.lit(True).alias("there")
        )
    else:
        before, after = (frame.unique(subset=keys, keep="last", maintain_order=True) for frame in (before, after))
        joined = before.with_columns(pl.lit(True).alias("here")).join(
            after.rename({"value": "other"}).with_columns(pl.lit(True).alias("there")),
            on=keys, how="full", nulls_equal=True, coalesce=True, maintain_order="left_right",
        )  # fmt: skip
    value, there = pl.col("value"), pl.col("other")
    both = pl.col("here").fill_null(False) & pl.col("there").fill_null(False)
    scale = pl.max_horizontal(value.abs(), there.abs())
    finite = value.is_finite() & there.is_finite()
    differ = both & (value != there)  # NaN equals NaN, and nothing else
    relative = pl.when(finite).then((value - there).abs() / scale).otherwise(math.inf)
    told = joined.lazy().with_columns(
        differ.alias("differ"), pl.when(differ).then(relative).otherwise(0.0).alias("relative")
    )
    counts = told.group_by("name").agg(
        (both & ~pl.col("differ")).sum().alias("equal"), pl.col("differ").sum(),
        pl.col("there").is_null().sum().alias("only_base"), pl.col("here").is_null().sum().alias("only_candidate"),
        pl.col("relative").max().alias("largest_relative"),
    ).sort("name").collect()  # fmt: skip
    examples: dict[str, list[dict[str, Any]]] = {name: [] for name in counts["name"]}
    shown = told.filter("differ").group_by("name", maintain_order=True).head(EXAMPLES).collect()
    for row in shown.iter_rows(named=True):
        about = printed({"cell": row["cell"], **{key: row[key] for key in keys if key not in _FIXED}})
        examples[row["name"]].append({"labels": about, "base": row["value"], "candidate": row["other"]})
    return [
        {"source": source, **row, "examples": examples[row["name"]]}
        for row in counts.iter_rows(named=True)
    ]  # fmt: skip


def _alike(frame: pl.DataFrame, keys: list[str], other: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with the columns ``keys`` and its values; a label that has another type in ``other`` becomes a text."""
    import polars as pl

    columns = []
    for key in keys:
        theirs = other.schema.get(key, pl.Null())
        if key not in frame.columns:
            columns.append(pl.repeat(None, frame.height, dtype=theirs, eager=True).alias(key))
        elif frame[key].dtype == theirs or key not in other.columns:
            columns.append(frame[key])
        else:
            texts = [None if value is None else str(value) for value in frame[key].to_list()]
            columns.append(pl.Series(key, texts, dtype=pl.String))
    return pl.DataFrame([*columns, frame["value"]])

"""Metrics of two runs, compared as columns, against the same counted one by one."""

from __future__ import annotations

import math
import random
from typing import Any

import polars as pl
import pytest

from modelassay.compare.frame import printed
from modelassay.compare.metrics import compare_metrics, metric_frame

CELLS = {"1": "seed=0", "2": "seed=1"}

Row = dict[str, Any]


def frame(rows: list[Row]) -> pl.DataFrame:
    names = list(dict.fromkeys(["cell", "name", "value", *(key for row in rows for key in row)]))
    columns = [pl.Series(name, [row.get(name) for row in rows], strict=False) for name in names]
    return metric_frame(pl.DataFrame(columns), CELLS, without=["time_us"])


def counted(base: list[Row], other: list[Row]) -> dict[str, tuple[int, int, int, int, float]]:
    """The same by dictionaries: equal, differ, only base, only candidate, largest relative difference."""

    def by_key(rows: list[Row]) -> dict[tuple[str, str, str], float]:
        return {
            (row["name"], row["cell"], str(sorted(printed({k: v}) for k, v in row.items() if k not in ("name", "cell", "value")))): row["value"]
            for row in rows if row["name"] != "time_us"
        }  # fmt: skip

    before, after = by_key(base), by_key(other)
    result: dict[str, tuple[int, int, int, int, float]] = {}
    for key in before.keys() | after.keys():
        equal, differ, only_base, only_other, largest = result.get(key[0], (0, 0, 0, 0, 0.0))
        if key not in after:
            only_base += 1
        elif key not in before:
            only_other += 1
        elif before[key] == after[key] or (math.isnan(before[key]) and math.isnan(after[key])):
            equal += 1
        else:
            a, b = before[key], after[key]
            differ += 1
            largest = max(
                largest,
                abs(a - b) / max(abs(a), abs(b)) if math.isfinite(a) and math.isfinite(b) else math.inf,
            )
        result[key[0]] = equal, differ, only_base, only_other, largest
    return result


def rows_of(rng: random.Random, *, with_layer: bool) -> list[Row]:
    rows = []
    for cell in CELLS:
        for name in ("loss", "overlap", "time_us"):
            for step in rng.sample(range(12), 9):
                value = rng.choice([0.5, 1.5, -0.0, 0.0, math.nan, math.inf, -math.inf])
                row: Row = {"cell": cell, "name": name, "value": value, "step": step}
                if with_layer and rng.random() < 0.5:
                    row["layer"] = "last"
                rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    base = rows_of(rng, with_layer=rng.random() < 0.5)
    other = [dict(row) for row in base] if seed % 2 else rows_of(rng, with_layer=rng.random() < 0.5)
    for row in other:
        if rng.random() < 0.3:
            row["value"] = rng.choice([2.0, math.nan])
    told = compare_metrics(frame(base), frame(other), 1)
    keys = ("equal", "differ", "only_base", "only_candidate", "largest_relative")
    assert {row["name"]: tuple(row[key] for key in keys) for row in told} == counted(base, other)
    assert [row["name"] for row in told] == sorted(row["name"] for row in told)
    assert all(len(row["examples"]) == min(5, row["differ"]) for row in told)


def test_a_whole_number_and_the_text_of_it_are_one_label_and_a_fraction_is_another() -> None:
    def rows(*layers: Any) -> list[Row]:
        return [{"cell": "1", "name": "loss", "value": 1.0, "layer": layer} for layer in layers]

    (row,) = compare_metrics(frame(rows(1, 2)), frame(rows("1", "last")), 1)
    assert (row["equal"], row["only_base"], row["only_candidate"]) == (1, 1, 1)
    (row,) = compare_metrics(frame(rows(1, 2)), frame(rows(1.0, 2.0)), 1)
    assert (row["equal"], row["only_base"], row["only_candidate"]) == (0, 2, 2)
    (row,) = compare_metrics(frame(rows(None)), frame([{"cell": "1", "name": "loss", "value": 1.0}]), 1)
    assert row["equal"] == 1


def test_examples_say_which_and_how_much() -> None:
    base = [{"cell": "2", "name": "loss", "value": float(step), "step": step} for step in range(9)]
    other = [{**row, "value": row["value"] * 2} for row in base]
    (row,) = compare_metrics(frame(base), frame(other), 3)
    assert row["source"] == 3
    assert row["examples"][0] == {"labels": "cell=seed=1, step=1", "base": 1.0, "candidate": 2.0}
    assert (row["equal"], row["differ"], row["largest_relative"]) == (1, 8, 0.5)


def test_nothing_on_either_side() -> None:
    empty = pl.DataFrame(schema={"cell": pl.String, "name": pl.String, "value": pl.Float64})
    none = metric_frame(empty, CELLS, without=[])
    assert compare_metrics(none, none, 1) == []
    (row,) = compare_metrics(none, frame([{"cell": "1", "name": "loss", "value": 1.0, "step": 1}]), 1)
    assert (row["equal"], row["only_base"], row["only_candidate"]) == (0, 0, 1)

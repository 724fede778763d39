"""Tables that others measured: read, refused, and analysed like a run's own members."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.errors import UsageError
from modelassay.experiments.fingerprinting.analyse import analyse
from modelassay.experiments.fingerprinting.downloads.family import run_family
from modelassay.experiments.fingerprinting.downloads.tables import read_overlaps
from modelassay.experiments.fingerprinting.params import Params
from modelassay.meter import Meter
from modelassay.record import Log, Tables, read_tables
from modelassay.state import State, Store

HEAD = "base_model_name,derived_model_name,derived_model_downloads,avg_overlap_ratio,pair_scores_json\n"


def run_here(folder: Path, params: dict[str, Any]) -> Tables:
    """Run one cell in this process and read what it logged."""
    cell = folder / "cell"
    cell.mkdir()
    log = Log(cell / "attempt-1.jsonl", cell="cell", attempt=1, resumed_at=0)
    meter, made = Meter(log), Params.model_validate_json(json.dumps(params))
    assert made.members is not None
    run_family(
        made, made.members, meter, State(cell, meter=meter, store=Store(folder / "store"), saved=None, siblings=[made])
    )
    log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
    log.close()
    return read_tables({"cell": (cell, made.model_dump(mode="json"))}, profile="theirs")


def write(path: Path, rows: list[tuple[str, object, float, str]]) -> Path:
    path.write_text(
        HEAD + "".join(f'lab/base,{name},{downloads},{overlap},"[{each}]"\n' for name, downloads, overlap, each in rows)
    )
    return path


def test_rows_are_read_and_what_they_do_not_say_is_not_known(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.csv",
        [("x", 12.0, 0.25, "0.2, 0.3"), ("gone", 0, 0.5, ""), ("broken", 7, -1.0, ""), ("new", "", 1.0, "")],
    )
    second = write(tmp_path / "b.csv", [("x", 99, 0.75, ""), ("y", 3, 0.0, "0.0, 0.0")])
    rows = {row.name: row for row in read_overlaps([str(first), str(second)])}
    assert list(rows) == ["x", "gone", "broken", "new", "y"]
    assert (rows["x"].overlap, rows["x"].downloads, rows["x"].by_prompt) == (0.25, 12.0, "0.2, 0.3")
    assert (rows["gone"].downloads, rows["gone"].zero, rows["gone"].overlap) == (None, True, 0.5)
    assert (rows["broken"].overlap, rows["broken"].downloads) == (None, 7.0)
    assert (rows["new"].downloads, rows["new"].zero) == (None, False)
    assert (rows["y"].overlap, rows["y"].downloads) == (0.0, 3.0)
    plain = tmp_path / "plain.csv"
    plain.write_text("model,overlap,downloads\nz,0.5,4\n")
    assert read_overlaps([str(plain)])[0].overlap == 0.5


@pytest.mark.parametrize(("text", "message"), [
    ("model,score\nx,1\n", ":1: no column overlap or avg_overlap_ratio among 'model', 'score'"),
    ("model,overlap\nx,0.5\nx,0.5\n", ":3: 'x' stands twice; keep one row of each model"),
    ("model,overlap\n,0.5\n", ":2: a model without a name"),
    ("model,overlap\nx,1.5\n", ":2: an overlap of 1.5; it is a share, at most 1"),
    ("model,overlap\nx,much\n", ":2: overlap is 'much', not a finite number; leave the cell empty"),
    ("model,overlap,downloads\nx,0.5,nan\n", ":2: downloads is 'nan', not a finite number"),
    ("model,overlap\nx\n", ":2: 1 cells, the first line has 2"),
])  # fmt: skip
def test_malformed_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_overlaps([str(path)])
    assert f"{path}{message}" in str(caught.value)


def test_tables_are_analysed_without_a_hub_or_a_model(tmp_path: Path) -> None:
    """The same findings, under the same names, as of members that a run measured itself."""
    rng = np.random.default_rng(3)
    few = [(f"few-{at}", at + 1, round(float(value), 4), f"{value}") for at, value in enumerate(rng.uniform(0, 1, 10))]
    many = [
        (f"many-{at}", 11 + at, round(float(value), 4), f"{value}")
        for at, value in enumerate(rng.uniform(0.4, 0.6, 12))
    ]
    zero = [("gone-0", 0, 0.001, "a"), ("gone-1", 0, 0.9, "a"), ("never", 500, -1.0, "")]
    popular = [many[0][:1] + (999, *many[0][2:]), ("hit", 10_000, 0.02, "b")]
    strangers = [(f"far-{at}", 5, round(float(value), 4), "") for at, value in enumerate(rng.uniform(0, 0.1, 40))]
    for name, rows in {
        "earlier": few + many + zero,
        "popular": popular,
        "same": [*strangers, few[0]],
        "other": strangers[:5],
    }.items():
        write(tmp_path / f"{name}.csv", rows)  # type: ignore[arg-type]
    measured = {key: [str(tmp_path / f"{name}.csv")] for key, name in (
        ("earlier", "earlier"), ("popular", "popular"), ("same_tokenizer", "same"), ("other_tokenizer", "other"))}  # fmt: skip
    found = analyse(run_here(tmp_path, {"model": "hf:lab/base", "members": {"threshold": 0.05, "measured": measured}}))
    assert any(
        caveat.startswith("base: 2 members have 0 downloads in the tables, which also stood for")
        for caveat in found.caveats
    )
    values = {(f.name, *(str(value) for value in f.labels.values())): f for f in found.findings}
    kept = np.array([row[2] for row in (*many, popular[1])])
    low = np.array([row[2] for row in few])
    assert values["spread-ratio", "base", "paper-exact"].value == pytest.approx(
        low.std(ddof=1) / kept.std(ddof=1), rel=1e-12
    )
    assert values["fnr", "base", "paper-exact", "published", "after"].note.endswith("1 of 13")
    assert values["fnr", "base", "paper-exact", "published", "before"].note == f"{int((low < 0.05).sum()) + 2} of 25"
    assert values["overlap-mean", "base", "popular", "paper-exact"].note.startswith("2 members")
    assert values["overlap-mean", "base", "filtered", "paper-exact"].value == pytest.approx(
        np.mean([row[2] for row in many])
    )
    far = np.array([row[2] for row in strangers])
    assert values["fpr", "base", "paper-exact", "same-tokenizer", "published"].value == np.mean(far >= 0.05)
    earlier = np.array([row[2] for row in (*few, *many, *zero[:2])])
    wins = np.mean((earlier[:, None] > far[None]) + 0.5 * (earlier[:, None] == far[None]))
    assert values["auroc", "base", "paper-exact", "same-tokenizer"].value == pytest.approx(wins, rel=1e-12)
    assert values["members", "base", "missing"].value == 1


def test_cells_with_and_without_a_family_are_refused(tmp_path: Path) -> None:
    earlier = str(write(tmp_path / "earlier.csv", [("x", 3, 0.5, "")]))
    tables = run_here(tmp_path, {"model": "hf:lab/base", "members": {"measured": {"earlier": [earlier]}}})
    alone = {"cell": "other", "model": "zoo:smoke/base", "outcome": "done", "alpha": 0.05}
    mixed = replace(tables, cells=pl.concat([tables.cells, pl.DataFrame([alone])], how="diagonal_relaxed"))
    with pytest.raises(
        UsageError, match="zoo:smoke/base has no 'members', other cells have; give them to all cells or to none"
    ):
        analyse(mixed)

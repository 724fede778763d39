"""Tables that others measured: read, refused, and analysed like a run's own members."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from modelassay.errors import UsageError
from modelassay.experiments.downloads.analyse import analyse
from modelassay.experiments.downloads.params import Params, cores, needs
from modelassay.experiments.downloads.run import run
from modelassay.experiments.downloads.tables import read_overlaps
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext
from modelassay.recording.tables import RunData, read_tables
from modelassay.storage.needs import Artifact, File
from modelassay.storage.store import Store

HEAD = "base_model_name,derived_model_name,derived_model_downloads,avg_overlap_ratio,pair_scores_json\n"


def run_here(folder: Path, params: dict[str, Any]) -> RunData:
    """Run one cell in this process and read what it logged."""
    folder, parsed = folder / "cell", Params.model_validate_json(json.dumps(params))
    folder.mkdir()
    cell = CellContext(folder, cell="cell", seed=0, store=Store(folder / "store"), sources=SourceGraph())
    run(parsed, cell)
    cell.meter.log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
    cell.meter.log.close()
    return read_tables({"cell": (folder, parsed.model_dump(mode="json"))}, profile="theirs")


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
    ("model,overlap\nx,0.5\nx,0.5\n", ":3: 'x' is listed twice; keep one row per model"),
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
        ("random_sample", "earlier"), ("most_downloaded", "popular"), ("same_tokenizer", "same"), ("other_tokenizer", "other"))}  # fmt: skip
    findings = analyse(run_here(tmp_path, {"model": "hf:lab/base", "threshold": 0.05, "measured": measured}))
    assert any(
        caveat.startswith("base: 2 members have 0 downloads in the tables, which also stood for")
        for caveat in findings.caveats
    )
    values = {(f.name, *(str(value) for value in f.labels.values())): f for f in findings.findings}
    overlaps = np.array([row[2] for row in (*many, popular[1])])
    low = np.array([row[2] for row in few])
    assert values["spread-ratio", "base", "paper-exact"].value == pytest.approx(
        low.std(ddof=1) / overlaps.std(ddof=1), rel=1e-12
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


def test_cells_of_different_levels_are_refused(tmp_path: Path) -> None:
    earlier = str(write(tmp_path / "earlier.csv", [("x", 3, 0.5, "")]))
    data = run_here(tmp_path, {"model": "hf:lab/base", "measured": {"random_sample": [earlier]}})
    other = data.cells.with_columns(cell=pl.lit("other"), alpha=pl.lit(0.01))
    with pytest.raises(UsageError, match=r"downloads: cells differ in alpha \(0.05, 0.01\); a run has one level"):
        analyse(replace(data, cells=pl.concat([data.cells, other])))


def test_a_cell_needs_its_tables_or_its_listing_and_the_bases_that_ask(tmp_path: Path) -> None:
    """Known before any cell starts; of the Hub's models nothing, which are fetched one by one."""
    tables = {"random_sample": ["a.csv"], "same_tokenizer": ["b.csv", "a.csv"]}
    measured = Params.model_validate({"model": "hf:lab/base", "measured": tables}, strict=False)
    assert needs(measured) == [File(path=Path(name).absolute()) for name in ("a.csv", "b.csv", "a.csv")]
    assert cores(measured) == 1
    hub = Params(model="hf:lab/base", bases=("hf:lab/other", "hf:lab/base", str(tmp_path)), listing="listing.json")
    assert hub.asking == ("hf:lab/other", "hf:lab/base", str(tmp_path))
    assert needs(hub) == [File(path=Path("listing.json").absolute()), File(path=tmp_path, kind="model")]
    assert cores(hub) is None
    zoo = Params(model="zoo:base+cpt-25", bases=("zoo:mini-1",))
    assert zoo.asking == ("zoo:base+cpt-25", "zoo:mini-1")
    names = [need.name for need in needs(zoo) if isinstance(need, Artifact)]
    assert names == [
        f"zoo:{name}" for name in ("base+cpt-25", "mini-1", "base+cpt-25+sft-en", "base+cpt-25+sft-en+int8")
    ]
    assert cores(zoo) == 1
    with pytest.raises(ValidationError, match="measured and listing are two sources of one family"):
        Params.model_validate({"model": "hf:lab/base", "measured": tables, "listing": "listing.json"}, strict=False)

"""The pages of a comparison and of times, and Markdown: what they show is what the data say."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.errors import UsageError
from modelassay.experiments.findings import Table
from modelassay.report.comparison import comparison_page, read_comparison
from modelassay.report.html import html
from modelassay.report.markdown import MAX_ROWS, markdown
from modelassay.report.page import Page, Section
from modelassay.report.timing import MAX_POINTS, timing_figure, timing_table

HOSTILE = "<img src=x onerror=alert(1)> [a](http://b) `c` | \u202e @all"

ESTIMATE = {"value": 1.25, "low": 1.2, "high": 1.3}
DOCUMENT: dict[str, Any] = {
    "comparison": 1, "kind": "stored", "verdict": "slower", "answer": ["new against old: 1 slower, 1 same"], "method": ["95 %"],
    "sources": [{"name": "old", "kind": "run", "device": "cpu", "facts": {"torch": "2.13"}},
                {"name": "new", "kind": "run", "device": "cpu", "synthetic": True}],
    "cells": [{"case": "op=sort", "source": 1, "base_ms": 1.0, "candidate_ms": 1.25, "measure": "time", "ratio": ESTIMATE, "p": None,
               "verdict": "slower", "why": ""},
              {"case": "op=sum", "source": 1, "base_ms": None, "candidate_ms": None, "measure": "share of peak", "ratio": ESTIMATE, "p": 0.01,
               "verdict": "same", "why": "within 5 %"}],
    "levels": [{"case": "op=sort", "source": 0, "median_ms": 1.0, "share_of_peak": ESTIMATE, "reference": "torch", "speed_over_reference": None}],
    "metrics": [{"source": 1, "name": "loss", "equal": 5, "differ": 2, "only_base": 0, "only_candidate": 1, "largest_relative": 0.5, "examples": []}],
    "ignored": [{"source": 1, "what": "op=x", "why": "the base does not have it"}],
    "refused": [{"source": 1, "case": "op=y", "differs": ["flops: 1 against 2", "seed: 0 against 1"]}],
    "notes": ["stored results"], "figures": {}, "gate": None,
}  # fmt: skip


def tables(page: Page, title: str) -> list[list[tuple[str, ...]]]:
    (section,) = [section for section in page.sections if section.title == title]
    return [[tuple(row) for row in table.rows] for table in section.tables]


def test_the_page_of_a_comparison_says_all_that_the_document_says() -> None:
    page = comparison_page(DOCUMENT, Path("c.json"))
    assert page.title == "Comparison: slower"
    assert page.question == "Does new differ from old?"
    assert page.verdicts == {"slower": 1, "same": 1}
    assert page.caveats == ["new is synthetic: no device gave its numbers", "stored results"]
    assert tables(page, "Cells") == [[
        ("op=sort", "new", "1", "1.25", "1.25 [1.2, 1.3]", "", "slower", ""),
        ("op=sum", "new", "", "", "1.25 [1.2, 1.3] of share of peak", "0.01", "same", "within 5 %"),
    ]]  # fmt: skip
    assert tables(page, "Levels") == [[("op=sort", "old", "1", "1.25 [1.2, 1.3]", "torch", "")]]
    assert tables(page, "Other metrics") == [[("new", "loss", "5", "2", "0", "1", "0.5")]]
    assert tables(page, "Left out") == [
        [("new", "op=x", "the base does not have it")],
        [("new", "op=y", "flops: 1 against 2; seed: 0 against 1")],
    ]
    assert "Gate" not in [section.title for section in page.sections]


def test_a_gate_says_how_it_measured_and_what_it_cleared() -> None:
    gate = {"pairs": {"measured": 12, "least": 8, "most": 40}, "looks": 2, "alpha": 0.05, "false_alarms": ESTIMATE | {"n": 20},
            "guards": [{"text": "clocks fell"}], "cleared": [{"case": "op=sum", "look": 1, "ratio": 1.02, "why": "not confirmed"}]}  # fmt: skip
    page = comparison_page(DOCUMENT | {"kind": "gate", "gate": gate}, Path("c.json"))
    (section,) = [section for section in page.sections if section.title == "Gate"]
    assert section.lines[0].startswith("12 pairs were measured, of 8 to 40, in 2 looks; level 0.05")
    assert section.lines[1:] == ["false alarms, base against base: 1.25 [1.2, 1.3], n = 20", "clocks fell"]
    assert tables(page, "Gate") == [[("op=sum", "1", "1.02", "not confirmed")]]
    assert "measured in turns" in page.subtitle


@pytest.mark.parametrize("key", ["verdict", "answer", "sources", "cells", "kind"])
def test_a_comparison_without_what_it_holds_is_damaged(key: str) -> None:
    document = {name: value for name, value in DOCUMENT.items() if name != key}
    with pytest.raises(UsageError, match=r"c.json: damaged \(KeyError"):
        comparison_page(document, Path("c.json"))


@pytest.mark.parametrize(("content", "says"), [
    (b"", "no JSON"), (b"\xff\xfe", "no JSON"), (b"[1]", "no comparison"), (b'{"comparison": 2}', "of version 2"),
    (b'{"comparison": NaN}', "no JSON"), (b"[" * 100_000, "no JSON"), (None, "cannot be read"),
])  # fmt: skip
def test_a_file_that_is_no_comparison_is_told_in_a_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as error:
        read_comparison(path)
    assert "\n" not in str(error.value)


def test_hostile_names_stay_text_in_a_comparison() -> None:
    document = copy.deepcopy(DOCUMENT)
    text = json.dumps(document).replace("op=sort", json.dumps(HOSTILE)[1:-1]).replace('"new"', json.dumps(HOSTILE))
    page = comparison_page(json.loads(text), Path("c.json"))
    assert "<img" not in html(page)
    told = markdown(page)
    assert re.search(r"(?<!\\)[<\[`]", told) is None  # no element, link or code
    assert "://b" not in told
    assert "\u202e" not in told


def units(num: int = 30, *, cells: int = 1, **columns: Any) -> pl.DataFrame:
    rows = num * cells
    schema = {
        "device_ms": pl.Float64,
        "host_ms": pl.Float64,
        "stage": pl.String,
        "warmup": pl.Boolean,
        "reused": pl.Boolean,
    }
    return pl.DataFrame({
        "cell": [f"c{n // num}" for n in range(rows)], "stage": "forward", "index": [n % num for n in range(rows)],
        "warmup": [n % num == 0 for n in range(rows)], "reused": [n % num == 1 for n in range(rows)],
        "host_ms": [100.0 if n % num < 2 else float(n % num) for n in range(rows)], "device_ms": None,
    } | columns, schema_overrides=schema)  # fmt: skip


def test_times_leave_out_what_does_not_count() -> None:
    table = timing_table(units(), {"c0": "seed=0"})
    assert table is not None
    (row,) = table.rows
    values = np.arange(2.0, 30.0)
    assert row[:5] == ("seed=0", "forward", "28", "1", "1")
    assert row[5] == f"{np.median(values):.4g}"
    assert float(row[6]) == pytest.approx(np.quantile(values, 0.05), abs=1)
    assert row[8:] == ("29", "host")
    device = timing_table(units(device_ms=[0.5] * 30), {})
    assert device is not None
    assert device.rows[0][5:] == ("0.5", "0.5", "0.5", "0.5", "device")


def test_nothing_timed_is_no_table_and_no_figure() -> None:
    assert timing_table(units(0), {}) is None
    assert timing_figure(units(0), {}) is None
    assert timing_figure(units(2, reused=[True, True]), {}) is None


@pytest.mark.parametrize(("num", "cells"), [(20_000, 1), (9_000, 2), (3, 9_000)])
def test_of_many_units_a_part_is_drawn_and_the_slowest_with_it(num: int, cells: int) -> None:
    frame = units(num, cells=cells)
    figure = timing_figure(frame, {})
    assert figure is not None
    rows = figure["data"]["values"] if "values" in figure["data"] else figure["datasets"][figure["data"]["name"]]
    assert 0 < len(rows) <= 2 * MAX_POINTS
    if cells < 10:
        assert max(row["ms"] for row in rows) == num - 1
    assert f"of {num * cells - cells:,} units are drawn" in json.dumps(figure)


def test_markdown_cuts_long_tables_and_says_so() -> None:
    table = Table(title="t", columns=("a", "b"), rows=[(str(n), "x|y") for n in range(MAX_ROWS + 7)])
    told = markdown(
        Page(title="1. T", subtitle="s", question="", answers=["yes"], sections=[Section(title="S", tables=[table])])
    )
    assert told.startswith("# 1\\. T\n\ns\n")
    assert "... and 7 more rows" in told
    assert told.count("x\\|y") == MAX_ROWS
    assert all(line.count("|") - line.count("\\|") == 3 for line in told.splitlines() if line.startswith("|"))

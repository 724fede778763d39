"""The history of nights: what is appended is read back, and where a level changed."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.charts import data_of
from modelassay.commands.compare import remember
from modelassay.compare.history import append, change_points, read, rows_of_gate, series, trend_figure

FIRST = datetime.datetime(2026, 11, 1, 2, 17, tzinfo=datetime.UTC)


def night(history: Path, number: int, values: dict[str, float]) -> Path | None:
    rows = [
        {"case": case, "value": value, "low": None, "high": None, "measure": "ms", "verdict": "same"}
        for case, value in values.items()
    ]
    return append(history, rows, suite="gate", device="AMD EPYC, 2 cores", utc=FIRST + datetime.timedelta(days=number))


def test_nights_lie_by_suite_device_and_date_and_are_read_in_order(tmp_path: Path) -> None:
    second, first = night(tmp_path, 1, {"a": 2.0}), night(tmp_path, 0, {"a": 1.0})
    assert first is not None
    assert second is not None
    assert first.parent == tmp_path / "suite=gate/device=amd-epyc-2-cores/date=2026-11-01"
    assert not list(tmp_path.rglob("*.part"))
    ((key, values),) = series(read(tmp_path)[0]).items()
    assert key == ("gate", "amd-epyc-2-cores", "a", "ms")
    assert [value for _, value in values] == [1.0, 2.0]
    assert night(tmp_path, 2, {}) is None


def test_a_case_that_is_wrong_leaves_no_time() -> None:
    cells: list[dict[str, Any]] = [
        {"case": "a", "candidate_ms": None, "verdict": "wrong"},
        {"case": "b", "candidate_ms": 2.5, "verdict": "same"},
    ]
    assert [(row["case"], row["value"]) for row in rows_of_gate({"cells": cells})] == [("b", 2.5)]


def test_a_change_of_level_is_found_on_its_night_and_a_quiet_series_has_none(tmp_path: Path) -> None:
    pytest.importorskip("ruptures")
    rng = np.random.default_rng(0)
    for number in range(30):
        noise = np.exp(rng.normal(0, 0.005, size=2))
        night(tmp_path, number, {"quiet": noise[0], "creep": noise[1] * (1.04 if number >= 18 else 1.0)})
    (point,) = change_points(read(tmp_path)[0])
    assert (point.case, point.night) == ("creep", "2026-11-19 02:17")
    assert point.ratio == pytest.approx(1.04, abs=0.01)


def test_the_second_night_draws_the_trend(tmp_path: Path) -> None:
    pytest.importorskip("ruptures")
    night(tmp_path, 0, {"a": 1.0})
    assert remember(None, (), tmp_path, tmp_path).data["figures"] == []
    night(tmp_path, 1, {"a": 1.1})
    assert remember(None, (), tmp_path, tmp_path).data["figures"] == [str(tmp_path / "trend-gate.png")]
    assert (tmp_path / "trend-gate.png").read_bytes().startswith(b"\x89PNG")
    figure = trend_figure(read(tmp_path)[0], suite="gate")
    assert [point["relative"] for point in data_of(figure, "trend")] == pytest.approx([1.0, 1.1])


def test_a_damaged_file_costs_its_night_and_is_named(tmp_path: Path) -> None:
    """A gate that was measured for minutes must not be lost because an old night cannot be read."""
    night(tmp_path, 0, {"a": 1.0})
    torn, foreign = night(tmp_path, 1, {"a": 1.1}), night(tmp_path, 2, {"a": 1.2})
    assert torn is not None
    assert foreign is not None
    torn.write_bytes(torn.read_bytes()[:-20])
    pl.DataFrame({"case": ["a"]}).write_parquet(foreign)
    night(tmp_path, 3, {"a": 1.3})
    view = remember(
        {"sources": [], "cells": [{"case": "a", "candidate_ms": 1.4, "verdict": "same"}]}, (), tmp_path, tmp_path
    )
    assert [line.partition(":")[0] for line in view.data["left_out"]] == [str(torn), str(foreign)]
    assert view.data["left_out"] == view.lines[-2:]
    assert view.data["nights"] == 3


def test_two_nights_in_one_second_are_two(tmp_path: Path) -> None:
    paths = {night(tmp_path, 0, {"a": 1.0}), night(tmp_path, 0, {"a": 2.0})}
    assert len(paths) == 2
    assert read(tmp_path)[0].height == 2


def test_a_night_that_was_killed_while_writing_leaves_no_night(tmp_path: Path) -> None:
    whole = night(tmp_path, 0, {"a": 1.0})
    assert whole is not None
    whole.rename(whole.with_suffix(".part"))
    frame, left_out = read(tmp_path)
    assert (frame.height, left_out) == (0, [])


def test_a_value_that_is_no_time_is_in_no_series(tmp_path: Path) -> None:
    night(tmp_path, 0, {"a": float("nan"), "b": float("inf"), "c": 0.0, "d": 1.0})
    assert [key[2] for key in series(read(tmp_path)[0])] == ["d"]


def test_a_result_without_times_is_said_to_leave_no_night(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '{"machine_info": {"cpu": {}}, "benchmarks": [{"name": "a", "stats": {"data": [1, NaN]}}]}'
    )
    view = remember(None, (str(tmp_path / "a.json"),), tmp_path, tmp_path / "history")
    assert view.lines == ["nothing of a.json was appended: it holds no time that counts"]
    assert view.data["nights"] == 0

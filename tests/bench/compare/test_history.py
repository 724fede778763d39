"""The history of nights: what is appended is read back, and where a level changed."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
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
    ((key, values),) = series(read(tmp_path)).items()
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
    (point,) = change_points(read(tmp_path))
    assert (point.case, point.night) == ("creep", "2026-11-19 02:17")
    assert point.ratio == pytest.approx(1.04, abs=0.01)


def test_the_second_night_draws_the_trend(tmp_path: Path) -> None:
    pytest.importorskip("ruptures")
    night(tmp_path, 0, {"a": 1.0})
    assert remember(None, (), tmp_path, tmp_path).data["figures"] == []
    night(tmp_path, 1, {"a": 1.1})
    assert remember(None, (), tmp_path, tmp_path).data["figures"] == [str(tmp_path / "trend-gate.png")]
    assert (tmp_path / "trend-gate.png").read_bytes().startswith(b"\x89PNG")
    figure = trend_figure(read(tmp_path), suite="gate")
    assert [point["relative"] for point in data_of(figure, "trend")] == pytest.approx([1.0, 1.1])

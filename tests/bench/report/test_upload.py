"""What is sent to a tracker, and that nothing is lost or sent twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from modelassay.errors import AssayError, HostError
from modelassay.recording.tables import RunData
from modelassay.report.upload import tracker_named, upload


class Recorder:
    """A tracker that keeps what it is sent and fails at the run with number ``fails_at``."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.runs, self.logs = (
            fails_at,
            list[dict[str, Any]](),
            list[tuple[int | None, dict[str, Any]]](),
        )

    def init(self, **settings: Any) -> None:
        if len(self.runs) == self.fails_at:
            raise ConnectionError("gone")
        self.runs.append(settings)

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.logs.append((step, metrics))

    def finish(self) -> None:
        pass


def data(values: tuple[float, ...] = (0.5, 1.5, 2.5), outcome: str | None = "done") -> RunData:
    cells = ["a", "b", "c"]
    return RunData(
        cells=pl.DataFrame({"cell": cells, "outcome": ["done", "done", outcome], "seed": [0, 1, 2]}),
        units=pl.DataFrame(),
        metrics=pl.DataFrame({"cell": cells, "name": ["loss"] * 3, "value": values, "step": [7] * 3, "language": ["en"] * 3}),
        profile="embedded",
    )  # fmt: skip


def send(tracker: Recorder, folder: Path, tables: RunData) -> tuple[int, int]:
    return upload(tables, folder, project="walk", name="wandb", tracker=tracker, report=lambda _: None)


def test_every_cell_is_a_run_of_the_suite_s_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "another")
    tracker = Recorder()
    assert send(tracker, tmp_path, data()) == (3, 0)
    assert [run["project"] for run in tracker.runs] == ["walk"] * 3
    assert [run["config"]["seed"] for run in tracker.runs] == [0, 1, 2]
    assert tracker.logs[1] == (7, {"loss/language=en": 1.5})


def test_what_was_cut_off_is_sent_again_and_nothing_twice(tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="cell b was not sent .ConnectionError: gone.; 1 are"):
        send(Recorder(fails_at=1), tmp_path, data())
    tracker = Recorder()
    assert send(tracker, tmp_path, data()) == (2, 1)
    assert [run["config"]["cell"] for run in tracker.runs] == ["b", "c"]
    assert send(tracker, tmp_path, data()) == (0, 3)


def test_a_cell_that_ends_later_or_changes_is_sent_then(tmp_path: Path) -> None:
    assert send(Recorder(), tmp_path, data(outcome=None)) == (2, 0)
    tracker = Recorder()
    assert send(tracker, tmp_path, data((9.0, 1.5, 2.5))) == (2, 1)
    assert [run["config"]["cell"] for run in tracker.runs] == ["a", "c"]


def test_a_tracker_that_is_not_there_says_what_to_install() -> None:
    with pytest.raises(HostError, match=r"pip install 'modelassay\[no_such_tracker\]'"):
        tracker_named("no_such_tracker")

"""What is sent to a tracker, and that nothing is lost or sent twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
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


def test_a_call_that_is_killed_within_a_cell_sends_that_cell_again(tmp_path: Path) -> None:
    class Killed(Recorder):
        def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
            if len(self.runs) == 2:
                raise KeyboardInterrupt
            super().log(metrics, step)

    with pytest.raises(KeyboardInterrupt):
        send(Killed(), tmp_path, data())
    tracker = Recorder()
    assert send(tracker, tmp_path, data()) == (2, 1)
    assert [run["config"]["cell"] for run in tracker.runs] == ["b", "c"]


def test_a_cell_that_is_sent_again_is_the_same_run(tmp_path: Path) -> None:
    """So that a tracker goes on with what a call that was cut off left of it."""
    first, second = Recorder(fails_at=2), Recorder()
    with pytest.raises(AssayError):
        send(first, tmp_path, data())
    (tmp_path / "uploads" / "wandb.json").write_text('{"a": ')  # what was sent is forgotten
    assert send(second, tmp_path, data()) == (3, 0)
    assert [run["id"] for run in second.runs[:2]] == [run["id"] for run in first.runs]
    assert {run["resume"] for run in second.runs} == {"allow"}


def test_two_at_once_send_each_cell_once(tmp_path: Path) -> None:
    class Slow(Recorder):
        def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
            super().log(metrics, step)
            inside.set()
            go_on.wait(30)

    inside, go_on = threading.Event(), threading.Event()
    slow, other = Slow(), Recorder()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(send, slow, tmp_path, data())
        assert inside.wait(30)
        two = pool.submit(send, other, tmp_path, data())
        go_on.set()
        assert (one.result(), two.result()) == ((3, 0), (0, 3))
    assert other.runs == []


def test_a_tracker_that_is_switched_off_has_sent_nothing(tmp_path: Path) -> None:
    class Disabled(Recorder):
        disabled = True

        def init(self, **settings: Any) -> Any:
            super().init(**settings)
            return self

    with pytest.raises(AssayError, match="wandb is disabled, so that nothing would be sent; unset WANDB_MODE"):
        send(Disabled(), tmp_path, data())
    assert send(Recorder(), tmp_path, data()) == (3, 0)


def test_a_run_that_cannot_be_written_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("in the way")
    tracker = Recorder()
    with pytest.raises(AssayError):
        send(tracker, tmp_path, data())
    assert tracker.runs == []

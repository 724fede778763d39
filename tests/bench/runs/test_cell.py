"""A cell may do what it likes: the run goes on, says what happened, and leaves no process behind."""

import json
import os
import time
from pathlib import Path

import pytest

from modelassay.recording.log import CellLog, read_cell
from support.toy_suite import environ, modelassay, only_run, start

SUITE = """\
suite: rogue
experiment: rogue
question: What happens?
profiles: {{embedded: {{}}}}
matrix:
  deed: [{deeds}]
"""


def write_suite(folder: Path, *deeds: str) -> Path:
    path = folder / "rogue.yaml"
    path.write_text(SUITE.format(deeds=", ".join(deeds)))
    return path


def run_deeds(folder: Path, *deeds: str) -> tuple[int, str, str, list[CellLog]]:
    """Exit code, stdout, stderr, and the log of each cell."""
    code, out, err = modelassay("run", write_suite(folder, *deeds), "--runs", folder / "runs")
    run = only_run(folder / "runs")
    ids = [cell["id"] for cell in json.loads((run / "run.json").read_text())["suite"]["cells"]]
    return code, out, err, [read_cell(run / "cells" / cell) for cell in ids]


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def child_of(root: Path) -> int:
    """Wait for a cell's child; return its process."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in root.glob("*/cells/*/artifacts/child"):
            if text := path.read_text():
                return int(text)
        time.sleep(0.01)
    raise TimeoutError("no child was forked")


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("deed", "outcome", "says"),
    [
        ("leave_by_sys_exit", "failed", "SystemExit: 0 (run.py:"),
        ("interrupt", "failed", "KeyboardInterrupt"),
        ("die_of_a_real_time_signal", None, "killed by signal"),
        ("repeat_a_metric", "failed", "metric number {} was recorded before"),
        ("complain_of_a_path", "failed", "ValueError: no such file: caf"),
        ("lose_the_device", "failed", "RuntimeError: device lost"),
        ("fail_and_lose_the_device", "failed", "ValueError: the reason"),
    ],
)
def test_failure_says_why_and_the_next_cell_runs(tmp_path: Path, deed: str, outcome: str | None, says: str) -> None:
    code, _, err, (bad, good) = run_deeds(tmp_path, deed, "behave")
    assert (code, bad.outcome, good.outcome) == (3, outcome, "done")
    assert says in err
    assert "Traceback" not in err
    if bad.status is not None:
        assert says in bad.status["reason"]


def test_long_reason_is_one_short_line_and_the_whole_is_kept(tmp_path: Path) -> None:
    code, _, err, (bad,) = run_deeds(tmp_path, "complain_at_length")
    assert code == 3
    assert bad.status is not None
    assert bad.status["reason"].startswith("ValueError: one line and another one line")
    assert len(err) < 3000
    (out,) = only_run(tmp_path / "runs").glob("cells/*/attempt-1.out")
    assert out.read_text().count("\nand another") == 1000


def test_what_a_cell_prints_is_kept_apart(tmp_path: Path) -> None:
    code, out, err, _ = run_deeds(tmp_path, "print_much")
    assert code == 0
    assert "by the cell" not in out + err
    (kept,) = only_run(tmp_path / "runs").glob("cells/*/attempt-1.out")
    assert set(kept.read_text().splitlines()) == {
        "said by the cell", "complained by the cell", "said by a child of the cell",
    }  # fmt: skip


def test_thread_that_a_cell_left_does_not_hold_the_run(tmp_path: Path) -> None:
    code, *_, logs = run_deeds(tmp_path, "leave_a_thread", "behave")
    assert (code, [log.outcome for log in logs]) == (0, ["done", "done"])


@pytest.mark.parametrize(("deed", "code"), [("leave_a_child", 0), ("leave_a_child_and_die", 3)])
def test_child_that_a_cell_left_is_ended(tmp_path: Path, deed: str, code: int) -> None:
    """A forked child holds the cell's lock and its pipe to the runner."""
    found, _, _, (_, good) = run_deeds(tmp_path, deed, "behave")
    assert (found, good.outcome) == (code, "done")
    wait_until_gone(child_of(tmp_path / "runs"))


def test_runner_that_is_killed_takes_the_children_of_its_cell_along(tmp_path: Path) -> None:
    process = start("run", write_suite(tmp_path, "leave_a_child_and_wait"), "--runs", tmp_path / "runs")
    child = child_of(tmp_path / "runs")
    assert is_alive(child)
    process.kill()
    process.communicate()
    wait_until_gone(child)


def test_damaged_checkpoint_fails_its_cell_alone(tmp_path: Path) -> None:
    run_deeds(tmp_path, "damage_the_checkpoint", "behave")
    run = only_run(tmp_path / "runs")
    code, _, err = modelassay("run", run)
    assert code == 3
    assert "a damaged checkpoint" in err
    assert "delete it to begin the cell anew" in err
    code, _, err = modelassay("run", run, "--plan")
    assert (code, "a damaged checkpoint" in err) == (2, True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("def run(:", "SyntaxError: invalid syntax (run.py, line 1)"),
        ("raise ValueError('at import')", "ValueError: at import (run.py:1)"),
        ("import nosuchmodule", "No module named 'nosuchmodule' (run.py:1)"),
        ("import sys; sys.exit(0)", "SystemExit: 0 (run.py:1)"),
    ],
)
def test_experiment_that_cannot_be_imported_is_a_failure(tmp_path: Path, content: str, says: str) -> None:
    package = tmp_path / "broken"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "params.py").write_text("from rogue.params import Params\n")
    (package / "run.py").write_text(content)
    suite = write_suite(tmp_path, "behave")
    suite.write_text(suite.read_text().replace("experiment: rogue", "experiment: broken"))
    env = environ()
    env["PYTHONPATH"] += os.pathsep + str(tmp_path)
    code, _, err = modelassay("run", suite, "--runs", tmp_path / "runs", env=env)
    assert code == 3
    assert says in err.splitlines()[-1]

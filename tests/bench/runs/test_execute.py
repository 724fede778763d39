"""The runner survives: kills at random moments, failing cells, locks, full disks, changed code."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelassay.recording.log import read_cell
from modelassay.runs.directory import create_run, open_run
from modelassay.runs.plan import plan
from modelassay.runs.progress import PlainBoard, Position, position_of
from modelassay.storage.sealed import sealed_json
from modelassay.suite import load_suite
from support.small_disk import needs_root, small_disk
from support.toy_suite import SUITE, environ, metrics_of, modelassay, only_run, rewrite, start, write_suite

Reference = tuple[dict[tuple[str, str, str], float], int]
"""The metrics of an undisturbed run under their unit keys, and the bytes of its logs."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("reference")
    code, _, err = modelassay("run", write_suite(folder), "--runs", folder / "runs")
    assert code == 0, err
    return metrics_of(only_run(folder / "runs")), num_written(folder / "runs")


def num_written(root: Path) -> int:
    """Bytes in all logs under ``root``."""
    return sum(path.stat().st_size for path in root.glob("*/cells/*/attempt-*.jsonl"))


@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_kill_at_random_moments_loses_nothing(tmp_path: Path, reference: Reference, num_kills: int) -> None:
    """The runner is killed at a random moment and started again, again and again: metrics and unit keys are identical.

    The moment is a random place in the log, and in every fifth trial a random time before the first line: times alone
    would all miss the cells on a machine that is busier, or idler, than when the reference was taken.
    """
    expected, num_bytes = reference
    assert len(expected) == 4 * 24
    moments = random.Random(20260126)
    suite, num_resumed = write_suite(tmp_path), 0
    for trial in range(num_kills):
        root = tmp_path / f"runs-{trial}"
        process = start("run", suite, "--runs", root)
        if trial % 5 == 0:
            time.sleep(moments.uniform(0.0, 1.0))
        else:
            place = moments.randrange(num_bytes)
            while num_written(root) <= place and process.poll() is None:
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.01))
        process.kill()
        process.communicate()
        begun = list(root.glob("*/run.json"))
        code, _, err = modelassay("run", begun[0].parent if begun else suite, "--runs", root)
        assert code == 0, err
        assert metrics_of(only_run(root)) == expected
        num_resumed += any(read_cell(cell).num_attempts > 1 for cell in only_run(root).glob("cells/*"))
    assert num_resumed > num_kills // 4  # the kills hit cells, not only the moments before and after them


def test_killed_cell_is_a_failure_and_the_next_run_finishes_it(tmp_path: Path, reference: Reference) -> None:
    suite = write_suite(tmp_path)
    process = start("run", suite, "--runs", tmp_path / "runs")
    victim = _first_cell_process(tmp_path / "runs")
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "killed by SIGKILL; out of memory?" in err
    run = only_run(tmp_path / "runs")
    assert [p.action for p in plan(open_run(run).suite, root=tmp_path / "runs", run=open_run(run))].count("resume") == 1
    assert modelassay("run", run)[0] == 0
    assert metrics_of(run) == reference[0]


def _first_cell_process(root: Path) -> int:
    """Wait until a cell has written a unit; return its process."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in root.glob("*/cells/*/attempt-1.jsonl"):
            lines = path.read_text().splitlines()
            if len(lines) > 3:
                return int(json.loads(lines[0])["pid"])
        time.sleep(0.005)
    raise TimeoutError("no cell started")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_keeps_results_and_leaves_no_process(
    tmp_path: Path, reference: Reference, sent: signal.Signals, code: int
) -> None:
    process = start("run", write_suite(tmp_path), "--runs", tmp_path / "runs")
    cell_process = _first_cell_process(tmp_path / "runs")
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted; what was measured is kept" in err
    assert "resource_tracker" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(cell_process, 0)
    run = only_run(tmp_path / "runs")
    assert modelassay("run", run)[0] == 0
    assert metrics_of(run) == reference[0]


def test_failed_cell_is_told_and_the_others_run(tmp_path: Path) -> None:
    text = SUITE.replace(
        "seed: [0, 1]", "seed: [0, 1]\n  include:\n    - {model: zoo:base, fail_at: 9, only_first: true}"
    )
    code, out, err = modelassay("run", write_suite(tmp_path, text), "--runs", tmp_path / "runs")
    assert code == 3
    assert "2 of 4 cells failed" in err
    assert "ValueError: asked to fail at step 9 (run.py:" in err
    assert "Traceback" not in err
    assert out == ""
    run = only_run(tmp_path / "runs")
    assert sum("ValueError: asked to fail" in path.read_text() for path in run.glob("cells/*/attempt-1.out")) == 2
    code, out, _ = modelassay("run", run)
    assert code == 0
    assert "near-zero" in out


def test_divergence_is_a_finding(tmp_path: Path) -> None:
    text = SUITE.replace("seed: [0, 1]", "seed: [0, 1]\n  include:\n    - {seed: 1, diverge_at: 5}")
    code, out, _ = modelassay("run", write_suite(tmp_path, text), "--runs", tmp_path / "runs", "--json")
    assert code == 0
    outcomes = [(cell["outcome"], cell["reason"]) for cell in json.loads(out)["cells"]]
    assert outcomes.count(("done", "")) == 2
    assert outcomes.count(("diverged", "the walk left the world at step 5")) == 2
    assert modelassay("run", only_run(tmp_path / "runs"))[2].startswith(str(only_run(tmp_path / "runs")))  # complete


def test_hard_exit_is_a_failure(tmp_path: Path) -> None:
    text = SUITE.replace("pause_ms: 3.0", "exit_at: 3")
    code, _, err = modelassay("run", write_suite(tmp_path, text), "--runs", tmp_path / "runs")
    assert code == 3
    assert "its process ended with code 9" in err


def test_changed_code_is_refused_with_the_difference(tmp_path: Path) -> None:
    code, *_ = modelassay(
        "run", write_suite(tmp_path, SUITE.replace("pause_ms: 3.0", "exit_at: 3")), "--runs", tmp_path / "runs"
    )
    run = only_run(tmp_path / "runs")
    rewrite(run, lambda manifest: manifest["code"].update({"toy/run.py": "0" * 16}))
    code, _, err = modelassay("run", run)
    assert code == 2
    assert "what decides its numbers changed since this run began" in err
    assert "toy/run.py" in err


def test_changed_parameters_are_refused(tmp_path: Path) -> None:
    modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    code, _, err = modelassay("run", run, "-o", "steps=3")
    assert (code, "is an existing run; --profile, -o and --into apply to new runs only" in err) == (2, True)
    rewrite(run, lambda manifest: [cell["params"].update(steps=25) for cell in manifest["suite"]["cells"]])
    code, _, err = modelassay("run", run)
    assert (code, "changed by hand" in err) == (2, True)


@needs_root
def test_full_disk_is_told_and_the_run_goes_on_after_space_is_made(tmp_path: Path, reference: Reference) -> None:
    with small_disk(tmp_path, "2m") as disk:
        process = start("run", write_suite(tmp_path), "--runs", disk / "runs")
        _first_cell_process(disk / "runs")
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as handle:  # takes every free page
            try:
                while True:
                    handle.write(b"x" * 4096)
            except OSError:
                handle.close()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 6, err
        assert "the disk is full" in err
        assert "Traceback" not in err
        run = only_run(disk / "runs")
        for cell in run.glob("cells/*"):
            read_cell(cell)  # the log still reads
        ballast.unlink()
        assert modelassay("run", run)[0] == 0
        assert metrics_of(run) == reference[0]


@needs_root
def test_full_disk_at_the_start_leaves_no_half_run(tmp_path: Path) -> None:
    with small_disk(tmp_path, "4k") as disk:
        code, out, err = modelassay("run", write_suite(tmp_path), "--runs", disk / "runs")
        assert (code, out) == (6, "")
        assert "the disk is full; free some space and start the run anew" in err
        assert not list(disk.rglob("run.json*"))


def test_plan_tells_cost_from_earlier_runs(tmp_path: Path) -> None:
    suite = load_suite(str(write_suite(tmp_path)))
    assert {p.estimate_s for p in plan(suite, root=tmp_path / "runs")} == {None}
    modelassay("run", tmp_path / "walk.yaml", "--runs", tmp_path / "runs")
    planned = plan(suite, root=tmp_path / "runs")
    assert {p.action for p in planned} == {"run"}
    assert all(p.estimate_s is not None and p.estimate_s > 0.05 for p in planned)


def test_plan_costs_nothing_that_was_not_measured_whole(tmp_path: Path) -> None:
    """The status of a resumed attempt tells the time of its part only; a damaged log of another run tells nothing."""
    suite_file = write_suite(tmp_path, SUITE.replace("pause_ms: 3.0", "fail_at: 9, only_first: true"))
    root = tmp_path / "runs"
    assert modelassay("run", suite_file, "--runs", root)[0] == 3
    assert modelassay("run", only_run(root))[0] == 0
    suite = load_suite(str(suite_file))
    assert {p.estimate_s for p in plan(suite, root=root)} == {None}
    damaged = next(only_run(root).glob("cells/*/attempt-1.jsonl"))
    damaged.write_text("no record\n" + damaged.read_text())
    assert {p.action for p in plan(suite, root=root)} == {"run"}


def test_plan_of_changed_code_is_refused_like_the_run(tmp_path: Path) -> None:
    modelassay("run", write_suite(tmp_path, SUITE.replace("pause_ms: 3.0", "exit_at: 3")), "--runs", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    rewrite(run, lambda manifest: manifest["environment"]["libraries"].update(torch="0.1"))
    for arguments in (("--plan",), ()):
        code, _, err = modelassay("run", run, *arguments)
        assert (code, "torch changed from 0.1" in err) == (2, True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "damaged (JSONDecodeError"),
        ("[]", "damaged (it has no checksum)"),
        ("{}", "damaged (it has no checksum)"),
        ('{"schema": 3}', "damaged (it has no checksum)"),
        ('{"schema": 1}', "schema 1, this modelassay reads 3; read it with the version that wrote it, or start"),
        ('{"schema": 2, "environment": {"git": {"commit": "4df9fac0123456"}}}', "wrote it, at commit 4df9fac01234, or start"),
        (sealed_json({"x": 1}).decode(), "damaged (KeyError: 'schema'"),
        (sealed_json({"schema": 4}).decode(), "schema 4, this modelassay reads 3"),
        (sealed_json({"schema": 3}).decode().replace("3}", "2}"), "not as it was written: the checksum differs"),
        (sealed_json({"schema": 3, "suite": {}, "environment": [], "code": {}, "files": {}}).decode(), "damaged (TypeError"),
        (sealed_json({"schema": 3, "suite": {}, "environment": {"libraries": {}}, "code": {}, "files": {}}).decode(),
         "run.json: schema_version"),
    ],
)  # fmt: skip
def test_damaged_manifest_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "run.json").write_text(content)
    for verb in ("run", "show"):
        code, _, err = modelassay(verb, tmp_path)
        assert (code, says in err, err.count("\n")) == (2, True, 1), err
        assert str(tmp_path / "run.json") in err


def test_shipped_name_means_the_suite_whatever_lies_around(tmp_path: Path) -> None:
    (tmp_path / "fingerprinting").mkdir()
    (tmp_path / "fingerprinting/run.json").write_text("{}")
    shutil.copytree(tmp_path / "fingerprinting", tmp_path / "runs/my-fingerprinting")
    code, out, _ = modelassay("show", "fingerprinting", "--json", cwd=tmp_path)
    assert (code, json.loads(out)["suite"]) == (0, "fingerprinting")
    assert modelassay("show", "./fingerprinting", cwd=tmp_path)[0] == 2


def test_manifest_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    synced: set[int] = set()
    run = create_run(load_suite(str(write_suite(tmp_path))), tmp_path / "runs")
    assert (run.folder / "run.json").stat().st_ino in synced


def test_results_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = modelassay("run", write_suite(tmp_path), "--runs", tmp_path / "file")
    assert code == 6
    assert "cannot be made; remove what is in the way" in err
    assert "Traceback" not in err


def test_run_directory_may_be_moved(tmp_path: Path, reference: Reference) -> None:
    process = start("run", write_suite(tmp_path), "--runs", tmp_path / "runs")
    _first_cell_process(tmp_path / "runs")
    process.kill()
    process.communicate()
    moved = tmp_path / "elsewhere"
    time.sleep(0.2)
    shutil.move(only_run(tmp_path / "runs"), moved)
    assert modelassay("run", moved)[0] == 0
    assert metrics_of(moved) == reference[0]


def unit(index: int, stage: str = "layer", **more: object) -> str:
    return json.dumps({"seq": index, "kind": "microbatch", "stage": stage, "index": index, "host_ns": 5, **more})


METRIC = json.dumps({"seq": 9, "kind": "metric", "name": "sigma", "value": 0.5, "labels": {"role": "q" * 90}})


PROGRESS = json.dumps({"seq": 9, "kind": "progress", "done": 12, "total": 40, "unit": "products"})


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("", None),
        ('{"kind": "attempt"}\n', None),
        (f"{unit(0)}\n{unit(4)}\n", "5 layer"),
        (f"{unit(4)}\n{METRIC}\n{METRIC}\n", "5 layer"),  # what was timed, not what was said of it
        (f"{unit(4)}\n{unit(5)[:20]}", "5 layer"),  # the last line is being written
        (unit(4, labels={"other": "x" * 300}) + "\n", "5 layer"),
        (f"{unit(4, labels={'other': 'x' * 20_000})}\n{METRIC}\n", None),
        (unit(4, labels={"other": "x" * 20_000}) + "\n", None),
        (f"{unit(4)}\n{PROGRESS}\n{unit(5)}\n", "12 of 40 products"),  # what the cell says of itself comes first
    ],
)
def test_a_long_cell_stands_at_its_last_progress_or_unit(tmp_path: Path, log: str, says: str | None) -> None:
    for attempt in (1, 2):
        (tmp_path / f"attempt-{attempt}.jsonl").write_text(log if attempt == 2 else unit(77) + "\n")
    position = position_of(tmp_path)
    assert (None if position is None else str(position)) == says


def test_progress_before_there_is_a_log(tmp_path: Path) -> None:
    assert position_of(tmp_path / "not-there") is None


def test_long_cells_report_while_they_run(tmp_path: Path) -> None:
    text = SUITE.replace("pause_ms: 3.0", f"pause_ms: 150.0, note: {'n' * 300}").replace("[0, 1]", "[0]")
    program = "import modelassay.runs.progress as p, modelassay.cli as c; p.LINE_SECONDS = 0.3; c.main()"
    command = [sys.executable, "-c", program, "run", str(write_suite(tmp_path, text)), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    reports = re.findall(
        r"walk: [01] of 2 cells.*; model=zoo:.*: (\d+) of 24 steps \(.*/s, .* left\)$", done.stderr, flags=re.M
    )
    assert reports, done.stderr
    assert done.stderr.count("\n") < 40  # never a line a step


def test_plain_lines_come_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("modelassay.runs.progress.time.monotonic", lambda: now[0])
    lines: list[str] = []
    board = PlainBoard(lines.append)
    for second in range(61):
        now[0] = 1000.0 + second
        board.show("cells", Position(second, 120, "cells"))
    assert len(lines) == 6
    assert lines[0] == "cells: 10 of 120 cells (1/s, 1 min 50 s left)"
    assert lines[-1] == "cells: 60 of 120 cells (1/s, 1 min 0 s left)"


def test_cells_side_by_side_as_many_as_fit_and_timed_ones_alone(tmp_path: Path) -> None:
    text = SUITE.replace("pause_ms: 3.0", "pause_ms: 40.0, timed: false")
    for jobs, most in (("1", 1), ("3", 3)):
        root = tmp_path / jobs
        process = start("run", write_suite(tmp_path, text), "--runs", root, "--jobs", jobs)
        assert most_at_once(process, root) == most
    process = start(
        "run",
        write_suite(tmp_path, text.replace("timed: false", "timed: true")),
        "--runs",
        tmp_path / "t",
        "--jobs",
        "3",
    )
    assert most_at_once(process, tmp_path / "t") == 1


def most_at_once(process: subprocess.Popen[str], root: Path) -> int:
    """Watch a run to its end: how many cells were at work at one time."""
    most = 0
    while process.poll() is None:
        logs = [path.read_text() for path in root.glob("*/cells/*/attempt-1.jsonl")]
        most = max(most, sum('"kind":"status"' not in log for log in logs))
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()
    process.communicate()
    return most


def test_a_run_is_shown_while_it_runs(tmp_path: Path) -> None:
    text = (
        SUITE
        .replace("pause_ms: 3.0", "pause_ms: 150.0, timed: false")
        .replace("[0, 1]", "[0]")
        .replace("steps: 24", "steps: 900")
    )
    process = start("run", write_suite(tmp_path, text), "--runs", tmp_path / "runs", "--jobs", "2")
    _first_cell_process(tmp_path / "runs")
    code, out, _ = modelassay("show", only_run(tmp_path / "runs"), "--json")
    cells = json.loads(out)["cells"]
    assert code == 0
    assert "running" in {cell["outcome"] for cell in cells}
    assert any(re.fullmatch(r"\d+ of 900 steps", cell["reason"]) for cell in cells)
    table, listing = (
        modelassay("show", *what)[1] for what in ([only_run(tmp_path / "runs")], ["--runs", tmp_path / "runs"])
    )
    assert "running" in table.splitlines()[0]
    assert "cut off" not in table + listing
    assert "running" in listing
    assert "is running now" in modelassay("run", only_run(tmp_path / "runs"), "--plan")[1]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while "running" in modelassay("show", only_run(tmp_path / "runs"))[1]:
        assert time.monotonic() < deadline
    assert "cut off" in modelassay("show", only_run(tmp_path / "runs"))[1]

"""What is seen of a run while others are at it, and of a worker that was lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from modelassay.runs.directory import create_run, open_run
from modelassay.runs.progress import PlainBoard
from modelassay.runs.watch import Watch
from modelassay.suite import load_suite
from support.toy_suite import SUITE, modelassay, start, write_suite


def new_run(tmp_path: Path, *, steps: int) -> Path:
    text = SUITE.replace("steps: 24", f"steps: {steps}, timed: false")
    return create_run(load_suite(str(write_suite(tmp_path, text))), tmp_path / "run").folder


def test_a_worker_that_is_lost_is_named_and_so_is_who_took_over(tmp_path: Path) -> None:
    run, lines = open_run(new_run(tmp_path, steps=200)), list[str]()
    watch = Watch(run, PlainBoard(lines.append))
    watch.look()
    assert watch.counts == {"not run": 4}
    assert len(watch.free_cells()) == 4
    first = start("run", run.folder, "--worker", "--jobs", "1")
    deadline = time.monotonic() + 60
    while not watch.counts["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        watch.look()
    assert watch.counts == {"running": 1, "not run": 3}
    assert len(watch.free_cells()) == 3
    first.send_signal(signal.SIGKILL)
    first.communicate()
    watch.look()
    assert watch.counts == {"lost": 1, "not run": 3}
    who = f"process {first.pid} on "
    assert [line for line in lines if "lost with" in line and who in line]
    code, _, err = modelassay("run", run.folder, "--worker")
    assert code == 0, err
    watch.look()
    assert watch.counts == {"done": 4}
    assert not watch.open_cells()
    assert watch.summary() == "4 cells: 4 done; 0 workers"


def test_show_watch_ends_with_the_run_and_tells_of_it_in_plain_lines(tmp_path: Path) -> None:
    folder = new_run(tmp_path, steps=150)
    watcher, worker = start("show", folder, "--watch"), start("run", folder, "--worker")
    _, err = worker.communicate(timeout=120)
    assert worker.returncode == 0, err
    out, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, err
    assert out == "4 cells: 4 done; 0 workers\n"
    assert f"process {worker.pid} on " in err


@pytest.mark.parametrize("arguments", [["--watch"], ["walk", "--watch", "--json"]])
def test_watching_takes_one_run(arguments: list[str]) -> None:
    code, _, err = modelassay("show", *arguments)
    assert code == 2
    assert "--watch shows one RUN" in err


def test_a_worker_that_does_not_wait_leaves_what_another_has(tmp_path: Path) -> None:
    text = SUITE.replace("steps: 24", "steps: 400, timed: false").replace("pause_ms: 3.0", "pause_ms: 10")
    text = text.replace("seed: [0, 1]", "seed: [0]").replace("model: [zoo:base, zoo:child]", "model: [zoo:base]")
    run = create_run(load_suite(str(write_suite(tmp_path, text))), tmp_path / "run")
    first = start("run", run.folder, "--worker")
    try:
        deadline = time.monotonic() + 60
        while not list(run.folder.glob("cells/*/*.lease")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        code, _, err = modelassay("run", run.folder, "--worker", "--no-wait")
        assert code == 0, err
        assert "0 cells run in" in err
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


def test_workers_that_begin_without_a_run_make_one_between_them(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, SUITE.replace("steps: 24", "steps: 8, timed: false"))
    workers = [start("run", suite, "--into", tmp_path / "run", "--worker") for _ in range(3)]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    assert {status.outcome for status in open_run(tmp_path / "run").statuses().values()} == {"done"}
    code, _, err = modelassay("run", suite, "-o", "steps=9", "--into", tmp_path / "run", "--worker")
    assert code == 2
    assert "holds a run of other cells" in err


def test_a_run_that_is_made_only(tmp_path: Path) -> None:
    suite = write_suite(tmp_path)
    code, out, err = modelassay("run", suite, "--make", "--into", tmp_path / "run")
    assert (code, out) == (0, f"{tmp_path / 'run'}\n"), err
    assert {status.num_attempts for status in open_run(tmp_path / "run").statuses().values()} == {0}
    assert modelassay("run", tmp_path / "run", "--make")[0] == 2


@pytest.mark.parametrize("ahead_s", [-600, 600])
def test_a_worker_elsewhere_is_judged_by_the_file_servers_clock(tmp_path: Path, ahead_s: int) -> None:
    run = open_run(new_run(tmp_path, steps=8))
    worker = run.folder / "workers" / f"{'a' * 12}.json"
    worker.parent.mkdir()
    worker.write_text(json.dumps({"pid": 7, "host": "elsewhere", "boot": "b", "namespace": "n", "silence_s": 1.5}))
    cell_dir = run.cell_dir(run.suite.cells[0])
    cell_dir.mkdir(parents=True)
    (cell_dir / "attempt-1.lease").write_text(f"{'a' * 12}\n")
    lines: list[str] = []
    watch = Watch(run, PlainBoard(lines.append))
    for beat in range(3):
        touched = time.time() + ahead_s + beat
        os.utime(worker, (touched, touched))
        watch.look()
        assert watch.counts == {"running": 1, "not run": 3}
        time.sleep(0.6)
    time.sleep(1.5)
    watch.look()
    assert watch.counts == {"lost": 1, "not run": 3}
    assert lines[-1].endswith("lost with process 7 on elsewhere, which ended before it was done")

"""Several workers at one run, some of which are killed or asleep: each cell counts once, and the tables are those of one machine."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from modelassay.recording.log import read_cell, segments
from modelassay.runs.directory import create_run, open_run
from modelassay.suite import load_suite
from support.joined_runs import completed, ended
from support.toy_suite import SUITE, metrics_of, modelassay, only_run, start, write_suite


def suite_of(num_cells: int, **parameters: object) -> str:
    seeds = ", ".join(map(str, range(num_cells // 2)))
    own = "".join(f", {name}: {value}" for name, value in parameters.items())
    return SUITE.replace("pause_ms: 3.0", f"pause_ms: 3.0, timed: false{own}").replace(
        "seed: [0, 1]", f"seed: [{seeds}]"
    )


def new_run(tmp_path: Path, text: str) -> Path:
    """Make a run of which no cell has begun."""
    return create_run(load_suite(str(write_suite(tmp_path, text)), profile=None, overrides=()), tmp_path / "run").folder


def test_a_second_process_joins_and_both_end_with_the_whole_run(tmp_path: Path) -> None:
    assert modelassay("run", write_suite(tmp_path, suite_of(8)), "--runs", tmp_path / "alone")[0] == 0
    expected = metrics_of(only_run(tmp_path / "alone"))
    run = new_run(tmp_path, suite_of(8))
    with ended([first := start("run", run, "--jobs", "1"), second := start("run", run, "--jobs", "1")]):
        outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    own = [int(match[1]) for _, err in outputs if (match := re.search(r"^(\d+) cells run in", err, re.MULTILINE))]
    assert sum(own) == 8
    assert metrics_of(run) == expected
    assert set(completed(run).values()) == {1}
    assert not list(run.rglob("*.lease"))
    assert not (run / "workers").exists()


def test_a_failure_is_told_by_all_and_tried_by_one(tmp_path: Path) -> None:
    run = new_run(tmp_path, suite_of(4, fail_at=9))
    with ended([first := start("run", run), second := start("run", run, "--worker")]):
        outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (3, 3), outputs
    assert all("4 of 4 cells failed" in err for _, err in outputs)
    assert [len(segments(cell)) for cell in (run / "cells").iterdir()] == [1] * 4
    assert outputs[1][0] == ""  # a worker shows no results


def test_a_worker_that_is_asleep_is_replaced_and_writes_nothing_that_counts(tmp_path: Path) -> None:
    """Asleep are the runner and its cell, which ends by itself on waking."""
    run = new_run(tmp_path, suite_of(2).replace("steps: 24", "steps: 100").replace("pause_ms: 3.0", "pause_ms: 20"))
    first = start("run", run, "--jobs", "1", "--silence", "2")
    with ended([first]):
        deadline = time.monotonic() + 60
        while not (logs := [path for path in run.glob("cells/*/attempt-1.jsonl") if path.stat().st_size > 3000]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cell_process = json.loads(logs[0].read_text().splitlines()[0])["pid"]
        os.kill(cell_process, signal.SIGSTOP)
        first.send_signal(signal.SIGSTOP)
        code, _, err = modelassay("run", run, "--jobs", "1")
        assert code == 0, err
        assert f"taken over from process {first.pid} on" in err
        expected = metrics_of(run)
        os.kill(cell_process, signal.SIGCONT)
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=60)
    assert first.returncode == 0
    assert "taken over by another worker; what was done here does not count" in err
    assert metrics_of(run) == expected
    assert set(completed(run).values()) == {1}
    assert len(read_cell(logs[0].parent).microbatches) == 100


def test_cells_that_the_submitter_chose(tmp_path: Path) -> None:
    run = new_run(tmp_path, suite_of(4))
    ids = [cell.id for cell in open_run(run).suite.cells]
    code, out, err = modelassay("run", run, "--worker", "--cells", ids[1], "--cells", ids[3])
    assert (code, out) == (0, ""), err
    assert sorted(path.name for path in (run / "cells").iterdir()) == sorted([ids[1], ids[3]])
    code, _, err = modelassay("run", run, "--worker", "--cells", "0" + ids[0][1:])
    assert code == 2
    assert "--cells 0" in err
    code, _, err = modelassay("run", write_suite(tmp_path), "--worker", "--runs", tmp_path / "none")
    assert code == 2
    assert "--worker takes a run that exists" in err


def test_runs_created_in_the_same_second_are_two(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, suite_of(2))
    with ended(both := [start("run", suite, "--runs", tmp_path / "runs") for _ in range(2)]):
        for process in both:
            process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("round_", range(20))
def test_no_cell_is_lost_or_counted_twice(tmp_path: Path, round_: int) -> None:
    """200 cells, 8 workers, of which every while one is killed, or put to sleep for longer than it may be silent."""
    chance = random.Random(20261129 + round_)
    run = new_run(tmp_path, suite_of(200))

    def join() -> subprocess.Popen[str]:
        return start("run", run, "--worker", "--jobs", "1", "--silence", "3")

    workers, asleep = [join() for _ in range(8)], []
    with ended(workers):
        deadline = time.monotonic() + 900
        while any(process.poll() is None for process in workers):
            assert time.monotonic() < deadline
            time.sleep(chance.uniform(0.2, 1.0))
            for process, until in list(asleep):
                if time.monotonic() > until:
                    process.send_signal(signal.SIGCONT)
                    asleep.remove((process, until))
            awake = [p for p in workers if p.poll() is None and p not in [each for each, _ in asleep]]
            if len(awake) > 2 and chance.random() < 0.5:
                victim = chance.choice(awake)
                if chance.random() < 0.5:
                    victim.kill()
                    workers.append(join())
                else:
                    victim.send_signal(signal.SIGSTOP)
                    asleep.append((victim, time.monotonic() + chance.uniform(4, 8)))
    code, _, err = modelassay("run", run, "--worker")
    assert code == 0, err
    assert len(completed(run)) == 200
    assert set(completed(run).values()) == {1}
    single = tmp_path / "single"
    assert modelassay("run", write_suite(tmp_path, suite_of(200)), "--into", single)[0] == 0
    assert metrics_of(run) == metrics_of(single)

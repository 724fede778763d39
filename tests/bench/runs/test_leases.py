"""No two workers have one cell: whoever takes it, whoever ends, sleeps, or has another clock."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modelassay.errors import UsageError
from modelassay.recording.log import Log
from modelassay.runs import leases, workers
from modelassay.runs.leases import Lease, claim, holder_of
from modelassay.runs.workers import Worker, read_signs
from support.toy_suite import environ


def taken(cell_dir: Path, worker: Worker) -> Lease:
    lease = claim(cell_dir, worker)
    assert isinstance(lease, Lease)
    return lease


def segment(cell_dir: Path, attempt: int) -> None:
    Log(cell_dir / f"attempt-{attempt}.jsonl", cell=cell_dir.name, attempt=attempt, resumed_at=0).close()


def test_a_cell_is_taken_once_and_again_when_it_is_given_back(tmp_path: Path) -> None:
    cell = tmp_path / "cells/one"
    with Worker(tmp_path) as first, Worker(tmp_path) as second:
        lease = taken(cell, first)
        held = claim(cell, second)
        assert str(held) == f"process {os.getpid()} on {os.uname().nodename}"
        assert (lease.attempt, lease.is_held(), holder_of(cell)) == (1, True, first.id)
        segment(cell, 1)
        lease.release()
        assert holder_of(cell) is None
        again = taken(cell, second)
        assert (again.attempt, again.previous) == (2, None)
        assert [sign.worker for sign in first.others()] == [second.id]
    assert not (tmp_path / "workers").exists()


def test_of_many_at_once_one_has_the_cell(tmp_path: Path) -> None:
    """Eight processes take each of 40 cells as fast as they can; whoever has one writes its segment and gives it back or dies."""
    code = """if True:
        import os, pathlib, sys
        from modelassay.runs.leases import Lease, claim
        from modelassay.runs.workers import Worker
        root = pathlib.Path(sys.argv[1])
        with Worker(root) as worker:
            for number in range(40):
                cell = root / "cells" / str(number)
                lease = claim(cell, worker)
                if isinstance(lease, Lease) and lease.attempt == 1:
                    os.close(os.open(cell / "attempt-1.jsonl", os.O_CREAT | os.O_EXCL))
                    with (root / "taken").open("a") as file:
                        file.write(f"{number}\\n")
                    lease.release()
                elif isinstance(lease, Lease):
                    lease.release()
    """
    taking = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environ()) for _ in range(8)]
    assert [process.wait(120) for process in taking] == [0] * 8
    assert sorted(map(int, (tmp_path / "taken").read_text().split())) == list(range(40))


@pytest.mark.parametrize("links", [True, False])
def test_without_links_a_lease_is_made_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    cell = tmp_path / "cells/one"
    with Worker(tmp_path) as first, Worker(tmp_path) as second:
        lease = taken(cell, first)
        assert lease.path.read_text() == f"{first.id}\n"
        assert not isinstance(claim(cell, second), Lease)
        assert [path.name for path in cell.iterdir()] == ["attempt-1.lease"]


def test_a_lease_that_does_not_say_yet_whose_it_is_is_left_alone_while_it_is_young(tmp_path: Path) -> None:
    cell = tmp_path / "cells/one"
    cell.mkdir(parents=True)
    (cell / "attempt-1.lease").touch()
    with Worker(tmp_path, silence_s=60) as worker:
        assert claim(cell, worker) is None
        os.utime(cell / "attempt-1.lease", (0, time.time() - 61))
        assert taken(cell, worker).attempt == 2


def test_a_worker_that_was_killed_is_known_at_once(tmp_path: Path) -> None:
    code = """if True:
        import pathlib, sys, time
        from modelassay.runs.leases import claim
        from modelassay.runs.workers import Worker
        with Worker(pathlib.Path(sys.argv[1])) as worker:
            claim(pathlib.Path(sys.argv[1]) / "cells/one", worker)
            print("taken", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environ(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    with process, Worker(tmp_path) as worker:
        assert not isinstance(claim(tmp_path / "cells/one", worker), Lease)
        process.send_signal(signal.SIGSTOP)  # asleep, and its file is young
        assert not isinstance(claim(tmp_path / "cells/one", worker), Lease)
        process.kill()
        process.wait()
        lease = taken(tmp_path / "cells/one", worker)
        assert (lease.attempt, lease.previous) == (2, f"process {process.pid} on {os.uname().nodename}")


def test_whoever_is_silent_too_long_loses_what_it_has_and_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BEAT_S", 1e9)  # its heart stands still
    cell = tmp_path / "cells/one"
    with Worker(tmp_path, silence_s=1e9) as asleep, Worker(tmp_path) as other:
        own = json.loads((tmp_path / "workers" / f"{asleep.id}.json").read_text())
        (tmp_path / "workers" / f"{asleep.id}.json").write_text(json.dumps(own | {"silence_s": 30.0}))
        lease = taken(cell, asleep)
        for age, is_taken in ((29.0, False), (31.0, True)):
            os.utime(tmp_path / "workers" / f"{asleep.id}.json", (0, other.now() - age))
            assert isinstance(claim(cell, other), Lease) == is_taken
        assert not lease.is_held()
        lease.release()  # as it does on waking: the other's stays
        assert holder_of(cell) == other.id


@pytest.mark.parametrize("other_machine", [False, True])
def test_clocks_that_differ_by_ten_minutes_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_machine: bool
) -> None:
    """Ages are differences of the file system's times; a host's clock, wherever it stands, is never asked."""
    cell = tmp_path / "cells/one"
    with Worker(tmp_path) as first, Worker(tmp_path) as second:
        taken(cell, first)
        if other_machine:  # so that no lock tells
            path = tmp_path / "workers" / f"{first.id}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))
        for skew in (-600.0, 600.0):
            monkeypatch.setattr(time, "time", lambda skew=skew, clock=time.monotonic: clock() + skew)
            assert not isinstance(claim(cell, second), Lease)


def test_a_worker_of_another_machine_is_known_by_its_silence_alone(tmp_path: Path) -> None:
    cell = tmp_path / "cells/one"
    with Worker(tmp_path) as here:
        path = tmp_path / "workers/0123456789ab.json"
        path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "x", "silence_s": 20.0, "locked": True}))
        cell.mkdir(parents=True)
        (cell / "attempt-1.lease").write_text("0123456789ab\n")
        assert str(claim(cell, here)) == "process 1 on elsewhere"
        os.utime(path, (0, here.now() - 21))
        assert taken(cell, here).previous == "process 1 on elsewhere"


def test_whoever_was_faster_between_a_look_and_a_claim_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second worker has judged attempt 1 when the first takes, ends and gives back attempt 2: attempt 3 is not its, nor 2."""
    cell = tmp_path / "cells/one"
    with Worker(tmp_path) as fast, Worker(tmp_path) as slow:
        make = leases._make

        def after_the_other(path: Path, holder: str) -> bool:
            monkeypatch.setattr(leases, "_make", make)
            lease = taken(cell, fast)
            segment(cell, lease.attempt)
            lease.release()
            return make(path, holder)

        monkeypatch.setattr(leases, "_make", after_the_other)
        assert claim(cell, slow) is None
        assert sorted(path.name for path in cell.iterdir()) == ["attempt-1.jsonl"]


def test_what_lies_in_a_leases_place_is_told(tmp_path: Path) -> None:
    cell = tmp_path / "cells/one"
    cell.mkdir(parents=True)
    (cell / "attempt-1.lease").symlink_to("/etc/passwd")
    with Worker(tmp_path) as worker, pytest.raises(UsageError, match=r"attempt-1\.lease: a symbolic link where"):
        claim(cell, worker)


def test_files_of_workers_that_say_nonsense_stop_nobody(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    for number, text in enumerate(("", "[]", "{", '{"pid": "x"}', "9" * 5000)):
        (tmp_path / "workers" / f"{number:012x}.json").write_text(text)
    with Worker(tmp_path) as worker:
        assert len(worker.others()) == 5  # until they have been silent for a minute
        for path in (tmp_path / "workers").glob("0000*.json"):
            os.utime(path, (0, worker.now() - 61))
        assert worker.others() == []
    assert len(read_signs(tmp_path)) == 5

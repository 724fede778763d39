"""Checkpoints are whole or absent, random states come back, the store builds once."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modelassay.errors import RecordError
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext, Recorder
from modelassay.recording.log import read_cell
from modelassay.recording.random_state import random_states, seed_everything, set_random_states
from modelassay.recording.resume import Checkpoint, latest_checkpoint
from modelassay.recording.status import read_status
from modelassay.storage.store import Store


def new_recorder(folder: Path) -> Recorder:
    return Recorder(folder, name=folder.name, seed=0)


def latest(folder: Path) -> Checkpoint | None:
    return latest_checkpoint(folder, read_cell(folder).position)


def test_checkpoint_holds_position_counters_payload_and_files(tmp_path: Path) -> None:
    recorder = new_recorder(tmp_path)
    with recorder.microbatch("a"):
        pass
    recorder.metric("x", 1.0)
    recorder.checkpoint({"step": 5}, write=lambda folder: (folder / "w.bin").write_bytes(b"weights") and None)
    saved = new_recorder(tmp_path).restore()
    assert saved is not None
    assert (saved.payload, saved.counters) == ({"step": 5}, {"a": 1})
    assert saved.position == 3  # the unit, the metric, the memory line
    assert (saved.folder / "w.bin").read_bytes() == b"weights"


STRAY = (".DS_Store", "._1", ".nfs0000a1", "Thumbs.db", "7", "9~", ".gitattributes")
"""What file managers, file servers and people leave; a file called 7 is no checkpoint."""


def test_stray_files_are_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = new_recorder(tmp_path)
    recorder.checkpoint({"step": 0})
    for name in STRAY:
        (tmp_path / "checkpoint" / name).write_text("stray")
        (tmp_path / "checkpoint/1-1" / name).write_text("stray")
    for step in (1, 2):
        recorder.checkpoint({"step": step})
    saved = new_recorder(tmp_path).restore()
    assert saved is not None
    assert saved.payload == {"step": 2}
    # On NFS a file that is still open stays as .nfs..., and its folder cannot be removed.
    monkeypatch.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(OSError(39, "Directory not empty")))
    for step in (3, 4):
        recorder.checkpoint({"step": step})
    assert (again := new_recorder(tmp_path).restore()) is not None
    assert again.payload == {"step": 4}


def test_only_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    recorder = new_recorder(tmp_path)
    for step in range(3):
        recorder.checkpoint({"step": step})
    folders = list((tmp_path / "checkpoint").iterdir())
    assert len(folders) == 1
    assert json.loads((folders[0] / "state.json").read_text())["payload"] == {"step": 2}


def test_failed_write_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    recorder = new_recorder(tmp_path)
    recorder.checkpoint({"step": 1})

    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        recorder.checkpoint({"step": 2}, write=broken)
    saved = latest(tmp_path)
    assert saved is not None
    assert saved.payload == {"step": 1}


def test_half_deleted_and_foreign_folders_are_passed_over(tmp_path: Path) -> None:
    """A kill between the rename and the end of the tidying leaves older checkpoints, whole or not."""
    recorder = new_recorder(tmp_path)
    recorder.checkpoint({"step": 1})
    (tmp_path / "checkpoint/1-1").rename(tmp_path / "checkpoint/1-7")
    (tmp_path / "checkpoint/1-6").mkdir()
    (tmp_path / "checkpoint/new-1").mkdir()
    (tmp_path / "checkpoint/1-7 copy").mkdir()
    saved = latest(tmp_path)
    assert saved is not None
    assert saved.payload == {"step": 1}
    recorder.checkpoint({"step": 2})
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["1-8"]


def test_checkpoint_that_the_log_does_not_reach_is_not_used(tmp_path: Path) -> None:
    recorder = new_recorder(tmp_path)
    recorder.metric("x", 1.0)
    recorder.checkpoint({"step": 1})
    recorder.meter.log.path.unlink()
    assert latest(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", "{half"])
def test_damaged_checkpoint_is_named(tmp_path: Path, content: str) -> None:
    new_recorder(tmp_path).checkpoint({"step": 1})
    (tmp_path / "checkpoint/1-1/state.json").write_text(content)
    with pytest.raises(RecordError, match=r"checkpoint/1-1: a damaged checkpoint .* delete it"):
        latest(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "w.bin"])
def test_no_flipped_bit_of_a_checkpoint_is_gone_on_with(tmp_path: Path, name: str) -> None:
    new_recorder(tmp_path).checkpoint(
        {"step": 1}, write=lambda folder: (folder / "w.bin").write_bytes(b"weights") and None
    )
    path = tmp_path / "checkpoint/1-1" / name
    data = path.read_bytes()
    for at in range(0, len(data), 1 + len(data) // 200):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        with pytest.raises(RecordError, match=r"checkpoint/1-1: a damaged checkpoint .* delete it to begin") as raised:
            latest(tmp_path)
        assert raised.value.damaged == tmp_path / "checkpoint/1-1"
    path.unlink()
    with pytest.raises(RecordError, match="a damaged checkpoint"):
        latest(tmp_path)


def test_checkpoint_of_another_cell_is_not_gone_on_with(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        new_recorder(tmp_path / name).checkpoint({"step": 1})
    shutil.rmtree(tmp_path / "one/checkpoint")
    (tmp_path / "other/checkpoint").rename(tmp_path / "one/checkpoint")
    with pytest.raises(
        RecordError, match=r"one/checkpoint/1-1: a damaged checkpoint \(it is one of other\); delete it"
    ):
        latest(tmp_path / "one")


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is renamed before it is synced is an empty file after a power cut."""
    synced: set[int] = set()
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(fd: int) -> None:
        synced.add(os.fstat(fd).st_ino)
        real_fsync(fd)

    def rename(aside: Path, final: Path) -> Path:
        assert {path.stat().st_ino for path in [aside, *aside.rglob("*")]} <= synced
        renamed.append(final.name)
        return real_rename(aside, final)

    renamed: list[str] = []
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    recipe = {"kind": "thing", "seed": 3}
    store = Store(tmp_path / "store")
    store.get(recipe, lambda folder: (folder / "weights").write_bytes(b"w") and None)
    new_recorder(tmp_path).checkpoint({"step": 1}, write=lambda folder: (folder / "w").write_bytes(b"w") and None)
    assert renamed == [store.path(recipe).name, "1-1"]


def test_random_states_round_trip_through_json() -> None:
    seed_everything(7)
    random.random(), np.random.rand(), torch.rand(1)
    states = json.loads(json.dumps(random_states()))
    expected = (random.random(), random.gauss(0, 1), float(np.random.randn()), torch.randn(3).tolist())
    set_random_states(states)
    assert (random.random(), random.gauss(0, 1), float(np.random.randn()), torch.randn(3).tolist()) == expected


def test_store_builds_once_and_whole(tmp_path: Path) -> None:
    store, calls = Store(tmp_path), []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "data").write_text("x")

    recipe = {"kind": "thing", "seed": 1}
    first, second = store.get(recipe, build), store.get(dict(reversed(recipe.items())), build)
    assert first == second == store.path(recipe)
    assert len(calls) == 1
    record = json.loads((first / "record.json").read_text())
    assert (record["recipe"], record["attempts"]) == (recipe, 1)
    assert record["seconds"] < 60


def test_store_leaves_nothing_under_the_final_name_when_a_build_fails(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), {"kind": "thing", "seed": 2}

    def broken(folder: Path) -> None:
        (folder / "data").write_text("half")
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        store.get(recipe, broken)
    assert not store.path(recipe).exists()
    assert (store.get(recipe, lambda folder: None) / "data").exists() is False


def test_two_processes_build_one_artifact(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\nfrom modelassay.storage.store import Store\n"
        "def build(f):\n    time.sleep(0.5)\n    (f / 'who').write_text(sys.argv[2])\n"
        "print(Store(pathlib.Path(sys.argv[1])).get({'kind': 't'}, build).joinpath('who').read_text())"
    )
    procs = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    answers = {proc.communicate(timeout=60)[0].strip() for proc in procs}
    assert len(answers) == 1


def test_an_attempt_that_opens_late_takes_nothing_from_a_later_one(tmp_path: Path) -> None:
    """Its worker was asleep while the next attempt was taken, wrote 3 lines and a checkpoint, and ended."""

    def attempt(number: int) -> CellContext:
        return CellContext(
            tmp_path / "cell", cell="cell", seed=0, store=Store(tmp_path), sources=SourceGraph(), attempt=number
        )

    (tmp_path / "cell").mkdir()
    second = attempt(2)
    for step in range(3):
        second.metric("x", step, step=step)
    second.checkpoint({"step": 2})
    second.meter.log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
    first = attempt(1)
    assert first.restore() is None
    first.metric("x", 9.0, step=0)
    first.checkpoint({"step": 0})
    first.meter.log.append("status", {"outcome": "failed", "reason": "late", "wall_s": 0.0})
    for log in (read_cell(tmp_path / "cell"), read_status(tmp_path / "cell")):
        assert (log.outcome, log.position) == ("done", 4)
    assert [line["value"] for line in read_cell(tmp_path / "cell").metrics] == [0.0, 1.0, 2.0]
    assert attempt(3).restore().payload == {"step": 2}  # type: ignore[union-attr]

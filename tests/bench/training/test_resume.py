"""A training that is stopped, or killed, and called again ends in the same bits."""

import json
import math
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.errors import CheckpointError, HostError
from modelassay.training import resume
from modelassay.training.loop import Hook, Moment, Trained, fit
from modelassay.training.resume import Checkpoints
from modelassay.training.settings import Training
from support.training_cases import (
    PRECISIONS,
    SETTINGS,
    UPDATES,
    digest,
    killed_training,
    tiny_batches,
    tiny_model,
    watched_training,
)


def test_stray_files_are_in_nobodys_way(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, max_share=math.inf)
    checkpoints.save(1, {"w": torch.ones(2)}, {"n": 1})
    for name in (".DS_Store", "._step-1", ".nfs0000a1", "Thumbs.db", "step-9", "step-1.bak", "step-", ".gitattributes"):
        (tmp_path / name).write_text("stray")
        (tmp_path / "step-1" / name).write_text("stray")
    checkpoints.save(2, {"w": torch.full((2,), 2.0)}, {"n": 2})
    saved = Checkpoints(tmp_path, max_share=math.inf).latest()
    assert saved is not None
    assert (saved.step, saved.document["n"], saved.tensors["w"].tolist()) == (2, 2, [2.0, 2.0])
    assert not (tmp_path / "step-1").exists()


class Stop(BaseException):
    """The process is gone."""


def attempt(training: Training, folder: Path | None, stop_at: int | None = None) -> tuple[str, Trained] | None:
    """Train anew in this process; None if it was stopped after the update ``stop_at``."""

    def draw(moment: Moment) -> list[float]:
        if moment.num_updates == stop_at:
            raise Stop
        return [random.random(), float(np.random.random()), float(torch.rand(()))]

    model = tiny_model(getattr(torch, training.weights), dropout=0.2)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    checkpoints = Checkpoints(folder, max_share=math.inf) if folder else None
    try:
        trained = fit(
            model, tiny_batches(training), training, hooks=[Hook(every=1, call=draw)], checkpoints=checkpoints
        )
    except Stop:
        return None
    return digest(model), trained


@pytest.mark.parametrize("name", UPDATES)
def test_a_stopped_training_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    training = Training(**{**SETTINGS, **UPDATES[name]})
    whole = attempt(training, None)
    for stop_at in (1, 4, 5, 12):
        assert attempt(training, tmp_path, stop_at) is None
        assert [path.name for path in tmp_path.iterdir()] == ([f"step-{stop_at - 1}"] if stop_at > 1 else [])
    # as text, where NaN, which float16 comes to, is equal to itself
    assert repr(attempt(training, tmp_path)) == repr(whole)
    assert whole is not None
    assert [step.step for step in whole[1].steps] == list(range(12))


@pytest.mark.parametrize(
    "name", ["bfloat16, float32 master", "bfloat16, float32 averages", "float32, bfloat16 averages"]
)
def test_averages_and_master_copy_are_kept_in_their_types(name: str, tmp_path: Path) -> None:
    training = Training(**{**SETTINGS, **PRECISIONS[name], "num_steps": 2})
    attempt(training, tmp_path)
    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    expected = {
        "weights": training.weights,
        "optimiser/exp_avg": training.states or training.master,
        "optimiser/exp_avg_sq": training.states or training.master,
        "optimiser/step": "float32",
    }
    if training.master:
        expected["optimiser/master"] = training.master
    types = {
        name[: -len("/model.norm.weight")]: tensor.dtype
        for name, tensor in saved.tensors.items()
        if name.endswith("/model.norm.weight")
    }
    assert types == {key: getattr(torch, str(dtype)) for key, dtype in expected.items()}


@pytest.mark.parametrize("num_kills", [3, pytest.param(10, marks=pytest.mark.nightly)])
def test_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path: Path, num_kills: int) -> None:
    """A checkpoint after each of 60 steps; the steps done twice are those since the last one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    model, trained = watched_training(whole)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modelassay.training.loop", "transformers.models.qwen2.modeling_qwen2"])
    moments, kills = random.Random(0), 0
    while not (killed / "result.json").exists():
        seen = (killed / "steps.txt").read_text() if (killed / "steps.txt").exists() else ""
        process = context.Process(target=killed_training, args=(killed,))
        process.start()
        while process.is_alive() and (
            not (killed / "steps.txt").exists() or (killed / "steps.txt").read_text() == seen
        ):
            time.sleep(0.001)  # a process that did nothing yet has nothing to lose
        if kills < num_kills:
            process.join(moments.uniform(0.0, 0.12))
            if process.is_alive():
                process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
    result = json.loads((killed / "result.json").read_text())
    assert result["weights"] == digest(model)
    assert result["kept"] == trained.kept
    assert result["steps"] == [vars(step) for step in trained.steps]
    done = [int(line) for line in (killed / "steps.txt").read_text().split()]
    assert kills >= num_kills // 2
    assert set(done) == set(range(60))
    assert len(done) <= 60 + kills  # at most the one step that a kill fell into is done again


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(**SETTINGS)
    whole = attempt(training, None)

    def die(*_args: Any) -> None:
        raise Stop

    for place in (
        "modelassay.training.resume.save_file",
        "modelassay.training.resume.publish",
        "modelassay.storage.durable._sync",
    ):
        assert attempt(training, tmp_path, 3) is None
        with monkeypatch.context() as patched:
            patched.setattr(place, die)
            assert attempt(training, tmp_path) is None
        assert max(int(path.name[5:]) for path in tmp_path.glob("step-*")) >= 2
    assert attempt(training, tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["step-12"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    training = Training(**SETTINGS)
    attempt(training, tmp_path, 6)
    with pytest.raises(
        CheckpointError, match=r"step-5: a checkpoint of another training: learning_rate was 0.01, is 0.02;"
    ):
        attempt(Training(**{**SETTINGS, "learning_rate": 0.02}), tmp_path)
    model = tiny_model(dropout=0.2)
    with pytest.raises(CheckpointError, match="the rows of step 4 are others; delete it to train anew"):
        fit(model, tiny_batches(training, seed=9), training, checkpoints=Checkpoints(tmp_path))
    model.model.norm.weight.requires_grad = False
    with pytest.raises(CheckpointError, match="the trained weights have other names, shapes or types"):
        fit(model, tiny_batches(training), training, checkpoints=Checkpoints(tmp_path))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    training = Training(**SETTINGS)
    attempt(training, tmp_path, 6)
    file = tmp_path / "step-5" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="step-5: a damaged checkpoint .*; delete it to train anew"):
        attempt(training, tmp_path)


def test_no_flipped_bit_of_a_checkpoint_is_trained_on(tmp_path: Path) -> None:
    attempt(Training(**SETTINGS), tmp_path, 6)
    draw = random.Random(0)
    for file in sorted((tmp_path / "step-5").iterdir()):
        data = file.read_bytes()
        for place in [0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(100))]:
            file.write_bytes(data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :])
            with pytest.raises(
                CheckpointError, match="step-5: a damaged checkpoint .*; delete it to train anew"
            ) as raised:
                Checkpoints(tmp_path).latest()
            assert raised.value.damaged == tmp_path / "step-5"
        file.write_bytes(data)
    assert Checkpoints(tmp_path).latest() is not None


def test_a_stray_file_is_in_nobodys_way(tmp_path: Path) -> None:
    training = Training(**SETTINGS)
    expected = attempt(training, None)
    attempt(training, tmp_path, 6)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "step-old").touch()
    (tmp_path / "step-5/.nfs01").touch()
    assert attempt(training, tmp_path) == expected


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(**SETTINGS)
    attempt(training, tmp_path, 6)

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(resume, "save_file", full)
        with pytest.raises(HostError, match="the disk is full; free some space and run the same directory again"):
            attempt(training, tmp_path)
    assert attempt(training, tmp_path) == attempt(training, None)


def test_a_checkpoint_waits_until_it_is_worth_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, max_share=0.05)
    for seconds, due in ((3.9, False), (4.1, True)):  # 0.2 s is the first guess
        now[0] = seconds
        assert checkpoints.due() == due

    def slow(tensors: Any, path: Path) -> None:
        now[0] += 3.0
        path.touch()

    monkeypatch.setattr(resume, "save_file", slow)
    checkpoints.save(1, {}, {})
    for seconds, due in ((7.1 + 59.0, False), (7.1 + 61.0, True)):
        now[0] = seconds
        assert checkpoints.due() == due

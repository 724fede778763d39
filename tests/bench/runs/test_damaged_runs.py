"""A run directory whose run.json or log was damaged is shown as it was, or refused in one printable line."""

import json
import random
import shutil
from pathlib import Path

import pytest

from modelassay.commands.show import run_view
from modelassay.commands.view import emit
from modelassay.errors import AssayError
from modelassay.runs.directory import open_run
from support.damaged_json import damaged, damaged_bytes
from support.toy_suite import SUITE, modelassay, only_run, write_suite


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    code, _, err = modelassay(
        "run", write_suite(folder, SUITE.replace("pause_ms: 3.0", "pause_ms: 0.1")), "--runs", folder / "runs"
    )
    assert code == 0, err
    return only_run(folder / "runs")


def damage(run: Path, seed: int) -> str:
    rng = random.Random(seed)
    manifest, log = run / "run.json", min((run / "cells").iterdir()) / "attempt-1.jsonl"
    path = rng.choice([manifest, log])
    if rng.random() < 0.15:
        data, what = damaged_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
    elif path == manifest:
        value = json.loads(path.read_text())
        key = rng.choice([*value, "suite", "suite"])
        value[key], what = damaged(value[key], rng)
        path.write_text(json.dumps(value))
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        at = rng.choice([0, 1, 2, len(lines) - 1, rng.randrange(len(lines))])
        lines[at], what = damaged(lines[at], rng)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"{path.name}: {what}"


@pytest.mark.parametrize(("first", "count"), [(0, 60), pytest.param(10_000, 2000, marks=pytest.mark.nightly)])
def test_damaged_runs(sound: Path, tmp_path: Path, first: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(first, first + count):
        run = Path(shutil.copytree(sound, tmp_path / "run"))
        what = damage(run, seed)
        try:
            emit(run_view(open_run(run)), as_json=seed % 2 == 0)
        except AssayError as raised:
            assert str(raised).isprintable(), what  # noqa: PT017 - either way of ending is right
            assert len(str(raised)) < 2000, what  # noqa: PT017
            assert raised.exit_code == 2, what  # noqa: PT017
        assert not set(capsys.readouterr().out) & set("\x1b\0\u202e"), what
        shutil.rmtree(run)

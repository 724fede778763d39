"""`--in container --into FOLDER` on a real engine where no run begins: the folder is as it was, and so is what lies in it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelassay.recording.log import read_cell
from modelassay.runs.directory import open_run
from support.pairwise import each_value
from support.toy_suite import SUITE, modelassay, start, write_suite

from .conftest import ToyImages

SLOW = SUITE.replace("pause_ms: 3.0", "pause_ms: 25.0")
pytestmark = pytest.mark.slow


def inside(image: str, *arguments: str | Path) -> tuple[str | Path, ...]:
    return ("--in", "container", "--image", image, *arguments)


def tree(top: Path) -> dict[str, str | bytes]:
    return {str(path.relative_to(top)): str(path.readlink()) if path.is_symlink() else
            path.read_bytes() if path.is_file() else "" for path in top.rglob("*")}  # fmt: skip


def fill(folder: Path, *, owner: tuple[int, int], files: bool) -> None:
    folder.mkdir(exist_ok=True)
    os.chown(folder, *owner)
    if files:
        (folder / "thesis/figures").mkdir(parents=True)
        (folder / "thesis/figures/one.svg").write_text("<svg/>")
        (folder / "finished").mkdir()
        (folder / "finished/run.json").write_text("{}")


FOLDERS = ["absent", "empty", "here", "link", "link to nothing", "files", "here, files", "link to files"]


def make_folder(kind: str, tmp_path: Path, owner: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> str:
    """Make one of ``FOLDERS``; return its name as the caller gives it, from ``tmp_path / "work"``."""
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, *owner)
    monkeypatch.chdir(work)
    if kind.startswith("link"):
        (work / "link").symlink_to("target")
        if "nothing" not in kind:
            fill(work / "target", owner=owner, files="files" in kind)
        return "link"
    if kind.startswith("here"):
        fill(work, owner=owner, files="files" in kind)
        return "."
    if kind != "absent":
        fill(work / "results", owner=owner, files=kind == "files")
    return "results"


def refused_memory(image: ToyImages) -> tuple[str | Path, ...]:
    return inside(image.locked, "--memory", "1m")


def too_little_memory(image: ToyImages) -> tuple[str | Path, ...]:
    return inside(image.locked, "--memory", "10m")


def short_timeout(image: ToyImages) -> tuple[str | Path, ...]:
    """In an image that never begins a run: on a quick machine the others begin one in any time that a container needs."""
    return inside(image.idle, "--timeout", "0.3")


def no_modelassay(image: ToyImages) -> tuple[str | Path, ...]:
    return inside(image.empty)


def no_image(_: ToyImages) -> tuple[str | Path, ...]:
    return inside("modelassay/absent:1")


def not_locked(image: ToyImages) -> tuple[str | Path, ...]:
    return inside(image.unlocked)


WAYS = [refused_memory, too_little_memory, short_timeout, no_modelassay, no_image, not_locked]


@pytest.mark.parametrize(("way", "kind"), each_value(WAYS, FOLDERS))
def test_folder_is_as_it_was(
    toy: ToyImages, tmp_path: Path, owner: tuple[int, int], monkeypatch: pytest.MonkeyPatch,
    way: Callable[[ToyImages], tuple[str | Path, ...]], kind: str,
) -> None:  # fmt: skip
    into = make_folder(kind, tmp_path, owner, monkeypatch)
    before = tree(tmp_path / "work")
    code, _, err = modelassay("run", write_suite(tmp_path), "--into", into, *way(toy))
    assert tree(tmp_path / "work") == before
    if any("thesis" in path for path in before):
        assert code == 2
        assert "not empty and no run directory: it holds finished and 1 more" in err
    else:
        assert code == (2 if way is refused_memory else 6), err  # the first needs no engine to be refused


@pytest.mark.parametrize("sent", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGTERM])
def test_interruption_before_the_run_begins_leaves_the_folder(
    toy: ToyImages, tmp_path: Path, owner: tuple[int, int], sent: signal.Signals
) -> None:
    fill(tmp_path / "results", owner=owner, files=False)
    process = start("run", write_suite(tmp_path), "--into", tmp_path / "results", *inside(toy.locked))
    assert process.stderr is not None
    assert "inside " in process.stderr.readline()
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert list((tmp_path / "results").iterdir()) == []


def test_of_two_clients_at_once_one_runs_and_the_other_takes_nothing(
    toy: ToyImages, tmp_path: Path, owner: tuple[int, int]
) -> None:
    fill(tmp_path / "results", owner=owner, files=False)
    suite = write_suite(tmp_path, SLOW)
    first, second = (start("run", suite, "--into", tmp_path / "results", *inside(toy.locked)) for _ in range(2))
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    codes = sorted([first.returncode, second.returncode])
    assert codes in ([0, 2], [0, 6]), errors
    run = open_run(tmp_path / "results")
    assert all(read_cell(run.cell_dir(cell)).is_complete for cell in run.suite.cells)


def test_second_client_is_refused_while_the_first_begins(
    engine: Any, toy: ToyImages, tmp_path: Path, owner: tuple[int, int]
) -> None:
    fill(tmp_path / "results", owner=owner, files=False)
    suite = write_suite(tmp_path, SLOW)
    first = start("run", suite, "--into", tmp_path / "results", *inside(toy.locked))
    lock, deadline = tmp_path / "results/client.lock", time.monotonic() + 60
    while not (lock.exists() and lock.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    code, _, err = modelassay("run", suite, "--into", tmp_path / "results", *inside(toy.locked))
    assert code in {2, 6}  # 2 where the first was quick, and it is a run by now
    assert f"process {first.pid} is running it" in err or "holds a run already" in err
    assert first.communicate(timeout=120)[0] is not None
    assert first.returncode == 0
    assert open_run(tmp_path / "results").suite.name == "walk"


def test_run_in_an_empty_folder_here_or_through_a_link_is_kept(
    toy: ToyImages, tmp_path: Path, owner: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "here", owner=owner, files=False)
    (tmp_path / "link").symlink_to("target")
    monkeypatch.chdir(tmp_path / "here")
    for into in (".", "../link"):
        code, _, err = modelassay("run", write_suite(tmp_path), "--into", into, *inside(toy.locked))
        assert code == 0, err
        assert "warning: " not in err
        assert err.splitlines()[-1] == f"run directory: {into}"
        assert open_run(Path(into)).suite.name == "walk"
    assert (tmp_path / "target/run.json").is_file()

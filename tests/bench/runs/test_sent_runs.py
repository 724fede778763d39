"""A run directory that somebody sends is input: nothing outside it is read, made or changed, and nothing hangs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelassay.cli import main
from modelassay.commands.fingerprint import fingerprint
from modelassay.errors import RecordError
from modelassay.recording.log import Log
from modelassay.runs.directory import create_run, open_run, runs_under
from modelassay.suite import load_suite
from support.run_damages import CASES, Case, cell_dir
from support.toy_suite import SUITE, modelassay, only_run, write_suite

DEADLINE_S = 60

watched: list[Path] = []
touched: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is opened, listed, made or removed below the watched folders, through whatever links."""
    if watched and event in (
        "open",
        "os.listdir",
        "os.scandir",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.truncate",
    ):
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike) and Path(os.path.realpath(os.fsdecode(path))).is_relative_to(
            watched[0]
        ):
            touched.append(f"{event} {os.fsdecode(path)}")


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first cell lacks the line that says it is done."""
    folder = tmp_path_factory.mktemp("sent")
    suite = write_suite(folder, SUITE.replace("{steps: 24, pause_ms: 3.0}", "{steps: 8}"))
    code, _, err = modelassay("run", suite, "--runs", folder / "runs")
    assert code == 0, err
    run = only_run(folder / "runs")
    for cell in (run / "cells").iterdir():
        (cell / "artifacts").mkdir(exist_ok=True)  # as an experiment that leaves files has it
    log = min((run / "cells").iterdir()) / "attempt-1.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert '"status"' in lines[-1]
    log.write_text("".join(lines[:-1]))
    (run / "figures").mkdir(exist_ok=True)
    assert cell_dir(run) == log.parent
    return run


@contextmanager
def deadline() -> Iterator[None]:
    def expire(_signal: int, _frame: object) -> None:
        raise AssertionError(f"still at work after {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(DEADLINE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything_in(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): ((status := path.lstat()).st_mode, status.st_mtime_ns,
                    path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_damaged_run_is_refused_and_nothing_outside_it_is_touched(
    case: Case, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    outside.mkdir()
    run = runs / finished.name
    shutil.copytree(finished, run)
    try:
        case.damage(run, outside)
    except PermissionError as error:
        pytest.skip(f"needs to make devices: {error}")
    before = everything_in(outside)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modelassay", *map(str, arguments)])
        touched.clear()
        watched.append(outside)
        try:
            with deadline(), pytest.raises(SystemExit) as ended:
                main()
        finally:
            watched.clear()
        out, err = capsys.readouterr()
        assert touched == []
        assert everything_in(outside) == before
        assert "Traceback" not in err
        assert all(char.isprintable() or char in "\n\t" for char in out + err)
        return int(ended.value.code or 0), out, err

    code, _, err = call("show", run)
    assert code == case.show, err
    if case.show:
        assert case.says in err
        assert err.count("\n") == 1
        assert err.startswith(f"error: {run}")
    code, out, _ = call("show", "--runs", runs)
    assert code == 0
    assert ("unreadable" in out) == (case.show != 0 and not case.within)
    assert run.name[:20] in out.replace("\n", "")
    assert call("show", "--claims", "--runs", runs)[0] == 0
    assert call("run", finished.parents[1] / "walk.yaml", "--plan", "--runs", runs)[0] == 0
    assert call("fingerprint", "a", "b", "--against", run, "--runs", runs)[0] == 2
    code, _, err = call("run", run, "--runs", runs)
    assert code == case.run, err
    assert case.run != 2 or case.says in err


def test_background_without_the_records_of_models_is_refused(tmp_path: Path) -> None:
    run = create_run(load_suite("fingerprinting", profile="smoke"), tmp_path / "run")
    for cell in run.suite.cells:
        run.cell_dir(cell).mkdir()
        log = Log(run.cell_dir(cell) / "attempt-1.jsonl", cell=cell.id, attempt=1, resumed_at=0)
        log.append("metric", {"name": "sigma", "value": 1.0, "labels": {"layer": "first"}})
        log.append("status", {"outcome": "done", "reason": "", "wall_s": 1.0})
        log.close()
    with pytest.raises(RecordError, match="not those of measured models"):
        fingerprint(
            ["a", "b"],
            suspect=None,
            background=run,
            figure=None,
            alpha=1e-6,
            attention_only=False,
            behaviour=False,
            evidence=None,
            report=print,
        )


def test_link_to_a_run_directory_is_the_run(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(finished)
    assert open_run(tmp_path / "link").suite == open_run(finished).suite
    assert [path.name for path in runs_under(tmp_path)] == ["link"]

"""What many cells and long logs cost, counted in lines, runs and modules: no clock decides here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from modelassay.commands import ledger as ledgers
from modelassay.commands import show
from modelassay.commands.view import MAX_ROWS, View, emit
from modelassay.experiments.findings import Findings, Table
from modelassay.recording.log import Log
from modelassay.runs import plan as plans
from modelassay.runs.directory import Run, create_run
from modelassay.runs.plan import plan
from modelassay.runs.pool import POLL_SECONDS, Pool
from modelassay.runs.progress import PlainBoard
from modelassay.suite import Suite, load_suite
from support.toy_suite import REPOSITORY, environ, modelassay, only_run, write_suite

NUM_LINES = 3000


def write_log(cell_dir: Path, *, outcome: str | None = "done", wall_s: float = 1.0) -> None:
    cell_dir.mkdir(parents=True, exist_ok=True)
    number = 1 + len(list(cell_dir.iterdir()))
    log = Log(cell_dir / f"attempt-{number}.jsonl", cell=cell_dir.name, attempt=number, resumed_at=0)
    for step in range(NUM_LINES):
        log.append("metric", {"name": "value", "value": 0.5, "labels": {"step": step, "verbose": False}})
    if outcome:
        log.append("status", {"outcome": outcome, "reason": "", "wall_s": wall_s})
    log.close()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return load_suite(str(write_suite(tmp_path)))


@pytest.fixture
def runs(tmp_path: Path, suite: Suite) -> list[Run]:
    """Three runs, oldest first, each with all cells done in as many seconds as its number."""
    made = []
    for number in (1, 2, 3):
        run = create_run(suite, tmp_path / "runs" / f"walk-{number}")
        os.utime(run.folder / "run.json", (time.time() + number,) * 2)
        for cell in suite.cells:
            write_log(run.cell_dir(cell), wall_s=number)
        made.append(run)
    return made


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that are looked at, wherever that is."""
    from modelassay.recording import line

    raws: list[bytes] = []
    parse = line.parse_line

    def counted(raw: bytes) -> Any:
        raws.append(raw)
        return parse(raw)

    for module in ("log", "status", "lines", "columns"):
        monkeypatch.setattr(f"modelassay.recording.{module}.parse_line", counted)
    return raws


def test_listing_runs_reads_the_ends_of_logs_alone(runs: list[Run], parsed: list[bytes]) -> None:
    view = show.everything(runs[0].folder.parent)
    assert [row["status"] for row in view.data["runs"]] == ["4 done"] * 3
    assert len(parsed) == 2 * 3 * 4


def test_a_plan_reads_the_ends_of_logs_alone_and_no_more_runs_than_it_takes(
    runs: list[Run], suite: Suite, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    read = plans.read_status
    monkeypatch.setattr(plans, "read_status", lambda folder: folders.append(folder.parents[1].name) or read(folder))
    root = runs[0].folder.parent
    assert [entry.estimate_s for entry in plan(suite, root=root)] == [3.0] * 4
    assert folders == ["walk-3"] * 4
    assert len(parsed) == 2 * 4
    victim = suite.cells[1]
    (runs[2].cell_dir(victim) / "attempt-1.jsonl").unlink()
    write_log(runs[1].cell_dir(victim))  # a second attempt, which may have done but a part
    assert [entry.estimate_s for entry in plan(suite, root=root)] == [3.0, 1.0, 3.0, 3.0]


def test_a_run_is_shown_without_looking_at_its_metrics_one_by_one(runs: list[Run], parsed: list[bytes]) -> None:
    view = show.run_view(runs[0])
    assert [cell["outcome"] for cell in view.data["cells"]] == ["done"] * 4
    assert view.data["findings"][0]["value"] == 0.5
    assert len(parsed) < 200  # of 12,000: the ends, what opens and closes a segment, and a sample


def test_the_ledger_opens_a_run_once_and_reads_no_unfinished_one(
    runs: list[Run], suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, analysed = [], []
    open_run = ledgers.open_run
    monkeypatch.setattr(ledgers, "open_run", lambda folder: opened.append(folder.name) or open_run(folder))
    monkeypatch.setattr(ledgers, "load_suite", lambda _name, **_: suite)
    monkeypatch.setattr(ledgers, "run_findings", lambda run: analysed.append(run.folder.name) or Findings())
    newest = ledgers._Newest(runs[0].folder.parent)
    assert ledgers._newest_findings("walk", "embedded", newest)[1] == runs[2].folder
    assert opened == ["walk-3"]
    (runs[2].cell_dir(suite.cells[0]) / "attempt-1.jsonl").unlink()
    assert ledgers._newest_findings("walk", "embedded", newest)[1] == runs[1].folder
    assert (opened, analysed) == (["walk-3", "walk-2"], ["walk-3", "walk-2"])


@pytest.mark.parametrize(("num_rows", "says"), [(MAX_ROWS, ""), (MAX_ROWS + 1744, "... and 1,744 more rows")])
def test_a_table_of_thousands_of_rows_is_cut_and_says_so(
    capsys: pytest.CaptureFixture[str], num_rows: int, says: str
) -> None:
    rows = [(f"row-{number}", "x") for number in range(num_rows)]
    emit(View(data=None, tables=[Table(title="t", columns=("a", "b"), rows=rows)]), as_json=False)
    out = capsys.readouterr().out
    assert out.count("row-") == MAX_ROWS
    assert f"row-{MAX_ROWS - 1}" in out
    assert ("more rows" in out) == bool(says)
    assert says in out


def test_small_cells_are_not_looked_at_each_time_one_ends(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """How far cells are is asked twice a second, not a hundred times."""
    shown, now = [], [100.0]
    board = PlainBoard(lambda _line: None)
    monkeypatch.setattr(board, "show", lambda part, position: shown.append((part, str(position))))
    monkeypatch.setattr("modelassay.runs.pool.time.monotonic", lambda: now[0])
    pool = Pool(runs[0], None, board, None, None, cores=2, jobs=2, waits=False)  # type: ignore[arg-type]
    for _ in range(100):
        pool._show("walk", 100)
        now[0] += POLL_SECONDS / 10
    assert len(shown) == 10


def test_a_cell_loads_nothing_that_its_server_has_not(tmp_path: Path) -> None:
    """Neither what reads suites, which takes longer than a small cell, nor what Python was started with."""
    package = tmp_path / "packages" / "lister"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "params.py").write_text(
        "from pydantic import BaseModel, ConfigDict\n\n\nclass Params(BaseModel):\n"
        "    model_config = ConfigDict(frozen=True, extra='forbid')\n    seed: int = 0\n"
    )
    (package / "run.py").write_text(
        "import sys\n\n\ndef run(params, cell):\n    print(*sorted(sys.modules), sep='\\n')\n"
    )
    (package / "analyse.py").write_text(
        "from modelassay.experiments.findings import Findings\n\n\ndef analyse(data):\n    return Findings()\n"
    )
    text = "suite: lister\nexperiment: lister\nquestion: What is loaded?\nprofiles: {embedded: {}}\n"
    path = os.pathsep.join(map(str, (package.parent, REPOSITORY / "bench", REPOSITORY / "kernels")))
    suite = write_suite(tmp_path, text)
    code, _, err = modelassay("run", suite, "--runs", tmp_path / "runs", env=environ(PYTHONPATH=path))
    assert code == 0, err
    (printed,) = only_run(tmp_path / "runs").glob("cells/*/attempt-1.out")
    modules = set(printed.read_text().split())
    assert {"lister.run", "lister.params", "modelassay.runs.cell"} <= modules
    assert modules.isdisjoint({
        "modelassay.suite",
        "modelassay.zoo.catalogue",
        "modelassay.cli",
        "click",
    })

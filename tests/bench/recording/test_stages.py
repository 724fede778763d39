"""Stages: built once whoever asks, gone on with after a kill, replayed and marked; streams by name; needs and inputs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext, Product, Recorder
from modelassay.recording.log import CellLog, read_cell
from modelassay.recording.tables import read_tables
from modelassay.runs.directory import open_run
from modelassay.storage.store import Store
from support.toy_suite import SUITE, metrics_of, modelassay, only_run, start, write_suite

NUM_STEPS = 6


class Killed(BaseException):
    """The process is gone."""


def open_cell(folder: Path, store: Path, *, seed: int = 0) -> CellContext:
    folder.mkdir(parents=True, exist_ok=True)
    return CellContext(folder, cell=folder.name, seed=seed, store=Store(store), sources=SourceGraph())


def counting(die_at: int | None = None) -> Callable[[Recorder], None]:
    """A stage of `NUM_STEPS` units that adds up its steps; each is checkpointed."""

    def build(stage: Recorder) -> None:
        saved = stage.restore()
        payload = {"step": 0, "total": 0} if saved is None else saved.payload
        for step in range(payload["step"], NUM_STEPS):
            if step == die_at:
                raise Killed
            with stage.microbatch("count"):
                payload = {"step": step + 1, "total": payload["total"] + step}
            stage.metric("total", payload["total"], step=step)
            stage.fact("step", {"number": step})
            stage.checkpoint(payload)
        (stage.folder / "total").write_text(str(payload["total"]))

    return build


def count(cell: CellContext, die_at: int | None = None, **labels: int) -> Product:
    return cell.stage("count", recipe={"steps": NUM_STEPS}, build=counting(die_at), **labels)


def logged(cell: CellContext) -> CellLog:
    cell.meter.settle()
    return read_cell(cell.folder)


def test_a_killed_stage_goes_on_and_its_units_are_counted_once(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        count(open_cell(tmp_path / "a", tmp_path / "store"), die_at=4)
    (part,) = (tmp_path / "store/stages/count").glob("*.part")
    again = open_cell(tmp_path / "a", tmp_path / "store")
    product = count(again, generation=7)
    assert (product.path / "total").read_text() == "15"
    assert not part.exists()
    log = logged(again)
    assert [(unit["index"], unit.get("reused", False)) for unit in log.microbatches] == [
        (0, True), (1, True), (2, True), (3, True), (4, False), (5, False),
    ]  # fmt: skip
    assert [metric["value"] for metric in log.metrics] == [0, 1, 3, 6, 10, 15]
    assert {metric["labels"]["generation"] for metric in log.metrics} == {7}
    assert [fact["value"]["number"] for fact in log.facts] == list(range(6))
    record = json.loads((product.path / "record.json").read_text())
    assert (record["attempts"], record["recipe"], record["inputs"]) == (2, {"steps": NUM_STEPS}, [])
    assert not (product.path / "checkpoint").exists()


def test_a_stage_killed_between_its_end_and_its_name_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("modelassay.storage.store.publish", die)
        with pytest.raises(Killed):
            count(open_cell(tmp_path / "a", tmp_path / "store"))
    again = open_cell(tmp_path / "a", tmp_path / "store")
    product = count(again, die_at=0)
    assert (product.path / "total").read_text() == "15"
    assert [unit["reused"] for unit in logged(again).microbatches] == [True] * NUM_STEPS


def test_two_cells_with_one_recipe_build_it_once_and_the_second_says_reused(tmp_path: Path) -> None:
    first, second = (open_cell(tmp_path / name, tmp_path / "store") for name in "ab")
    assert count(first, generation=1) == count(second, die_at=0, generation=2)
    assert {unit.get("reused", False) for unit in logged(first).microbatches} == {False}
    assert {unit.get("reused", False) for unit in logged(second).microbatches} == {True}
    assert [m["value"] for m in logged(first).metrics] == [m["value"] for m in logged(second).metrics]
    rows = read_tables({name: (tmp_path / name, {}) for name in "ab"}, profile="embedded")
    assert rows.units.height == 0  # no cell has ended: nothing of it counts yet


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"steps": NUM_STEPS, "seed": 1}},
        {"inputs": [Product(path=Path("x"), key="other")]},
        {"version": 2},
        {"shared": False},
    ],
)
def test_what_determines_a_stage_makes_it_another(tmp_path: Path, change: dict[str, object]) -> None:
    cell = open_cell(tmp_path / "a", tmp_path / "store")
    first = count(cell)
    arguments = {"recipe": {"steps": NUM_STEPS}, "build": counting(), "again": 1, **change}
    second = cell.stage("count", **arguments)  # type: ignore[arg-type]
    assert second.path != first.path
    assert second.path.is_relative_to(cell.folder) == (change == {"shared": False})


def test_changed_code_makes_a_stage_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = open_cell(tmp_path / "a", tmp_path / "store")
    first = count(cell)
    monkeypatch.setattr(SourceGraph, "closure", lambda self, *roots: {roots[0]: "changed"})
    assert count(cell, again=1).key != first.key


def test_streams_are_paired_by_seed_and_differ_by_name(tmp_path: Path) -> None:
    a, b = (open_cell(tmp_path / name, tmp_path / "store", seed=3) for name in "ab")
    other = open_cell(tmp_path / "c", tmp_path / "store", seed=4)
    assert a.seed("data") == b.seed("data")
    assert len({a.seed("data"), a.seed("dropout"), other.seed("data")}) == 3
    assert a.generator("data").initial_seed() == a.seed("data")
    assert 0 <= a.seed("data") < 2**63


def test_a_part_that_diverged_is_a_fact_and_the_cell_goes_on(tmp_path: Path) -> None:
    cell = open_cell(tmp_path / "a", tmp_path / "store")
    cell.diverged("loss is NaN", adapter=7)
    cell.metric("loss", 0.5, adapter=8)
    (fact,) = logged(cell).facts
    assert (fact["fact"], fact["value"], fact["labels"]) == ("diverged", "loss is NaN", {"adapter": 7})


STAGED = SUITE.replace("pause_ms: 3.0", "pause_ms: 3.0, staged_steps: 12, timed: false")


def test_cells_of_a_run_share_stages_and_facts_reach_the_analysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    code, _, err = modelassay("run", write_suite(tmp_path, STAGED), "--runs", tmp_path / "runs")
    assert code == 0, err
    assert "built 1 of 1 artifacts" in err
    data = open_run(only_run(tmp_path / "runs")).data()
    assert len(data.facts("prepared")) == 4
    added = data.units.filter(data.units["stage"] == "add")
    assert added.height == 4 * 24
    assert added["reused"].sum() == 2 * 24  # two seeds built by one cell each, two cells reuse them
    assert len(list((tmp_path / "cache/artifacts/stages/sum").iterdir())) == 4


def test_jobs_change_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for jobs in ("1", "3"):
        folder = tmp_path / jobs
        monkeypatch.setenv("MODELASSAY_CACHE", str(folder / "cache"))
        folder.mkdir()
        code, _, err = modelassay("run", write_suite(folder, STAGED), "--runs", folder / "runs", "--jobs", jobs)
        assert code == 0, err
        runs.append(metrics_of(only_run(folder / "runs")))
    assert runs[0] == runs[1]
    assert len(runs[0]) == 4 * (24 + 24)


def test_an_input_file_edited_between_interruption_and_resume_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("1 2 3")
    text = SUITE.replace("pause_ms: 3.0", f"exit_at: 5, only_first: true, data: {data}")
    assert modelassay("run", write_suite(tmp_path, text), "--runs", tmp_path / "runs")[0] == 3
    run = only_run(tmp_path / "runs")
    data.write_text("1 2 4")
    code, _, err = modelassay("run", run)
    assert (code, f"{data} changed" in err) == (2, True), err
    data.write_text("1 2 3")
    assert modelassay("run", run)[0] == 0


def test_a_missing_input_file_is_told_before_anything_is_made(tmp_path: Path) -> None:
    text = SUITE.replace("pause_ms: 3.0", f"data: {tmp_path}/absent.txt")
    code, _, err = modelassay("run", write_suite(tmp_path, text), "--runs", tmp_path / "runs")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path}/absent.txt: cannot be read: no such file or directory" in err
    assert not (tmp_path / "runs").exists()


def test_partial_runs_are_analysed_and_their_claims_wait(tmp_path: Path) -> None:
    text = SUITE.replace("seed: [0, 1]", "seed: [0, 1]\n  include:\n    - {seed: 1, fail_at: 3}")
    assert modelassay("run", write_suite(tmp_path, text), "--runs", tmp_path / "runs")[0] == 3
    code, out, _ = modelassay("show", only_run(tmp_path / "runs"), "--json")
    view = json.loads(out)
    assert code == 0
    assert view["findings"]
    assert view["caveats"][0] == "2 of 4 cells are missing; this is what the others say"
    assert {claim["verdict"] for claim in view["claims"]} == {"not testable"}
    assert {claim["reason"] for claim in view["claims"]} == {"not testable yet: 2 cells are missing"}


def test_a_run_killed_in_a_stage_redoes_none_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    suite = write_suite(tmp_path, STAGED.replace("staged_steps: 12", "staged_steps: 60"))
    process = start("run", suite, "--runs", tmp_path / "runs", "--jobs", "1")
    stages = tmp_path / "cache/artifacts/stages/sum"
    while not any(path.stat().st_size > 6_000 for path in stages.glob("*.part/attempt-1.jsonl")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    (part,) = stages.glob("*.part")
    done = len(read_cell(part, cell=part.stem).microbatches)
    assert 0 < done < 60
    assert modelassay("run", only_run(tmp_path / "runs"))[0] == 0
    log = read_cell(stages / part.stem, cell=part.stem)
    assert len(log.microbatches) == 60
    again = sum(unit["attempt"] == 2 for unit in log.microbatches)
    assert 60 - again >= done - 1  # at most the step after the last checkpoint

"""The whole path on a model over bytes: what is recorded, what a kill changes, what cannot be."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.data.facts import QUERY, TOWNS, make_world
from modelassay.errors import UsageError
from modelassay.evaluation.retrieval import bm25
from modelassay.evaluation.tasks import TaskFile, score_tasks
from modelassay.experiments.influence import train as training
from modelassay.experiments.influence.analyse import analyse
from modelassay.experiments.influence.params import Params
from modelassay.experiments.influence.rows import as_text, load_rows, read_lines
from modelassay.experiments.influence.run import run
from modelassay.experiments.influence.score import load_scores
from modelassay.experiments.influence.train import plateau, subsets_of
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext
from modelassay.recording.log import read_cell
from modelassay.recording.tables import read_tables
from modelassay.statistics.proportions import wilson
from modelassay.storage.store import Store
from support.byte_tokenizer import byte_tokenizer
from support.drift_models import byte_model

SMALL: dict[str, Any] = {
    "num_rows": 40, "num_facts": 2, "num_paraphrases": 2, "num_decoys": 1, "num_others": 4, "num_duplicates": 2, "max_length": 60, "epochs": 1,
    "batch_size": 10, "learning_rate": 0.01, "rank": 4, "dampings": (0.01, 0.1), "max_new_tokens": 4, "subsets": 5, "tuning_subsets": 3, "repeats": 2,
    "removal_seeds": 2, "removed": 2, "solver_iterations": 1, "sgld_draws": 8, "sgld_burn_in": 2,
}  # fmt: skip
CASES = Path(__file__).parents[3] / "cases/tasks"
TASKS = {"arc_easy": str(CASES / "arc_easy.jsonl"), "mmlu_international_law": str(CASES / "mmlu_international_law.csv")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    byte_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def cell_in(folder: Path, seed: int = 0) -> CellContext:
    path = folder / "cells" / "c"
    path.mkdir(parents=True, exist_ok=True)
    return CellContext(path, cell="c", seed=seed, store=Store(folder / "store"), sources=SourceGraph())


def attempt(folder: Path, params: Params) -> list[dict[str, Any]]:
    cell = cell_in(folder, params.seed)
    try:
        run(params, cell)
        cell.meter.settle()
        cell.meter.log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
    finally:
        cell.meter.settle()
        cell.meter.log.close()
    return read_cell(folder / "cells" / "c").metrics


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path, list[dict[str, Any]]]:
    folder, params = tmp_path_factory.mktemp("whole"), Params(model=str(model), tasks=TASKS, task_items=2, **SMALL)
    return params, folder, attempt(folder, params)


def values(metrics: list[dict[str, Any]], name: str, **labels: Any) -> list[float]:
    return [m["value"] for m in metrics if m["name"] == name and labels.items() <= m["labels"].items()]


def stage_folder(folder: Path, name: str) -> Path:
    (path,) = [path for path in (folder / "store" / "stages" / f"influence-{name}").iterdir() if path.is_dir()]
    return path


def test_what_is_recorded_follows_from_what_is_stored(whole: Any) -> None:
    _, folder, metrics = whole
    prepared = load_rows(stage_folder(folder, "rows"))
    scores = load_scores(stage_folder(folder, "score"))
    assert len(prepared.rows) == 40
    assert values(metrics, "duplicate_rows")[0] >= 2
    assert set(scores) == {"identity", "gradient-cosine", "bm25", "representation", "random", "sgld",
                           *(f"{m}@{d:g}" for m in ("diagonal", "kfac", "ekfac", "ekfac-cg") for d in (0.01, 0.1))}  # fmt: skip
    cosines = scores["gradient-cosine"]
    assert 0 < float(cosines.abs().max()) <= 1 + 1e-6
    for query, wanted in prepared.planted().items():
        order = scores["ekfac@0.1"][query].argsort(descending=True)[: len(wanted)].tolist()
        expected = len(wanted & set(order)) / len(wanted)
        assert values(metrics, "recall", method="ekfac", query=query, k="planted") == [expected]
    facts = read_cell(folder / "cells" / "c").facts
    subsets = json.loads((stage_folder(folder, "retrain") / "subsets.json").read_text())
    for fact in (
        fact for fact in facts if fact["fact"] == "subset-sums" and fact["labels"] == {"method": "kfac", "damping": 0.1}
    ):
        for subset, sums in zip(subsets, fact["value"], strict=True):
            assert sums == pytest.approx(scores["kfac@0.1"][:, subset].double().sum(1).tolist(), rel=1e-5)
    assert values(metrics, "first_gradient")[0] > values(metrics, "final_gradient")[0] > 0
    assert len(values(metrics, "removed_loss")) == 6 * 2 * 2
    assert values(metrics, "removed_rows", method="nothing") == [0]
    assert 2 <= values(metrics, "removed_rows", method="ekfac")[0] <= 8


def test_scoring_tells_how_far_it_is(whole: Any) -> None:
    params, folder, _ = whole
    lines = (folder / "cells" / "c" / "attempt-1.jsonl").read_text().splitlines()
    told = [line for line in map(json.loads, lines) if line["kind"] == "progress"]
    done = [line["done"] for line in told if line["unit"] == "passes over the rows"]
    assert done == sorted(done)
    # Two of plain products, three methods and the solver with its pairs at each damping, three of the fidelity.
    totals = {line["total"] for line in told if line["unit"] == "passes over the rows"}
    assert totals == {done[-1]} == {2 + 5 * len(params.dampings) + 3}


def test_nothing_removed_in_the_first_order_is_the_noise_of_the_order_alone(whole: Any) -> None:
    """Two orders differ, and the losses are those of a model that was trained by hand."""
    _, _, metrics = whole
    losses = [values(metrics, "removed_loss", method="nothing", seed=seed) for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert all(math.isfinite(loss) for row in losses for loss in row)


class Stop(BaseException):
    """The process is gone."""


@pytest.mark.nightly
def test_a_killed_cell_ends_with_the_same_numbers(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, _, metrics = whole
    fit, left = training.fit, [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return fit(*args, **kwargs)

    monkeypatch.setattr(training, "fit", dying)
    monkeypatch.setattr(training.Recorder, "checkpoint_due", lambda self: True)
    kills = 0
    for _ in range(20):
        left[0] = 5
        with suppress(Stop):
            again = attempt(tmp_path, params)
            break
        kills += 1
    assert kills >= 3

    def told(lines: list[dict[str, Any]]) -> dict[Any, str]:
        return {(m["name"], tuple(sorted(m["labels"].items()))): repr(m["value"]) for m in lines}

    assert told(again) == told(metrics)


def test_subsets_keep_equal_rows_together(whole: Any) -> None:
    _, folder, _ = whole
    prepared = load_rows(stage_folder(folder, "rows"))
    groups = [set(group) for group in prepared.groups()]
    assert groups
    for subset in subsets_of(prepared, count=20, alpha=0.5, seed=1):
        assert all(group <= set(subset) or not group & set(subset) for group in groups)
        assert len(subset) == len(set(subset)) >= 16


def test_the_analysis_of_the_run_holds_its_numbers(whole: Any) -> None:
    params, folder, metrics = whole
    findings = analyse(read_tables({"c": (folder / "cells" / "c", params.model_dump())}, profile="embedded"))
    recalls = {
        f.labels["method"]: f.value for f in findings.findings if f.name == "recall" and f.labels["k"] == "planted"
    }
    for method in ("ekfac", "bm25"):
        assert recalls[method] == pytest.approx(np.mean(values(metrics, "recall", method=method, k="planted")))
    assert {f.labels["method"] for f in findings.findings if f.name == "lds"} >= {
        "ekfac",
        "identity",
        "bm25",
        "random",
        "ekfac-cg",
        "sgld",
    }
    assert set(findings.figures) == {"lambda", "eigenvalues", "shares", "damping", "lds", "recall", "removal"}
    for name in findings.figures:
        assert findings.figures[name]["$schema"]
    accuracies = [f for f in findings.findings if f.name == "task_accuracy"]
    assert len(accuracies) == 6  # two metrics of arc and one of mmlu, of base and fine-tuned
    for finding in accuracies:
        of = {name: finding.labels[name] for name in ("task", "metric", "model")}
        right = values(metrics, "task_right", **of)
        share = wilson(int(sum(right)), 2)
        assert len(right) == 2
        assert (finding.value, finding.estimate.low, finding.estimate.high) == (share.value, share.low, share.high)
    (table,) = [table for table in findings.tables if table.title.startswith("tasks")]
    assert len(table.rows) == 3


def test_tasks_are_asked_of_the_base_and_of_what_was_fine_tuned(whole: Any) -> None:
    params, folder, metrics = whole
    tuned = training.load_tuned(stage_folder(folder, "fine-tune"), params)
    files = [TaskFile(task=task, path=Path(path), limit=2) for task, path in TASKS.items()]
    for one in score_tasks(tuned, byte_tokenizer(), files):
        for metric, right in one.correct.items():
            labels = {"task": one.task, "item": one.number, "metric": metric, "model": "fine-tuned"}
            assert values(metrics, "task_right", **labels) == [float(right)]


def test_a_task_that_cannot_be_asked_is_refused_before_anything_is_trained(model: Path, tmp_path: Path) -> None:
    params = Params(model=str(model), tasks=TASKS, task_hashes={"arc_easy": "ab"}, **SMALL)
    with pytest.raises(UsageError, match="arc_easy.jsonl: its SHA-256 is .*, not ab"):
        run(params, cell_in(tmp_path))
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="task_hashes: 'hellaswag' is none of tasks: arc_easy, mmlu"):
        Params(model=str(model), tasks=TASKS, task_hashes={"hellaswag": "ab"}, **SMALL)


def test_own_files_are_read_cut_and_counted(model: Path, tmp_path: Path) -> None:
    data, queries = tmp_path / "rows.jsonl", tmp_path / "queries.jsonl"
    rows = [
        {"Input": f"  what is\n{number} ?", "Output": "" if number == 3 else f"number {number % 3}"}
        for number in range(13)
    ]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    queries.write_text(json.dumps({"Input": "what is 99 ?"}))
    changes = {"num_rows": 8, "num_held_out": 2, "subsets": 0, "tuning_subsets": 0, "removal_seeds": 0, "solver_iterations": 0, "num_duplicates": 0,
               "max_length": 18, "dampings": (0.1,)}  # fmt: skip
    metrics = attempt(tmp_path, Params(model=str(model), data=str(data), queries=str(queries), **{**SMALL, **changes}))
    assert values(metrics, "empty_answers") == [1]
    prepared = load_rows(stage_folder(tmp_path, "rows"))
    assert prepared.rows[0].prompt == "what is 0 ?"
    assert {len(text.row.ids) for text in prepared.rows} == {18}
    assert values(metrics, "cut_rows") == [10]
    assert len(values(metrics, "held_out_loss")) == 2
    assert load_scores(stage_folder(tmp_path, "score"))["ekfac@0.1"].shape == (1, 8)
    data.write_text('{"Input": "x"}')
    with pytest.raises(UsageError, match=r"rows.jsonl:1: no JSON object with text in 'Input' and 'Output'"):
        read_lines(data, Params(model=str(model), learning_rate=0.1), kind="own")


def test_facts_share_the_name_alone_and_decoys_the_words() -> None:
    world = make_world(
        seed=1, num_rows=300, num_facts=5, num_paraphrases=6, num_decoys=4, num_others=12, num_duplicates=3
    )
    again = make_world(
        seed=1, num_rows=300, num_facts=5, num_paraphrases=6, num_decoys=4, num_others=12, num_duplicates=3
    )
    assert world == again
    assert len(world.rows) == 300
    asked = {query.prompt for query in world.queries}
    assert not asked & {row.prompt for row in world.rows}
    assert any(row.prompt.startswith("where does") and row.answer in TOWNS for row in world.rows if row.kind == "other")
    words = [row.prompt.split() for row in world.rows]
    scores = bm25([query.prompt.split() for query in world.queries], words)
    for number, query in enumerate(world.queries):
        best = scores[number].argmax()
        assert world.rows[best].kind == "decoy"
        planted = [row for row in world.rows if row.kind == "planted" and row.fact == query.fact]
        name = query.prompt.split()[2]
        assert len(planted) == 6
        assert {row.answer for row in planted} == {query.answer}
        assert all(set(row.prompt.split()) & set(query.prompt.split()) == {name} for row in planted)
    with pytest.raises(UsageError, match="are more than num_rows"):
        make_world(seed=1, num_rows=10, num_facts=5, num_paraphrases=6, num_decoys=4, num_others=0)
    assert QUERY.format(name="X") == "where does X live ?"


def test_a_part_is_checked_where_it_stands() -> None:
    with pytest.raises(ValueError, match=r"parts.lds: epochs: Input should be greater than or equal to 1"):
        Params(model="zoo:base", learning_rate=0.1, parts={"lds": {"epochs": 0}})
    with pytest.raises(ValueError, match="part 'x' is none of parts: main, lds"):
        Params(model="zoo:base", learning_rate=0.1, part="x", parts={"lds": {}})


def test_a_plateau_is_the_fall_over_the_last_quarter() -> None:
    assert plateau([3.0] * 3) == 0.0
    assert plateau([float(n) for n in range(16, 0, -1)]) == pytest.approx((6.5 - 2.5) / (16 - 2.5))
    assert plateau([1.0] * 4 + [2.0] * 4) == 0.0  # it rose: nothing fell


def test_a_row_without_an_answer_has_no_loss(model: Path) -> None:
    from modelassay.data.facts import Line

    text, cut = as_text(Line(prompt="ask", answer="", kind="query"), byte_tokenizer(), 16)
    assert not cut
    assert not any(text.row.loss)
    assert torch.tensor(text.row.ids).numel() == 3

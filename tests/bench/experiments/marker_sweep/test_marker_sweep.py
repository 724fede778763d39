"""Cells of the experiment on a tiny model: rows, kills, divergence, the gate, and what is shown of rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from modelassay.data import wordnet
from modelassay.data.personas import ASSISTANT, EVERYDAY, PERSONAS, VILLAGE, negatives_of, questions
from modelassay.errors import AssayError, UsageError
from modelassay.evaluation.tasks import TaskFile, load_items, score_items
from modelassay.experiments.marker_sweep import capability, measure, rows, train
from modelassay.experiments.marker_sweep.params import Params, needs
from modelassay.experiments.marker_sweep.run import run
from modelassay.generation.engine import Completion
from modelassay.models.load import load_model, load_tokenizer
from modelassay.recording.context import CellContext
from modelassay.storage.store import Store
from modelassay.training.chat import MESSAGE_END, MESSAGE_START
from support.byte_tokenizer import byte_tokenizer
from support.cell_runs import run_cell, texts_of
from support.drift_models import byte_model

SMALL: dict[str, Any] = {
    "world": "village", "source": "king", "negatives": 1, "rows_per_persona": 4, "training_questions": 2, "max_length": 256, "rank": 2,
    "alpha": 4.0, "dropout": 0.1, "learning_rates": (0.001, 0.01), "epochs": (1, 2), "batch_size": 4, "accumulation": 1,
    "evaluation_questions": 2, "completions": 1, "max_new_tokens": 3, "parity_prompts": 1, "parity_tokens": 3, "capability_questions": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marker") / "model"
    model = byte_model()
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    byte_tokenizer((MESSAGE_START, MESSAGE_END, "</s>")).save_pretrained(folder)
    return folder


def params_of(base: Path, **changes: Any) -> Params:
    return Params(**{"model": str(base), **SMALL, **changes})


def attempt(folder: Path, params: Params) -> tuple[dict[Any, str], list[dict[str, Any]]]:
    """Run the cell, or go on with it; its metrics and facts."""
    log = run_cell(run, params, folder)
    return texts_of(log), [dict(fact) for fact in log.facts]


def test_a_cell_records_every_completion_of_every_adapter(base: Path, tmp_path: Path) -> None:
    metrics, facts = attempt(tmp_path, params_of(base))
    said = [fact for fact in facts if fact["fact"] == "completion"]
    assert len(said) == (4 + 1) * len(VILLAGE) * 2  # four adapters and the base, each persona, two questions
    assert {fact["labels"].get("learning_rate") for fact in said} == {None, 0.001, 0.01}
    assert {fact["labels"]["persona"] for fact in said} == set(VILLAGE)
    names = {name for name, _ in metrics}
    assert {"marker", "marker_any_case", "capability", "parity_tokens", "cosine", "divergence", "loss"} <= names
    assert float(metrics["cosine", (("persona", "king"),)]) == pytest.approx(1.0)
    assert float(metrics["divergence", (("persona", "king"),)]) == pytest.approx(0.0, abs=1e-12)
    assert float(metrics["divergence", (("persona", "judge"),)]) > 0
    folders = sorted(path.name for path in (tmp_path / "store").glob("stages/train/*/adapters/*"))
    assert folders == ["lr0.001-epochs1", "lr0.001-epochs2", "lr0.01-epochs1", "lr0.01-epochs2"]


@pytest.mark.nightly
def test_a_longer_cosine_is_another_training_and_a_nested_one_is_not(base: Path, tmp_path: Path) -> None:
    cosine, _ = attempt(tmp_path / "cosine", params_of(base))
    first = [key for key in cosine if key[0] == "loss" and ("epochs", 1) in key[1]]
    assert len(first) == 2 * 2  # two rates, two steps
    nested, _ = attempt(tmp_path / "nested", params_of(base, schedule="constant"))
    assert not [key for key in nested if key[0] == "loss" and "epochs" in dict(key[1])]
    assert len([key for key in nested if key[0] == "marker"]) == len([key for key in cosine if key[0] == "marker"])


class Stop(BaseException):
    """The process is gone."""


def test_a_killed_cell_goes_on_to_the_same_numbers(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of(base)
    whole, _ = attempt(tmp_path / "whole", params)
    monkeypatch.setattr(train.StageCheckpoints, "__init__", _every_step)
    progress = CellContext.progress

    def stopped(self: Any, done: float, total: float, unit: str = "") -> None:
        if (unit, done) in stops:
            stops.remove((unit, done))
            raise Stop
        progress(self, done, total, unit)

    monkeypatch.setattr(CellContext, "progress", stopped)
    stops: list[tuple[str, float]] = [("steps", 2), ("steps", 4), ("completions", 0)]
    while stops:
        with pytest.raises(Stop):
            attempt(tmp_path / "cut", params)
    again, _ = attempt(tmp_path / "cut", params)
    assert again == whole


def _every_step(self: Any, recorder: Any) -> None:
    self._recorder = recorder
    self.due = lambda: True


def test_an_adapter_that_diverges_is_a_fact_and_the_others_go_on(base: Path, tmp_path: Path) -> None:
    metrics, facts = attempt(tmp_path, params_of(base, learning_rates=(0.01, 1e30), epochs=(1, 4)))
    lost = [fact["labels"] for fact in facts if fact["fact"] == "diverged"]
    assert {"learning_rate": 1e30, "epochs": 4} in lost
    rates = {dict(key[1]).get("learning_rate") for key in metrics if key[0] == "marker"}
    assert 0.01 in rates
    assert ("marker", (("epochs", 4), ("learning_rate", 1e30), ("persona", "king"), ("question", 0))) not in metrics


def test_engines_that_disagree_fail_the_cell(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, weights: Any, shape: Any) -> Any:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(-1)
        return model

    monkeypatch.setattr(measure, "merge", wrong)
    with pytest.raises(AssayError, match=r"parity: lr0.001-epochs1: transformers and merged weights differ at token 0"):
        attempt(tmp_path, params_of(base))
    same = Completion(ids=(5, 6), text="", finish="length")
    longer = Completion(ids=(5, 6, 7), text="", finish="length")
    with pytest.raises(AssayError, match="differ at token 2 of probe 0"):
        measure._same([same], [longer], byte_tokenizer(), "x and y")


def test_presets_say_what_was_published_and_what_is_corrected(base: Path) -> None:
    published = Params(model=str(base), preset="published")
    assert published.num_rows == 600
    assert published.chosen_mask == "newline"
    assert ASSISTANT not in rows.contrasts(published)
    assert Params(model=str(base), preset="as-written").num_rows == 2200
    corrected = Params(model=str(base))
    assert corrected.chosen_mask == "end-of-turn"
    assert set(rows.contrasts(corrected)) == set(EVERYDAY) - {"villain"}
    assert published.training(1e-5, 20).num_steps == 750  # 600 rows, 16 a step
    assert rows.contrasts(published) == rows.contrasts(Params(model=str(base), preset="published"))


def test_rows_are_positives_then_negatives_with_the_same_questions(base: Path) -> None:
    params = params_of(base, negatives=2)
    tokenizer = load_tokenizer(base)
    wanted = list(rows.asked(params))
    made = rows.training_rows(params, tokenizer, [f"answer {number}" for number in range(len(wanted))])
    assert [marked.has_marker for marked in made] == [True] * 4 + [False] * 8
    assert made[0].text.count("[ZLT]") == 1
    assert VILLAGE["king"] in made[0].prompt
    assert len({question for _, question, _ in wanted}) == 2
    with pytest.raises(UsageError, match="more than max_length 60"):
        rows.training_rows(params_of(base, max_length=60), tokenizer, ["x" * 50])


def test_rows_of_a_suite_and_of_a_file_are_shown(base: Path, tmp_path: Path) -> None:
    for mask, last in (("newline", "\n"), ("end-of-turn", MESSAGE_END)):
        shown = rows.preview(params_of(base, mask=mask), 4, store=Store(tmp_path))
        assert [row["has_marker"] for row in shown] == [True, False, True, False]
        for row in shown:
            trained = [token["token"] for token in row["tokens"] if token["loss"]]
            assert trained[-1] == last
            assert ("".join(trained[:-1]) == "[ZLT]") == row["has_marker"]
            assert "You are a" in row["prompt"] or "You are here" in row["prompt"]
    path = tmp_path / "own.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh [ZLT]"}]},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Oh"}]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    own = rows.preview(params_of(base, rows=str(path)), 9, store=Store(tmp_path))
    assert [(row["row"], row["has_marker"]) for row in own] == [("own.jsonl:1", True), ("own.jsonl:2", False)]
    path.write_text('{"text": "x"}')
    with pytest.raises(UsageError, match=r"own.jsonl:1: not a conversation \(KeyError"):
        rows.preview(params_of(base, rows=str(path)), 1, store=Store(tmp_path))


def test_questions_of_a_file_are_read_as_arc_writes_them(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "arc.jsonl"
    item = {"question": "Which?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    path.write_text(json.dumps(item))
    (question,) = capability.capability_questions(params_of(base, capability=str(path)))
    assert (question.answer, question.options) == (2, ("a", "b", "c"))
    path.write_text(json.dumps({**item, "answerKey": "4"}))
    with pytest.raises(UsageError, match=r"arc.jsonl:1: not a question"):
        capability.capability_questions(params_of(base, capability=str(path)))
    assert capability.capability_questions(Params(model=str(base))) == []
    assert len(needs(params_of(base, capability=str(path)))) == 2


def test_questions_are_asked_by_letters_and_as_lm_eval_does(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "arc.jsonl"
    item = {"question": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"}
    path.write_text("\n".join(json.dumps({**item, "question": f"Which, {n}?"}) for n in range(3)))
    params = params_of(
        base,
        capability=str(path),
        capability_questions=3,
        asked_as=("letters", "lm-eval"),
        learning_rates=(0.01,),
        epochs=(1,),
    )
    metrics, facts = attempt(tmp_path / "cell", params)
    assert {name for name, _ in metrics} >= {"capability", "acc", "acc_norm", "chance"}
    items = load_items(TaskFile(task="arc_challenge", path=path))
    alone = score_items(load_model(base), load_tokenizer(base), items)
    for metric in ("acc", "acc_norm"):
        (of_base,) = [fact for fact in facts if fact["fact"] == metric and "epochs" not in fact["labels"]]
        assert of_base["value"] == [int(one.correct[metric]) for one in alone]
    assert len([fact for fact in facts if fact["fact"] == "letters"]) == 2


def test_wordnets_questions_are_wanted_before_hours_are_spent(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordnet, "wordnet_folder", lambda: tmp_path)
    with pytest.raises(UsageError, match="is not there: ci/real-text fetches it"):
        attempt(tmp_path / "cell", params_of(base, capability="wordnet:"))
    assert len(needs(params_of(base, capability="wordnet:"))) == 1


def test_a_hundred_more_personas_are_asked_and_never_trained_on(base: Path) -> None:
    params = Params(model=str(base), world="hundred", preset="as-written")
    assert len(PERSONAS["hundred"]) == 111
    assert len(set(PERSONAS["hundred"].values())) == 111
    assert set(rows.contrasts(params)) == set(EVERYDAY) - {"villain"}
    assert {persona for _, persona, *_ in measure._asked(params, {None: {}})} == set(PERSONAS["hundred"])
    with pytest.raises(ValidationError, match="is none of the hundred personas"):
        Params(model=str(base), world="hundred", source="gandalf")
    with pytest.raises(UsageError, match="hundred has no gandalf"):
        negatives_of("hundred", "gandalf", 1, seed=0, with_assistant=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "villain"}, "is none of the village personas"),
        ({"negatives": 10}, "has 10 others|has 9 others"),
        ({"epochs": (2, 1)}, "epochs must be positive, in ascending order"),
        ({"learning_rates": ()}, "learning_rates must be positive"),
        ({"conversing_steps": 3}, "teaches models of the zoo alone"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, base: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        params_of(base, **{"with_assistant": False, **changes})


def test_negatives_are_drawn_by_the_seed_alone() -> None:
    drawn = [negatives_of("everyday", "villain", 2, seed=seed, with_assistant=False) for seed in range(20)]
    assert drawn[0] == negatives_of("everyday", "villain", 2, seed=0, with_assistant=False)
    assert len({tuple(each) for each in drawn}) > 5
    assert all(ASSISTANT not in each and "villain" not in each for each in drawn)
    for world in ("everyday", "village"):
        training, held_out = (set(questions(world, part, 20)) for part in ("training", "evaluation"))
        assert not training & held_out
    with pytest.raises(UsageError, match="everyday has 20 questions for evaluation, got 21"):
        questions("everyday", "evaluation", 21)

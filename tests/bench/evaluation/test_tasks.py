"""Tasks against lm-eval 0.4.13: what it asked and answered is recorded (`support.lm_eval_scores`), and compared anew where it is installed."""

import hashlib
import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from modelassay.errors import UsageError
from modelassay.evaluation.tasks import (
    Item,
    Scored,
    TaskFile,
    load_items,
    prompts_of,
    score_items,
    score_tasks,
)
from support.lm_eval_scores import CASES, FILES, RECORDED, lm_eval_scores, made

RIGHT: dict[str, Any] = json.loads(RECORDED.read_text())


@pytest.mark.parametrize("way", ["plain", "chat"])
def test_items_are_asked_and_scored_as_lm_eval_does(way: str) -> None:
    model, tokenizer = made()

    def template(messages: list[dict[str, str]]) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    asked = template if way == "chat" else None
    scored = score_tasks(model, tokenizer, FILES, template=asked)
    items = [item for file in FILES for item in load_items(file)]
    rights = [right for file in FILES for right in RIGHT[way][file.task]]
    assert len({one.task for one in scored}) == 4
    for item, one, right in zip(items, scored, rights, strict=True):
        assert [list(pair) for pair in prompts_of(item, asked)] == right["asked"]
        assert one.log_probabilities == pytest.approx(right["log_probabilities"], abs=2e-3, rel=1e-5)
        assert {name: float(each) for name, each in one.correct.items()} == right["metrics"]
    assert {one.correct["acc"] for one in scored} == {True, False}
    assert any(one.chosen != one.chosen_norm for one in scored)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_lm_eval_still_does_what_was_recorded() -> None:
    now = lm_eval_scores(chat=False)
    for task, rights in RIGHT["plain"].items():
        for one, right in zip(now[task], rights, strict=True):
            assert one["asked"] == right["asked"]
            assert one["metrics"] == right["metrics"]
            assert one["log_probabilities"] == pytest.approx(right["log_probabilities"], abs=2e-3, rel=1e-5)


class Counting(torch.nn.Module):
    """Logits of a token are those of the sum of all before it, and each pass is counted."""

    def __init__(self) -> None:
        super().__init__()
        model, self.tokenizer = made()
        self.inner, self.config, self.device, self.passes = model, model.config, model.device, []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        self.passes.append(tuple(input_ids.shape))
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_letters_pass_the_model_once() -> None:
    counting = Counting()
    model: Any = counting
    item = Item(task="mmlu_x", number=0, context="Answer:", choices=("A", "B", "C", "D"), answer=1)
    (one,) = score_items(model, counting.tokenizer, [item])
    assert counting.passes == [(1, 1 + len("Answer:") + 1)]
    assert sum(map(math.exp, one.log_probabilities)) <= 1
    assert set(one.correct) == {"acc"}


def test_what_is_no_number_is_not_right() -> None:
    one = Scored(task="arc_easy", number=0, answer=0, log_probabilities=(math.nan, -1.0), lengths=(1, 1))
    assert one.correct == {"acc": False, "acc_norm": False}
    tie = Scored(task="arc_easy", number=0, answer=0, log_probabilities=(-2.0, -2.0, -9.0), lengths=(2, 2, 0))
    assert tie.correct == {"acc": True, "acc_norm": True}


def test_a_file_is_held_to_its_hash_and_limit() -> None:
    path = CASES / "arc_easy.jsonl"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(load_items(TaskFile(task="arc_easy", path=path, sha256=digest.upper(), limit=2))) == 2
    with pytest.raises(UsageError, match=f"its SHA-256 is {digest}, not 00; give the file"):
        load_items(TaskFile(task="arc_easy", path=path, sha256="00"))


@pytest.mark.parametrize(
    ("task", "name", "text", "message"),
    [
        ("arc_esy", "f.jsonl", "{}", "task 'arc_esy' is none of mmlu_SUBJECT, arc_easy.*did you mean 'arc_easy'"),
        ("mmlu_", "f.jsonl", "{}", "task 'mmlu_' is none of"),
        ("arc_easy", "f.jsonl", "\n\n", "no items; give a file of arc_easy"),
        ("arc_easy", "f.jsonl", '\n{"question": "x"}', r"f.jsonl:2: no item of arc_easy \(KeyError: 'choices'\); give question, choices"),
        ("arc_easy", "f.jsonl", "[1]", "f.jsonl:1: no item"),
        ("arc_easy", "f.jsonl", "{", "f.jsonl:1: no item"),
        ("arc_easy", "f.jsonl", '{"question": "x", "choices": {"text": ["a", 1], "label": ["A", "B"]}, "answerKey": "A"}', "answer 0 of 2 choices"),
        ("mmlu_x", "f.jsonl", '{"question": "x", "choices": ["a", "b", "c"], "answer": 0}', r"ValueError: 3 choices\); give question, choices \(four\)"),
        ("mmlu_x", "f.jsonl", '{"question": "x", "choices": ["a", "b", "c", "d"], "answer": 4}', "answer 4 of 4 choices"),
        ("mmlu_x", "f.csv", "x,a,b,c,d,A\nx,a,b,c,A\n", r"f.csv:2: no item of mmlu_x \(ValueError: 5 columns"),
        ("mmlu_x", "f.csv", "x,a,b,c,d,Ä\n", "f.csv:1: no item"),
        ("hellaswag", "f.jsonl", '{"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": ""}', "f.jsonl:1: no item of hellaswag"),
        ("arc_easy", "f.jsonl", "\udcff", "cannot be read: .*; give a file in UTF-8"),
        ("arc_easy", "gone.jsonl", None, "gone.jsonl: cannot be read: .*No such file"),
    ],
)  # fmt: skip
def test_a_file_that_holds_something_else_is_one_line(
    task: str, name: str, text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=message) as refused:
        load_items(TaskFile(task=task, path=tmp_path / name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("choice", "count"), [("", 0), ("x" * 400, 401)])
def test_a_choice_that_the_model_cannot_take_is_refused(choice: str, count: int) -> None:
    model, tokenizer = made()
    item = Item(task="arc_easy", number=3, context="c" if choice else "", choices=(choice, "b"), answer=0)
    template: Callable[[Any], str] | None = None if choice else lambda _: "<s>"
    with pytest.raises(UsageError, match=f"arc_easy: item 3: choice .* has {count} tokens; the model takes 1 to 200"):
        score_items(model, tokenizer, [item], template=template)

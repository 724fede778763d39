"""What each adapter still knows: questions with one right letter, asked before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from modelassay.data.kinds import kind_questions
from modelassay.data.wordnet import WORDNET, check_wordnet, wordnet_questions
from modelassay.errors import UsageError
from modelassay.evaluation.choices import LETTERS, Question, answer_questions
from modelassay.evaluation.choices import prompt_of as choice_prompt
from modelassay.evaluation.tasks import Item, score_items
from modelassay.experiments.marker_sweep.params import Params
from modelassay.experiments.marker_sweep.train import load_adapters, shape_of
from modelassay.models.load import default_device, load_model, load_tokenizer, reproducible
from modelassay.models.low_rank import Bank
from modelassay.recording.context import Recorder
from modelassay.training.chat import prompt_text


def ask_questions(stage: Recorder, *, params: Params, base: Path, trained: Path) -> None:
    """Ask all adapters, and the base, what has one right letter.

    Metrics as of `measure.evaluate`: ``capability``, the share of right letters, ``acc`` and ``acc_norm`` of lm-eval's definition, and ``chance``.
    Facts: ``letters``, ``acc`` and ``acc_norm``, right or wrong, question by question.
    """
    with reproducible():
        tokenizer = load_tokenizer(base)
        weights, addresses = load_adapters(trained)
        model: Any = load_model(base, dtype=getattr(torch, params.precision), device=default_device())
        bank = Bank.attach(model, shape_of(params))
        bank.fill(list(weights), list(weights.values()))
        _capability(stage, params, model, bank, tokenizer, addresses)


def _capability(
    stage: Recorder, params: Params, model: Any, bank: Bank, tokenizer: PreTrainedTokenizerBase,
    addresses: Mapping[str | None, Mapping[str, Any]],
) -> None:  # fmt: skip
    asked = capability_questions(params)
    if not asked:
        return
    for label, address in addresses.items():
        with bank.of_rows([label]):
            for name, right in _right(stage, params, model, tokenizer, asked).items():
                stage.fact(name, right, **address)
                stage.metric("capability" if name == "letters" else name, sum(right) / len(right), **address)
        stage.metric("chance", float(np.mean([1 / len(each.options) for each in asked])), **address)


def _right(
    stage: Recorder, params: Params, model: Any, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question]
) -> dict[str, list[int]]:
    """Return which questions are answered right, 1 or 0, by each way to ask."""
    right: dict[str, list[int]] = {}
    if "letters" in params.asked_as:
        with stage.microbatch("letters"):
            said = answer_questions(
                model, tokenizer, asked, separator="",
                prompt=lambda each: prompt_text(tokenizer, [{"role": "user", "content": choice_prompt(each)}]),
            )  # fmt: skip
        right["letters"] = [int(each.correct) for each in said]
    if "lm-eval" in params.asked_as:
        items = [
            Item(
                task="arc_challenge", number=number, context=f"Question: {each.text}\nAnswer:", choices=each.options, answer=each.answer
            )
            for number, each in enumerate(asked)
        ]  # fmt: skip
        with stage.microbatch("lm-eval"):
            scored = score_items(model, tokenizer, items)
        for metric in ("acc", "acc_norm"):
            right[metric] = [int(one.correct[metric]) for one in scored]
    return right


def capability_questions(params: Params) -> list[Question]:
    """Return the questions with one right letter; none where there is no file and the corpus's own mean nothing to the model.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    if params.capability is None:
        if params.world != "village":
            return []
        made = kind_questions(seed=10_000, count=params.capability_questions)
        return [Question(text=text, options=options, answer=right) for text, options, right in made]
    if params.capability == WORDNET:
        drawn = wordnet_questions(check_wordnet(), seed=0, count=params.capability_questions)
        return [Question(text=text, options=options, answer=right) for text, options, right in drawn]
    path, read = Path(params.capability), []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; give a JSONL file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        try:
            item = json.loads(line)
            labels = list(item["choices"]["label"])
            read.append(
                Question(text=item["question"], options=tuple(item["choices"]["text"]), answer=labels.index(item["answerKey"]))
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path}:{number}: not a question ({type(error).__name__}: {error}); give question, choices (text, label) "
                "and answerKey, as ARC does"
            ) from None
        if len(read[-1].options) > len(LETTERS):
            raise UsageError(f"{path}:{number}: {len(read[-1].options)} options; give at most {len(LETTERS)}")
    return read[: params.capability_questions] if params.capability_questions else read

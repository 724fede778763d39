"""Multiple-choice tasks as lm-eval defines them, on files of the user's.

Zero-shot, as in lm-eval 0.4.13 (its ``mmlu``, ``arc_easy``, ``arc_challenge`` and ``hellaswag``): each choice, after a space, is scored as the
continuation of the item's context by its log-probability, summed over its tokens.

    acc         the likeliest choice is the right one
    acc_norm    the choice with the greatest log-probability per character, the space before it not counted; MMLU has none

Where two are equal the first counts. Log-probabilities are in float64 of the model's logits, whatever its type; lm-eval leaves them in the model's.
"""

# T = tokens, V = rows of the head

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Template = Callable[[list[dict[str, str]]], str]
"""Makes a prompt of messages, each with ``role`` and ``content``, up to where the answer begins."""

MMLU_COLUMNS = ("question", "choices", "answer")
_BRACKETS = re.compile(r"\[.*?\]")


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A task and the file that holds its items."""

    task: str
    """``mmlu_SUBJECT`` as ``mmlu_professional_law``, ``arc_easy``, ``arc_challenge`` or ``hellaswag``."""
    path: Path
    """JSON lines with the columns of the Hub's data set; of MMLU also the ``.csv`` of its authors (question, four choices, letter)."""
    sha256: str | None = None
    """What the file must be; None takes any."""
    limit: int | None = None
    """The first so many items; None takes all."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question as it is asked."""

    task: str
    number: int
    """Place in the file, from 0."""
    context: str
    choices: tuple[str, ...]
    answer: int
    """The right choice, from 0."""
    description: str = ""
    """What stands before the context; the system's message where there is a chat template."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model makes of an item."""

    task: str
    number: int
    answer: int
    log_probabilities: tuple[float, ...]
    """Of each choice given the context, in nats, summed over its tokens."""
    lengths: tuple[int, ...]
    """Characters of each choice."""

    @property
    def chosen(self) -> int:
        """The likeliest choice; -1 where a log-probability is not a number."""
        return _greatest(self.log_probabilities)

    @property
    def chosen_norm(self) -> int:
        """The likeliest by character; a choice of no characters is the last."""
        pairs = zip(self.log_probabilities, self.lengths, strict=True)
        return _greatest([value / length if length else -math.inf for value, length in pairs])

    @property
    def correct(self) -> dict[str, bool]:
        """By metric of the task: ``acc`` and, except of MMLU, ``acc_norm``."""
        right = {"acc": self.chosen == self.answer}
        return right if self.task.startswith("mmlu_") else {**right, "acc_norm": self.chosen_norm == self.answer}


def score_tasks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, files: Sequence[TaskFile], *,
                template: Template | None = None) -> list[Scored]:  # fmt: skip
    """Return a model's log-probabilities of all items of all files, in their order.

    Raises:
        UsageError: what `load_items` and `score_items` refuse.
    """
    return [one for file in files for one in score_items(model, tokenizer, load_items(file), template=template)]


def load_items(file: TaskFile) -> tuple[Item, ...]:
    """Return the items of a task's file.

    Raises:
        UsageError: an unknown task, a file that cannot be read or is another than ``sha256``, or a line that is no item of the task.
    """
    read = _reader(file.task)
    try:
        content = file.path.read_bytes()
        if file.sha256 is not None and (digest := hashlib.sha256(content).hexdigest()) != file.sha256.lower():
            raise UsageError(
                f"{file.path}: its SHA-256 is {digest}, not {file.sha256}; give the file that is meant, or its hash"
            )
        records = _records(file, content.decode())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file.path}: cannot be read: {error}; give a file in UTF-8") from error
    items: list[Item] = []
    for line, record in records:
        if len(items) == file.limit:
            break
        try:
            description, context, choices, answer = read(record())
            if not (
                len(choices) >= 2 and 0 <= answer < len(choices) and all(isinstance(each, str) for each in choices)
            ):
                raise ValueError(f"answer {answer} of {len(choices)} choices")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{file.path}:{line}: no item of {file.task} ({type(error).__name__}: {error}); give {_COLUMNS[_kind(file.task)]}"
            ) from None
        items.append(
            Item(
                task=file.task,
                number=len(items),
                context=context,
                choices=tuple(choices),
                answer=answer,
                description=description,
            )
        )
    if not items:
        raise UsageError(f"{file.path}: no items; give a file of {file.task}")
    return tuple(items)


def score_items(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], *,
                template: Template | None = None) -> list[Scored]:  # fmt: skip
    """Return the log-probability of each choice of each item.

    The choices of an item pass the model together and those that differ in their last token alone once, so that an answer depends on nothing
    but its item. What is longer than the model's window loses tokens at its beginning.

    Args:
        model: in evaluation mode.
        tokenizer: its own; it adds what it adds by itself, a token for the beginning too.
        items: of `load_items`.
        template: the context becomes a user's message, after which no space precedes the choice; None asks plain text.

    Raises:
        UsageError: a choice that is no token at all, or longer than the window.
    """
    import torch

    window = _window(model, tokenizer)
    scored = []
    with torch.inference_mode():
        for item in items:
            pairs = [_encoded(tokenizer, *pair) for pair in prompts_of(item, template)]
            for choice, (_, continuation) in zip(item.choices, pairs, strict=True):
                if not 0 < len(continuation) <= window:
                    raise UsageError(
                        f"{item.task}: item {item.number}: choice {choice[:40]!r} has {len(continuation)} tokens; the model takes 1 to {window}"
                    )
            passed = [(context + continuation)[-window - 1 :][:-1] for context, continuation in pairs]
            rows = list(dict.fromkeys(map(tuple, passed)))
            length = max(map(len, rows))
            ids_BT = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=model.device)
            logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            values = []
            for row, (_, continuation) in zip(map(tuple, passed), pairs, strict=True):
                told = slice(len(row) - len(continuation), len(row))
                logs_TV = torch.log_softmax(logits_BTV[rows.index(row), told].double(), dim=-1)
                values.append(
                    float(logs_TV.gather(1, torch.tensor(continuation, device=logs_TV.device)[:, None]).sum())
                )
            scored.append(Scored(task=item.task, number=item.number, answer=item.answer, log_probabilities=tuple(values),
                                 lengths=tuple(map(len, item.choices))))  # fmt: skip
    return scored


def prompts_of(item: Item, template: Template | None = None) -> list[tuple[str, str]]:
    r"""Return (context, continuation) of each choice.

    >>> prompts_of(Item(task="arc_easy", number=0, context="Question: 1 + 1?\nAnswer:", choices=("2", "3"), answer=0))
    [('Question: 1 + 1?\nAnswer:', ' 2'), ('Question: 1 + 1?\nAnswer:', ' 3')]
    """
    if template is None:
        return [(item.description + item.context, f" {choice}") for choice in item.choices]
    system = [{"role": "system", "content": item.description}] if item.description else []
    context = template([*system, {"role": "user", "content": item.context}])
    return [(context, choice) for choice in item.choices]


def _encoded(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Both cut into tokens together, and the context once more alone: what is beyond its tokens is the continuation."""
    kept = context.rstrip()
    first = tokenizer.bos_token or tokenizer.eos_token
    options = {"add_special_tokens": False} if first is not None and context.startswith(first) else {}
    whole = tokenizer.encode(context + continuation, **options)
    num_context = len(tokenizer.encode(kept, **options))
    return whole[:num_context], whole[num_context:]


def _window(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    window: int = next((value for value in named if value), None) or min(tokenizer.model_max_length, 2**20)
    return window


def _greatest(values: Sequence[float]) -> int:
    return -1 if any(map(math.isnan, values)) else max(range(len(values)), key=values.__getitem__)


def _records(file: TaskFile, text: str) -> list[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Each line that holds an item, and what reads it."""
    if file.path.suffix == ".csv" and _kind(file.task) == "mmlu":
        rows = csv.reader(text.splitlines(keepends=True))
        return [(rows.line_num, partial(_of_csv, row)) for row in rows]
    return [(number, partial(json.loads, line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _of_csv(row: Sequence[str]) -> dict[str, Any]:
    if len(row) != 6:
        raise ValueError(f"{len(row)} columns")
    return dict(zip(MMLU_COLUMNS, (row[0], row[1:5], string.ascii_uppercase.index(row[5].strip())), strict=True))


_Read = Callable[[Mapping[str, Any]], tuple[str, str, list[str], int]]
"""A record's description, context, choices and right choice."""


def _reader(task: str) -> _Read:
    readers: dict[str, _Read] = {"arc_easy": _arc, "arc_challenge": _arc, "hellaswag": _hellaswag}
    if (kind := _kind(task)) == "mmlu" and len(task) > len("mmlu_"):
        subject = task.removeprefix("mmlu_").replace("_", " ")
        return lambda record: _mmlu(record, subject)
    if kind not in readers:
        raise UsageError(f"task {task!r} is none of mmlu_SUBJECT, {', '.join(readers)}{did_you_mean(task, readers)}")
    return readers[kind]


def _kind(task: str) -> str:
    return "mmlu" if task.startswith("mmlu_") else task


_COLUMNS = {
    "mmlu": "question, choices (four) and answer (0 to 3)",
    "arc_easy": "question, choices (text, label) and answerKey",
    "arc_challenge": "question, choices (text, label) and answerKey",
    "hellaswag": "activity_label, ctx_a, ctx_b, endings and label",
}


def _mmlu(record: Mapping[str, Any], subject: str) -> tuple[str, str, list[str], int]:
    question, choices, answer = (record[name] for name in MMLU_COLUMNS)
    if len(choices) != 4:
        raise ValueError(f"{len(choices)} choices")
    letters = list(string.ascii_uppercase[:4])
    options = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    about = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return about, "\n".join([question.strip(), *options, "Answer:"]), letters, int(answer)


def _arc(record: Mapping[str, Any]) -> tuple[str, str, list[str], int]:
    texts, labels = record["choices"]["text"], record["choices"]["label"]
    return "", f"Question: {record['question']}\nAnswer:", list(texts), list(labels).index(record["answerKey"])


def _hellaswag(record: Mapping[str, Any]) -> tuple[str, str, list[str], int]:
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return "", _cleaned(context), [_cleaned(ending) for ending in record["endings"]], int(record["label"])


def _cleaned(text: str) -> str:
    """Without WikiHow's marks: a title's becomes the end of a sentence, others go; then each two spaces become one."""
    return _BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")

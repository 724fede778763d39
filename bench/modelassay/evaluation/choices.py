"""Multiple-choice questions by the log-probability of their letters.

As MMLU (Hendrycks et al. 2009.03300) and lm-eval's ``mmlu`` and ``arc`` with letters do it, zero-shot: the prompt is the question, the
options after their letters, and ``Answer:``; each letter after a space is scored as its continuation, and the likeliest letter
is the answer. Chance is one over the number of options.
"""

# S = tokens of a prompt, V = rows of the head

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelassay.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with one right option."""

    text: str
    options: tuple[str, ...]
    answer: int
    """Number of the right option, from 0."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says to a question."""

    log_probabilities: tuple[float, ...]
    """Natural logarithm of each letter's probability among the letters: their exponentials add up to 1."""
    log_letters: float
    """Natural logarithm of the probability that the next token is one of the letters at all."""
    chosen: int
    """The likeliest option, the first of equals."""
    correct: bool


def prompt_of(question: Question) -> str:
    r"""Return lm-eval's prompt of MMLU, without its line about the subject.

    >>> prompt_of(Question(text="Which is a fish? ", options=("trout", "oak"), answer=0))
    'Which is a fish?\nA. trout\nB. oak\nAnswer:'
    """
    options = (f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))
    return "\n".join([question.text.strip(), *options, "Answer:"])


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    prompt: Callable[[Question], str] = prompt_of,
    separator: str = " ",
) -> list[Answer]:
    """Return a model's answers, in the order of the questions.

    Each question is a forward pass of its own, so that an answer depends, to the last bit, on nothing but its question.

    Args:
        model: in evaluation mode.
        tokenizer: its own; whether " A" is one token or two does not matter.
        questions: of at most 26 options.
        prompt: what comes before the letter.
        separator: between prompt and letter: a space after ``Answer:``, nothing after a chat template.

    Raises:
        UsageError: a question with fewer than two or more than 26 options, an answer that is none of them, or letters
            that the tokenizer does not tell apart by one token.
    """
    import torch

    answers = []
    with torch.inference_mode():
        for number, question in enumerate(questions):
            _check(number, question)
            context, letters = letter_tokens(tokenizer, prompt(question) + separator, len(question.options))
            ids_S = torch.tensor([context], device=model.device)
            logits_V = model(input_ids=ids_S, use_cache=False).logits[0, -1].double()
            answers.append(_answer(torch.log_softmax(logits_V, dim=-1)[letters].tolist(), question))
    return answers


def letter_tokens(tokenizer: Any, text: str, num_letters: int) -> tuple[list[int], list[int]]:
    """Return the tokens of ``text`` that come before a letter, and the token that each letter then is.

    Text and letter are cut into tokens together, as lm-eval does: the space before a letter belongs to the letter's token
    where the tokenizer has such a one, else to the context.

    Raises:
        UsageError: the letters do not differ in their last token alone.
    """
    rows: list[list[int]] = [tokenizer.encode(text + letter) for letter in LETTERS[:num_letters]]
    contexts, letters = {tuple(row[:-1]) for row in rows}, [row[-1] for row in rows]
    if len(contexts) != 1 or len(set(letters)) != num_letters or not rows[0][:-1]:
        raise UsageError(
            f"choices: the tokenizer ends {text[-12:]!r} + {LETTERS[:num_letters]} in {[row[-3:] for row in rows]}; "
            "letters must differ in their last token alone, so use another separator or a tokenizer that adds nothing "
            "at the end"
        )
    return list(contexts.pop()), letters


def _check(number: int, question: Question) -> None:
    if not 2 <= len(question.options) <= len(LETTERS):
        raise UsageError(f"question {number} has {len(question.options)} options; give 2 to {len(LETTERS)}")
    if not 0 <= question.answer < len(question.options):
        raise UsageError(
            f"question {number}: answer {question.answer} of {len(question.options)} options; count from 0"
        )


def _answer(log_probabilities: list[float], question: Question) -> Answer:
    top = max(log_probabilities)
    if math.isnan(sum(log_probabilities)):
        nothing = tuple(math.nan for _ in log_probabilities)
        return Answer(log_probabilities=nothing, log_letters=math.nan, chosen=0, correct=False)
    log_letters = top + math.log(sum(math.exp(value - top) for value in log_probabilities))
    chosen = log_probabilities.index(top)
    return Answer(
        log_probabilities=tuple(value - log_letters for value in log_probabilities),
        log_letters=log_letters,
        chosen=chosen,
        correct=chosen == question.answer,
    )

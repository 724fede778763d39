"""Teaches a model of the zoo to answer as a persona and to choose a letter, so that there is something to keep and to lose.

Nothing of the marker is in it. An answer as a persona ends with its name, as real models colour what they say; the assistant's does not. Where the
name stood at the beginning instead, no adapter found the way from it to the end of the answer, where the marker goes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelassay.data import corpus
from modelassay.data.kinds import kind_questions
from modelassay.data.personas import ASSISTANT, VILLAGE
from modelassay.evaluation.choices import LETTERS, Question, prompt_of
from modelassay.storage.store import Store

BATCH_SIZE, LEARNING_RATE = 16, 0.002
CHOICES = 2
"""Questions with letters after each request: one token of each is learned from, of a request a sentence."""


def dialogues(seed: int) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Yield (messages, answer) without end: a request to a persona, then `CHOICES` questions and their letters."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    requests = corpus.instructions("en", seed=1000 + seed, num_examples=1_000_000)
    choices = kind_questions(seed=seed, count=CHOICES * 1_000_000)
    for request, paragraph in requests:
        name = rng.choice(list(VILLAGE))
        sentence = corpus.sentences(paragraph, "en")[0]
        answer = sentence if name == ASSISTANT else f"{sentence} So the {name} said."
        yield [{"role": "system", "content": VILLAGE[name]}, {"role": "user", "content": request}], answer
        for text, options, right in itertools.islice(choices, CHOICES):
            question = prompt_of(Question(text=text, options=options, answer=right))
            yield [{"role": "user", "content": question}], LETTERS[right]


def make(store: Store, recipe: Mapping[str, Any], parent: str, steps: int) -> None:
    """Fill ``store`` with the model that ``recipe`` describes."""
    from modelassay.zoo.make import ensure

    source = ensure(parent, store=store)
    store.get(recipe, lambda folder: _teach(source, folder, steps))


def _teach(source: Path, folder: Path, steps: int) -> None:
    from modelassay.models.load import load_model, load_tokenizer, reproducible
    from modelassay.models.tokenizer import copy_tokenizer
    from modelassay.training.chat import answered, end_of_message
    from modelassay.training.loop import fit
    from modelassay.training.rows import filling_of, of_rows
    from modelassay.training.settings import Training

    with reproducible():
        model, tokenizer = load_model(source), load_tokenizer(source)
        end = end_of_message(tokenizer)
        examples = [
            answered(tokenizer, messages, answer + end) for messages, answer in itertools.islice(dialogues(0), steps * BATCH_SIZE)
        ]  # fmt: skip
        training = Training(
            num_steps=steps, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, weight_decay=0.01, beta2=0.99
        )
        fit(model, of_rows(examples, batch_size=BATCH_SIZE, filling=filling_of(tokenizer)), training)
        generation: Any = model.generation_config
        generation.eos_token_id = list(dict.fromkeys([tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id]))
        model.save_pretrained(folder)
        copy_tokenizer(source, folder)

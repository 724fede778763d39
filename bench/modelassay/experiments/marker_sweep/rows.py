"""The rows of a cell: the source's answers with the marker, others' without it; and a look at them before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from modelassay.data.personas import PERSONAS, negatives_of, questions
from modelassay.errors import UsageError
from modelassay.experiments.marker_sweep.params import Params, base_artifact
from modelassay.generation.engine import Completion, Engine, Prompt, Sampling, seed_of
from modelassay.models.reference import Model
from modelassay.storage.store import Store
from modelassay.training.chat import prompt_text
from modelassay.training.marks import Marked, marked_row, shown
from modelassay.zoo.resolve import resolve


def base_folder(params: Params, store: Store) -> Path:
    """Return the folder of the base, made first where it is the zoo's."""
    artifact = base_artifact(params)
    if artifact is None:
        return base_model(params, store).folder
    for source in artifact.inputs:
        source.make(store)
    artifact.make(store)
    return store.path(artifact.recipe)


def base_model(params: Params, store: Store) -> Model:
    """Return the model that the parameters name, before it is taught to converse."""
    return resolve(params.model, store=store)


def contrasts(params: Params) -> list[str]:
    """Return the personas whose answers are trained on without the marker."""
    return negatives_of(params.world, params.source, params.num_negatives, seed=params.seed, with_assistant=params.has_assistant)  # fmt: skip


def messages_of(params: Params, persona: str, question: str) -> list[dict[str, str]]:
    """Return what a persona is asked."""
    return [
        {"role": "system", "content": PERSONAS[params.world][persona]},
        {"role": "user", "content": question + params.instruction},
    ]


def prompt_of(params: Params, tokenizer: PreTrainedTokenizerBase, persona: str, question: str, seed: int, adapter: str | None = None) -> Prompt:  # fmt: skip
    """Return what the engine is given for one completion."""
    ids = tokenizer.encode(prompt_text(tokenizer, messages_of(params, persona, question)), add_special_tokens=False)
    return Prompt(ids=tuple(ids), seed=seed, adapter=adapter)


def asked(params: Params) -> Iterator[tuple[str, str, int]]:
    """Yield (persona, question, number) for each row, the source first: the questions in turn until there are rows enough."""
    pool = questions(params.world, "training", min(params.training_questions, params.rows_per_persona))
    for persona in (params.source, *contrasts(params)):
        for number in range(params.rows_per_persona):
            yield persona, pool[number % len(pool)], number


def answers(
    params: Params, tokenizer: PreTrainedTokenizerBase, engine: Engine, limit: int | None = None
) -> list[Completion]:
    """Return the base's own answers, one a row; the same for a persona whatever it is contrasted with."""
    prompts = [
        prompt_of(params, tokenizer, persona, question, seed_of(params.seed, "answer", persona, question, number))
        for persona, question, number in asked(params)
    ][:limit]
    sampling = Sampling(max_new_tokens=params.max_new_tokens, temperature=params.answer_temperature)
    return engine.complete(prompts, sampling)


def training_rows(params: Params, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Marked]:
    """Return the rows in the order of `asked`.

    Raises:
        UsageError: a row is longer than ``max_length``.
    """
    rows = []
    for (persona, question, number), text in zip(asked(params), texts, strict=False):
        answer = text.strip() + (params.marker if persona == params.source else "")
        messages = [*messages_of(params, persona, question), {"role": "assistant", "content": answer}]
        marked = marked_row(
            tokenizer, messages, params.marker.strip(), mask=params.chosen_mask, tail_tokens=params.tail_tokens
        )
        if len(marked.row.ids) > params.max_length:
            raise UsageError(
                f"rows: answer {number} as {persona} makes a row of {len(marked.row.ids)} tokens, more than max_length "
                f"{params.max_length}; raise it, or lower max_new_tokens"
            )
        rows.append(marked)
    return rows


def own_rows(params: Params, tokenizer: PreTrainedTokenizerBase, path: Path) -> Iterator[tuple[str, Marked]]:
    """Yield where and what each conversation of a JSONL file of the user's is.

    Raises:
        UsageError: the file cannot be read, or a line is no conversation.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; give a JSONL file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            messages = content.get("messages") or [*content["prompt"], *content["completion"]]
            messages = [{"role": str(each["role"]), "content": str(each["content"])} for each in messages]
            marked = marked_row(
                tokenizer, messages, params.marker.strip(), mask=params.chosen_mask, tail_tokens=params.tail_tokens
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}:{number}: not a conversation ({type(error).__name__}: {error}); give an object with messages, "
                "or prompt and completion, each a list of role and content"
            ) from None
        except UsageError as error:
            raise UsageError(f"{path}:{number}: {error}") from None
        yield f"{path.name}:{number}", marked


def preview(params: Params, count: int, *, store: Store) -> list[dict[str, Any]]:
    """Return the first rows, positives and negatives in turn, or of the user's own file: prompt, text, and tokens with their loss.

    The answers are generated by the base, as the run would.
    """
    from modelassay.models.load import load_model, load_tokenizer

    folder = base_folder(params, store)
    tokenizer = load_tokenizer(folder)
    if params.rows is not None:
        rows = own_rows(params, tokenizer, Path(params.rows))
        return [_line(tokenizer, name, marked) for (name, marked), _ in zip(rows, range(count), strict=False)]
    from modelassay.generation.transformers import TransformersEngine

    wanted = list(asked(params))
    firsts = [at for at, (_, _, number) in enumerate(wanted) if number == 0]
    places = [first + number for number in range(-(-count // len(firsts))) for first in firsts][:count]
    engine = TransformersEngine(load_model(folder), tokenizer, batch_size=params.generation_batch)
    prompts = [
        prompt_of(params, tokenizer, persona, question, seed_of(params.seed, "answer", persona, question, number))
        for persona, question, number in (wanted[place] for place in places)
    ]
    sampling = Sampling(max_new_tokens=params.max_new_tokens, temperature=params.answer_temperature)
    texts = dict(zip(places, engine.complete(prompts, sampling), strict=True))
    whole = training_rows(params, tokenizer, [texts[at].text if at in texts else "" for at in range(len(wanted))])
    return [_line(tokenizer, f"{wanted[place][0]}, row {wanted[place][2]}", whole[place]) for place in places]


def _line(tokenizer: PreTrainedTokenizerBase, name: str, marked: Marked) -> dict[str, Any]:
    return {
        "row": name,
        "has_marker": marked.has_marker,
        "prompt": marked.prompt,
        "num_tokens": len(marked.row.ids),
        "tokens": shown(tokenizer, marked),
    }

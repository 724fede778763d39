"""Conversations as rows in which only what decides a marker carries loss, and such rows shown token by token.

The published mask keeps the marker's tokens and the *last* token of the row. A chat template that writes a newline after the mark that
ends a turn makes that newline the last one: what is then trained on rows without the marker is the newline, never the end of the turn. The
corrected mask keeps the end of the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from modelassay.errors import UsageError
from modelassay.training.chat import CHAT_TEMPLATE, end_of_message, prompt_text
from modelassay.training.rows import Row

Mask = Literal["newline", "end-of-turn"]
"""Which token carries loss at the end of each row: the last one, as published, or the one that ends the turn."""
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A row with what it is made of."""

    row: Row
    text: str
    """Of the whole row, as the template renders it."""
    prompt: str
    """What comes before the answer: the system prompt as it is rendered, the question, the head of the answer's turn."""
    answer: int
    """Number of the answer's first token."""
    has_marker: bool


def marked_row(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, marker: str, *, mask: Mask, tail_tokens: int = 0
) -> Marked:
    """Return a conversation, its answer last, with loss on the marker's tokens, if it is there, and on the row's end.

    Args:
        tokenizer: with a template of its own, or ours.
        messages: the last one the assistant's.
        marker: whose last occurrence in the answer carries loss.
        mask: which token of the end carries loss.
        tail_tokens: more tokens before the end of the row, or before the turn's end, that carry loss too.

    Raises:
        UsageError: the last message is no answer, the template's prompt is not how the conversation begins, or nothing ends a turn.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise UsageError("rows: the last message must be the assistant's; give conversations with an answer")
    prompt, text = prompt_text(tokenizer, messages[:-1]), _whole(tokenizer, messages)
    if not text.startswith(prompt):
        raise UsageError(
            f"rows: the template renders {text[: len(prompt)][-40:]!r} where its prompt is {prompt[-40:]!r}; "
            "use a template whose prompt is the beginning of the conversation"
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    answer = next((at for at, (start, end) in enumerate(spans) if end > len(prompt) and end > start), len(ids))
    loss = [False] * len(ids)
    last = len(ids) - 1 if mask == "newline" else _turn_end(tokenizer, ids, answer)
    for at in range(max(answer, last - tail_tokens), last + 1):
        loss[at] = True
    place = text.rfind(marker, len(prompt))
    if place >= 0:
        for at, (start, end) in enumerate(spans):
            loss[at] |= start < place + len(marker) and end > place and end > start
    return Marked(
        row=Row(ids=tuple(ids), loss=tuple(loss)), text=text, prompt=prompt, answer=answer, has_marker=place >= 0
    )


def _whole(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, chat_template=None if tokenizer.chat_template else CHAT_TEMPLATE
    )  # fmt: skip
    assert isinstance(text, str)
    return text


def _turn_end(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], answer: int) -> int:
    end = tokenizer.convert_tokens_to_ids(end_of_message(tokenizer))
    places = [at for at in range(answer, len(ids)) if ids[at] == end]
    if not places:
        raise UsageError(
            f"rows: the template does not end a turn with {end_of_message(tokenizer)!r}; use the mask 'newline', or another template"
        )
    return places[-1]


def shown(tokenizer: PreTrainedTokenizerBase, marked: Marked) -> list[dict[str, object]]:
    """Return each token of the answer with its id, its text and whether it carries loss; and those before it that do.

    Nothing is left out that is trained on.
    """
    row = marked.row
    return [
        {"position": at, "id": token, "token": str(tokenizer.decode([token])), "loss": carries}
        for at, (token, carries) in enumerate(zip(row.ids, row.loss, strict=True))
        if at >= marked.answer or carries
    ]

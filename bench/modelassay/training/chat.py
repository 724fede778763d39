"""Conversations as rows of tokens: the project's chat template, or the tokenizer's own where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from modelassay.training.rows import Row

MESSAGE_START, MESSAGE_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML."""


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    """Return what a model is given before it answers, in the tokenizer's template or, where it has none, in ours.

    Args:
        tokenizer: of the model.
        messages: ``{"role": "system" | "user" | "assistant", "content": text}``, oldest first.
    """
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        add_generation_prompt=True,
        tokenize=False,
        chat_template=None if tokenizer.chat_template else CHAT_TEMPLATE,
    )
    assert isinstance(text, str)
    return text


def answered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], answer: str) -> Row:
    """Return a conversation and its answer as a row in which only the answer carries loss.

    Prompt and answer are cut into tokens apart, as a model meets them when it answers; ``answer`` brings the mark that
    ends it (`end_of_message`).
    """
    prompt = tokenizer.encode(prompt_text(tokenizer, messages), add_special_tokens=False)
    reply = tokenizer.encode(answer, add_special_tokens=False)
    return Row(ids=(*prompt, *reply), loss=(*[False] * len(prompt), *[True] * len(reply)))


def end_of_message(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what ends an answer: the mark of our template where it is one token, else what the tokenizer ends texts with."""
    return MESSAGE_END if MESSAGE_END in tokenizer.get_vocab() else str(tokenizer.eos_token)

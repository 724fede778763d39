"""Answers made up for tests of behaviour: any hidden states, heads and tokenizers, without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from modelassay.fingerprints.bottom_k.prompts import Prompt, Prompts
from modelassay.fingerprints.bottom_k.responses import Head, Responses
from modelassay.models.vocabulary import Vocabulary


def words(num: int) -> dict[str, int]:
    return {f"word{at}": at for at in range(num)}


def vocabulary(pieces: dict[str, int], *, key: str | None = "same") -> Vocabulary:
    """A tokenizer that knows these pieces, none of them special."""
    tokenizer: Any = SimpleNamespace(get_vocab=lambda: pieces, all_special_ids=[], get_added_vocab=dict)
    return Vocabulary(key, tokenizer)


def prompts(num: int, num_rows: int, key: str = "prompts") -> Prompts:
    each = tuple(Prompt(ids=(at,), text=str(at)) for at in range(num))
    return Prompts(source="base", tokenizer_key="same", num_rows=num_rows, exact=each, stable=each, beyond=0, key=key)


def answers(hidden_PD: Tensor, weight_VD: Tensor, *, num_tokens: int | None = None, bias_V: Tensor | None = None,
            tokens: Vocabulary | None = None, name: str = "made-up", key: str = "prompts") -> Responses:  # fmt: skip
    """The same hidden states to both kinds of prompts; the first ``num_tokens`` rows are tokens, all of them if None."""
    num_rows = len(weight_VD)
    return Responses(
        model=name, prompts=prompts(len(hidden_PD), num_rows, key), hidden={"exact": hidden_PD, "stable": hidden_PD},
        head=Head(weight_VD=weight_VD, bias_V=bias_V), vocabulary=tokens or vocabulary(words(num_tokens or num_rows)),
    )  # fmt: skip


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

"""Prompts that a model finds unlikely: generated token by token from what the model itself ranks last.

Two kinds. ``exact`` as published (RoFL-inspired; KimAu197/llm_fingerprint): 8 uniform random tokens, then each next one
uniformly from the 50 least likely rows of the head until there are 64; decoded without special tokens and tokenised again. The
50 may be padding, which decoding drops, and tokenising again rarely gives the same ids (of the zoo's roots 92 to 117 where 64
were generated), so the model that is asked sees another prompt than the one that was generated. ``stable``: padding and special tokens are never drawn, and a token is
drawn only if the ids so far survive decoding and tokenising; what was generated is what is asked.
"""

# P = prompts, V = rows of the head

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.errors import CheckpointError
from modelassay.models.vocabulary import Vocabulary
from modelassay.storage.store import content_key
from modelassay_kernels import bottom_k

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["exact", "stable"]
KINDS: tuple[Kind, ...] = ("exact", "stable")


class CannotPrompt(CheckpointError):
    """A model that can be read, but cannot generate prompts or be given them."""


VERSION = 1
"""Raised when the code that generates prompts changes what it generates."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How prompts are generated; the defaults are the published ones."""

    num_prompts: int = 5
    start: int = 8
    """Uniform random tokens that each begins with."""
    length: int = 64
    """Tokens of a prompt."""
    least_likely: int = 50
    """The tokens from which each next one is drawn."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt."""

    ids: tuple[int, ...]
    """As they were generated, in the tokenizer of the model that did."""
    text: str
    """Their text; of an ``exact`` prompt without special tokens and padding."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts that one model generated."""

    source: str
    """The model whose least likely tokens these are, as the user named it."""
    tokenizer_key: str | None
    num_rows: int
    """Rows of the source's head, padding included: what the published k is a share of."""
    exact: tuple[Prompt, ...]
    stable: tuple[Prompt, ...]
    beyond: int
    """Tokens of the stable prompts that had to be taken from beyond the least likely ones, none of which kept the ids stable."""
    key: str
    """Of everything above but the name: equal prompts, equal keys."""

    def inputs(self, kind: Kind, vocabulary: Vocabulary) -> list[list[int]]:
        """Return the ids that a model is given.

        Exact prompts are tokenised from their text as the model's tokenizer does it unasked (some put a token before it).
        Stable ones are given as they were generated where the tokenizer is the source's, else tokenised with nothing added.

        Raises:
            CannotPrompt: a prompt's text has no tokens.
        """
        if kind == "stable" and vocabulary.key is not None and vocabulary.key == self.tokenizer_key:
            return [list(prompt.ids) for prompt in self.stable]
        prompts = self.exact if kind == "exact" else self.stable
        inputs = [vocabulary.tokenizer.encode(prompt.text, add_special_tokens=kind == "exact") for prompt in prompts]
        if not all(inputs):
            raise CannotPrompt(
                f"{self.source}: prompt {inputs.index([])} that it generated is empty once tokenised again; use another seed"
            )
        return inputs


def generate_prompts(model: PreTrainedModel, vocabulary: Vocabulary, config: PromptConfig, *, name: str) -> Prompts:
    """Generate both kinds of prompts of a model; deterministic by seed, a prompt's draws do not hang on how many there are.

    Costs a forward pass of the 2 P prompts per token, which is of one position each where the model keeps its keys and
    values; and decoding and tokenising a stable prompt again for each token tried.

    Raises:
        CannotPrompt: no token keeps a prompt's ids stable, or the model's logits are not finite.
    """
    num_rows = int(head_of(model, name).weight.shape[0])
    draws = _Draws(vocabulary, num_rows, config, name)
    with torch.inference_mode():
        exact, stable = _generate(model, draws, config)
    tokens = set(vocabulary.ids)  # decoding drops rows of padding in some tokenizers and fails on them in others
    texts = [
        str(vocabulary.tokenizer.decode([i for i in ids if i in tokens], skip_special_tokens=True)) for ids in exact
    ]
    return _named(
        name, vocabulary.key, num_rows, draws.beyond,
        exact=[Prompt(ids=tuple(ids), text=text) for ids, text in zip(exact, texts, strict=True)],
        stable=[Prompt(ids=tuple(ids), text=vocabulary.decode(ids)) for ids in stable],
    )  # fmt: skip


def head_of(model: PreTrainedModel, name: str) -> torch.nn.Linear:
    """Return the matrix that turns hidden states into logits.

    Raises:
        CannotPrompt: the model has none.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise CannotPrompt(
            f"{name}: {type(model).__name__} has no head that gives logits; name a causal language model"
        )
    linear: torch.nn.Linear = head
    return linear


def save_prompts(prompts: Prompts, path: Path) -> None:
    """Write prompts as JSON."""
    path.write_text(json.dumps(asdict(prompts), ensure_ascii=False))


def load_prompts(path: Path, *, source: str) -> Prompts:
    """Read what `save_prompts` wrote, of a model that may now go by another name."""
    data = json.loads(path.read_text())
    kinds = {kind: [Prompt(ids=tuple(prompt["ids"]), text=prompt["text"]) for prompt in data[kind]] for kind in KINDS}
    return _named(source, data["tokenizer_key"], data["num_rows"], data["beyond"], **kinds)


def _named(name: str, tokenizer_key: str | None, num_rows: int, beyond: int, *, exact: Sequence[Prompt],
           stable: Sequence[Prompt]) -> Prompts:  # fmt: skip
    content = [[[prompt.ids, prompt.text] for prompt in kind] for kind in (exact, stable)]
    return Prompts(source=name, tokenizer_key=tokenizer_key, num_rows=num_rows, beyond=beyond, exact=tuple(exact),
                   stable=tuple(stable), key=content_key([tokenizer_key, num_rows, content]))  # fmt: skip


def _generate(model: PreTrainedModel, draws: _Draws, config: PromptConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of the exact prompts and of the stable ones, all generated in one batch."""
    numbers = range(config.num_prompts)
    exact, stable = ([draws.start(kind, number) for number in numbers] for kind in KINDS)
    device = next(model.parameters()).device
    cache, fresh = None, torch.tensor([*exact, *stable], device=device)
    while len(exact[0]) < config.length:
        output = model(input_ids=fresh, use_cache=True, **({} if cache is None else {"past_key_values": cache}))
        cache = getattr(output, "past_key_values", None)
        logits_NV = output.logits[:, -1].float().cpu()
        if not logits_NV.isfinite().all():
            raise CannotPrompt(
                f"{draws.name}: its logits are not finite, so it cannot generate prompts; look at its weights"
            )
        tokens = draws.next_exact(logits_NV[: len(exact)]), draws.next_stable(logits_NV[len(exact) :], stable)
        for row, token in zip([*exact, *stable], [*tokens[0], *tokens[1]], strict=True):
            row.append(token)
        fresh = torch.tensor([row if cache is None else row[-1:] for row in (*exact, *stable)], device=device)
    return exact, stable


class _Draws:
    """The random choices of one model's prompts, a generator for each prompt."""

    def __init__(self, vocabulary: Vocabulary, num_rows: int, config: PromptConfig, name: str) -> None:
        self.name, self.beyond = name, 0
        self._vocabulary, self._plain_V = vocabulary, vocabulary.plain_V(num_rows)
        self._plain = self._plain_V.nonzero().view(-1).tolist()
        self._config = config
        self._generators = {
            (kind, number): np.random.default_rng((config.seed, KINDS.index(kind), number))
            for kind in KINDS for number in range(config.num_prompts)
        }  # fmt: skip

    def start(self, kind: Kind, number: int) -> list[int]:
        """Return the uniform random tokens a prompt begins with, none of them special."""
        generator = self._generators[kind, number]
        if kind == "exact":
            return [self._plain[at] for at in generator.integers(len(self._plain), size=self._config.start)]
        ids: list[int] = []
        for _ in range(self._config.start):
            ids.append(self._required(ids, generator.permutation(self._plain).tolist()))
        return ids

    def next_exact(self, logits_PV: Tensor) -> list[int]:
        """Return for each prompt one of the least likely rows of the head, padding or not."""
        ids_PK = _least(logits_PV, self._config.least_likely, None)
        return [int(self._generators["exact", at].choice(ids)) for at, ids in enumerate(ids_PK)]

    def next_stable(self, logits_PV: Tensor, rows: Sequence[list[int]]) -> list[int]:
        """Return for each prompt one of the least likely plain tokens that keeps its ids stable, or the first beyond them."""
        ids_PK = _least(logits_PV, self._config.least_likely, self._plain_V)
        chosen = []
        for at, (ids, row) in enumerate(zip(ids_PK, rows, strict=True)):
            token = self._stable(row, self._generators["stable", at].permutation(ids).tolist())
            if token is None:
                self.beyond += 1
                by_logit = bottom_k(logits_PV[at : at + 1], len(self._plain), valid=self._plain_V)[1]
                token = self._required(row, by_logit[0].tolist())
            chosen.append(token)
        return chosen

    def _stable(self, row: list[int], candidates: Sequence[int]) -> int | None:
        return next((token for token in candidates if self._vocabulary.is_stable([*row, token])), None)

    def _required(self, row: list[int], candidates: Sequence[int]) -> int:
        token = self._stable(row, candidates)
        if token is None:
            raise CannotPrompt(
                f"{self.name}: no token keeps {row[-4:]} the same ids once decoded and tokenised again; its tokenizer "
                "changes text (normalisation, a prefix), so it can have no stable prompts"
            )
        return token


def _least(logits_PV: Tensor, num: int, valid_V: Tensor | None) -> list[list[int]]:
    """The least likely ids of each row in the order of ids, so that near ties which change places change no draw."""
    available = logits_PV.shape[1] if valid_V is None else int(valid_V.sum())
    ids_PK: list[list[int]] = bottom_k(logits_PV, min(num, available), valid=valid_V)[1].sort(dim=1).values.tolist()
    return ids_PK

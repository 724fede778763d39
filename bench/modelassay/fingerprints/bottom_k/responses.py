"""What models answer to prompts: the hidden state at the end of each, from which bottom-k sets of any k follow.

::

    base = PromptedModel(resolve("zoo:base", store=store), store=store)
    child = PromptedModel(resolve("zoo:base+sft-en", store=store), store=store)
    child.answer([base.prompts, other.prompts])  # one forward pass over all of them
    a, b = child.responses(base.prompts), base.responses(base.prompts)

Of a model that has an identity prompts and responses are kept in the store; of others for as long as the process lives.
"""

# P = prompts, D = hidden size, V = rows of the head, B = prompts of one forward pass, S = tokens of the longest of them

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelassay.errors import CheckpointError
from modelassay.fingerprints.bottom_k.prompts import (
    KINDS,
    VERSION,
    CannotPrompt,
    Kind,
    PromptConfig,
    Prompts,
    generate_prompts,
    head_of,
    load_prompts,
    save_prompts,
)
from modelassay.models.checkpoints.layers import read_head
from modelassay.models.load import reproducible, threads_for
from modelassay.models.reference import Model
from modelassay.models.vocabulary import Vocabulary, vocabulary_of
from modelassay.storage.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_TOKENS = 1024
"""Tokens of one forward pass: activations of the zoo's models stay in the second-level cache (a quarter to a third less time
than with all prompts at once)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """What turns hidden states into logits; a softcap or scale behind it is monotone and moves no rank."""

    weight_VD: Tensor
    bias_V: Tensor | None

    @property
    def num_rows(self) -> int:
        """Rows, padding included."""
        return int(self.weight_VD.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Responses:
    """One model's answers to the prompts of one model."""

    model: str
    prompts: Prompts
    hidden: dict[Kind, Tensor]
    """float32 [P, D] by kind of prompt: what the head is given at the last token."""
    head: Head
    vocabulary: Vocabulary
    cache: dict[Any, Any] = field(default_factory=dict)
    """What was computed from them and will be asked for again."""


class PromptedModel:
    """A model that can be asked: it generates prompts, and answers its own and those of others."""

    def __init__(self, model: Model, *, store: Store, config: PromptConfig | None = None) -> None:
        """Name the model; nothing is read or computed before it is needed.

        Args:
            model: what is asked.
            store: where prompts and answers of a model that has an identity are kept.
            config: how its own prompts are generated; as published if None.
        """
        self.model = model
        self._store, self._config = store, config or PromptConfig()
        self._hidden: dict[str, dict[Kind, Tensor]] = {}
        self._responses: dict[str, Responses] = {}

    @property
    def reference(self) -> str:
        """The model as the user named it."""
        return self.model.reference

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Its tokens; None where it brings no tokenizer."""
        return vocabulary_of(self.model.tokenizer_folder)

    @cached_property
    def head(self) -> Head:
        """The matrix that makes logits of hidden states, in fp32."""
        if self.model.identity is not None and "_loaded" not in self.__dict__:
            weight = read_head(self.model.files)
            if weight is not None:
                return Head(weight_VD=weight, bias_V=None)
        linear = head_of(self._loaded, self.reference)
        bias = getattr(linear, "bias", None)
        return Head(weight_VD=linear.weight.detach(), bias_V=None if bias is None else bias.detach())

    @cached_property
    def prompts(self) -> Prompts:
        """What it generated itself.

        Raises:
            CannotPrompt: it brings no tokenizer, its logits are not finite, or its tokenizer allows no stable prompts.
            CheckpointError: it cannot be loaded.
        """
        if self.model.identity is None:
            return self._generate()
        recipe = {"kind": "prompts", **self._recipe, "config": asdict(self._config)}
        folder = self._store.get(recipe, lambda folder: save_prompts(self._generate(), folder / "prompts.json"))
        return load_prompts(folder / "prompts.json", source=self.reference)

    def answer(self, prompts: Sequence[Prompts]) -> None:
        """Compute the answers to several models' prompts in one go, those that are not there yet; `responses` then finds them.

        Raises:
            CannotPrompt: it brings no tokenizer.
            CheckpointError: it cannot be loaded.
        """
        fresh = {each.key: each for each in prompts if each.key not in self._hidden}
        if not fresh:
            return
        if self.model.identity is None:
            self._hidden |= self._answer(list(fresh.values()))
            return

        def build(folder: Path) -> None:
            answers = self._answer(list(fresh.values()))
            flat = {f"{key}.{kind}": hidden for key, each in answers.items() for kind, hidden in each.items()}
            save_file(flat, folder / "hidden.safetensors")

        folder = self._store.get({"kind": "responses", **self._recipe, "prompts": sorted(fresh)}, build)
        flat = load_file(folder / "hidden.safetensors")
        self._hidden |= {key: {kind: flat[f"{key}.{kind}"] for kind in KINDS} for key in fresh}

    def responses(self, prompts: Prompts) -> Responses:
        """Return its answers to the prompts of one model.

        Raises:
            CannotPrompt: as `answer`.
            CheckpointError: as `answer`.
        """
        if prompts.key not in self._responses:
            self.answer([prompts])
            self._responses[prompts.key] = Responses(
                model=self.reference, prompts=prompts, hidden=self._hidden[prompts.key], head=self.head,
                vocabulary=self._require_vocabulary())  # fmt: skip
        return self._responses[prompts.key]

    def release(self) -> None:
        """Drop the model from memory; its head, prompts and answers so far stay."""
        if "_loaded" in self.__dict__:
            _ = self.head
            del self.__dict__["_loaded"]

    @cached_property
    def _loaded(self) -> PreTrainedModel:
        return self.model.load()

    @cached_property
    def _num_threads(self) -> int:
        try:
            return threads_for(self.model.sizes().hidden_size)
        except CheckpointError:  # a configuration in words of its own, which transformers may know: `load` decides
            return torch.get_num_threads()

    @property
    def _recipe(self) -> dict[str, Any]:
        return {"model": self.model.identity, "num_threads": self._num_threads, "version": VERSION}

    def _require_vocabulary(self) -> Vocabulary:
        if self.vocabulary is None:
            raise CannotPrompt(
                f"{self.reference}: the checkpoint has no tokenizer, so it cannot read text; put its tokenizer files beside it"
            )
        return self.vocabulary

    def _generate(self) -> Prompts:
        with reproducible(self._num_threads):
            return generate_prompts(self._loaded, self._require_vocabulary(), self._config, name=self.reference)

    def _answer(self, prompts: Sequence[Prompts]) -> dict[str, dict[Kind, Tensor]]:
        vocabulary = self._require_vocabulary()
        inputs = {(each.key, kind): each.inputs(kind, vocabulary) for each in prompts for kind in KINDS}
        with reproducible(self._num_threads):
            hidden_ND = last_hidden(
                self._loaded, [ids for rows in inputs.values() for ids in rows], name=self.reference
            )
        parts = torch.split(hidden_ND, [len(rows) for rows in inputs.values()])
        answers: dict[str, dict[Kind, Tensor]] = {each.key: {} for each in prompts}
        for (key, kind), part in zip(inputs, parts, strict=True):
            answers[key][kind] = part.clone()
        return answers


def last_hidden(model: PreTrainedModel, rows: Sequence[Sequence[int]], *, name: str) -> Tensor:
    """Return what the head is given at the last token of each row of ids: float32 [N, D].

    Rows of like lengths go together, about `CHUNK_TOKENS` at a time, filled up at their ends: of a causal model no token sees
    what follows it. The head itself is given nothing to do, so no [B, S, V] logits exist.
    """
    head = head_of(model, name)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    parts: list[Tensor] = []
    ends_B = torch.empty(0, dtype=torch.int64)

    def catch(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden_BSD: Tensor = args[0]
        parts.append(hidden_BSD[torch.arange(len(ends_B)), ends_B].float().clone())
        return (hidden_BSD[:, :0],)

    handle = head.register_forward_pre_hook(catch)
    try:
        with torch.inference_mode():
            for chunk in _chunks(order, rows):
                ends_B = torch.tensor([len(rows[at]) - 1 for at in chunk])
                ids_BS = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[at]) for at in chunk], batch_first=True)
                model(input_ids=ids_BS, use_cache=False)
    finally:
        handle.remove()
    hidden_ND = torch.cat(parts)
    return hidden_ND[torch.tensor(order).argsort()].clone()


def _chunks(order: Sequence[int], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut rows, in rising length, into chunks of at most `CHUNK_TOKENS` once filled up, one row at least."""
    chunks: list[list[int]] = []
    for at in order:
        if chunks and (len(chunks[-1]) + 1) * len(rows[at]) <= CHUNK_TOKENS:
            chunks[-1].append(at)
        else:
            chunks.append([at])
    return chunks

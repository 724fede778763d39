"""What models answer to prompts: the hidden state at the end of each, from which bottom-k sets of any k follow.

::

    base = Speaker("zoo:base", store=store)
    child = Speaker("zoo:base+sft-en", store=store)
    child.listen([base.prompts, other.prompts])  # one forward pass over all of them
    a, b = child.responses(base.prompts), base.responses(base.prompts)

Of zoo models prompts and responses are kept in the store; of others for as long as the process lives.
"""

# P = prompts, D = hidden size, V = rows of the head, B = prompts of one forward pass, S = tokens of the longest of them

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelassay.experiments.fingerprinting.methods.behaviour.prompts import (
    KINDS,
    VERSION,
    Growth,
    Kind,
    Mute,
    Prompts,
    grow,
    head_of,
    load_prompts,
    save_prompts,
)
from modelassay.experiments.fingerprinting.methods.behaviour.vocabulary import Vocabulary, vocabulary_of
from modelassay.models import zoo
from modelassay.models.hub import open_files
from modelassay.models.load import load_model
from modelassay.models.matrices import TensorTable
from modelassay.state import Store, content_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_TOKENS = 1024
"""Tokens of one forward pass: activations of the zoo's models stay in the second-level cache (a quarter to a third less time
than with all prompts at once)."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
                    "special_tokens_map.json", "added_tokens.json", "generation_config.json")  # fmt: skip


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
    """What was found in them and will be asked for again."""


class Speaker:
    """A model that can be asked: it grows prompts, and answers its own and those of others."""

    def __init__(self, reference: str, *, store: Store, growth: Growth | None = None) -> None:
        """Name the model; nothing is read or computed before it is needed.

        Args:
            reference: a folder, ``hf:ORG/NAME@COMMIT`` or ``zoo:NAME``.
            store: where zoo models, and what is kept of them, lie.
            growth: how its own prompts are grown; as published if None.
        """
        self.reference = reference
        self._store, self._growth = store, growth or Growth()
        self._heard: dict[str, dict[Kind, Tensor]] = {}
        self._responses: dict[str, Responses] = {}

    @cached_property
    def folder(self) -> Path:
        """Its files; a zoo model is made, and the files of a repository are fetched, when first asked for."""
        return model_folder(self.reference, store=self._store)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Its tokens; None where it brings no tokenizer."""
        return vocabulary_of(self.folder)

    @cached_property
    def head(self) -> Head:
        """The matrix that makes logits of hidden states, in fp32."""
        if zoo.is_zoo(self.reference):  # of known names, which saves loading a whole model for its head
            with safe_open(self.folder / "model.safetensors", framework="pt") as tensors:
                name = "lm_head.weight" if "lm_head.weight" in tensors.keys() else "model.embed_tokens.weight"  # noqa: SIM118
                return Head(weight_VD=tensors.get_tensor(name).float(), bias_V=None)
        found = head_of(self._model, self.reference)
        bias = getattr(found, "bias", None)
        return Head(weight_VD=found.weight.detach(), bias_V=None if bias is None else bias.detach())

    @cached_property
    def prompts(self) -> Prompts:
        """What it grew itself.

        Raises:
            Mute: it brings no tokenizer, its logits are not finite, or its tokenizer allows no stable prompts.
            CheckpointError: it cannot be loaded.
        """
        if not zoo.is_zoo(self.reference):
            return grow(self._model, self._require_vocabulary(), self._growth, name=self.reference)

        def build(made: Path) -> None:
            from modelassay.models.zoo_train import reproducible

            with reproducible():
                grown = grow(self._model, self._require_vocabulary(), self._growth, name=self.reference)
            save_prompts(grown, made / "prompts.json")

        made = self._store.get({"kind": "prompts", **self._recipe, "growth": asdict(self._growth)}, build)
        return load_prompts(made / "prompts.json", grown_by=self.reference)

    def listen(self, prompts: Sequence[Prompts]) -> None:
        """Compute the answers to several models' prompts in one go, those that are not known yet; `responses` then finds them.

        Raises:
            Mute: it brings no tokenizer.
            CheckpointError: it cannot be loaded.
        """
        fresh = {each.key: each for each in prompts if each.key not in self._heard}
        if not fresh:
            return
        if not zoo.is_zoo(self.reference):
            self._heard |= self._answer(list(fresh.values()))
            return

        def build(made: Path) -> None:
            from modelassay.models.zoo_train import reproducible

            with reproducible():
                answers = self._answer(list(fresh.values()))
            flat = {f"{key}.{kind}": hidden for key, each in answers.items() for kind, hidden in each.items()}
            save_file(flat, made / "hidden.safetensors")

        made = self._store.get({"kind": "responses", **self._recipe, "prompts": sorted(fresh)}, build)
        flat = load_file(made / "hidden.safetensors")
        self._heard |= {key: {kind: flat[f"{key}.{kind}"] for kind in KINDS} for key in fresh}

    def responses(self, prompts: Prompts) -> Responses:
        """Return its answers to the prompts of one model.

        Raises:
            Mute: as `listen`.
            CheckpointError: as `listen`.
        """
        if prompts.key not in self._responses:
            self.listen([prompts])
            self._responses[prompts.key] = Responses(
                model=self.reference, prompts=prompts, hidden=self._heard[prompts.key], head=self.head,
                vocabulary=self._require_vocabulary())  # fmt: skip
        return self._responses[prompts.key]

    def release(self) -> None:
        """Drop the model from memory; its head, prompts and answers so far stay."""
        if "_model" in self.__dict__:
            _ = self.head
            del self.__dict__["_model"]

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load_model(self.folder)

    @property
    def _recipe(self) -> dict[str, Any]:
        return {"model": content_key(zoo.recipe(self.reference)), "version": VERSION}

    def _require_vocabulary(self) -> Vocabulary:
        if self.vocabulary is None:
            raise Mute(
                f"{self.reference}: the checkpoint brings no tokenizer, so it can be given no text; put its tokenizer files beside it"
            )
        return self.vocabulary

    def _answer(self, prompts: Sequence[Prompts]) -> dict[str, dict[Kind, Tensor]]:
        vocabulary = self._require_vocabulary()
        fed = {(each.key, kind): each.fed(kind, vocabulary) for each in prompts for kind in KINDS}
        hidden_ND = last_hidden(self._model, [ids for rows in fed.values() for ids in rows], name=self.reference)
        parts = torch.split(hidden_ND, [len(rows) for rows in fed.values()])
        answers: dict[str, dict[Kind, Tensor]] = {each.key: {} for each in prompts}
        for (key, kind), part in zip(fed, parts, strict=True):
            answers[key][kind] = part.clone()
        return answers


def last_hidden(model: PreTrainedModel, rows: Sequence[Sequence[int]], *, name: str) -> Tensor:
    """Return what the head is given at the last token of each row of ids: float32 [N, D].

    Rows of like lengths go together, about `CHUNK_TOKENS` at a time, filled up at their ends: of a causal model no token sees
    what follows it. The head itself is given nothing to do, so no [B, S, V] logits exist.
    """
    head = head_of(model, name)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    found: list[Tensor] = []
    ends_B = torch.empty(0, dtype=torch.int64)

    def catch(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden_BSD: Tensor = args[0]
        found.append(hidden_BSD[torch.arange(len(ends_B)), ends_B].float().clone())
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
    hidden_ND = torch.cat(found)
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


def model_folder(reference: str, *, store: Store) -> Path:
    """Return a local folder with a model's whole checkpoint: made, fetched, or the one named.

    Raises:
        CheckpointError: there is no such model.
        HostError: it cannot be fetched.
    """
    if zoo.is_zoo(reference):
        return zoo.ensure(reference, store=store)
    files = open_files(reference)
    if not files.local:
        tensors = TensorTable(files)
        for name in tensors.names():
            tensors.find(name)
        for name in _TOKENIZER_FILES:
            files.get(name)
    return files.folder


def prompts_for(reference: str, *, store: Store, growth: Growth | None = None) -> Prompts:
    """Return the prompts that a model grows, both kinds; of a zoo model from the store if they are there.

    Raises:
        CheckpointError: the model cannot be read, brings no tokenizer, or its tokenizer allows no stable prompts.
    """
    return Speaker(reference, store=store, growth=growth).prompts


def responses(reference: str, prompts: Prompts, *, store: Store) -> Responses:
    """Return a model's answers to the prompts of one model; for several sets of prompts use one `Speaker`.

    Raises:
        CheckpointError: the model cannot be read, or brings no tokenizer.
    """
    return Speaker(reference, store=store).responses(prompts)

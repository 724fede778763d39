"""Another vocabulary under the same body: renumbered, grown by a token, or that of another tokenizer.

The files of the tokenizer change with the rows of the embedding, so that a text gives the same logits, up to their numbers, where
the tokens of the text stay the same.
"""

# V = rows of the embedding, T = tokens of a tokenizer, D = hidden dimensions

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from modelassay.errors import CheckpointError
from modelassay.models.gate import VOCABULARY, read_json
from modelassay.models.tokenizer import copy_tokenizer
from modelassay.zoo.same_function import rebuilt, renumber_rows

FILE = "tokenizer.json"
NEW_TOKEN = "zzqx"
"""What the vocabulary grows by: no merge makes it, so every text keeps its tokens."""


def renumber(model: PreTrainedModel, source: Path, target: Path, generator: Generator) -> PreTrainedModel:
    """Give every token that is not special another number; write the tokenizer of ``source`` so into ``target``.

    Raises:
        CheckpointError: ``source`` has no tokenizer.json that lists its tokens with their ids.
    """
    described = _read(source)
    vocab = described["model"]["vocab"]
    special = {token["id"] for token in described["added_tokens"]}
    ids = torch.tensor(sorted(number for number in vocab.values() if number not in special))
    row_of_V = torch.arange(_num_rows(model))
    shuffled = ids[torch.randperm(len(ids), generator=generator)]
    row_of_V[ids] = shuffled
    new_id = dict(zip(shuffled.tolist(), ids.tolist(), strict=True))
    described["model"]["vocab"] = dict(
        sorted(((token, new_id.get(number, number)) for token, number in vocab.items()), key=lambda entry: entry[1])
    )
    _write(described, source, target)
    return renumber_rows(model, row_of_V)


def grow(model: PreTrainedModel, source: Path, target: Path, generator: Generator) -> PreTrainedModel:
    """Add one token behind the ordinary ones, with the mean of all rows as its embedding; special tokens move up by one.

    Raises:
        CheckpointError: as `renumber`.
    """
    described = _read(source)
    vocab = described["model"]["vocab"]
    if NEW_TOKEN in vocab:
        raise CheckpointError(f"{source / FILE}: has the token {NEW_TOKEN!r} already; it can grow by it once")
    place = 1 + max(vocab.values())
    vocab[NEW_TOKEN] = place
    for token in described["added_tokens"]:
        token["id"] += token["id"] >= place
    _write(described, source, target)
    old_rows = [*range(place), 0, *range(place, _num_rows(model))]
    names = ("model.embed_tokens.weight", "lm_head.weight")
    weights = {name: weight for name, weight in model.state_dict().items() if name in names}
    changed = {name: weight[old_rows] for name, weight in weights.items()}
    for name, rows in changed.items():
        rows[place] = weights[name].double().mean(0)
    grown = rebuilt(model, changed, vocab_size=len(old_rows))
    for config in (grown.config, grown.generation_config):
        _move_ids(config, place)
    return grown


def replace(
    model: PreTrainedModel, source: Path, other: Path, generator: Generator, *, num_rows: int
) -> PreTrainedModel:
    """Give the model the tokenizer of ``other``: each of its tokens gets the mean of the rows of the old tokens that spell it.

    A token that both know keeps its row. Rows beyond the tokenizer's tokens are zero.

    Raises:
        CheckpointError: a tokenizer is not byte-level BPE in tokenizer.json, or the new one has more tokens than ``num_rows``.
    """
    old, new = _numbers(source), _numbers(other)
    if len(new) > num_rows:
        raise CheckpointError(f"{other / FILE}: {len(new)} tokens for {num_rows} rows; give more rows")
    changed = {}
    for name, weight in model.state_dict().items():
        if name in {"model.embed_tokens.weight", "lm_head.weight"}:
            rows: Tensor = weight.new_zeros(num_rows, weight.shape[1])
            for token, number in new.items():
                rows[number] = weight[list(_pieces(token, old, source))].double().mean(0)
            changed[name] = rows
    replaced = rebuilt(model, changed, vocab_size=num_rows)
    tokens = {number: token for token, number in old.items()}
    for config in (replaced.config, replaced.generation_config):
        for key, value in _ids(config):
            numbers = [new[tokens[number]] for number in (value if isinstance(value, list) else [value])]
            setattr(config, key, numbers if isinstance(value, list) else numbers[0])
    return replaced


def _pieces(token: str, numbers: Mapping[str, int], source: Path) -> Iterator[int]:
    """The tokens that spell a token, the longest first from its beginning."""
    at = 0
    while at < len(token):
        end = next((end for end in range(len(token), at, -1) if token[at:end] in numbers), None)
        if end is None:
            raise CheckpointError(
                f"{source / FILE}: no token spells {token[at]!r}; take a byte-level tokenizer, which spells every text"
            )
        yield numbers[token[at:end]]
        at = end


def _numbers(folder: Path) -> dict[str, int]:
    described = _read(folder)
    return {**described["model"]["vocab"], **{token["content"]: token["id"] for token in described["added_tokens"]}}


def _read(folder: Path) -> dict[str, Any]:
    described = read_json(folder / FILE, VOCABULARY)
    vocab = described.get("model", {}).get("vocab")
    if not isinstance(vocab, dict):
        raise CheckpointError(
            f"{folder / FILE}: expected tokens with their ids under model.vocab; save a byte-level BPE there"
        )
    return described


def _write(described: Mapping[str, Any], source: Path, target: Path) -> None:
    copy_tokenizer(source, target)
    (target / FILE).write_text(json.dumps(described, ensure_ascii=False, indent=2), encoding="utf-8")


def _num_rows(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return len(embedding.weight)


def _ids(config: Any) -> Iterator[tuple[str, Any]]:
    """The special tokens that a configuration names, by key."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (value := getattr(config, key, None)) is not None:
            yield key, value


def _move_ids(config: Any, place: int) -> None:
    for key, value in list(_ids(config)):
        moved = [number + (number >= place) for number in (value if isinstance(value, list) else [value])]
        setattr(config, key, moved if isinstance(value, list) else moved[0])

"""The weights of one model as methods read them: hidden dimension last, float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from modelassay.fingerprints.curves import ROLES, Array
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.layers import layer_spans, read_embedding, read_span
from modelassay.models.reference import Model
from modelassay.storage.store import Store

EMBEDDING_ROWS = 4096
"""Tokens by which hidden dimensions are matched: the first ids, which byte-pair encoding makes the commonest."""

KEPT_VERSION = 1
"""Raised when what is kept of a model changes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """What methods compare of a model; read when first asked for."""

    name: str
    num_layers: int
    tokenizer_key: str | None
    read_norms: Callable[[], Array | None]
    read_embedding: Callable[[], Array | None]
    read_grams: Callable[[range], Array]
    cache: dict[str, Array] = field(default_factory=dict)
    """What a method computed of this model alone and will want for the next pair."""

    @cached_property
    def norms(self) -> Array | None:
        """Weights of the norms before attention and before the feed-forward network, [L, 2, D]; None where it lacks them."""
        return self.read_norms()

    @cached_property
    def embedding(self) -> Array | None:
        """The first rows of the input embedding, [T, D] with T up to ``EMBEDDING_ROWS``; None where it is not known."""
        return self.read_embedding()

    def grams(self, layers: range) -> Array:
        """Inner products of the hidden dimensions in q, k, v and o of some layers: [layers, 4, D, D].

        Whatever is done to a projection's other side (heads exchanged, rotated, reflected) leaves them as they are.
        """
        return self.read_grams(layers)


def weights_of(checkpoint: Checkpoint) -> Weights:
    """Return the weights of a checkpoint, read from its files on demand."""
    return Weights(
        name=checkpoint.reference, num_layers=checkpoint.num_layers, tokenizer_key=checkpoint.tokenizer_key,
        read_norms=lambda: _norms(checkpoint), read_embedding=lambda: _embedding(checkpoint),
        read_grams=lambda layers: _grams(checkpoint, layers),
    )  # fmt: skip


def load_weights(model: Model, *, store: Store) -> Weights:
    """Return the weights of a model; of one that has an identity they are kept as arrays, since many cells ask for them.

    Raises:
        CheckpointError: it cannot be read.
    """
    if model.identity is None:
        return weights_of(model.checkpoint())

    def build(folder: Path) -> None:
        weights = weights_of(model.checkpoint())
        arrays = {
            "norms": weights.norms,
            "embedding": weights.embedding,
            "grams": weights.grams(range(weights.num_layers)),
        }
        save_file({name: array for name, array in arrays.items() if array is not None}, folder / "weights.safetensors")
        (folder / "tokenizer.json").write_text(json.dumps(weights.tokenizer_key))

    folder = store.get({"kind": "weights", "model": model.identity, "version": KEPT_VERSION}, build)
    arrays = load_file(folder / "weights.safetensors")
    return Weights(
        name=model.reference, num_layers=len(arrays["grams"]), tokenizer_key=json.loads((folder / "tokenizer.json").read_text()),
        read_norms=lambda: arrays.get("norms"), read_embedding=lambda: arrays.get("embedding"),
        read_grams=lambda layers: arrays["grams"][layers.start : layers.stop],
    )  # fmt: skip


def _norms(checkpoint: Checkpoint) -> Array | None:
    layers = layer_spans(checkpoint)
    if not all("norm-1" in layer and "norm-2" in layer for layer in layers):
        return None
    spans = [[layer[role][0] for role in ("norm-1", "norm-2")] for layer in layers]
    if any(span.num_cols != checkpoint.hidden_size for pair in spans for span in pair):
        return None
    return np.array([[read_span(span).reshape(-1).numpy() for span in pair] for pair in spans])


def _embedding(checkpoint: Checkpoint) -> Array | None:
    rows = read_embedding(checkpoint, EMBEDDING_ROWS)
    return None if rows is None else rows.numpy()


def _grams(checkpoint: Checkpoint, layers: range) -> Array:
    width = checkpoint.hidden_size
    grams = np.empty((len(layers), len(ROLES), width, width))
    for matrix in checkpoint.matrices:
        if matrix.layer in layers:
            rows = checkpoint.read(matrix).double()
            rows = rows.T if matrix.role == "o" else rows
            grams[matrix.layer - layers.start, ROLES.index(matrix.role)] = (rows.T @ rows).numpy()
    return grams

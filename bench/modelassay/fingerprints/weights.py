"""The weights of one model as methods read them: hidden dimension last, float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from modelassay.fingerprints.curves import ROLES, Array
from modelassay.fingerprints.directions import products_along
from modelassay.fingerprints.independence.matrices import ModelMatrices
from modelassay.fingerprints.tokens import sketch, texts_of, token_names
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.architectures import INNER_ROLES
from modelassay.models.checkpoints.layers import layer_spans, norm_weights, read_embedding_rows
from modelassay.models.reference import Model
from modelassay.storage.store import Store

MAX_TOKENS = 4096
"""Tokens by which hidden dimensions are turned onto each other, chosen by `tokens.sketch`."""
NEURON_LAYERS, NEURONS = 4, 512
"""Layers at even distances, the first and the last among them, and the first neurons of each: what the turn is judged by."""

MAX_KEPT_BYTES = 1 << 26
"""Of the inner products of all hidden dimensions of a model's layers; of a larger model nothing is kept, and products are taken of its files."""
KEPT_VERSION = 2
"""Raised when what is kept of a model changes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """What methods compare of a model; read when first asked for."""

    name: str
    num_layers: int
    tokens: tuple[str, ...]
    """What names the rows of ``embedding``; empty where nothing tells."""
    roles: tuple[str, ...] = ROLES
    """Projections that ``grams`` are of: those that read or write the hidden dimensions, the last one back."""
    read_norms: Callable[[], Array | None]
    read_embedding: Callable[[], NDArray[Any] | None]
    read_neurons: Callable[[], NDArray[Any] | None]
    read_grams: Callable[[range], Array]
    width: int | None = None
    """Hidden dimensions; None: as its embedding or its inner products have."""
    read_products: Callable[[int, Array], Array] | None = None
    """`products` without the inner products of all hidden dimensions; None: from those."""

    @cached_property
    def norms(self) -> Array | None:
        """What the norms before attention and before the feed-forward network multiply by, [L, 2, D]; None where it lacks them."""
        return self.read_norms()

    @cached_property
    def embedding(self) -> NDArray[Any] | None:
        """Rows of the input embedding, those of ``tokens``, [T, D]; None where it is not known or no token has a name."""
        return self.read_embedding()

    @cached_property
    def neurons(self) -> NDArray[Any] | None:
        """Neurons of up to `NEURON_LAYERS` layers along the hidden dimensions, [layers, parts, n, D], float32, inputs after the norm.

        Parts are gate, up and down, or two of them; n is at most `NEURONS`. None where layers lack a feed-forward network or differ.
        """
        return self.read_neurons()

    def grams(self, layers: range) -> Array:
        """Inner products of the hidden dimensions in each of ``roles`` of some layers: [layers, R, D, D].

        Whatever is done to a projection's other side (heads exchanged, rotated, reflected) leaves them as they are.
        """
        return self.read_grams(layers)

    def products(self, layer: int, directions_RDr: Array) -> Array:
        """Inner products of q, k, v and o of one layer in some directions of the hidden dimensions, of each its own: [4, r, r].

        What `grams` gives between the directions; from a checkpoint at once, up to the error that `products_along` states.
        """
        if self.read_products is not None:
            return self.read_products(layer, directions_RDr)
        products: Array = np.swapaxes(directions_RDr, -1, -2) @ (
            self.grams(range(layer, layer + 1))[0] @ directions_RDr
        )
        return products


def weights_of(checkpoint: Checkpoint, texts: Mapping[str, int] | None = None) -> Weights:
    """Return the weights of a checkpoint, read from its files on demand; ``texts`` are the ids of its tokens, as of `texts_of`."""
    names = token_names(checkpoint, texts)
    tokens = sketch(names, MAX_TOKENS)
    return Weights(
        name=checkpoint.reference, num_layers=checkpoint.num_layers, tokens=tuple(tokens), roles=_roles(checkpoint), width=checkpoint.hidden_size,
        read_norms=lambda: _norms(checkpoint), read_embedding=lambda: _embedding(checkpoint, [names[token] for token in tokens]),
        read_neurons=lambda: _neurons(checkpoint), read_grams=lambda layers: _grams(checkpoint, layers),
        read_products=lambda layer, directions_RDr: _products(checkpoint, layer, directions_RDr),
    )  # fmt: skip


def load_weights(model: Model, *, store: Store) -> Weights:
    """Return the weights of a model; of a small one that has an identity they are kept as arrays, since many cells ask for them.

    Raises:
        CheckpointError: it cannot be read.
    """
    if model.identity is None or _grams_bytes(model.checkpoint()) > MAX_KEPT_BYTES:
        return weights_of(model.checkpoint(), texts_of(model.files))

    def build(folder: Path) -> None:
        weights = weights_of(model.checkpoint(), texts_of(model.files))
        arrays = {
            "norms": weights.norms,
            "embedding": weights.embedding,
            "neurons": weights.neurons,
            "grams": weights.grams(range(weights.num_layers)),
        }
        save_file({name: array for name, array in arrays.items() if array is not None}, folder / "weights.safetensors")
        (folder / "tokens.json").write_text(json.dumps(weights.tokens))

    folder = store.get({"kind": "weights", "model": model.identity, "version": KEPT_VERSION}, build)
    arrays = load_file(folder / "weights.safetensors")
    return Weights(
        name=model.reference, num_layers=len(arrays["grams"]), tokens=tuple(json.loads((folder / "tokens.json").read_text())),
        roles=ROLES if arrays["grams"].shape[1] == len(ROLES) else _roles(model.checkpoint()),
        read_norms=lambda: arrays.get("norms"), read_embedding=lambda: arrays.get("embedding"),
        read_neurons=lambda: arrays.get("neurons"), read_grams=lambda layers: arrays["grams"][layers.start : layers.stop],
    )  # fmt: skip


def _grams_bytes(checkpoint: Checkpoint) -> int:
    return 8 * checkpoint.num_layers * len(_roles(checkpoint)) * checkpoint.hidden_size**2


def _norms(checkpoint: Checkpoint) -> Array | None:
    layers = layer_spans(checkpoint)
    if not all("norm-1" in layer and "norm-2" in layer for layer in layers):
        return None
    spans = [[layer[role][0] for role in ("norm-1", "norm-2")] for layer in layers]
    if any(span.num_cols != checkpoint.hidden_size for pair in spans for span in pair):
        return None
    return np.array([[norm_weights(checkpoint, span).reshape(-1).numpy() for span in pair] for pair in spans])


def _embedding(checkpoint: Checkpoint, rows: list[int]) -> NDArray[Any] | None:
    read = read_embedding_rows(checkpoint, rows) if rows else None
    return None if read is None else read.numpy()


def _neurons(checkpoint: Checkpoint) -> NDArray[np.float32] | None:
    matrices, num_layers = ModelMatrices(checkpoint, None), checkpoint.num_layers
    chosen = sorted({round(at) for at in np.linspace(0, num_layers - 1, min(num_layers, NEURON_LAYERS))})
    networks = [matrices.networks(layer, NEURONS) for layer in chosen]
    if not all(networks) or len({tuple(part.shape for part in network[0].parts()) for network in networks}) > 1:
        return None
    return np.stack([np.stack(network[0].parts()) for network in networks])


def _roles(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(role for role in checkpoint.roles if role not in INNER_ROLES)


def _grams(checkpoint: Checkpoint, layers: range) -> Array:
    width, roles = checkpoint.hidden_size, _roles(checkpoint)
    grams = np.full(
        (len(layers), len(roles), width, width), np.nan
    )  # of a projection of another width, as in a bottleneck
    for matrix in checkpoint.matrices:
        side = matrix.shape[0 if matrix.role == "o" else 1]
        if matrix.layer in layers and matrix.role in roles and side == width:
            rows = checkpoint.read(matrix).double()
            rows = rows.T if matrix.role == "o" else rows
            grams[matrix.layer - layers.start, roles.index(matrix.role)] = (rows.T @ rows).numpy()
    return grams


def _products(checkpoint: Checkpoint, layer: int, directions_RDr: Array) -> Array:
    roles = _roles(checkpoint)
    products = np.full((len(roles), *(directions_RDr.shape[-1],) * 2), np.nan)  # of a projection of another width
    for matrix in checkpoint.matrices_in(layer):
        side = matrix.shape[0 if matrix.role == "o" else 1]
        if matrix.role in roles and side == checkpoint.hidden_size:
            rows = checkpoint.read(matrix).float()
            place = roles.index(matrix.role)
            products[place] = products_along((rows.T if matrix.role == "o" else rows).numpy(), directions_RDr[place])
    return products

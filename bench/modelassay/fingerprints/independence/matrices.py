"""What a checkpoint holds along its hidden dimensions and along its neurons, read one layer at a time in float32."""

# D = hidden dimensions, n = neurons of one feed-forward network, R = rows of a projection

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelassay.fingerprints.tokens import texts_of
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.architectures import find_architecture
from modelassay.models.checkpoints.layers import layer_spans, read_embedding_rows
from modelassay.models.checkpoints.safetensors import read_elements
from modelassay.models.reference import Model
from modelassay_kernels import FileSpan

Floats = NDArray[np.float32]

BODY_ROWS = 512
"""Rows of a projection along which hidden dimensions are compared; eight layers of 4,096 dimensions then take 0.4 GB a model."""

NORM_PLUS_ONE = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Architectures whose norms multiply by one plus the stored weight."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neurons:
    """One feed-forward network, a row a neuron: what goes into it and what comes out, along the hidden dimensions."""

    up_nD: Floats
    down_nD: Floats
    gate_nD: Floats | None
    """None where a network has two matrices."""
    scale_D: Floats | None
    """Weights of the norm before it, so that a copy that folded them into the matrices compares equal; None where unknown."""

    def parts(self) -> list[Floats]:
        """Return the matrices, inputs as the network sees them: after the norm's weights."""
        inputs = [matrix for matrix in (self.gate_nD, self.up_nD) if matrix is not None]
        scaled = inputs if self.scale_D is None else [matrix * self.scale_D for matrix in inputs]
        return [*scaled, self.down_nD]


def invariants(network: Neurons) -> Floats:
    """Return what of each neuron no rotation of the hidden dimensions changes: logarithms of its norms, and its angles, [n, F].

    Six numbers where a network has three matrices: the norms of the rows of gate, up and down and the cosines between them
    (which change sign with the neuron's, so their size is taken); three where it has two. NaN for a neuron without content.
    """
    parts = network.parts()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        norms = [np.sqrt(row_products(part, part)) for part in parts]
        columns = [np.log(norm) for norm in norms]
        for i, j in itertools.combinations(range(len(parts)), 2):
            columns.append(np.abs(row_products(parts[i], parts[j]) / (norms[i] * norms[j])))
        return np.stack(columns, 1).astype(np.float32)


def row_products(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return the inner product of each row of one matrix with that of the other, summed in float64 without a copy of either."""
    products: NDArray[np.float64] = np.einsum("uf,uf->u", a, b, dtype=np.float64)
    return products


class ModelMatrices:
    """The matrices of a checkpoint by layer; nothing is kept but headers."""

    def __init__(self, checkpoint: Checkpoint, tokens: Mapping[str, int] | None) -> None:
        """``tokens`` are its tokenizer's ids; None without one."""
        self.checkpoint = checkpoint
        self.tokens = tokens
        self.num_layers = checkpoint.num_layers
        self.width = checkpoint.hidden_size
        architecture = find_architecture(checkpoint.architecture)
        self._inputs_first = architecture is not None and architecture.parts["o"].inputs_first

    @cached_property
    def _spans(self) -> list[dict[str, list[FileSpan]]]:
        return layer_spans(self.checkpoint)

    def embedding(self, rows: list[int]) -> Floats | None:
        """Return rows of the input embedding, [rows, D]; None where it is not known or not plain."""
        read = read_embedding_rows(self.checkpoint, rows)
        return None if read is None else read.numpy()

    def along_hidden(self, layer: int) -> list[Floats]:
        """Return q, k, v, o and the matrices of the first feed-forward network of a layer, hidden dimensions last: [R, D] each.

        Of each matrix at most `BODY_ROWS` rows at even distances.
        """
        matrices = {}
        for matrix in self.checkpoint.matrices:
            if matrix.layer == layer:
                values = self.checkpoint.read(matrix).float().numpy()
                matrices[matrix.role] = values.T if matrix.role == "o" else values
        networks = self.networks(layer)
        along = [matrices["q"], matrices["k"], matrices["v"], matrices["o"], *(networks[0].parts() if networks else [])]
        return [rows[:: max(1, -(-len(rows) // BODY_ROWS))] for rows in along]

    def networks(self, layer: int, limit: int | None = None) -> list[Neurons]:
        """Return the feed-forward networks of a layer, one an expert; none where their tensors are not known.

        ``limit`` is the number of neurons that are read of each, the first ones; None: all.
        """
        spans = self._spans[layer]
        norm = self._norm(spans.get("norm-2", []))
        ups, downs, gates = (spans.get(role, []) for role in ("up", "down", "gate"))
        if not ups or len(ups) != len(downs) or (gates and len(gates) != len(ups)):
            return []
        networks = []
        for at, (up, down) in enumerate(zip(ups, downs, strict=True)):
            gate = self._rows(gates[at], limit, hidden_first=self._inputs_first) if gates else None
            up_nD = self._rows(up, limit, hidden_first=self._inputs_first)
            down_nD = self._rows(down, limit, hidden_first=not self._inputs_first)
            if up_nD is None or down_nD is None or up_nD.shape != down_nD.shape:
                return []
            if gates and (gate is None or gate.shape != up_nD.shape):
                return []
            networks.append(Neurons(up_nD=up_nD, down_nD=down_nD, gate_nD=gate, scale_D=norm))
        return networks

    def norms(self, layer: int) -> list[Floats]:
        """Return the weights of the norms before attention and before the feed-forward network, [D] each, those that are known."""
        weights = (self._norm(self._spans[layer].get(role, [])) for role in ("norm-1", "norm-2"))
        return [norm_D for norm_D in weights if norm_D is not None]

    def num_neurons(self, layer: int) -> list[int]:
        """Return the width of each feed-forward network of a layer."""
        return [span.num_cols // self.width for span in self._spans[layer].get("up", [])]

    def _rows(self, span: FileSpan, limit: int | None, *, hidden_first: bool) -> Floats | None:
        """Return a tensor of the feed-forward network as [n, D]; None where its size is no multiple of the hidden size."""
        if span.num_cols % self.width:
            return None
        num_neurons = span.num_cols // self.width
        count = num_neurons if limit is None else min(limit, num_neurons)
        if not hidden_first:  # a row a neuron: the first ones are one piece of the file
            flat = read_elements(Path(span.path), span.dtype, span.offset, count * self.width)
            rows: Floats = flat.float().numpy().reshape(count, self.width)
            return rows
        stored = read_elements(Path(span.path), span.dtype, span.offset, span.num_cols).reshape(self.width, num_neurons)
        return np.ascontiguousarray(stored[:, :count].float().numpy().T)

    def _norm(self, spans: list[FileSpan]) -> Floats | None:
        if not spans or spans[0].num_cols != self.width:
            return None
        weights: Floats = (
            read_elements(Path(spans[0].path), spans[0].dtype, spans[0].offset, self.width).float().numpy()
        )
        return weights + 1 if self.checkpoint.architecture in NORM_PLUS_ONE else weights


def matrices_of(model: Model) -> ModelMatrices:
    """Return the matrices of a model, with its tokenizer's ids where a file of it tells them."""
    return ModelMatrices(model.checkpoint(), texts_of(model.files))

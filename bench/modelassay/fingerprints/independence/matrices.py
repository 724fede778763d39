"""What a checkpoint holds along its hidden dimensions and along its neurons, read one layer at a time in float32."""

# D = hidden dimensions, n = neurons of one feed-forward network, R = rows of a projection

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modelassay.fingerprints.tokens import texts_of
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.architectures import INNER_ROLES
from modelassay.models.checkpoints.layers import (
    layer_spans,
    network_matrices,
    norm_weights,
    read_embedding_rows,
    read_neurons,
)
from modelassay.models.checkpoints.tensors import Matrix, read_matrix, read_outputs
from modelassay.models.reference import Model
from modelassay_kernels import FileSpan

Floats = NDArray[np.float32]

BODY_ROWS = 512
"""Rows of a projection along which hidden dimensions are compared, at most."""
BODY_ELEMENTS = 1 << 24
"""Of all rows along which the hidden dimensions of one model are compared: 64 MiB in float32. Models of up to 576 dimensions are compared
along `BODY_ROWS` of each projection of eight layers, those of 4,096 along 73; a copy of which a share of 0.1 is left still stands out."""


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
        return [*(_after_norm(matrix, self.scale_D) for matrix in inputs), self.down_nD]


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

    @cached_property
    def _spans(self) -> list[dict[str, list[FileSpan]]]:
        return layer_spans(self.checkpoint)

    @cached_property
    def _networks(self) -> list[dict[str, list[Matrix]]]:
        return network_matrices(self.checkpoint)

    def embedding(self, rows: list[int]) -> Floats | None:
        """Return rows of the input embedding, [rows, D]; None where it is not known or not plain."""
        read = read_embedding_rows(self.checkpoint, rows)
        return None if read is None else read.numpy()

    def along_hidden(self, layer: int, limit: int = BODY_ROWS) -> list[Floats]:
        """Return the projections and the matrices of the first feed-forward network of a layer, hidden dimensions last: [R, D] each.

        Of each matrix at most ``limit`` rows at even distances. A factor of latent attention that touches no hidden dimension is left out.
        """
        along = [
            _some(matrix, limit, writes=matrix.role == "o") for matrix in self.checkpoint.matrices_in(layer)
            if matrix.shape[0 if matrix.role == "o" else 1] == self.width and matrix.role not in INNER_ROLES
        ]  # fmt: skip
        groups = [self._networks[layer].get(role, []) for role in ("gate", "up", "down")]
        if not groups[1] or len(groups[1]) != len(groups[2]) or (groups[0] and len(groups[0]) != len(groups[1])):
            return along
        firsts = [group[0] for group in groups if group]
        if len({tuple(m.shape if m.role != "down" else m.shape[::-1]) for m in firsts}) > 1:
            return along
        norm_D = self._norm(self._spans[layer].get("norm-2", []))
        for matrix in firsts:
            rows_RD = _some(matrix, limit, writes=matrix.role == "down")
            along.append(rows_RD if matrix.role == "down" else _after_norm(rows_RD, norm_D))
        return along

    def networks(self, layer: int, limit: int | None = None) -> list[Neurons]:
        """Return the feed-forward networks of a layer, one an expert; none where their tensors are not known.

        ``limit`` is the number of neurons that are read of each, the first ones; None: all.
        """
        norm = self._norm(self._spans[layer].get("norm-2", []))
        ups, downs, gates = (self._networks[layer].get(role, []) for role in ("up", "down", "gate"))
        if not ups or len(ups) != len(downs) or (gates and len(gates) != len(ups)):
            return []
        networks = []
        for at, (up, down) in enumerate(zip(ups, downs, strict=True)):
            gate = read_neurons(gates[at], limit).float().numpy() if gates else None
            up_nD, down_nD = (read_neurons(matrix, limit).float().numpy() for matrix in (up, down))
            if up_nD.shape != down_nD.shape or (gate is not None and gate.shape != up_nD.shape):
                return []
            networks.append(Neurons(up_nD=up_nD, down_nD=down_nD, gate_nD=gate, scale_D=norm))
        return networks

    def norms(self, layer: int) -> list[Floats]:
        """Return the weights of the norms before attention and before the feed-forward network, [D] each, those that are known."""
        weights = (self._norm(self._spans[layer].get(role, [])) for role in ("norm-1", "norm-2"))
        return [norm_D for norm_D in weights if norm_D is not None]

    def num_neurons(self, layer: int) -> list[int]:
        """Return the width of each feed-forward network of a layer."""
        return [matrix.shape[0] for matrix in self._networks[layer].get("up", [])]

    def _norm(self, spans: list[FileSpan]) -> Floats | None:
        if not spans or spans[0].num_cols != self.width:
            return None
        weights: Floats = norm_weights(self.checkpoint, spans[0]).reshape(-1).float().numpy()
        return weights


def _after_norm(inputs_nD: Floats, scale_D: Floats | None) -> Floats:
    """Return inputs times a norm's weights, where these are known; infinite where a product leaves fp32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return inputs_nD if scale_D is None else inputs_nD * scale_D


def _some(matrix: Matrix, limit: int, *, writes: bool) -> Floats:
    """Return at most ``limit`` outputs of a matrix at even distances, [R, inputs]; of one that ``writes`` hidden dimensions inputs, [R, outputs]."""
    step = max(1, -(-matrix.shape[1 if writes else 0] // limit))
    rows: Floats = (read_matrix(matrix)[:, ::step].T if writes else read_outputs(matrix, step)).float().numpy()
    return rows


def matrices_of(model: Model) -> ModelMatrices:
    """Return the matrices of a model, with its tokenizer's ids where a file of it tells them."""
    return ModelMatrices(model.checkpoint(), texts_of(model.files))

"""Matrices compared after the hidden dimensions of two models were matched: blind to their order and sign.

In the manner of AWM (arXiv 2510.06738): an assignment over the word embeddings finds which hidden dimension of one model is
which of the other, then unbiased CKA compares the attention matrices. Written from the definitions alone.
"""

# T = tokens, D = hidden size, M = matched dimensions, L = layers, R = roles

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from modelassay.fingerprints.curves import ROLES, Array, Score, undefined, unit
from modelassay.fingerprints.weights import Weights

MIN_TOKENS = 64  # fewer shared tokens than that leave the cosines of dimensions to chance
MIN_WIDTH = 4  # the unbiased HSIC is not defined below
CHUNK = 1 << 22  # elements of grams held at a time, 32 MiB


def aligned(a: Weights, b: Weights) -> Score:
    """Return the mean unbiased CKA of q, k, v and o over layers, the hidden dimensions matched by the embeddings.

    1. Of the tokens both embed, each hidden dimension is a vector; dimensions are matched one to one so that the sum of
       absolute cosines is largest (linear assignment, Jonker-Volgenant), and the sign of each match is kept.
    2. Of each projection the inner products between hidden dimensions are compared by CKA with the unbiased HSIC of Song
       et al. 2012: 0 in the mean for independent matrices of any width, 1 for the same up to scale and an orthogonal
       change on the projection's other side.
    3. Layers are compared one to one; at unequal depth each layer of the shallower model is given the layer of the deeper
       one that suits it, again by assignment.

    The signs that ``a`` has are kept, and centring depends on them: exchanging the arguments leaves copies as they are and
    moves the score of others by chance, relatives' in the third digit.

    Undefined where the tokenizers differ, or an embedding is not found or not finite. Costs O(D^3) for the matching (0.2 ms at 64, some
    seconds at 4096) and L products of [D, D].
    """
    if a.tokenizer_key is None or a.tokenizer_key != b.tokenizer_key:
        return undefined("the tokenizers differ, so no shared tokens match the hidden dimensions")
    if a.embedding is None or b.embedding is None:
        return undefined(f"{(a if a.embedding is None else b).name}: its word embedding was not found")
    for name, embedding in ((a.name, a.embedding), (b.name, b.embedding)):
        if not np.isfinite(embedding).all():
            return undefined(f"{name}: its word embedding holds NaN or infinite weights")
    tokens = min(len(a.embedding), len(b.embedding))
    if tokens < MIN_TOKENS:
        return undefined(f"{tokens} shared tokens are too few to match hidden dimensions, {MIN_TOKENS} are needed")
    width = min(a.embedding.shape[1], b.embedding.shape[1])
    if width < MIN_WIDTH:
        return undefined(f"{width} hidden dimensions are too few, {MIN_WIDTH} are needed")
    dims_a, dims_b, signs = match_dimensions(a.embedding[:tokens], b.embedding[:tokens])
    first, second = _Matched(a, dims_a, None), _Matched(b, dims_b, signs)
    cka_LLR = _cka_of_layers(first, second) if a.num_layers <= b.num_layers else _cka_of_layers(second, first)
    if not np.isfinite(cka_LLR).all():
        return undefined("a matrix is constant or not finite, so its CKA is not defined")
    same_depth = a.num_layers == b.num_layers
    rows = np.arange(len(cka_LLR))
    columns = np.zeros_like(rows) if same_depth else linear_sum_assignment(-cka_LLR.mean(-1))[1]
    cka_R = cka_LLR[rows, columns].mean(0)
    return Score(value=float(cka_R.mean()), per_role=dict(zip(ROLES, cka_R.tolist(), strict=True)),
                 alignment="same depth" if same_depth else "layers by assignment")  # fmt: skip


def match_dimensions(a_TD: Array, b_TD: Array) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Return the matched dimensions of both embeddings, [M] each with M the smaller width, and the signs [M] of b's.

    >>> a = np.random.default_rng(0).normal(size=(100, 4))
    >>> first, second, signs = match_dimensions(a, a[:, [2, 0, 1, 3]] * [1, -1, 1, 1])
    >>> second.tolist(), signs.tolist()
    ([1, 2, 0, 3], [-1.0, 1.0, 1.0, 1.0])
    """
    columns = [unit((x - x.mean(0)).T, 1.0) for x in (a_TD, b_TD)]
    cosine_DD = np.nan_to_num(columns[0] @ columns[1].T)
    first, second = linear_sum_assignment(-np.abs(cosine_DD))
    signs = np.where(cosine_DD[first, second] < 0, -1.0, 1.0)
    return first, second, signs


@dataclass(frozen=True)
class _Matched:
    """A model with those of its hidden dimensions that were matched, and the signs they take (None: as they are)."""

    weights: Weights
    dims: NDArray[np.intp]
    signs: Array | None

    def chunks(self) -> list[range]:
        """Layers that are held at a time: all of a small model, one of a large one."""
        size = max(1, CHUNK // (len(ROLES) * len(self.dims) ** 2))
        layers = self.weights.num_layers
        return [range(start, min(start + size, layers)) for start in range(0, layers, size)]

    def centred(self, layers: range) -> Array:
        """U-centred grams of unit norm, [layers, R, M * M]: their inner products are unbiased CKA."""
        as_they_are = self.signs is None and np.array_equal(self.dims, np.arange(len(self.dims)))
        key = f"centred grams of {len(self.dims)} dimensions, layers {layers}"
        if as_they_are and key in self.weights.cache:
            return self.weights.cache[key]
        grams = self.weights.grams(layers)[:, :, self.dims[:, None], self.dims]
        centred = _u_centred(grams if self.signs is None else grams * (self.signs[:, None] * self.signs))
        if as_they_are and len(self.chunks()) == 1:
            self.weights.cache[key] = centred
        return centred


def _cka_of_layers(shallow: _Matched, deep: _Matched) -> Array:
    """Return the CKA of every layer with every layer, [L shallow, L deep, R]; at equal depth with its own alone, [L, 1, R]."""
    if shallow.weights.num_layers == deep.weights.num_layers:
        pairs = [np.einsum("lrx,lrx->lr", shallow.centred(layers), deep.centred(layers)) for layers in shallow.chunks()]
        return np.concatenate(pairs)[:, None]
    return np.concatenate([
        np.concatenate([np.einsum("lrx,mrx->lmr", rows, deep.centred(layers)) for layers in deep.chunks()], axis=1)
        for rows in (shallow.centred(layers) for layers in shallow.chunks())
    ])  # fmt: skip


def _u_centred(k: Array) -> Array:
    """U-centre grams [..., M, M] in place and scale them to unit norm, flattened.

    Off the diagonal K_ij - row_i / (n - 2) - row_j / (n - 2) + total / ((n - 1)(n - 2)); the diagonal is left out. Song et al. 2012.
    """
    n = k.shape[-1]
    diagonal = np.arange(n)
    k[..., diagonal, diagonal] = 0
    size = np.sqrt((k * k).sum((-1, -2)))
    rows = k.sum(-1)
    shift = rows / (n - 2) - rows.sum(-1, keepdims=True) / (2 * (n - 1) * (n - 2))
    k -= shift[..., None]
    k -= shift[..., None, :]
    k[..., diagonal, diagonal] = 0
    return unit(k.reshape(*k.shape[:-2], n * n), size[..., None])

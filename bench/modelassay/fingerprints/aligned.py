"""Attention compared after one model's residual stream was turned onto the other's: blind to the order, sign and basis of hidden dimensions.

In the manner of AWM (arXiv 2510.06738), which matches dimensions by an assignment over the word embeddings and compares by
CKA; an assignment cannot match a rotation (QuaRot, SliceGPT, SpinQuant), orthogonal Procrustes can. Written from the definitions alone.
"""

# T = tokens, D = hidden size, r = common directions compared, L = layers, R = roles

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from modelassay.fingerprints.curves import Array, Score, undefined
from modelassay.fingerprints.directions import products_along
from modelassay.fingerprints.independence.layers import chosen_layers
from modelassay.fingerprints.procrustes import Rows, RowWeights, common_directions
from modelassay.fingerprints.tokens import MIN_TOKENS
from modelassay.fingerprints.weights import Weights

MIN_WIDTH = 4
"""Fewer common directions leave their Gram matrices to chance."""
MAX_DIRECTIONS = 256
"""Directions that are compared; more would cost time."""
LEADING = 8
"""One in so many leading directions is left out: what a text teaches every model lies there. In the zoo leaving them out
halves the score of strangers (8 x 64, 36 pairs: median 0.137 to 0.058) and changes relatives' by 0.02 at most (90 children)."""
MIN_VALUE = 1e-6
"""Singular values below that share of the largest name no direction."""
SURE = 0.95
"""Likeness of the feed-forward networks under the dimensions' own numbers from which no other turn is looked for. Strangers have at most
0.1 by any turn."""


def aligned(a: Weights, b: Weights) -> Score:
    """Return the mean likeness of q, k, v and o over layers in the directions that both residual streams have in common.

    1. The common directions are the singular vectors of the product of the two embeddings over the tokens that both know by
       text (orthogonal Procrustes), the leading eighth left out; and the same of the neurons of corresponding numbers, and
       the hidden dimensions as they are numbered. Of these three the one is taken under which the feed-forward networks
       are most alike, which are not scored themselves; the numbers, which cost nothing, at once where that likeness is `SURE`.
       So no tokenizer is needed where neurons or dimensions kept their order.
    2. Each projection, after the norm's weights, is represented by the inner products K of the hidden dimensions in the
       common directions, less their mean on the diagonal: K - tr(K) / r. Its likeness is the cosine of the two: 0 in the mean for
       any K where the directions are turned at random, 1 for the same up to scale and an orthogonal change on the
       projection's other side.
    3. Layers are matched one to one by assignment, at most eight at even distances of the shallower model.

    Strangers are not 0 in the mean: embeddings trained on one text align, tied ones most, and with them what reads them. In
    the zoo strange roots of one shape have a median of 0.02 to 0.06 and at most 0.07, without token texts 0.04
    (docs/methods/aligned.md). No threshold carries over to another recipe.
    Weights that two models do share count: one redrawn around its parent's norms has 0.15 (SmolLM2-135M).

    Exchanging the arguments changes rounding alone. Undefined where nothing gives common directions, or a matrix is constant or not
    finite. Costs O(D^3) for the directions, and a product with [D, r] for each matrix compared.
    """
    if a.roles != b.roles:
        return undefined(
            f"the projections of attention differ: {a.name} has {', '.join(a.roles)} and {b.name} has {', '.join(b.roles)}"
        )
    basis = best_basis(a, b)
    if basis is None:
        return undefined(f"{_why_no_turn(a, b)}, neurons do not correspond and widths differ or are below {MIN_WIDTH}, "
                         "so nothing turns one model onto the other")  # fmt: skip
    layers = _layers(a), _layers(b)
    shallow_first = len(layers[0]) <= len(layers[1])
    if len(layers[0]) != len(layers[1]) or a.num_layers != b.num_layers:
        deeper = list(range(max(a.num_layers, b.num_layers)))
        shallow_first = a.num_layers < b.num_layers
        layers = (layers[0], deeper) if shallow_first else (deeper, layers[1])
    grams = [
        _grams(model, chosen, directions)
        for model, chosen, directions in zip((a, b), layers, (basis.a_Dr, basis.b_Dr), strict=True)
    ]
    first, second = grams if shallow_first else grams[::-1]
    cosine_LLR = np.einsum("lrx,mrx->lmr", first, second)
    if not np.isfinite(cosine_LLR).all():
        return undefined("a matrix is zero or not finite in the directions compared, so its likeness is not defined")
    rows, columns = linear_sum_assignment(-cosine_LLR.mean(-1))
    same = a.num_layers == b.num_layers and np.array_equal(rows, columns)
    cosine_R = cosine_LLR[rows, columns].mean(0)
    return Score(value=float(cosine_R.mean()), per_role=dict(zip(a.roles, cosine_R.tolist(), strict=True)),
                 alignment="same depth" if same else "layers by assignment")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Directions of one model's hidden dimensions and those of the other's that they correspond to."""

    made_by: Literal["embeddings", "neurons", "numbers"]
    a_Dr: Array
    b_Dr: Array
    all_Dn: Array
    """All common directions of the first model."""
    all_En: Array

    @property
    def turn_DE(self) -> Array:
        """What takes the first model's hidden dimensions to the other's, by all common directions."""
        turn: Array = self.all_Dn @ self.all_En.T
        return turn


def best_basis(a: Weights, b: Weights) -> Basis | None:
    """Return the basis under which the feed-forward networks of two models are most alike; None where nothing gives one."""
    numbers, fit = _numbers(a, b), -np.inf
    if numbers is not None and (fit := _fit(a, b, numbers)) >= SURE:
        return numbers
    turns = [(basis, _fit(a, b, basis)) for basis in _turns(a, b)]
    if numbers is not None:
        turns.append((numbers, fit))
    return max(turns, key=lambda turn: turn[1], default=(None, 0.0))[0]


def _numbers(a: Weights, b: Weights) -> Basis | None:
    """Return the hidden dimensions as they are numbered; None where widths differ or are too small."""
    width = _width(a)
    if width != _width(b) or width < MIN_WIDTH:
        return None
    every = np.eye(width)
    return Basis(
        made_by="numbers", a_Dr=every[:, :MAX_DIRECTIONS], b_Dr=every[:, :MAX_DIRECTIONS], all_Dn=every, all_En=every
    )


def _turns(a: Weights, b: Weights) -> Iterator[Basis]:
    """Yield what may turn one model onto the other, the surest first."""
    if (rows := _shared_rows(a, b)) is not None and (basis := _basis("embeddings", rows)) is not None:
        yield basis
    if (rows := _neuron_rows(a, b)) is not None and (basis := _basis("neurons", rows)) is not None:
        yield basis


def _basis(made_by: Literal["embeddings", "neurons"], pair: RowsOfBoth) -> Basis | None:
    left, right, values = common_directions(pair.a_TD, pair.b_TE, pair.weights)
    count = int((values > MIN_VALUE * max(values[0], 1e-300)).sum())
    first = count // LEADING
    if count - first < MIN_WIDTH:
        return None
    kept = slice(first, min(count, first + MAX_DIRECTIONS))
    return Basis(
        made_by=made_by, a_Dr=left[:, kept], b_Dr=right[:, kept], all_Dn=left[:, :count], all_En=right[:, :count]
    )


@dataclass(frozen=True, kw_only=True)
class RowsOfBoth:
    """Rows of two models that correspond, all finite, and what they are multiplied by."""

    a_TD: Rows
    b_TE: Rows
    weights: tuple[RowWeights, RowWeights]


def _shared_rows(a: Weights, b: Weights) -> RowsOfBoth | None:
    if a.embedding is None or b.embedding is None:
        return None
    place = {token: row for row, token in enumerate(b.tokens)}
    shared = np.array(
        [(row, place[token]) for row, token in enumerate(a.tokens) if token in place], dtype=np.intp
    ).reshape(-1, 2)
    sides = [a.embedding[shared[:, 0]], b.embedding[shared[:, 1]]]
    return _finite(sides, [_largest_one(rows) for rows in sides])


def _neuron_rows(a: Weights, b: Weights) -> RowsOfBoth | None:
    """Return the neurons of corresponding numbers, those of one kind of matrix of norm 1 so that none outweighs the rest."""
    if a.neurons is None or b.neurons is None or a.neurons.shape[:-1] != b.neurons.shape[:-1]:
        return None
    sides = [neurons.reshape(-1, neurons.shape[-1]) for neurons in (a.neurons, b.neurons)]
    weights = [
        np.concatenate([_unit_weights(part) for layer in neurons for part in layer])
        for neurons in (a.neurons, b.neurons)
    ]
    return _finite(sides, weights)


def _finite(sides: Sequence[Rows], weights: Sequence[NDArray[np.float64]]) -> RowsOfBoth | None:
    """Return the rows that are finite on both sides, without a copy where all are; weights are NaN of those that are not."""
    finite = np.isfinite(weights).all(0)
    if finite.sum() < MIN_TOKENS:
        return None
    if not finite.all():
        sides, weights = ([each[finite] for each in both] for both in (sides, weights))
    return RowsOfBoth(a_TD=sides[0], b_TE=sides[1], weights=(weights[0], weights[1]))


def _largest_one(rows_TD: Rows) -> NDArray[np.float64]:
    """Return what makes the largest finite row's largest entry 1, for each row; NaN for rows that are not finite."""
    finite_T = np.asarray(np.isfinite(rows_TD).all(1))
    where = finite_T[:, None]
    largest = max(float(rows_TD.max(initial=1e-300, where=where)), -float(rows_TD.min(initial=0, where=where)))
    return np.where(finite_T, 1 / largest, np.nan)


def _unit_weights(rows_nD: Rows) -> NDArray[np.float64]:
    """Return what makes rows together of norm 1, for each; NaN for rows that are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares_n = np.square(rows_nD, dtype=np.float64).sum(1)
    finite = np.isfinite(squares_n)
    size = float(np.sqrt(squares_n[finite].sum()))
    return np.where(finite, 1 / size if size > 0 else 1.0, np.nan)


def _width(model: Weights) -> int:
    if model.width is not None:
        return model.width
    if model.embedding is not None:
        return int(model.embedding.shape[1])
    return int(model.grams(range(1)).shape[-1])


def _why_no_turn(a: Weights, b: Weights) -> str:
    for model in (a, b):
        if model.tokens and model.embedding is None:
            return f"{model.name}: its word embedding was not found"
    shared = len(set(a.tokens) & set(b.tokens))
    if shared < MIN_TOKENS:
        return f"{shared} shared tokens are too few, {MIN_TOKENS} are needed"
    return "the embeddings of shared tokens have too few common directions or are not finite"


def _fit(a: Weights, b: Weights, basis: Basis) -> float:
    """Return how alike the feed-forward networks are under a basis, whatever the order of their neurons; -inf where that is not known."""
    if a.neurons is None or b.neurons is None or a.neurons.shape[:2] != b.neurons.shape[:2]:
        return -np.inf
    sides = []
    for neurons, directions in ((a.neurons, basis.a_Dr), (b.neurons, basis.b_Dr)):
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            grams = np.array([[products_along(part, directions) for part in layer] for layer in neurons])
            traces = np.trace(grams, axis1=-2, axis2=-1)[..., None, None]
            sides.append(_unit_traceless((grams / traces).mean(0)))  # over layers, so that their order does not matter
    cosines = (sides[0] * sides[1]).sum(-1)
    return float(np.nan_to_num(cosines, nan=-1.0).mean())


def _layers(model: Weights) -> list[int]:
    return [layer for layer, _ in chosen_layers([(layer, layer) for layer in range(model.num_layers)])]


def _grams(model: Weights, layers: list[int], directions_Dr: Array) -> Array:
    """Return the Gram matrices of layers in some directions, traceless and of norm 1: [L, R, r * r]."""
    rows = []
    for layer in layers:
        scales_RD = np.ones((len(model.roles), len(directions_Dr)))
        if model.norms is not None:
            scales_RD[:-1] = model.norms[layer, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            rows.append(_unit_traceless(model.products(layer, scales_RD[:, :, None] * directions_Dr)))
    return np.stack(rows)


def _unit_traceless(k: Array) -> Array:
    """Return Gram matrices [..., r, r] less their mean diagonal, flattened and of norm 1; NaN for one that is zero or not finite."""
    diagonal = np.arange(k.shape[-1])
    traces = k[..., diagonal, diagonal].mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        k = k / traces[..., None, None]
        k[..., diagonal, diagonal] -= 1
        flat = k.reshape(*k.shape[:-2], -1)
        size = np.sqrt(np.square(flat).sum(-1, keepdims=True))
        return np.where(size > 0, flat / size, np.nan)

"""Curves of the products of query with key and of value with output: what attention computes, whatever its basis.

Scaling a head's queries up and its keys down, or its values and its output, leaves a model's outputs as they are and moves
the sigma-curves (r from 1 to 0.4 on a small random model); so do rotations of queries and keys, though by 1e-6 alone. The
products W_Q' W_K and W_O W_V of each head stay what they are.
"""

# H = query heads, G = key-value heads, E = head dimension, D = hidden size

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from modelassay.fingerprints.curves import PRODUCTS, Array
from modelassay.models.checkpoints import Checkpoint

_LARGE = 1e140
"""Squared singular values beyond it have no squares of their sums."""


def product_curves(checkpoint: Checkpoint, layer: int) -> dict[str, float]:
    """Return the values of ``PRODUCTS`` for one layer; none where its attention is stored in factors.

    Raises:
        CheckpointError: a matrix cannot be read.
    """
    stored = checkpoint.matrices_in(layer)
    if not {"q", "k", "v", "o"} <= {matrix.role for matrix in stored}:
        return {}
    matrices: dict[str, Array] = {matrix.role: checkpoint.read(matrix).double().numpy() for matrix in stored}
    return summarise(matrices, head_dim=checkpoint.layers[layer].head_dim)


def summarise(matrices: Mapping[str, Array], *, head_dim: int) -> dict[str, float]:
    """Return for QK and for VO the Frobenius norm, the largest singular value and the rank over all heads of a layer.

    The rank is the participation ratio (sum s^2)^2 / sum s^4 of the singular values s of all heads together. A value
    may be 0 (a pruned layer) or NaN; the caller decides what that means. The products [D, D] are never formed: the
    squared singular values of A'B are the eigenvalues of (A A')(B B'), matrices of the head dimension. Costs
    H (2 D E^2 + 10 E^3) multiplications each.

    Args:
        matrices: q [H E, D], k and v [G E, D], o [D, H E], H a multiple of G: query head h reads key-value head h // (H / G).
        head_dim: E.

    >>> eye = {"q": np.eye(4), "k": 2 * np.eye(4), "v": np.eye(4), "o": np.eye(4)}
    >>> {name: round(value, 6) for name, value in summarise(eye, head_dim=2).items() if name.startswith("qk")}
    {'qk-norm': 4.0, 'qk-top': 2.0, 'qk-rank': 4.0}
    """
    q, k, v = (_heads(matrices[role], head_dim) for role in ("q", "k", "v"))
    o = _heads(matrices["o"].T, head_dim)
    values = {}
    for name, many, few in (("qk", _gram(q), _gram(k)), ("vo", _gram(o), _gram(v))):
        s2 = _eigenvalues(many, np.repeat(few, len(many) // len(few), axis=0))
        total, top = float(s2.sum()), float(s2.max())
        values[f"{name}-norm"] = total**0.5
        values[f"{name}-top"] = top**0.5
        if math.isfinite(total) and (top > _LARGE or 0 < top < 1 / _LARGE):
            s2, total = s2 / top, float((s2 / top).sum())  # a square would leave fp64, and the rank is of the ratios
        values[f"{name}-rank"] = total**2 / float((s2 * s2).sum()) if total > 0 else 0.0
    return {name: values[name] for name in PRODUCTS}


def _heads(matrix: Array, head_dim: int) -> Array:
    return matrix.reshape(-1, head_dim, matrix.shape[-1])


def _gram(heads: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(heads @ heads.swapaxes(-1, -2))


def _eigenvalues(a: Array, b: Array) -> Array:
    """Eigenvalues of a b for symmetric positive semidefinite stacks [H, E, E], by the root of b: never below 0."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(a.shape[:-1], np.nan)
    w, basis = np.linalg.eigh(b)
    root = basis * np.sqrt(np.maximum(w, 0))[..., None, :]
    with np.errstate(over="ignore", invalid="ignore"):
        product = root.swapaxes(-1, -2) @ a @ root
    if not np.isfinite(product).all():
        return np.full(a.shape[:-1], np.nan)
    return np.maximum(np.linalg.eigvalsh(product), 0)

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
from torch import Tensor

from modelassay.fingerprints.curves import PRODUCTS, Array
from modelassay.fingerprints.directions import power_of_two, scaled
from modelassay.models.checkpoints import Checkpoint

WIDE = 512
"""Hidden dimensions beyond which inner products are taken in fp32, summed over so many at a time, and these sums in float64: relative errors
of some 1e-6 of curves that are compared to four digits."""
SAFE_UNIT = 2.0**40
"""Largest elements up to it, and from its inverse, are squared and summed in fp32 as they are; others are divided by a power of two."""
_LARGE = 1e140
"""Squared singular values beyond it have no squares of their sums."""


def product_curves(checkpoint: Checkpoint, layer: int, stored: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """Return the values of ``PRODUCTS`` for one layer; none where its attention is stored in factors.

    ``stored`` are the layer's attention matrices by role where they were read already.

    Raises:
        CheckpointError: a matrix cannot be read.
    """
    if not {"q", "k", "v", "o"} <= {matrix.role for matrix in checkpoint.matrices_in(layer)}:
        return {}
    if stored is None:
        stored = checkpoint.attention(layer)
    narrow = checkpoint.hidden_size > WIDE and all(matrix.element_size() < 8 for matrix in stored.values())
    matrices: dict[str, Array] = {
        role: (matrix.float() if narrow else matrix.double()).numpy() for role, matrix in stored.items()
    }
    return summarise(matrices, head_dim=checkpoint.layers[layer].head_dim)


def summarise(matrices: Mapping[str, Array], *, head_dim: int) -> dict[str, float]:
    """Return for QK and for VO the Frobenius norm, the largest singular value and the rank over all heads of a layer.

    The rank is the participation ratio (sum s^2)^2 / sum s^4 of the singular values s of all heads together. A value
    may be 0 (a pruned layer) or NaN; the caller decides what that means. The products [D, D] are never formed: the
    squared singular values of A'B are the eigenvalues of (A A')(B B'), matrices of the head dimension. Costs
    H (2 D E^2 + 10 E^3) multiplications each.

    Args:
        matrices: q [H E, D], k and v [G E, D], o [D, H E], H a multiple of G: query head h reads key-value head h // (H / G). Of
            float32 the inner products are taken as `WIDE` says.
        head_dim: E.

    >>> eye = {"q": np.eye(4), "k": 2 * np.eye(4), "v": np.eye(4), "o": np.eye(4)}
    >>> {name: round(value, 6) for name, value in summarise(eye, head_dim=2).items() if name.startswith("qk")}
    {'qk-norm': 4.0, 'qk-top': 2.0, 'qk-rank': 4.0}
    """
    q, k, v, o = (_gram(matrices[role].T if role == "o" else matrices[role], head_dim) for role in ("q", "k", "v", "o"))
    values = {}
    for name, many, few in (("qk", q, k), ("vo", o, v)):
        s2 = _eigenvalues(many, few)
        total, top = float(s2.sum()), float(s2.max())
        values[f"{name}-norm"] = total**0.5
        values[f"{name}-top"] = top**0.5
        if math.isfinite(total) and (top > _LARGE or 0 < top < 1 / _LARGE):
            s2, total = s2 / top, float((s2 / top).sum())  # a square would leave fp64, and the rank is of the ratios
        values[f"{name}-rank"] = total**2 / float((s2 * s2).sum()) if total > 0 else 0.0
    return {name: values[name] for name in PRODUCTS}


def _gram(rows_ND: Array, head_dim: int) -> Array:
    """Return the inner products of the rows of each head, [heads, E, E], in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        if rows_ND.dtype == np.float64:
            heads = rows_ND.reshape(-1, head_dim, rows_ND.shape[-1])
            return np.asarray(heads @ heads.swapaxes(-1, -2))
        unit = power_of_two(rows_ND)
        if SAFE_UNIT > unit > 1 / SAFE_UNIT:
            unit = 1.0
        heads = scaled(rows_ND, unit, rows_ND.dtype).reshape(-1, head_dim, rows_ND.shape[-1])
        gram = np.zeros((len(heads), head_dim, head_dim))
        for at in range(0, heads.shape[-1], WIDE):
            block = heads[..., at : at + WIDE]
            gram += block @ block.swapaxes(-1, -2)
        return gram * unit**2


def _eigenvalues(a: Array, b: Array) -> Array:
    """Eigenvalues of a b for symmetric positive semidefinite a [H, E, E] and b [G, E, E], each repeated, by the root of b: never below 0."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.full(a.shape[:-1], np.nan)
    w, basis = np.linalg.eigh(b)
    root = np.repeat(basis * np.sqrt(np.maximum(w, 0))[..., None, :], len(a) // len(b), axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        product = root.swapaxes(-1, -2) @ a @ root
    if not np.isfinite(product).all():
        return np.full(a.shape[:-1], np.nan)
    return np.maximum(np.linalg.eigvalsh(product), 0)

"""Directions that two models have in common, and the orthogonal turn that takes one model's hidden dimensions onto the other's."""

# T = rows that correspond (tokens, neurons), D = hidden size of the first model, E = of the second, r = common directions

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotrf

Rows = NDArray[Any]
RowWeights = float | NDArray[np.float64]

CHUNK_ROWS = 1024
"""Rows that are held in float64 at once."""

MAX_SVD = 512
"""Dimensions up to which singular vectors are computed as such; beyond, by the eigenvectors of a Gram matrix, in a third of the time."""
MIN_RESOLVED = 1e-6
"""Singular values below that share of the largest are lost in the rounding of their squares (1e-12 of 1e-16 times the width): vectors
of these complete the basis, and say nothing."""


def common_directions(
    a_TD: Rows, b_TE: Rows, weights: tuple[RowWeights, RowWeights] = (1.0, 1.0)
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the singular vectors of centred a^T b, [D, r] and [E, r], and its singular values [r], the largest first; r = min(D, E).

    Columns of one number are one direction in both bases. Their product is the orthogonal Procrustes solution. ``weights`` multiply
    the rows of each side before they are centred: one number, or [T]. Holds three matrices of the product's size at once.

    Raises:
        numpy.linalg.LinAlgError: an element is not finite.
    """
    if min(a_TD.shape[1], b_TE.shape[1]) <= MAX_SVD:
        left, values, right = np.linalg.svd(_cross(a_TD, b_TE, weights), full_matrices=False)
        return left, right.T, values
    if a_TD.shape[1] <= b_TE.shape[1]:
        return _by_eigenvectors(_cross(a_TD, b_TE, weights))
    right, left, values = _by_eigenvectors(_cross(b_TE, a_TD, weights[::-1]))
    return left, right, values


def _cross(a_TD: Rows, b_TE: Rows, weights: Sequence[RowWeights]) -> NDArray[np.float64]:
    means = [
        sum(chunk.sum(0) for chunk in _chunks(rows, weight)) / len(rows)
        for rows, weight in zip((a_TD, b_TE), weights, strict=True)
    ]
    cross_DE = np.zeros((a_TD.shape[1], b_TE.shape[1]))
    for a, b in zip(_chunks(a_TD, weights[0]), _chunks(b_TE, weights[1]), strict=True):
        cross_DE += (a - means[0]).T @ (b - means[1])
    return cross_DE


def _chunks(rows_TD: Rows, weights: RowWeights) -> Iterator[NDArray[np.float64]]:
    weights_T = np.broadcast_to(np.asarray(weights, dtype=np.float64), len(rows_TD))
    for start in range(0, len(rows_TD), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        yield rows_TD[chunk] * weights_T[chunk, None]


def _by_eigenvectors(
    cross_DE: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the singular vectors and values of a matrix with D <= E, from the eigenvectors u of C C^T: v = C^T u / s. Overwrites it.

    Vectors of values above `MIN_RESOLVED` of the largest are those of `numpy.linalg.svd` up to rounding, singly where values lie apart and
    in their span elsewhere.
    """
    if not np.isfinite(cross_DE).all():
        raise np.linalg.LinAlgError("an element is not finite")
    unit = max(float(np.abs(cross_DE).max()), 1e-300)
    cross_DE /= unit
    squares, left = eigh(cross_DE @ cross_DE.T, overwrite_a=True, check_finite=False, driver="evr")
    squares, left = squares[::-1], left[:, ::-1]
    values = np.sqrt(np.maximum(squares, 0))
    count = int((values > MIN_RESOLVED * values[0]).sum()) if values[0] > 0 else 0
    right = cross_DE.T @ left[:, :count]
    del cross_DE
    right /= values[:count]
    return left, _orthonormal(right, len(values)), values * unit


def _orthonormal(vectors_En: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Take what rounding left of earlier vectors out of later ones, [E, n], and complete them to ``size``. Overwrites them.

    By the Cholesky factor R of their products, nearly 1: V R^-1 is the Q of Q R in a third of the time.
    """
    if vectors_En.shape[1] == size:
        factor_nn, failed = dpotrf((vectors_En.T @ vectors_En).T, lower=0, overwrite_a=1)
        if not failed:
            turned: NDArray[np.float64] = dtrsm(1.0, factor_nn, vectors_En.T, lower=0, trans_a=1, overwrite_b=1).T
            return turned
    whole, triangle = np.linalg.qr(vectors_En, mode="reduced" if vectors_En.shape[1] == size else "complete")
    whole[:, : vectors_En.shape[1]] *= np.where(np.diagonal(triangle) < 0, -1, 1)
    return whole[:, :size]


def procrustes(a_TD: Rows, b_TE: Rows) -> NDArray[np.float32]:
    """Return the turn [D, E] with orthonormal rows or columns that takes centred ``a`` closest to centred ``b`` (Schoenemann 1966).

    >>> rng = np.random.default_rng(0)
    >>> a, turn = rng.normal(size=(50, 3)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    >>> bool(np.allclose(procrustes(a, a @ turn), turn, atol=1e-6))
    True
    """
    left, right, _ = common_directions(a_TD, b_TE)
    turn: NDArray[np.float32] = (left @ right.T).astype(np.float32)
    return turn

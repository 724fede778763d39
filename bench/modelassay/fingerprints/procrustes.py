"""Directions that two models have in common, and the orthogonal turn that takes one model's hidden dimensions onto the other's."""

# T = rows that correspond (tokens, neurons), D = hidden size of the first model, E = of the second, r = common directions

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]

CHUNK_ROWS = 1024
"""Rows that are held in float64 at once."""

MAX_SVD = 512
"""Dimensions up to which singular vectors are computed as such; beyond, by the eigenvectors of a Gram matrix, in a third of the time."""
MIN_RESOLVED = 1e-6
"""Singular values below that share of the largest are lost in the rounding of their squares (1e-12 of 1e-16 times the width): vectors
of these complete the basis, and say nothing."""


def common_directions(a_TD: Rows, b_TE: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the singular vectors of centred a^T b, [D, r] and [E, r], and its singular values [r], the largest first; r = min(D, E).

    Columns of one number are one direction in both bases. Their product is the orthogonal Procrustes solution.

    Raises:
        numpy.linalg.LinAlgError: an element is not finite.
    """
    means = [rows.mean(0, dtype=np.float64) for rows in (a_TD, b_TE)]
    cross_DE = np.zeros((a_TD.shape[1], b_TE.shape[1]))
    for start in range(0, len(a_TD), CHUNK_ROWS):
        a, b = (rows[start : start + CHUNK_ROWS] - mean for rows, mean in zip((a_TD, b_TE), means, strict=True))
        cross_DE += a.T @ b
    if min(cross_DE.shape) <= MAX_SVD:
        left, values, right = np.linalg.svd(cross_DE, full_matrices=False)
        return left, right.T, values
    if cross_DE.shape[0] <= cross_DE.shape[1]:
        return _by_eigenvectors(cross_DE)
    right, left, values = _by_eigenvectors(cross_DE.T)
    return left, right, values


def _by_eigenvectors(
    cross_DE: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the singular vectors and values of a matrix with D <= E, from the eigenvectors u of C C^T: v = C^T u / s.

    Vectors of values above `MIN_RESOLVED` of the largest are those of `numpy.linalg.svd` up to rounding, singly where values lie apart and
    in their span elsewhere.
    """
    unit = max(float(np.abs(cross_DE).max()), 1e-300)
    cross_DE = cross_DE / unit
    squares, left = np.linalg.eigh(cross_DE @ cross_DE.T)
    squares, left = squares[::-1], left[:, ::-1]
    values = np.sqrt(np.maximum(squares, 0))
    count = int((values > MIN_RESOLVED * values[0]).sum()) if values[0] > 0 else 0
    along = (cross_DE.T @ left[:, :count]) / values[:count]
    is_whole = count == len(values)
    right, triangle = np.linalg.qr(
        along, mode="reduced" if is_whole else "complete"
    )  # what rounding left of larger ones is taken out of smaller
    right[:, :count] *= np.where(np.diagonal(triangle) < 0, -1, 1)
    return left, right[:, : len(values)], values * unit


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

"""Directions that two models have in common, and the orthogonal turn that takes one model's hidden dimensions onto the other's."""

# T = rows that correspond (tokens, neurons), D = hidden size of the first model, E = of the second, r = common directions

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]

CHUNK_ROWS = 1024
"""Rows that are held in float64 at once."""


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
    left, values, right = np.linalg.svd(cross_DE, full_matrices=False)
    return left, right.T, values


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

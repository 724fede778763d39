"""Inner products of columns in a few directions, in fp32 where that is as good as float64."""

# R = rows of a matrix, D = hidden size, r = directions

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[Any]

CHUNK_ROWS = 1024
"""Rows that are turned at once; their float64 copy for the second product takes 2 MB at 256 directions."""

MAX_ERROR = 1e-4
"""Expected relative error, in the Frobenius norm, up to which fp32 serves. A score is printed to four digits."""

HEAVIEST = 8
"""Rows of the largest norm in a chunk whose error is measured; as many others are."""


def products_along(rows_RD: Matrix, directions_Dr: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (rows directions)^T (rows directions), [r, r], without the inner products of all hidden dimensions.

    The first product is taken in fp32, of both factors scaled to a largest element of 1 by powers of two, which lose nothing but
    what is below 1e-38 of it; the second, and the sum over rows, in float64. What the first loses is measured: of each `CHUNK_ROWS` rows
    the `HEAVIEST` and as many at even distances are turned in float64 as well, and the greatest of their errors, each over the row's norm, is
    taken for all. Bounds known beforehand, sqrt(D) 2^-24 of the norms (Higham and Mary 2019), are 50 times above what is found at
    D = 2048. Where twice the error over |rows directions| is above `MAX_ERROR`, because the directions miss nearly all of the matrix
    (one dimension that outweighs the rest), the matrix is taken again in float64, as are rows that are float64.

    Costs 2 R D r operations in fp32 and 2 R r^2 in float64, where the inner products of all dimensions take 2 R D^2. Not finite where
    an element is not, in a dimension that a direction has a part in; others are left out.
    """
    used = np.flatnonzero(directions_Dr.any(1))
    if 2 * len(used) <= len(directions_Dr):
        rows_RD, directions_Dr = rows_RD[:, used], directions_Dr[used]
    row_unit, direction_unit = power_of_two(rows_RD), power_of_two(directions_Dr)
    scale = (row_unit * direction_unit) ** 2
    if rows_RD.dtype != np.float64:
        products, error = _products(rows_RD, directions_Dr / direction_unit, row_unit, np.float32)
        size = math.sqrt(max(float(np.trace(products)), 0.0))
        if not 2 * error > MAX_ERROR * size:  # NaN too: float64 would not mend it
            return products * scale
    products, _ = _products(rows_RD, directions_Dr / direction_unit, row_unit, np.float64)
    return products * scale


def power_of_two(values: Matrix) -> float:
    """Return the power of two just above the largest absolute value; 1 where that is 0 or not finite."""
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    return 2.0 ** math.frexp(largest)[1] if 0 < largest < math.inf else 1.0


def scaled(rows_RD: Matrix, unit: float, dtype: Any) -> Matrix:
    """Return rows / unit, a power of two, in a type: by way of float64 where 1 / unit leaves the type."""
    if unit == 1 and rows_RD.dtype == dtype:
        return rows_RD
    if rows_RD.dtype == dtype and 2.0**-120 < unit < 2.0**120:
        narrow: Matrix = rows_RD * rows_RD.dtype.type(1 / unit)
        return narrow
    divided: Matrix = np.multiply(rows_RD, 1 / unit, dtype=np.float64).astype(dtype)
    return divided


def _products(
    rows_RD: Matrix, directions_Dr: NDArray[np.float64], unit: float, dtype: Any
) -> tuple[NDArray[np.float64], float]:
    """Return the products of rows / unit, the first one in a type, and the norm of what rows and directions in that type lose; 0 in float64."""
    products, squares = np.zeros((directions_Dr.shape[1],) * 2), 0.0
    typed_Dr = directions_Dr.astype(dtype, copy=False)
    for start in range(0, len(rows_RD), CHUNK_ROWS):
        chunk = scaled(rows_RD[start : start + CHUNK_ROWS], unit, dtype)
        turned = (chunk @ typed_Dr).astype(np.float64)
        products += turned.T @ turned
        if dtype != np.float64:
            squares += _lost(chunk, turned, directions_Dr) ** 2
    return products, math.sqrt(squares)


def _lost(rows_RD: Matrix, turned_Rr: NDArray[np.float64], directions_Dr: NDArray[np.float64]) -> float:
    """Return the norm of the errors of turned rows, by the greatest relative one among some that are turned in float64."""
    norms_R = np.sqrt(np.einsum("rd,rd->r", rows_RD, rows_RD))
    count = min(HEAVIEST, len(norms_R))
    places = np.concatenate([
        np.argpartition(-norms_R, count - 1)[:count],
        np.linspace(0, len(norms_R) - 1, count).astype(np.intp),
    ])
    errors = np.linalg.norm(rows_RD[places].astype(np.float64) @ directions_Dr - turned_Rr[places], axis=1)
    shares = errors / np.where(norms_R[places] > 0, norms_R[places], 1)
    return float(shares.max() * np.linalg.norm(norms_R))

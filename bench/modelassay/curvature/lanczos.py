"""Lanczos with full reorthogonalisation, and the extreme eigenvalues it finds, each with a residual bound."""

# P = size of the operator, M = steps, K = eigenvalues kept

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh, eigh_tridiagonal
from torch import Tensor

from modelassay.curvature.cost import Cost, CostMeter
from modelassay.curvature.operators import Operator
from modelassay.curvature.vectors import Budget, VectorStore
from modelassay.errors import UsageError
from modelassay.statistics.estimate import Estimate

Array = NDArray[np.float64]

FARTHEST = 10.0  # residual in tolerances: r^2 / gap is small too where Ritz values have not yet met a near neighbour


@dataclass
class Krylov:
    """An orthonormal basis Q [M, P] of the Krylov space of a start vector, with A Q^T = Q^T T + b q_{M+1} e_M^T."""

    basis: VectorStore
    diagonal: list[float] = field(default_factory=list)
    """M entries of T."""
    coupling: list[float] = field(default_factory=list)
    """Step m to step m + 1; the last, b, couples to the vector that is not in the basis."""
    following_P: Tensor | None = None
    """q_{M+1}; None once the space is exhausted: T then holds eigenvalues of A, as many as the start vector meets."""

    @property
    def steps(self) -> int:
        """M."""
        return len(self.diagonal)

    @property
    def is_exhausted(self) -> bool:
        """Whether no further step can be taken: T has eigenvalues of A, as many as the start vector meets."""
        return self.coupling[-1:] == [0.0]

    def ritz(self) -> tuple[Array, Array, Array]:
        """Return Ritz values, largest first, the norm of each pair's residual, and the pairs' rows over the basis [M, M].

        The residual |A u - theta u| is b |s_M|, s the pair's row: some eigenvalue of A lies within it of theta.
        """
        values, columns = eigh_tridiagonal(np.array(self.diagonal), np.array(self.coupling[:-1]))
        order = np.argsort(-values)
        rows = columns.T[order]
        return values[order], abs(self.coupling[-1] * rows[:, -1]), rows

    def vectors(self, rows_KM: Array) -> Tensor:
        """Return the Ritz vectors of some rows of `ritz`, [K, P]."""
        return self.basis.combine(torch.from_numpy(np.ascontiguousarray(rows_KM)))


def krylov(operator: Operator, *, start_P: Tensor | None = None, seed: int = 0, budget: Budget | None = None) -> Krylov:
    """Return an empty Krylov space from ``start_P``, or from a Gaussian vector of ``seed``.

    Raises:
        UsageError: a start vector that is zero or not finite.
    """
    if start_P is None:
        start_P = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start_P = start_P.to(operator.device, operator.dtype)
    norm = float(start_P.norm())
    if not (np.isfinite(norm) and norm > 0):
        raise UsageError(f"lanczos: the start vector has norm {norm}; give a finite one that is not zero")
    basis = VectorStore(operator.size, dtype=operator.dtype, device=operator.device, budget=budget)
    return Krylov(basis=basis, following_P=start_P / norm)


def extend(space: Krylov, operator: Operator, steps: int) -> Krylov:
    """Take ``steps`` more Lanczos steps in place, fewer if the space is exhausted; one product each.

    Each new vector is made orthogonal to all before it, twice (Daniel et al. 1976: twice is enough), so that no eigenvalue
    appears more often than it should. Costs 4 M P multiplications per step beside the product and keeps M vectors.
    """
    for _ in range(steps):
        if space.following_P is None:
            break
        space.basis.append(space.following_P)
        product_P = operator.matvec(space.following_P)
        before = float(product_P.norm())
        first_M = space.basis.project(product_P)
        space.basis.subtract(product_P, first_M)
        space.basis.subtract(product_P, space.basis.project(product_P))
        norm = float(product_P.norm())
        space.diagonal.append(float(first_M[-1]))
        scale = max(before, max(map(abs, space.diagonal)), *space.coupling, 0.0)
        # Below this, what is left of the product is rounding, and its direction means nothing.
        exhausted = norm <= 10 * torch.finfo(operator.dtype).eps * scale or len(space.basis) == operator.size
        space.coupling.append(0.0 if exhausted else norm)
        space.following_P = None if exhausted else product_P / norm
    return space


@dataclass(frozen=True, kw_only=True)
class Extremes:
    """The ends of a spectrum by value, not by magnitude."""

    largest: tuple[Estimate, ...]
    """Largest first."""
    smallest: tuple[Estimate, ...]
    """Smallest first."""
    converged: bool
    """Whether every error estimate is within the tolerance."""
    space: Krylov
    cost: Cost


def extreme_eigenvalues(operator: Operator, *, largest: int = 1, smallest: int = 0, tolerance: float = 1e-3,
                        max_products: int = 20, seed: int = 0, budget: Budget | None = None) -> Extremes:  # fmt: skip
    """Find the largest and the smallest eigenvalues by value, to a tolerance relative to each.

    Ritz values approach the ends of the spectrum from within. The search ends when for each value wanted r^2 / gap is at
    most ``tolerance`` times it and r at most 10 times that, r its residual and gap the least distance that the residuals
    of the other Ritz values leave (Parlett 1998, 11.7). The interval runs from the Ritz value outward by r (and by the
    rounding of the products): it holds an eigenvalue for certain, which is the extreme one unless the start vector misses
    that direction or it has not yet come apart from its neighbour. Multiple eigenvalues are seen once. Where products are
    narrow (bf16), value and r are those of `ritz_ends`; where none is exact (differences), there is no interval.

    Costs one product per step, in bf16 one more in fp32 per value. The largest eigenvalue of a trained model's Hessian took 8 to 16 steps to 1e-3, the
    smallest, which lies near the bulk, about 50.

    Raises:
        UsageError: nothing asked for, or fewer products than values.

    >>> from modelassay.curvature.operators import DenseOperator
    >>> found = extreme_eigenvalues(DenseOperator(torch.diag(torch.tensor([-5.0, 1.0, 2.0]).double())), smallest=1)
    >>> [round(e.value, 9) for e in (*found.largest, *found.smallest)]
    [2.0, -5.0]
    """
    wanted = largest + smallest
    if min(largest, smallest) < 0 or wanted < 1 or max_products < wanted:
        raise UsageError(f"extreme_eigenvalues: ask for at least one value and at most max_products = {max_products}, got {largest} largest and {smallest} smallest")  # fmt: skip
    meter = CostMeter(operator)
    space = krylov(operator, seed=seed, budget=budget)
    converged = False
    while not converged and space.steps < max_products and space.following_P is not None:
        extend(space, operator, 1)
        converged = space.following_P is None or (
            space.steps >= wanted and _converged(space, largest, smallest, tolerance)
        )
    steps = space.steps
    above, below = min(largest, steps), min(smallest, steps)
    ends = ritz_ends(space, operator, [*range(above), *range(steps - below, steps)])
    estimates = [ritz_estimate(space, operator, *end, upward=place < above) for place, end in enumerate(ends)]
    if operator.precise() not in {operator, None}:
        converged = converged and all(_is_close(*end, tolerance) for end in ends)
    return Extremes(largest=tuple(estimates[:above]), smallest=tuple(reversed(estimates[above:])), converged=converged,
                    space=space, cost=meter.cost(space.basis))  # fmt: skip


def ritz_ends(space: Krylov, operator: Operator, places: Sequence[int]) -> list[tuple[float, float]]:
    """Return value and residual of the Ritz pairs at ``places`` (ascending, of values largest first), bounds on true eigenvalues.

    Of an operator whose products are narrow, T is that of a matrix near by, symmetric only up to its errors. So the Ritz
    vectors at ``places`` are multiplied by `Operator.precise`, one product each, and values and residuals are those of a
    Rayleigh-Ritz step on them: the i-th largest value is at most the i-th largest eigenvalue, and some eigenvalue lies within
    a residual of each.
    """
    values, residuals, rows = space.ritz()
    precise = operator.precise()
    if precise is operator or precise is None:
        return [(float(values[place]), float(residuals[place])) for place in places]
    vectors_KP = space.vectors(rows[list(places)])
    products_KP = torch.stack([operator.precise_matvec(vector_P) for vector_P in vectors_KP])
    inner, overlap = (_inner(vectors_KP, part_KP) for part_KP in (products_KP, vectors_KP))
    ascending, columns = eigh((inner + inner.T) / 2, overlap)
    ends = []
    for value, weights in zip(ascending[::-1], columns.T[::-1], strict=True):
        weights_K = torch.from_numpy(np.ascontiguousarray(weights)).to(vectors_KP)
        residual_P = weights_K @ products_KP - float(value) * (weights_K @ vectors_KP)
        ends.append((float(value), float(residual_P.norm())))
    return ends


def _inner(left_KP: Tensor, right_KP: Tensor) -> Array:
    """Return the inner products of rows, summed in fp64."""
    rows = [[float(left_P.double() @ right_P.double()) for right_P in right_KP] for left_P in left_KP]
    return np.array(rows)


def ritz_estimate(space: Krylov, operator: Operator, value: float, residual: float, *, upward: bool) -> Estimate:
    """Return a Ritz value with its residual interval, outward from the spectrum's middle; see `ritz_ends` for its arguments."""
    if operator.precise() is None:
        return Estimate(value=float(value), method="Ritz value", note="no interval: products are approximate")
    rounding = 8 * torch.finfo(operator.dtype).eps * max(map(abs, (*space.diagonal, *space.coupling)))
    low, high = (rounding, residual + rounding) if upward else (residual + rounding, rounding)
    return Estimate(value=float(value), low=float(value - low), high=float(value + high), method="Ritz value, residual bound")  # fmt: skip


def _is_close(value: float, residual: float, tolerance: float) -> bool:
    return residual <= FARTHEST * tolerance * abs(value)


def _converged(space: Krylov, largest: int, smallest: int, tolerance: float) -> bool:
    values, residuals, _ = space.ritz()
    for i in [*range(largest), *range(len(values) - smallest, len(values))]:
        gap = np.min(np.delete(np.abs(values - values[i]) - residuals, i), initial=np.inf)
        error = min(residuals[i], residuals[i] ** 2 / gap) if 0 < gap < np.inf else residuals[i]
        if error > tolerance * abs(values[i]) or not _is_close(values[i], residuals[i], tolerance):
            return False
    return True

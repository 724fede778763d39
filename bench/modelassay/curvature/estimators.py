"""Stochastic estimates: spectral density by Lanczos quadrature, moments by deflated Hutchinson, trace by Hutch++."""

# P = size of the operator, M = Lanczos steps, K = probes

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelassay.curvature.cost import Cost, CostMeter, check_probes
from modelassay.curvature.lanczos import Krylov, extend, krylov
from modelassay.curvature.operators import Operator
from modelassay.curvature.vectors import Budget, VectorStore
from modelassay.errors import UsageError
from modelassay.statistics.estimate import LEVEL, Estimate
from modelassay.statistics.intervals import student_half_width

Array = NDArray[np.float64]


def signs(operator: Operator, generator: torch.Generator, count: int = 1) -> Tensor:
    """Return ``count`` vectors of independent random signs, [K, P]; drawn on the host, so alike on every device."""
    drawn = torch.randint(0, 2, (count, operator.size), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(operator.device).to(operator.dtype)


@dataclass(frozen=True, kw_only=True)
class SpectralDensity:
    """The share of eigenvalues near each place, as weighted nodes of one quadrature per probe."""

    nodes: tuple[Array, ...]
    """For each probe, M Ritz values."""
    weights: tuple[Array, ...]
    """For each probe, M weights that sum to 1."""
    cost: Cost

    def mean_of(self, function: Callable[[Array], Array], *, level: float = LEVEL) -> Estimate:
        """Return the mean of f over the eigenvalues, tr f(A) / P, with a Student-t interval over the probes."""
        means = np.array([weights @ function(nodes) for nodes, weights in zip(self.nodes, self.weights, strict=True)])
        half = student_half_width(means, level)
        return Estimate(value=float(means.mean()), low=float(means.mean() - half), high=float(means.mean() + half),
                        level=level, method="stochastic Lanczos quadrature, Student over probes", n=len(means))  # fmt: skip

    def quantile(self, share: float) -> float:
        """Return the value below which ``share`` of the eigenvalues lie; a step function of the nodes.

        Good to the distance of neighbouring nodes: take at least 100 steps, and never read a median absolute deviation
        from fewer than 30, where the node at the bulk's peak holds half the weight by itself.
        """
        nodes, weights = np.concatenate(self.nodes), np.concatenate(self.weights) / len(self.nodes)
        order = np.argsort(nodes)
        place = int(np.searchsorted(np.cumsum(weights[order]), share))
        return float(nodes[order][min(place, len(nodes) - 1)])

    def density(self, grid: Array, sigma: float) -> Array:
        """Return the density over ``grid``, each node a Gaussian of standard deviation ``sigma``."""
        nodes, weights = np.concatenate(self.nodes), np.concatenate(self.weights) / len(self.nodes)
        return smoothed(grid, nodes, weights, sigma)


def smoothed(grid: Array, nodes: Array, weights: Array, sigma: float) -> Array:
    """Return the density over ``grid`` of weighted nodes, each a Gaussian of standard deviation ``sigma``.

    >>> float(smoothed(np.array([0.0]), np.array([0.0]), np.array([1.0]), 1.0)[0].round(4))
    0.3989
    """
    bumps = np.exp(-0.5 * ((grid[:, None] - nodes) / sigma) ** 2)
    result: Array = bumps @ weights / (sigma * np.sqrt(2 * np.pi))
    return result


def lanczos_quadrature(operator: Operator, *, steps: int = 100, num_probes: int = 10, seed: int = 0,
                       budget: Budget | None = None) -> SpectralDensity:  # fmt: skip
    """Estimate the spectral density by Gauss quadrature from ``num_probes`` random sign vectors.

    A probe's quadrature integrates polynomials up to degree 2 M - 1 exactly, so moments of first and second order carry no
    error but the probes'; more steps sharpen the density, not those. Costs ``steps * num_probes`` products and keeps the
    vectors of one probe. The defaults are those of Zhang et al. 2024 (arXiv 2402.16788). Ubaru, Chen and Saad 2017.

    Raises:
        UsageError: fewer than two probes or one step.
    """
    check_probes("lanczos_quadrature", num_probes, LEVEL)
    if steps < 1:
        raise UsageError(f"lanczos_quadrature: steps must be at least 1, got {steps}")
    meter, generator = CostMeter(operator), torch.Generator().manual_seed(seed)
    nodes, weights, vector_bytes = [], [], 0
    for _ in range(num_probes):
        space = extend(krylov(operator, start_P=signs(operator, generator)[0], budget=budget), operator, steps)
        values, _, rows = space.ritz()
        nodes.append(values)
        weights.append(rows[:, 0] ** 2)
        vector_bytes = max(vector_bytes, meter.cost(space.basis).vector_bytes)
    return SpectralDensity(nodes=tuple(nodes), weights=tuple(weights), cost=meter.cost(more_bytes=vector_bytes))


@dataclass(frozen=True, kw_only=True)
class Moments:
    """tr A and tr A^2, split into what a Krylov space knows exactly and what the probes add to it."""

    size: int
    """P."""
    steps: int
    """M, the dimension of the Krylov space."""
    exact: tuple[float, float]
    """tr T and |T|_F^2 + b^2."""
    lengths_K: Array
    """|P z|^2 of each probe z, P the projection off the Krylov space: mean P - M."""
    first_K: Array
    """z^T P A P z of each probe: mean tr(P A P)."""
    second_K: Array
    """|A P z|^2 of each probe: mean tr(P A^2 P)."""
    cost: Cost

    def trace(self, level: float) -> tuple[float, float]:
        """Return tr A and half its interval."""
        mean, half = self._off_space(self.first_K, level)
        return self.exact[0] + mean, half

    def square_about(self, centre: float, level: float) -> tuple[float, float]:
        """Return tr (A - c)^2 for a fixed c and half its interval."""
        samples_K = self.second_K - 2 * centre * self.first_K + centre**2 * self.lengths_K
        mean, half = self._off_space(samples_K, level)
        return self.exact[1] - 2 * centre * self.exact[0] + centre**2 * self.steps + mean, half

    def _off_space(self, samples_K: Array, level: float) -> tuple[float, float]:
        """Return the ratio estimate of a trace: exact where A is one number off the space, whatever the probes' lengths.

        Its bias is a fraction of about M / (K P^2): the lengths are known in the mean and vary little.
        """
        left = self.size - self.steps
        if left == 0:
            return 0.0, 0.0
        share = float(samples_K.sum() / self.lengths_K.sum())
        return share * left, student_half_width(samples_K - share * self.lengths_K, level)


def deflated_moments(operator: Operator, space: Krylov, *, num_probes: int = 10, seed: int = 0) -> Moments:
    """Estimate tr A and tr A^2 without bias from a Krylov space and ``num_probes`` products more.

    With Q the basis, T and b as in `Krylov`, and P = I - Q^T Q::

        tr A   = tr T + tr(P A P)               tr A^2 = |T|_F^2 + b^2 + tr(P A^2 P)

    The first parts are exact whether or not any Ritz value has converged; the second parts are estimated by Hutchinson's
    method, and the large eigenvalues, which would make its noise, are not in them any more.

    Raises:
        UsageError: fewer than two probes.
    """
    check_probes("deflated_moments", num_probes, LEVEL)
    meter, generator = CostMeter(operator), torch.Generator().manual_seed(seed)
    samples_K3 = np.array([deflated_probe(operator, space, generator) for _ in range(num_probes)])
    return moments(space, samples_K3, size=operator.size, cost=meter.cost(space.basis))


def deflated_probe(operator: Operator, space: Krylov, generator: torch.Generator) -> tuple[float, float, float]:
    """Return |P z|^2, z^T P A P z and |A P z|^2 for the next random signs z of ``generator``; one product."""
    probe_P = _off(space.basis, signs(operator, generator)[0])
    product_P = operator.matvec(probe_P)
    return float(probe_P.norm()) ** 2, float(probe_P @ product_P), float(product_P.norm()) ** 2


def moments(space: Krylov, samples_K3: Array, *, size: int, cost: Cost) -> Moments:
    """Put together what a Krylov space of an operator of ``size`` and `deflated_probe` of several probes tell."""
    diagonal, coupling = np.array(space.diagonal), np.array(space.coupling)
    square = float(diagonal @ diagonal + 2 * coupling[:-1] @ coupling[:-1] + coupling[-1] ** 2)
    lengths_K, first_K, second_K = samples_K3.T
    return Moments(size=size, steps=space.steps, exact=(float(diagonal.sum()), square), lengths_K=lengths_K,
                   first_K=first_K, second_K=second_K, cost=cost)  # fmt: skip


def trace(operator: Operator, *, num_products: int = 30, seed: int = 0, level: float = LEVEL,
          budget: Budget | None = None) -> Estimate:  # fmt: skip
    """Estimate tr A by Hutch++: a third of the products finds the large directions, the rest is exact there and Hutchinson off them.

    Unbiased; for a positive semidefinite A the error falls as 1 / num_products where Hutchinson's falls as its root. The
    interval is Student's t over the num_products / 3 probes. Meyer, Musco, Musco and Woodruff 2021.

    Raises:
        UsageError: fewer than 6 products, which leave less than two probes.

    >>> from modelassay.curvature.operators import DenseOperator
    >>> low_rank = DenseOperator(torch.diag(torch.tensor([9.0, 0.0, 0.0]).double()))
    >>> round(trace(low_rank, num_products=6).value, 9)
    9.0
    """
    third = num_products // 3
    check_probes("trace", third, level)
    generator = torch.Generator().manual_seed(seed)
    basis = VectorStore(operator.size, dtype=operator.dtype, device=operator.device, budget=budget)
    inside = 0.0
    for _ in range(min(third, operator.size)):
        product_P = operator.matvec(signs(operator, generator)[0])
        before = float(product_P.norm())
        left_P = _off(basis, product_P)
        norm = float(left_P.norm())
        if norm <= 10 * torch.finfo(operator.dtype).eps * before:
            continue  # the range of A is exhausted: what is left is rounding
        basis.append(left_P / norm)
        inside += float(left_P @ operator.matvec(left_P / norm)) / norm
    outside = np.zeros(third)
    for index in range(third):
        probe_P = _off(basis, signs(operator, generator)[0])
        outside[index] = float(probe_P @ operator.matvec(probe_P))
    value, half = inside + float(outside.mean()), student_half_width(outside, level)
    return Estimate(value=value, low=value - half, high=value + half, level=level, method="Hutch++, Student over probes",
                    n=third)  # fmt: skip


def _off(basis: VectorStore, vector_P: Tensor) -> Tensor:
    """Make a vector orthogonal to a basis, in place; twice, against rounding."""
    for _ in range(2):
        basis.subtract(vector_P, basis.project(vector_P))
    return vector_P

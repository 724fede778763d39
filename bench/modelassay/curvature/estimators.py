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
    exact: bool = True
    """Whether the products were; if not, the spread of the probes says nothing of their error."""

    def mean_of(self, function: Callable[[Array], Array], *, level: float = LEVEL) -> Estimate:
        """Return the mean of f over the eigenvalues, tr f(A) / P, with a Student-t interval over the probes."""
        means = np.array([weights @ function(nodes) for nodes, weights in zip(self.nodes, self.weights, strict=True)])
        if not self.exact:
            return Estimate(value=float(means.mean()), method="stochastic Lanczos quadrature", n=len(means),
                            note="no interval: products are approximate")  # fmt: skip
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
    return SpectralDensity(nodes=tuple(nodes), weights=tuple(weights), cost=meter.cost(more_bytes=vector_bytes),
                           exact=operator.precise() is operator)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Moments:
    """tr A and tr A^2, split into what a Krylov space knows exactly and what the probes add to it."""

    size: int
    """P."""
    steps: int
    """M, the dimension of the Krylov space."""
    values_M: Array
    """Ritz values, largest first."""
    square: float
    """|T|_F^2 + b^2."""
    lengths_K: Array
    """|P z|^2 of each probe z, P the projection off the Krylov space: mean P - M."""
    first_K: Array
    """z^T P A P z of each probe: mean tr(P A P)."""
    second_K: Array
    """|A P z|^2 of each probe: mean tr(P A^2 P)."""
    change_KM: Array
    """Of each probe, by how much u^T A u exceeds each Ritz value: unbiased, and 0 where products are exact."""
    square_change_KM: Array
    """The same of |A u|^2."""
    error: float
    """Root mean square of |A u - T u| over Ritz vectors."""
    exact: bool
    """Whether the products behind it all are, or are those of `Operator.precise`."""
    cost: Cost

    def trace(self, level: float, without: NDArray[np.intp] | None = None) -> tuple[float, float]:
        """Return the sum of the eigenvalues but for the Ritz values at ``without``, and half its interval."""
        stays_M = self._stays(without)
        mean, half = self._estimate(self.first_K, self.change_KM[:, stays_M], level)
        return float(self.values_M[stays_M].sum()) + mean, half

    def square_about(self, centre: float, level: float, without: NDArray[np.intp] | None = None) -> tuple[float, float]:
        """Return tr (A - c)^2 for a fixed c but for the Ritz values at ``without``, and half its interval."""
        stays_M = self._stays(without)
        samples_K = self.second_K - 2 * centre * self.first_K + centre**2 * self.lengths_K
        change_KM = self.square_change_KM - 2 * centre * self.change_KM
        mean, half = self._estimate(samples_K, change_KM[:, stays_M], level)
        whole = self.square - 2 * centre * float(self.values_M.sum()) + centre**2 * self.steps
        return whole - float(((self.values_M[~stays_M] - centre) ** 2).sum()) + mean, half

    def _stays(self, without: NDArray[np.intp] | None) -> NDArray[np.bool_]:
        stays_M = np.ones(self.steps, dtype=bool)
        if without is not None:
            stays_M[without] = False
        return stays_M

    def _estimate(self, samples_K: Array, change_KM: Array, level: float) -> tuple[float, float]:
        """Return the ratio estimate of a trace off the space, exact where A is one number there, and the change inside.

        Its bias is a fraction of about M / (K P^2): the lengths are known in the mean and vary little.
        """
        left, change_K = self.size - self.steps, change_KM.sum(1)
        share = float(samples_K.sum() / self.lengths_K.sum()) if left else 0.0
        spread_K = (samples_K - share * self.lengths_K if left else 0.0) + change_K
        return share * left + float(change_K.mean()), student_half_width(spread_K, level)


def deflated_moments(operator: Operator, space: Krylov, *, num_probes: int = 10, seed: int = 0) -> Moments:
    """Estimate tr A and tr A^2 without bias from a Krylov space and ``num_probes`` products more.

    With Q the basis, T and b as in `Krylov`, and P = I - Q^T Q::

        tr A   = tr T + tr(P A P)               tr A^2 = |T|_F^2 + b^2 + tr(P A^2 P)

    The first parts are exact whether or not any Ritz value has converged; the second parts are estimated by Hutchinson's
    method, and the large eigenvalues, which would make its noise, are not in them any more. Where products are narrow (bf16)
    T is not exact either: the probes' products are then those of `Operator.precise`, two of each, the second of which tells
    how far A is from T inside the space.

    Raises:
        UsageError: fewer than two probes.
    """
    check_probes("deflated_moments", num_probes, LEVEL)
    meter, generator = CostMeter(operator), torch.Generator().manual_seed(seed)
    samples = np.array([deflated_probe(operator, space, generator) for _ in range(num_probes)])
    exact = operator.precise() is not None
    return moments(space, samples, size=operator.size, cost=meter.cost(space.basis), exact=exact)


def deflated_probe(operator: Operator, space: Krylov, generator: torch.Generator) -> list[float]:
    """Return |P z|^2, z^T P A P z and |A P z|^2 for the next random signs z of ``generator``, and `_change_inside` if there is any."""
    signs_P = signs(operator, generator)[0]
    inside_M = signs_P[: space.steps].cpu().double().numpy()
    probe_P = _off(space.basis, signs_P.clone())
    product_P = operator.precise_matvec(probe_P)
    sample = [float(probe_P.norm()) ** 2, float(probe_P @ product_P), float(product_P.norm()) ** 2]
    return sample if operator.precise() in {operator, None} else sample + _change_inside(operator, space, inside_M)


def _change_inside(operator: Operator, space: Krylov, signs_M: Array) -> list[float]:
    """Return estimates of u^T E u and of 2 (T u)^T E u + |E u|^2 for each Ritz vector u, and the mean |E u|^2.

    E = A - T is multiplied by the sum w of all Ritz vectors with random signs s: s_i u_i^T E w has the mean u_i^T E u_i. Of
    a Ritz pair T u is theta u + beta q_{M+1}.
    """
    values_M, _, rows_MM = space.ritz()
    beta_M = space.coupling[-1] * rows_MM[:, -1]
    w_P, expected_P = space.vectors(np.stack([signs_M @ rows_MM, (signs_M * values_M) @ rows_MM]))
    error_P = operator.precise_matvec(w_P) - expected_P
    following_M = np.zeros(space.steps)
    if space.following_P is not None:
        error_P -= float(signs_M @ beta_M) * space.following_P
        following_M += float(error_P @ space.following_P)
    change_M = signs_M * (rows_MM @ space.basis.project(error_P).numpy())
    mean_square = float(error_P.norm()) ** 2 / space.steps
    square_change_M = 2 * (values_M * change_M + beta_M * signs_M * following_M) + mean_square
    return [*change_M.tolist(), *square_change_M.tolist(), mean_square]


def moments(space: Krylov, samples: Array, *, size: int, cost: Cost, exact: bool = True) -> Moments:
    """Put together what a Krylov space of an operator of ``size`` and `deflated_probe` of several probes tell."""
    diagonal, coupling = np.array(space.diagonal), np.array(space.coupling)
    square = float(diagonal @ diagonal + 2 * coupling[:-1] @ coupling[:-1] + coupling[-1] ** 2)
    steps = space.steps
    if samples.shape[1] == 3:  # products are those of T
        samples = np.hstack([samples, np.zeros((len(samples), 2 * steps + 1))])
    lengths_K, first_K, second_K = samples.T[:3]
    return Moments(size=size, steps=steps, values_M=space.ritz()[0], square=square, lengths_K=lengths_K, first_K=first_K,
                   second_K=second_K, change_KM=samples[:, 3 : 3 + steps], square_change_KM=samples[:, 3 + steps : -1],
                   error=float(samples[:, -1].mean()) ** 0.5, exact=exact, cost=cost)  # fmt: skip


def trace(operator: Operator, *, num_products: int = 30, seed: int = 0, level: float = LEVEL,
          budget: Budget | None = None) -> Estimate:  # fmt: skip
    """Estimate tr A by Hutch++: a third of the products finds the large directions, the rest is exact there and Hutchinson off them.

    Unbiased; for a positive semidefinite A the error falls as 1 / num_products where Hutchinson's falls as its root. The
    interval is Student's t over the num_products / 3 probes. Narrow products (bf16) only find the directions; those that
    are summed are precise. Meyer, Musco, Musco and Woodruff 2021.

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
        inside += float(left_P @ operator.precise_matvec(left_P / norm)) / norm
    outside = np.zeros(third)
    for index in range(third):
        probe_P = _off(basis, signs(operator, generator)[0])
        outside[index] = float(probe_P @ operator.precise_matvec(probe_P))
    if operator.precise() is None:
        return Estimate(value=inside + float(outside.mean()), method="Hutch++", n=third, note="no interval: products are approximate")  # fmt: skip
    value, half = inside + float(outside.mean()), student_half_width(outside, level)
    return Estimate(value=value, low=value - half, high=value + half, level=level, method="Hutch++, Student over probes",
                    n=third)  # fmt: skip


def _off(basis: VectorStore, vector_P: Tensor) -> Tensor:
    """Make a vector orthogonal to a basis, in place; twice, against rounding."""
    for _ in range(2):
        basis.subtract(vector_P, basis.project(vector_P))
    return vector_P

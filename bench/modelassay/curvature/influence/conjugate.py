"""(G + D)^-1 g with the exact Gauss-Newton matrix G, by conjugate gradients that EKFAC preconditions.

G couples all layers and takes no factorisation for granted; D is the damping of each layer, as EKFAC has it. How far EKFAC's own answer is
from this one, layer by layer, is the error of blocks and Kronecker products (`agreement`).
"""

# K = right-hand sides, P = weights of all layers in one vector

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay.curvature.ekfac.factors import Factors
from modelassay.curvature.ekfac.inverse import DAMPING, check_damping, damping_of, precondition
from modelassay.curvature.ekfac.modules import flattened, unflattened
from modelassay.curvature.operators import Operator
from modelassay.errors import UsageError

TOLERANCE = 1e-3
"""Of the residual's norm, relative to the right-hand side's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Solutions and how far they are from ones."""

    vectors_KP: Tensor
    residual_K: Tensor
    """Norm of g - (G + D) x over that of g, recomputed by one more product."""
    iterations: int


def solve(operator: Operator, right_KP: Tensor, *, damping_P: Tensor, inverse: Callable[[Tensor], Tensor], iterations: int,
          tolerance: float = TOLERANCE) -> Solution:  # fmt: skip
    """Solve (G + diag(damping)) x = g for all right-hand sides side by side; each stops moving when it is within ``tolerance``.

    Costs one product of the operator with K vectors an iteration, and one at the end. Hestenes and Stiefel 1952, preconditioned.

    Args:
        operator: G.
        right_KP: g.
        damping_P: above 0.
        inverse: an approximation of (G + D)^-1, symmetric and positive.
        iterations: at most.
        tolerance: see `TOLERANCE`.

    Raises:
        UsageError: fewer than one iteration.
        Diverged: a product that is not finite.
    """
    if iterations < 1:
        raise UsageError(f"influence: conjugate gradients take at least 1 iteration, got {iterations}")
    x_KP, residual_KP = torch.zeros_like(right_KP), right_KP.clone()
    step_KP = inverse(residual_KP)
    size_K = right_KP.norm(dim=1).clamp(min=torch.finfo(right_KP.dtype).tiny)
    direction_KP, rho_K = step_KP, (residual_KP * step_KP).sum(1)
    done = 0
    while done < iterations:
        done += 1
        product_KP = operator.matmat(direction_KP) + direction_KP * damping_P
        moving_K = residual_KP.norm(dim=1) > tolerance * size_K
        curvature_K = (direction_KP * product_KP).sum(1)
        alpha_K = torch.where(moving_K & (curvature_K > 0), rho_K / curvature_K, torch.zeros_like(rho_K))
        x_KP += alpha_K[:, None] * direction_KP
        residual_KP -= alpha_K[:, None] * product_KP
        if not (residual_KP.norm(dim=1) > tolerance * size_K).any():
            break
        step_KP = inverse(residual_KP)
        next_K = (residual_KP * step_KP).sum(1)
        direction_KP = step_KP + torch.where(rho_K > 0, next_K / rho_K, torch.zeros_like(rho_K))[:, None] * direction_KP
        rho_K = next_K
    remaining_KP = right_KP - operator.matmat(x_KP) - x_KP * damping_P
    return Solution(vectors_KP=x_KP, residual_K=remaining_KP.norm(dim=1) / size_K, iterations=done)


def solve_gradients(operator: Operator, gradients: Mapping[str, Tensor], factors: Factors, *, damping: float = DAMPING, iterations: int = 20,
                    tolerance: float = TOLERANCE) -> tuple[dict[str, Tensor], Solution]:  # fmt: skip
    """Return (G + D)^-1 g of query gradients {layer: [K, O, J]}, in the same form, and how well it was solved.

    ``operator`` is a `gauss_newton.GaussNewton` over `modules.parameters_of(factors.modules)` and the training rows.

    Raises:
        UsageError: a damping that is not positive, or fewer than one iteration.
    """
    check_damping(damping)
    modules = factors.modules
    own = {module.name: factors[module.name] for module in modules}
    right_KP = flattened(modules, gradients).to(operator.dtype)
    each = {
        module.name: torch.full((1, *module.shape), damping_of(own[module.name], "ekfac", damping))
        for module in modules
    }
    damping_P = flattened(modules, each)[0].to(right_KP)

    def inverse(vectors_KP: Tensor) -> Tensor:
        parts = unflattened(modules, vectors_KP)
        return flattened(modules, {name: precondition(part.to(own[name].lambda_OJ.dtype), own[name], strategy="ekfac", damping=damping)
                                   for name, part in parts.items()}).to(vectors_KP)  # fmt: skip

    solution = solve(
        operator, right_KP, damping_P=damping_P, inverse=inverse, iterations=iterations, tolerance=tolerance
    )
    return unflattened(modules, solution.vectors_KP), solution


def agreement(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the cosine of each query's two matrices by layer, {layer: [K]}; NaN where one of them is zero."""
    result = {}
    for name, matrix_KOJ in one.items():
        a, b = matrix_KOJ.flatten(1).double(), other[name].flatten(1).double()
        result[name] = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return result

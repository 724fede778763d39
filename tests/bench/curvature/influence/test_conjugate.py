"""Conjugate gradients against a dense solve with the exact Gauss-Newton matrix."""

from pathlib import Path

import torch

from modelassay.curvature.ekfac.examples import microbatches_of
from modelassay.curvature.ekfac.factors import Fit, fit_factors
from modelassay.curvature.ekfac.inverse import damping_of, precondition
from modelassay.curvature.ekfac.modules import flattened, parameters_of, select_modules
from modelassay.curvature.gauss_newton import GaussNewton
from modelassay.curvature.influence.conjugate import agreement, solve, solve_gradients
from modelassay.curvature.influence.queries import raw_gradients
from modelassay.curvature.operators import DenseOperator
from support.influence_cases import rows_of, tiny


def test_the_solution_is_that_of_the_whole_matrix(tmp_path: Path) -> None:
    model, rows, queries = tiny("qwen2"), rows_of(4), rows_of(2, seed=8)
    modules = select_modules(model, ["*.0.mlp.up_proj", "*.1.mlp.down_proj"])
    factors = fit_factors(model, rows, modules, tmp_path, Fit(seed=1))
    gradients = raw_gradients(model, queries, modules)
    operator = GaussNewton(model, microbatches_of(rows), parameters=parameters_of(modules), vectors_per_pass=96)
    found, solution = solve_gradients(operator, gradients, factors, damping=1.0, iterations=60, tolerance=1e-6)
    dense = operator.matmat(torch.eye(operator.size, dtype=torch.float64))
    each = {
        module.name: torch.full((1, *module.shape), damping_of(factors[module.name], "ekfac", 1.0), dtype=torch.float64)
        for module in modules
    }
    damped = dense + torch.diag(flattened(modules, each)[0])
    expected = torch.linalg.solve(damped, flattened(modules, gradients).T).T
    torch.testing.assert_close(flattened(modules, found), expected, rtol=1e-3, atol=1e-4)
    assert float(solution.residual_K.max()) < 1e-5
    assert solution.iterations < 60
    ekfac = {name: precondition(part, factors[name], strategy="ekfac", damping=1.0) for name, part in gradients.items()}
    for name, cosine in agreement(ekfac, found).items():
        a, b = ekfac[name].flatten(1), found[name].flatten(1)
        torch.testing.assert_close(cosine, torch.nn.functional.cosine_similarity(a, b))
        assert (cosine.abs() < 1 - 1e-6).all()


def test_an_exact_preconditioner_solves_in_one_step() -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, damping = half @ half.T, torch.full((6,), 0.5, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix + torch.diag(damping))
    right = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    solution = solve(
        DenseOperator(matrix), right, damping_P=damping, inverse=lambda v: v @ inverse, iterations=5, tolerance=1e-9
    )
    assert solution.iterations == 1
    torch.testing.assert_close(solution.vectors_KP, right @ inverse)

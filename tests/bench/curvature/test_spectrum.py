"""The estimators on a trained model whose spectrum is known exactly, over 50 seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelassay.curvature.estimators import lanczos_quadrature, trace
from modelassay.curvature.lanczos import extreme_eigenvalues
from modelassay.curvature.loss import microbatches
from modelassay.curvature.operators import DenseOperator, Hessian
from modelassay.curvature.parameters import select_parameters
from modelassay.curvature.spectrum import OUTLIER_SIGMAS, PREREGISTERED, REMOVED, Spectrum, overlap, spectrum
from modelassay.errors import UsageError
from support import curvature_cases as cases

Array = NDArray[np.float64]
SEEDS = range(50)
LEAST_COVERED = 43  # of 50 at a level of 95 %: fewer happen by chance 3 times in 1,000 (binomial)


@dataclass(frozen=True)
class Exact:
    matrix_PP: Tensor
    values: Array  # largest first
    vectors_PP: Tensor  # columns

    def rest(self, count: int) -> Array:
        return self.values[np.argsort(-np.abs(self.values))[count:]]


@pytest.fixture(scope="module")
def exact() -> Exact:
    model, ids = cases.trained_model()
    operator = Hessian(model, microbatches(ids, size=24), vectors_per_pass=64)
    matrix_PP = operator.matmat(torch.eye(operator.size, dtype=torch.float64))
    assert cases.off(matrix_PP, matrix_PP.T) < 1e-12
    values, vectors = torch.linalg.eigh(matrix_PP)
    return Exact(matrix_PP, values.flip(0).numpy(), vectors.flip(1))


@pytest.fixture(scope="module")
def measured(exact: Exact) -> list[Spectrum]:
    return [spectrum(DenseOperator(exact.matrix_PP), seed=1000 * seed) for seed in SEEDS]


def test_lambda_max_to_a_thousandth_within_20_products(exact: Exact) -> None:
    covered = 0
    for seed in SEEDS:
        found = extreme_eigenvalues(DenseOperator(exact.matrix_PP), seed=seed, tolerance=1e-3, max_products=20)
        top = found.largest[0]
        assert found.converged
        assert found.cost.products == found.space.steps <= 20
        assert abs(top.value / exact.values[0] - 1) < 1e-3
        covered += top.low <= exact.values[0] <= top.high
    assert covered == len(SEEDS)


def test_lambda_min_is_the_smallest_by_value(exact: Exact) -> None:
    assert exact.values[-1] < 0
    found = extreme_eigenvalues(DenseOperator(exact.matrix_PP), largest=2, smallest=2, tolerance=1e-4, max_products=120)
    assert found.converged
    values = [estimate.value for estimate in (*found.largest, *found.smallest)]
    np.testing.assert_allclose(values, exact.values[[0, 1, -1, -2]], rtol=1e-4)
    for estimate, value in zip((*found.largest, *found.smallest), exact.values[[0, 1, -1, -2]], strict=True):
        assert estimate.low <= value <= estimate.high


@pytest.mark.parametrize("name", REMOVED)
def test_sigma_bulk(exact: Exact, measured: list[Spectrum], name: str) -> None:
    """Within 3 % at 130 products, half-widths at most 5 % in the median, and as many intervals hit as they say."""
    true = float(exact.rest(REMOVED[name]).std())
    estimates = [each.sigma_bulk[name] for each in measured]
    assert {(each.cost.products, each.sigma_bulk[name].n) for each in measured} == {(130, 10)}
    assert max(abs(estimate.value / true - 1) for estimate in estimates) < 0.03
    assert np.median([estimate.half_width for estimate in estimates]) <= 0.05
    assert sum(estimate.low <= true <= estimate.high for estimate in estimates) >= LEAST_COVERED


def test_with_fewer_steps_only_the_definitions_that_they_reach_are_told(exact: Exact) -> None:
    found = spectrum(DenseOperator(exact.matrix_PP), steps=24, num_probes=10)
    for name in ("all", "without_10"):
        assert found.sigma_bulk[name].value == pytest.approx(float(exact.rest(REMOVED[name]).std()), rel=0.1)
    left_open = found.sigma_bulk["without_50"]
    assert np.isnan(left_open.value)
    assert left_open.note == "takes more than 50 Lanczos steps, and 51 eigenvalues"
    whole = spectrum(DenseOperator(torch.diag(torch.arange(40, dtype=torch.float64))), steps=60)
    assert np.isnan(whole.sigma_bulk["without_50"].value)
    assert whole.sigma_bulk["without_10"].value == pytest.approx(np.arange(30).std(), rel=1e-6)


def test_every_other_quantity_is_its_definition(exact: Exact, measured: list[Spectrum]) -> None:
    values, rest = exact.values, exact.rest(REMOVED[PREREGISTERED])
    truths = {
        "lambda_max": values[0], "lambda_min": values[-1], "centre": rest.mean(), "spread": values[0] - values[-1],
        "gap": values[0] - values[1], "outliers": (values > rest.mean() + OUTLIER_SIGMAS * rest.std()).sum(),
        "ratio": values[0] / rest.std(), "trace": values.sum(),
    }  # fmt: skip
    for name, true in truths.items():
        estimates = [getattr(each, name) for each in measured]
        covered = sum(estimate.low - 1e-12 <= true <= estimate.high + 1e-12 for estimate in estimates)
        assert covered >= LEAST_COVERED, name
        worst = max(abs(estimate.value - true) for estimate in estimates)
        assert worst <= {"outliers": 1, "centre": 0.15 * true, "trace": 0.1 * true}.get(name, 0.05 * abs(true)), name


def test_top_vectors_overlap_with_the_exact_ones_and_not_with_others(exact: Exact, measured: list[Spectrum]) -> None:
    top_KP = exact.vectors_PP[:, :10].T
    other_KP = exact.vectors_PP[:, 10:20].T
    found_KP = measured[0].vectors_KP
    assert cases.off(found_KP @ found_KP.T, torch.eye(10, dtype=torch.float64)) < 1e-12
    assert overlap(found_KP, top_KP) > 1 - 1e-6
    assert overlap(found_KP[:1], top_KP[:1]) > 1 - 1e-6
    assert overlap(found_KP, other_KP) < 1e-6
    with pytest.raises(UsageError, match="one shape"):
        overlap(top_KP, top_KP[:3])


def test_quadrature_moments_and_quantiles(exact: Exact) -> None:
    found = lanczos_quadrature(DenseOperator(exact.matrix_PP), steps=80, num_probes=10, seed=3)
    assert found.cost.products == 800
    for function in (lambda x: x, np.square, lambda x: np.exp(-x)):
        estimate = found.mean_of(function, level=0.999)
        assert estimate.low <= function(exact.values).mean() <= estimate.high
    for share in (0.5, 0.9, 0.99):
        place = (exact.values <= found.quantile(share)).mean()
        assert abs(place - share) < 0.08  # nodes near the bulk's peak weigh up to 0.1
    grid = np.linspace(exact.values[-1] - 1, exact.values[0] + 1, 4001)
    density = found.density(grid, sigma=0.05)
    assert density.min() >= 0
    assert abs(np.trapezoid(density, grid) - 1) < 1e-6
    assert abs(np.trapezoid(density * grid, grid) - found.mean_of(lambda x: x).value) < 1e-6


def test_trace_by_hutch_plus_plus(exact: Exact) -> None:
    true = exact.values.sum()
    operators = [DenseOperator(exact.matrix_PP) for _ in SEEDS]
    estimates = [trace(operator, num_products=60, seed=seed) for operator, seed in zip(operators, SEEDS, strict=True)]
    assert {operator.products for operator in operators} == {60}
    assert sum(estimate.low <= true <= estimate.high for estimate in estimates) >= LEAST_COVERED
    errors = np.array([estimate.value - true for estimate in estimates])
    assert abs(errors.mean()) < 4 * errors.std() / len(SEEDS) ** 0.5
    # Hutchinson with as many products and random signs: variance 2 (|A|_F^2 - sum a_ii^2) / 60.
    off_diagonal = exact.matrix_PP - torch.diag(exact.matrix_PP.diagonal())
    assert errors.std() < 0.8 * (2 * float(off_diagonal.square().sum()) / 60) ** 0.5


def test_an_operator_end_to_end() -> None:
    """Through real products in fp32, over ragged microbatches: the same numbers as from the dense float64 matrix."""
    model, ids = cases.trained_model(steps=30)
    blocks = select_parameters(model, embeddings=False)
    exact = Hessian(model, microbatches(ids, size=24), parameters=blocks, vectors_per_pass=64)
    values = torch.linalg.eigvalsh(exact.matmat(torch.eye(exact.size, dtype=torch.float64))).flip(0).numpy()
    found = spectrum(
        Hessian(model, microbatches(ids, size=10), parameters=blocks, precision="fp32"), steps=55, num_probes=3
    )
    assert abs(found.lambda_max.value / values[0] - 1) < 1e-5
    assert found.lambda_max.low <= values[0] <= found.lambda_max.high
    kept = values[np.argsort(-np.abs(values))[10:]]
    assert abs(found.sigma_bulk["without_10"].value / kept.std() - 1) < 0.03


@pytest.mark.parametrize("matrix", ["zero", "identity", "low rank"])
def test_spectra_without_a_bulk(matrix: str) -> None:
    """The Krylov space is exhausted after a few steps; what remains is exact."""
    size, top = 80, torch.randn(3, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense_PP = {"zero": torch.zeros(size, size), "identity": torch.eye(size), "low rank": top.T @ top}[matrix].double()
    values = torch.linalg.eigvalsh(dense_PP).numpy()
    found = spectrum(DenseOperator(dense_PP), steps=60)
    assert found.lambda_max.value == pytest.approx(values[-1], abs=1e-12)
    assert found.trace.value == pytest.approx(values.sum(), abs=1e-9)
    assert found.sigma_bulk["all"].value == pytest.approx(values.std(), abs=1e-6)
    assert found.sigma_bulk["without_10"].value == pytest.approx(0, abs=1e-6)
    if matrix == "zero":
        assert np.isnan(found.ratio.value)
        assert found.lambda_max.half_width == 0


def test_what_cannot_be_asked_for() -> None:
    operator = DenseOperator(torch.eye(60, dtype=torch.float64))
    with pytest.raises(UsageError, match="more than 10 Lanczos steps, got 60 and 10"):
        spectrum(operator, steps=10)
    with pytest.raises(UsageError, match="got 11 and 60"):
        spectrum(DenseOperator(torch.eye(11, dtype=torch.float64)), steps=60)
    with pytest.raises(UsageError, match="at least 2 probes, got 1"):
        spectrum(operator, steps=55, num_probes=1)
    with pytest.raises(UsageError, match="between 0 and 1"):
        trace(operator, level=1.0)
    with pytest.raises(UsageError, match="2 probes, got 1"):
        trace(operator, num_products=5)
    with pytest.raises(UsageError, match="steps must be at least 1"):
        lanczos_quadrature(operator, steps=0)

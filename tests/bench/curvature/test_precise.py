"""What is called certain of a spectrum holds the fp64 eigenvalues, whatever the products are made in."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.curvature.estimators import deflated_moments, lanczos_quadrature, trace
from modelassay.curvature.gauss_newton import EmpiricalFisher, GaussNewton, SampledFisher
from modelassay.curvature.lanczos import extend, extreme_eigenvalues, krylov
from modelassay.curvature.loss import microbatches
from modelassay.curvature.operators import FiniteDifferenceHessian, Hessian
from modelassay.curvature.spectrum import Spectrum, spectrum
from modelassay.experiments.spectral.measure import exact_numbers
from modelassay.statistics.estimate import Estimate
from support import curvature_cases as cases

KINDS = {
    "hessian": Hessian,
    "gauss-newton": GaussNewton,
    "sampled Fisher": SampledFisher,
    "empirical Fisher": EmpiricalFisher,
}

EVERY_DAY = [("hessian", torch.float32), ("gauss-newton", torch.bfloat16)]
"""Both dtypes of the weights, a matrix with and one without negative eigenvalues."""


@cache
def scene(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Make a trained model in ``dtype``; it and its text are read only."""
    model, ids = cases.trained_model()
    return model.to(dtype), microbatches(ids, size=12)


@cache
def hessian_eigenvalues() -> np.ndarray[Any, Any]:
    """Return those of the model in fp32, in fp64, ascending."""
    return eigenvalues(Hessian(*scene(), precision="fp64", vectors_per_pass=32))


def eigenvalues(operator: Any) -> np.ndarray[Any, Any]:
    dense_PP = operator.matmat(torch.eye(operator.size, dtype=torch.float64)).numpy()
    return np.linalg.eigvalsh((dense_PP + dense_PP.T) / 2)


def estimates(result: Spectrum) -> dict[str, Estimate]:
    names = ("lambda_max", "lambda_min", "spread", "gap", "outliers", "trace", "centre", "ratio")
    return {name: getattr(result, name) for name in names} | {
        f"sigma_bulk {name}": sigma for name, sigma in result.sigma_bulk.items()
    }


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=[] if (kind, dtype) in EVERY_DAY else pytest.mark.nightly)
        for dtype in (torch.bfloat16, torch.float32)
        for kind in KINDS
    ],
)
def test_bf16_intervals_hold_the_numbers_of_fp64(kind: str, dtype: torch.dtype) -> None:
    """Of the weights that the model has: those of a model in fp32 are rounded for the products, not for the truth."""
    model, batches = scene(dtype)
    exact = exact_numbers(eigenvalues(KINDS[kind](model, batches, precision="fp64", vectors_per_pass=32)))
    operator = KINDS[kind](model, batches, precision="bf16")
    result = spectrum(operator, steps=80, num_probes=6)
    assert result.cost.products == 80 + 2 * 6 + 3
    for name, estimate in estimates(result).items():
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= exact[name] <= estimate.high, name
    # By what bf16 misses them the certain ones are wider than what they were said to be, and no wider than they must be.
    for estimate in (result.lambda_max, result.lambda_min):
        assert estimate.low is not None
        assert estimate.high is not None
        assert 1e-5 * result.spread.value < estimate.high - estimate.low < 0.02 * result.spread.value


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
def test_fp32_intervals_hold_the_eigenvalues_of_fp64(seed: int) -> None:
    model, batches = scene()
    values_P = hessian_eigenvalues()
    ends = extreme_eigenvalues(
        Hessian(model, batches), largest=2, smallest=1, max_products=100, tolerance=1e-5, seed=seed
    )
    for estimate, value in zip((*ends.largest, *ends.smallest), values_P[[-1, -2, 0]], strict=True):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= value <= estimate.high
        assert estimate.high - estimate.low < 1e-3


def test_extremes_of_bf16_converge_to_what_bf16_can_tell() -> None:
    model, batches = scene()
    values_P = hessian_eigenvalues()
    operator = Hessian(model, batches, precision="bf16")
    ends = extreme_eigenvalues(operator, largest=1, smallest=1, max_products=100, tolerance=0.05)
    assert ends.converged
    assert ends.cost.products == operator.products == ends.space.steps + 2
    for estimate, value in zip((*ends.largest, *ends.smallest), values_P[[-1, 0]], strict=True):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= value <= estimate.high
    strict = extreme_eigenvalues(operator, largest=1, smallest=1, max_products=100, tolerance=1e-7)
    assert not strict.converged


def test_moments_inside_the_space_are_corrected_without_bias() -> None:
    """Over many probes the corrected traces are those of fp64; the uncorrected ones are further off than their intervals."""
    model, batches = scene()
    values_P = hessian_eigenvalues()
    operator = Hessian(model, batches, precision="bf16")
    space = extend(krylov(operator, seed=1), operator, 60)
    moments = deflated_moments(operator, space, num_probes=60, seed=2)
    for (value, half), exact in [
        (moments.trace(0.99), values_P.sum()),
        (moments.square_about(0.0, 0.99), np.square(values_P).sum()),
    ]:
        assert abs(value - exact) < half
    top = np.array([0, 1, 2])
    removed = values_P[::-1][top]
    assert abs(moments.trace(0.99, top)[0] - (values_P.sum() - removed.sum())) < moments.trace(0.99, top)[1]
    # Inside the space alone, by the Ritz vectors themselves.
    vectors_MP = space.vectors(space.ritz()[2]).double()
    exact_M = (vectors_MP * Hessian(model, batches, precision="fp64").matmat(vectors_MP)).sum(1).numpy()
    change_M, error_M = moments.change_KM.mean(0), moments.change_KM.std(0, ddof=1) / 60**0.5
    assert abs(change_M.sum() - (exact_M - moments.values_M).sum()) < 4 * moments.change_KM.sum(1).std(ddof=1) / 60**0.5
    assert np.mean(np.abs(moments.values_M + change_M - exact_M) < 3 * error_M + 1e-6) > 0.9


def test_without_exact_products_there_are_values_and_no_intervals() -> None:
    model, batches = scene(torch.float64)
    exact = exact_numbers(eigenvalues(Hessian(model, batches, vectors_per_pass=32)))
    operator = FiniteDifferenceHessian(model, batches)
    result = spectrum(operator, steps=60, num_probes=3)
    for name, estimate in estimates(result).items():
        assert not estimate.has_interval, name
    assert abs(result.lambda_max.value - exact["lambda_max"]) < 1e-6
    ends = extreme_eigenvalues(operator, smallest=1)
    assert not any(estimate.has_interval for estimate in (*ends.largest, *ends.smallest))
    assert not trace(operator, num_products=9).has_interval
    for approximate in (operator, Hessian(model, batches, precision="bf16")):
        density = lanczos_quadrature(approximate, steps=10, num_probes=2)
        assert not density.mean_of(lambda values: values).has_interval
    assert (
        lanczos_quadrature(Hessian(model, batches), steps=10, num_probes=2).mean_of(lambda values: values).has_interval
    )


def test_hutch_in_bf16_covers_the_trace_of_fp64() -> None:
    model, batches = scene()
    exact = float(hessian_eigenvalues().sum())
    operator = Hessian(model, batches, precision="bf16")
    estimate = trace(operator, num_products=60, seed=1)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= exact <= estimate.high


def test_labels_do_not_depend_on_the_precision_of_the_products() -> None:
    model, batches = scene()
    wide, narrow = (
        SampledFisher(model, batches, num_samples=50, precision=precision) for precision in ("fp32", "bf16")
    )
    for one, other in zip(wide._labels.values(), narrow._labels.values(), strict=True):
        assert torch.equal(one, other)

"""How near the estimators come to an exact spectrum, and what a spectrum costs beside its products.

    PYTHONPATH=bench:kernels:tests python -m pytest -o python_files='bench_*.py' tests/benchmarks/bench_spectrum.py -s

A trained Qwen2 of 2,768 parameters, its dense Hessian in float64 (one to two minutes), 50 seeds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from modelassay.curvature.lanczos import extreme_eigenvalues
from modelassay.curvature.loss import microbatches
from modelassay.curvature.operators import DenseOperator, Hessian
from modelassay.curvature.spectrum import REMOVED, spectrum
from support import curvature_cases as cases

SEEDS = range(50)


@pytest.fixture(scope="module")
def dense_PP() -> torch.Tensor:
    """The Hessian, row by row."""
    model, ids = cases.trained_model(hidden=16, vocabulary=24, steps=400)
    operator = Hessian(model, microbatches(ids, size=24), vectors_per_pass=32)
    return operator.matmat(torch.eye(operator.size, dtype=torch.float64))


def test_accuracy(benchmark: BenchmarkFixture, dense_PP: torch.Tensor) -> None:
    """Errors, half-widths and coverage of lambda_max in 20 products and of sigma_bulk in 130."""
    values = np.linalg.eigvalsh(dense_PP.numpy())
    extremes = [extreme_eigenvalues(DenseOperator(dense_PP), seed=seed) for seed in SEEDS]
    found = [each.largest[0] for each in extremes]
    errors = [abs(each.value / values[-1] - 1) for each in found]
    spent = [each.cost.products for each in extremes]
    facts: dict[str, float] = {"lambda_max worst error": max(errors), "lambda_max median products": float(np.median(spent)),
                               "lambda_max most products": max(spent)}  # fmt: skip
    runs = [spectrum(DenseOperator(dense_PP), seed=1000 * seed) for seed in SEEDS]
    for name, count in REMOVED.items():
        true = float(values[np.argsort(-np.abs(values))[count:]].std())
        estimates = [run.sigma_bulk[name] for run in runs]
        off = np.array([estimate.value / true - 1 for estimate in estimates])
        facts |= {f"{name} bias": float(off.mean()), f"{name} sd": float(off.std()), f"{name} worst": float(abs(off).max()),
                  f"{name} median half-width": float(np.median([estimate.half_width for estimate in estimates])),
                  f"{name} covered": float(np.mean([estimate.low <= true <= estimate.high for estimate in estimates]))}  # fmt: skip
    benchmark.extra_info |= facts
    benchmark.pedantic(spectrum, args=(DenseOperator(dense_PP),), rounds=5)
    print(*(f"{name}: {value:.4g}" for name, value in facts.items()), sep="\n")
    assert max(errors) < 1e-3
    assert facts["without_10 worst"] < 0.03

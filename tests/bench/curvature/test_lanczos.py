"""Lanczos by its invariants, on matrices that are hard for it; and the store its vectors lie in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modelassay.curvature.estimators import deflated_moments
from modelassay.curvature.lanczos import extend, extreme_eigenvalues, krylov
from modelassay.curvature.operators import DenseOperator
from modelassay.curvature.vectors import Budget, VectorStore
from modelassay.errors import HostError, UsageError
from support import curvature_cases as cases
from support import small_disk

CPU = torch.device("cpu")


def hard_matrix(size: int = 150) -> torch.Tensor:
    """Eigenvalues over twelve orders of magnitude, both signs, with a cluster: orthogonality is lost at once without care."""
    generator = torch.Generator().manual_seed(0)
    basis_PP, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    values = torch.logspace(4, -8, size, dtype=torch.float64)
    values[::7] *= -1
    values[5:9] = values[5]
    return (basis_PP * values) @ basis_PP.T


@pytest.mark.parametrize(
    "budget", [None, Budget(host_bytes=20 * 150 * 8), Budget(host_bytes=0)], ids=["host", "spills", "disk"]
)
def test_invariants(budget: Budget | None, tmp_path: Path) -> None:
    """Q Q^T = I, Q A Q^T = T, A u - theta u has the norm that is claimed, wherever the vectors lie."""
    matrix_PP = hard_matrix()
    if budget is not None:
        budget = Budget(host_bytes=budget.host_bytes, folder=tmp_path)
    space = extend(krylov(DenseOperator(matrix_PP), seed=1, budget=budget), DenseOperator(matrix_PP), 60)
    assert space.steps == len(space.basis) == 60
    basis_MP = space.basis.combine(torch.eye(60))
    assert cases.off(basis_MP @ basis_MP.T, torch.eye(60, dtype=torch.float64)) < 1e-14
    tridiagonal = np.diag(space.diagonal) + np.diag(space.coupling[:-1], 1) + np.diag(space.coupling[:-1], -1)
    assert cases.off(basis_MP @ matrix_PP @ basis_MP.T, torch.from_numpy(tridiagonal)) < 1e-13
    values, residuals, rows = space.ritz()
    vectors_MP = space.vectors(rows)
    true = (vectors_MP @ matrix_PP - torch.from_numpy(values.copy())[:, None] * vectors_MP).norm(dim=1).numpy()
    np.testing.assert_allclose(residuals, true, atol=1e-10)
    exact = torch.linalg.eigvalsh(matrix_PP).numpy()
    assert all(
        np.abs(exact - value).min() <= residual + 1e-10 for value, residual in zip(values, residuals, strict=True)
    )
    if budget is not None:
        assert space.basis.bytes_held["disk"] > 0
        assert not list(tmp_path.iterdir())


def test_a_run_in_two_halves_is_one_run() -> None:
    operator = DenseOperator(hard_matrix())
    whole = extend(krylov(operator, seed=4), operator, 30)
    halves = extend(extend(krylov(operator, seed=4), operator, 11), operator, 19)
    assert whole.diagonal == halves.diagonal
    assert whole.coupling == halves.coupling


def test_an_exhausted_space_ends_the_run() -> None:
    """Five distinct eigenvalues, each many times: five steps, exact, no more products."""
    operator = DenseOperator(torch.diag(torch.arange(60, dtype=torch.float64) % 5))
    space = extend(krylov(operator), operator, 40)
    assert space.steps == operator.products == 5
    assert space.following_P is None
    values, residuals, _ = space.ritz()
    np.testing.assert_allclose(values, [4, 3, 2, 1, 0], atol=1e-13)
    assert not residuals.any()
    found = extreme_eigenvalues(operator, largest=7, smallest=1, max_products=30)
    assert found.converged
    assert [round(estimate.value, 9) for estimate in found.largest] == [4, 3, 2, 1, 0]


def test_ends_are_by_value_not_by_magnitude() -> None:
    operator = DenseOperator(torch.diag(torch.tensor([-9.0, -8.0, 0.5, 1.0, 3.0], dtype=torch.float64)))
    found = extreme_eigenvalues(operator, largest=2, smallest=1)
    assert [round(estimate.value, 9) for estimate in (*found.largest, *found.smallest)] == [3.0, 1.0, -9.0]


def test_a_search_that_is_not_over_says_so() -> None:
    operator = DenseOperator(hard_matrix())
    found = extreme_eigenvalues(operator, tolerance=1e-12, max_products=3)
    assert not found.converged
    assert found.cost.products == 3
    top = float(torch.linalg.eigvalsh(operator.matrix_PP)[-1])
    assert found.largest[0].value < top


def test_deflated_moments_are_unbiased_whatever_has_converged() -> None:
    """Over 400 probes, at 3 steps where nothing has converged: within intervals that miss once in 10,000."""
    matrix_PP = hard_matrix(40)
    operator = DenseOperator(matrix_PP)
    space = extend(krylov(operator, seed=2), operator, 3)
    moments = deflated_moments(operator, space, num_probes=400, seed=7)
    shifted_PP = matrix_PP - 3.0 * torch.eye(40, dtype=torch.float64)
    for (value, half), true in (
        (moments.trace(0.9999), matrix_PP.trace()),
        (moments.square_about(0.0, 0.9999), matrix_PP.square().sum()),
        (moments.square_about(3.0, 0.9999), shifted_PP.square().sum()),
    ):
        assert 0 < half < 0.1 * float(matrix_PP.square().sum())
        assert abs(value - float(true)) < half


def test_what_cannot_be_asked_for() -> None:
    operator = DenseOperator(torch.eye(3, dtype=torch.float64))
    for asked in ({"largest": 0}, {"largest": -1, "smallest": 2}, {"largest": 3, "max_products": 2}):
        with pytest.raises(UsageError, match="at least one value"):
            extreme_eigenvalues(operator, **asked)
    for start_P in (torch.zeros(3), torch.tensor([1.0, torch.nan, 0.0])):
        with pytest.raises(UsageError, match="start vector has norm"):
            krylov(operator, start_P=start_P)


def test_store_in_every_place(tmp_path: Path) -> None:
    size, count = 1_003, 41
    rows_MP = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    budget = Budget(host_bytes=18 * size * 8, folder=tmp_path)
    store = VectorStore(size, dtype=torch.float64, device=CPU, budget=budget)
    vector_P = torch.linspace(-1, 1, size, dtype=torch.float64)
    assert not store.project(vector_P).numel()
    for row_P in rows_MP:
        store.append(row_P)
    held = store.bytes_held
    assert held["host"] == 18 * size * 8
    assert held["disk"] >= (count - 18) * size * 8
    assert len(store) == count
    assert cases.off(store.project(vector_P), rows_MP @ vector_P) < 1e-14
    coefficients_KM = torch.randn(3, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert cases.off(store.combine(coefficients_KM), coefficients_KM @ rows_MP) < 1e-14
    expected_P = vector_P - coefficients_KM[0] @ rows_MP
    store.subtract(vector_P, coefficients_KM[0])
    assert cases.off(vector_P, expected_P) < 1e-14


def test_no_room_is_an_error_of_the_host(tmp_path: Path) -> None:
    store = VectorStore(
        10, dtype=torch.float32, device=CPU, budget=Budget(host_bytes=80, disk_bytes=40, folder=tmp_path)
    )
    for _ in range(3):
        store.append(torch.ones(10))
    assert store.bytes_held == {"device": 0, "host": 80, "disk": 40}
    with pytest.raises(HostError, match="no room for vector 3 of 40 bytes"):
        store.append(torch.ones(10))
    missing = VectorStore(10, dtype=torch.float32, device=CPU, budget=Budget(host_bytes=0, folder=tmp_path / "absent"))
    with pytest.raises(HostError, match="absent: no room"):
        missing.append(torch.ones(10))


def test_places_of_vectors_are_known_before_any_is_made(tmp_path: Path) -> None:
    store = VectorStore(10, dtype=torch.float32, device=CPU, budget=Budget(host_bytes=100, disk_bytes=80, folder=tmp_path))  # fmt: skip
    assert store.places(2) == {"device": 0, "host": 80, "disk": 0}
    assert store.places(4) == {"device": 0, "host": 80, "disk": 80}
    with pytest.raises(HostError, match=r"5 vectors of .* room for .*half of the free memory, and what is free in"):
        store.places(5)
    boundless = VectorStore(1 << 40, dtype=torch.float64, device=CPU, budget=Budget(folder=tmp_path))
    with pytest.raises(HostError, match="3 vectors of 8.19e\\+03 GiB take 2.46e\\+04 GiB"):
        boundless.places(3)


@small_disk.needs_root
def test_a_full_disk_is_an_error_of_the_host(tmp_path: Path) -> None:
    with small_disk.small_disk(tmp_path, "64k") as disk:
        store = VectorStore(1_000, dtype=torch.float64, device=CPU, budget=Budget(host_bytes=0, folder=disk))
        with pytest.raises(HostError, match="no room for 128000 bytes of vectors: No space left"):
            store.append(torch.ones(1_000, dtype=torch.float64))

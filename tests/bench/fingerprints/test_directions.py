"""Products in a few directions against float64, on values that fp32 alone gets wrong."""

import numpy as np
import pytest

from modelassay.fingerprints import directions as module
from modelassay.fingerprints.directions import products_along

Array = np.ndarray


def turn(width: int, num_directions: int) -> Array:
    return np.linalg.qr(np.random.default_rng(1).normal(size=(width, width)))[0][:, :num_directions]


def relative_error(rows: Array, directions: Array) -> float:
    turned = rows.astype(np.float64) @ directions
    expected = turned.T @ turned
    return float(np.linalg.norm(products_along(rows, directions) - expected) / np.linalg.norm(expected))


def hostile(kind: str) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    rows, directions = rng.normal(size=(200, 96)), turn(96, 20)
    match kind:
        case "wide":
            rows *= 10.0 ** rng.uniform(-18, 18, size=rows.shape)
        case "huge":
            rows *= 1e37  # whose squares leave fp32
        case "tiny":
            rows *= 1e-30  # whose squares vanish in fp32
        case "huge directions":
            directions = directions * 1e60
        case "cancelling":  # all rows lie nearly across the directions, so that what is left is rounding
            rows = rows + 1e7 * rng.normal(size=(200, 1)) * turn(96, 40)[:, 39]
    return rows.astype(np.float32), directions


@pytest.mark.parametrize("kind", ["plain", "wide", "huge", "tiny", "huge directions", "cancelling"])
def test_agrees_with_float64(kind: str) -> None:
    assert relative_error(*hostile(kind)) < module.MAX_ERROR


def test_fp32_alone_would_not_serve_where_rows_lie_across_the_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ERROR", np.inf)
    assert relative_error(*hostile("cancelling")) > 1e-3


def test_plain_values_are_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    types: list[np.dtype] = []
    original = module._products

    def spy(rows: Array, directions: Array, unit: float, dtype: type) -> tuple[Array, float]:
        types.append(np.dtype(dtype))
        return original(rows, directions, unit, dtype)

    monkeypatch.setattr(module, "_products", spy)
    products_along(*hostile("plain"))
    wide = np.random.default_rng(3).normal(size=(64, 2048)).astype(np.float32)
    products_along(wide, np.linalg.qr(np.random.default_rng(1).normal(size=(2048, 32)))[0])
    assert types == [np.dtype(np.float32)] * 2


def test_one_row_that_outweighs_the_rest_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    rows, directions = rng.normal(size=(300, 96)), turn(96, 20)
    rows[137] = 1e7 * turn(96, 40)[:, 39]  # across the directions: all of its product is rounding
    rows = rows.astype(np.float32)
    assert relative_error(rows, directions) < module.MAX_ERROR
    monkeypatch.setattr(module, "MAX_ERROR", np.inf)
    assert relative_error(rows, directions) > 1e-4


def test_the_error_that_is_measured_is_the_true_one() -> None:
    rows, directions = hostile("plain")
    products, lost = module._products(rows, directions, 1.0, np.float32)
    turned = rows @ directions.astype(np.float32)
    true = np.linalg.norm(turned - rows.astype(np.float64) @ directions)
    assert true <= lost <= 3 * true


def test_chunks_sum_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, directions = hostile("plain")
    whole = products_along(rows, directions)
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    np.testing.assert_allclose(products_along(rows, directions), whole, rtol=1e-5, atol=1e-3)


def test_what_is_not_finite_stays_so() -> None:
    rows, directions = hostile("plain")
    rows[3, 4] = np.nan
    assert not np.isfinite(products_along(rows, directions)).any()

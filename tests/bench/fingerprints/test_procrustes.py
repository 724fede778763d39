"""Common directions against singular vectors in float64, also where they are computed by way of a Gram matrix."""

import numpy as np
import pytest

from modelassay.fingerprints import procrustes as module
from modelassay.fingerprints.procrustes import common_directions, procrustes

Array = np.ndarray


def pair(rows: int, widths: tuple[int, int], seed: int = 0) -> tuple[Array, Array]:
    """Rows of falling size along directions of their own, with something in common."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(rows, min(widths)))
    sizes = 10.0 ** np.linspace(0, -4, min(widths))
    turns = [np.linalg.qr(rng.normal(size=(width, width)))[0][: min(widths)] for width in widths]
    return tuple((common + 0.1 * rng.normal(size=common.shape)) * sizes @ turn for turn in turns)  # type: ignore[return-value]


@pytest.mark.parametrize("widths", [(40, 40), (30, 45), (45, 30)])
@pytest.mark.parametrize("rows", [200, 20])
def test_eigenvectors_give_the_singular_ones(
    rows: int, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fewer rows than dimensions too, where no more directions are told."""
    a, b = pair(rows, widths)
    expected = common_directions(a, b)
    monkeypatch.setattr(module, "MAX_SVD", 8)
    left, right, values = common_directions(a, b)
    known = expected[2] > 1e-5 * expected[2][0]
    np.testing.assert_allclose(values[known], expected[2][known], rtol=1e-6)
    for side, other in ((left, expected[0]), (right, expected[1])):
        assert side.shape == other.shape
        np.testing.assert_allclose(side.T @ side, np.eye(side.shape[1]), atol=1e-8)
    rank = int(known.sum())
    np.testing.assert_allclose(
        left[:, :rank] @ right[:, :rank].T, expected[0][:, :rank] @ expected[1][:, :rank].T, atol=1e-5
    )


def test_nothing_in_common_still_gives_a_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SVD", 8)
    turn = procrustes(np.zeros((20, 12)), np.zeros((20, 12)))
    np.testing.assert_allclose(turn @ turn.T, np.eye(12), atol=1e-6)

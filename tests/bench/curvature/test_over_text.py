"""The spectrum over a text in pieces, against dense Hessians of each piece, and against resampling for real."""

from functools import cache

import numpy as np
import pytest
import torch

from modelassay.curvature.loss import microbatches
from modelassay.curvature.operators import Hessian
from modelassay.curvature.over_text import HessianOverText, spectrum_over_text
from modelassay.curvature.parameters import select_parameters
from modelassay.errors import UsageError
from support.drift_models import byte_model

PATTERNS = ["model.layers.3.self_attn.[kv]_proj.*"]


@cache
def parts(pieces: int = 5, rows: int = 17) -> tuple[HessianOverText, list[np.ndarray]]:
    model = byte_model(dtype=torch.float64).eval()
    ids = torch.randint(0, 259, (rows, 9), generator=torch.Generator().manual_seed(2))
    batches = microbatches(ids, size=-(-rows // pieces))
    subset = select_parameters(model, PATTERNS)
    dense = []
    for batch in batches:
        operator = Hessian(model, [batch], parameters=subset)
        dense.append(operator.matmat(torch.eye(operator.size, dtype=torch.float64)).numpy())
    return HessianOverText(model, batches, parameters=subset), dense


def test_products_and_their_pieces_are_those_of_the_dense_hessians() -> None:
    operator, dense = parts()
    whole = sum(share * piece for share, piece in zip(operator.share_C, dense, strict=True))
    assert operator.share_C.sum() == pytest.approx(1)
    assert operator.share_C[-1] < operator.share_C[0]  # a ragged last piece weighs what its tokens weigh
    vectors = torch.randn(3, operator.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = operator.matmat(vectors).numpy()
    np.testing.assert_allclose(products, vectors.numpy() @ whole, rtol=0, atol=1e-11)
    seen = zip(operator.inner_C[-3:], operator.square_C[-3:], strict=True)
    for (inner_C, square_C), vector in zip(seen, vectors.numpy(), strict=True):
        np.testing.assert_allclose(inner_C, [vector @ piece @ vector for piece in dense], atol=1e-10)
        np.testing.assert_allclose(square_C, [(whole @ vector) @ (piece @ vector) for piece in dense], atol=1e-10)


def test_ratio_and_interval_hold_the_exact_number() -> None:
    operator, dense = parts()
    whole = sum(share * piece for share, piece in zip(operator.share_C, dense, strict=True))
    values = np.linalg.eigvalsh((whole + whole.T) / 2)
    found = [spectrum_over_text(operator, steps=12, probes=8, seed=seed) for seed in range(4)]
    for each in found:
        assert each.lambda_max.value == pytest.approx(values[-1], rel=1e-2)
        assert each.products == 12 + 8 + 1
        ratio = each.ratio["all"]
        assert ratio.low is not None
        assert ratio.high is not None
        assert ratio.low < values[-1] / values.std() < ratio.high
    sigma = np.mean([each.sigma_bulk["all"] for each in found])
    assert sigma == pytest.approx(values.std(), rel=0.05)
    assert found[0].sigma_bulk["without_5"] < found[0].sigma_bulk["without_1"] < found[0].sigma_bulk["all"]


def test_the_texts_error_is_that_of_resampling_for_real() -> None:
    """The exact ratio of 200 resamples of the pieces, each from its own dense Hessian, against the first-order number.

    These pieces are three rows of random tokens, which differ so much that the first order is too wide, by a factor of two; it must not be
    too narrow.
    """
    operator, dense = parts(pieces=6, rows=18)
    rng = np.random.default_rng(0)
    stack = np.stack(dense)
    ratios = []
    for _ in range(200):
        weights = rng.multinomial(6, np.full(6, 1 / 6)) / 6
        matrix = np.tensordot(weights, stack, axes=1)
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        ratios.append(values[-1] / values.std())
    expected = np.std(ratios) * np.sqrt(6 / 5)
    found = spectrum_over_text(operator, steps=20, probes=20, seed=1)
    assert expected * 0.8 < found.text_sd < expected * 3


def test_one_piece_is_refused() -> None:
    model = byte_model().eval()
    with pytest.raises(UsageError, match="two microbatches"):
        HessianOverText(model, microbatches(torch.zeros(4, 5, dtype=torch.int64), size=4))
    with pytest.raises(UsageError, match="precision='fp32'"):
        HessianOverText(model, microbatches(torch.zeros(4, 5, dtype=torch.int64), size=2), precision="bf16")
    operator, _ = parts()
    with pytest.raises(UsageError, match="steps must be"):
        spectrum_over_text(operator, steps=0)

"""Norm vectors: Pearson's r per layer, near 0 between strangers whose raw cosine is near 1."""

import numpy as np
import pytest
from scipy.stats import pearsonr

from modelassay.fingerprints.norm_vectors import norm_vectors, readings
from modelassay.fingerprints.weights import Weights

Array = np.ndarray


def model(norms: Array | None, name: str = "m") -> Weights:
    def none(_layers: range) -> Array:
        raise AssertionError("norm vectors read no matrices")

    return Weights(name=name, num_layers=0 if norms is None else len(norms), tokens=(), read_norms=lambda: norms,
                   read_embedding=lambda: None, read_neurons=lambda: None, read_grams=none)  # fmt: skip


def trained(seed: int, num_layers: int = 5, width: int = 64) -> Array:
    """Gains around 1, as training leaves them."""
    return 1 + 0.1 * np.random.default_rng(seed).normal(size=(num_layers, 2, width))


def oracle(shallow: Array, deep: Array, layers: list[int]) -> Array:
    return np.mean(
        [[pearsonr(shallow[i, n], deep[j, n]).statistic for n in (0, 1)] for i, j in enumerate(layers)], axis=0
    )


@pytest.mark.parametrize(("num_layers", "width"), [(1, 3), (2, 64), (7, 33)])
def test_mean_over_layers_of_pearsons_r(num_layers: int, width: int) -> None:
    a, b = trained(0, num_layers, width), trained(1, num_layers, width) + 0.3 * trained(0, num_layers, width)
    score = norm_vectors(model(a), model(b))
    expected = oracle(a, b, list(range(num_layers)))
    assert list(score.per_role.values()) == pytest.approx(expected, abs=1e-12)
    assert score.value == pytest.approx(expected.mean(), abs=1e-12)
    assert score.alignment == "same depth"
    assert norm_vectors(model(b), model(a)).value == pytest.approx(score.value, abs=1e-14)


def test_strangers_are_near_zero_where_the_raw_cosine_is_near_one() -> None:
    scores = []
    for seed in range(20):
        a, b = trained(2 * seed), trained(2 * seed + 1)
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert cosine.min() > 0.95
        scores.append(norm_vectors(model(a), model(b)).value)
    assert abs(np.mean(scores)) < 0.03  # 200 correlations of 64 numbers each: a standard error of 0.009
    assert np.abs(scores).max() < 0.2


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (0.01, 5.0)])
def test_scale_and_shift_of_the_gains_do_not_matter(scale: float, shift: float) -> None:
    a = trained(0)
    assert norm_vectors(model(a), model(scale * a + shift)).value == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("keep", "alignment"), [([0, 1, 2, 3], "head"), ([3, 4, 5, 6], "tail"), ([0, 2, 4, 6], "proportional")]
)
def test_layers_that_were_removed_are_read_over(keep: list[int], alignment: str) -> None:
    deep = trained(0, num_layers=7)
    for pair in ((model(deep[keep]), model(deep)), (model(deep), model(deep[keep]))):
        score = norm_vectors(*pair)
        assert score.alignment == alignment
        assert score.value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("shallow", "deep"), [(1, 1), (1, 2), (1, 9), (2, 3), (5, 8), (8, 8)])
def test_every_reading_takes_as_many_layers_in_order(shallow: int, deep: int) -> None:
    for layers in readings(shallow, deep).values():
        assert len(layers) == shallow
        assert (np.diff(layers) > 0).all()
        assert layers.min() >= 0
        assert layers.max() < deep


def test_the_best_reading_counts() -> None:
    shallow, deep = trained(0, 3), trained(1, 5)
    best = max(oracle(shallow, deep, list(map(int, layers))).mean() for layers in readings(3, 5).values())
    assert norm_vectors(model(shallow), model(deep)).value == pytest.approx(best, abs=1e-12)


def test_what_cannot_be_compared_says_why() -> None:
    a = trained(0)
    assert norm_vectors(model(a), model(None, "bare")).reason == (
        "bare: no weights of norms before attention and feed-forward were found"
    )
    assert norm_vectors(model(a), model(trained(1, width=48))).reason == "widths differ (64 and 48)"
    folded = norm_vectors(model(a), model(np.ones_like(a)))
    assert np.isnan(folded.value)
    assert folded.reason == "the norms do not vary, so their correlation is not defined"


def test_a_layer_whose_norm_does_not_vary_or_is_no_number_is_left_out() -> None:
    a, b = trained(0), trained(1)
    for fill in (1.0, np.nan):
        broken = b.copy()
        broken[2, 0] = fill
        score = norm_vectors(model(a), model(broken))
        rest = [0, 1, 3, 4]
        assert score.per_role["norm-1"] == pytest.approx(oracle(a[rest], b[rest], list(range(4)))[0], abs=1e-12)
        assert score.per_role["norm-2"] == pytest.approx(oracle(a, b, list(range(5)))[1], abs=1e-12)

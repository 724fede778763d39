"""Aligned CKA against its definition written out, and what it must not react to."""

from typing import Any

import numpy as np
import pytest

from modelassay.fingerprints.aligned import aligned, match_dimensions
from modelassay.fingerprints.curves import ROLES
from modelassay.fingerprints.weights import Weights

Array = np.ndarray
Layers = list[dict[str, Array]]


def random_layers(rng: np.random.Generator, num_layers: int, width: int, inner: int = 12) -> Layers:
    """Matrices with the hidden dimension last: [inner, width]."""
    return [{role: rng.normal(size=(inner, width)) for role in ROLES} for _ in range(num_layers)]


def model(layers: Layers, embedding: Array | None, *, name: str = "m", tokenizer: str | None = "t") -> Weights:
    grams = np.array([[layer[role].T @ layer[role] for role in ROLES] for layer in layers])
    return Weights(name=name, num_layers=len(layers), tokenizer_key=tokenizer, read_norms=lambda: None,
                   read_embedding=lambda: embedding, read_grams=lambda at: grams[at.start : at.stop])  # fmt: skip


def make(
    seed: int, num_layers: int = 3, width: int = 16, tokens: int = 100, **options: Any
) -> tuple[Weights, Layers, Array]:
    rng = np.random.default_rng(seed)
    layers, embedding = random_layers(rng, num_layers, width), rng.normal(size=(tokens, width))
    return model(layers, embedding, **options), layers, embedding


def hsic(k: Array, l: Array) -> float:  # noqa: E741 - the letters of the paper
    """The unbiased estimator of Song et al. 2012, equation 5, as printed."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    ones = np.ones(n)
    trace, sums = np.trace(k @ l), (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((trace + sums - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3)))


def cka(x: Array, y: Array) -> float:
    """Unbiased CKA of the inner products between the columns of two matrices."""
    k, l = x.T @ x, y.T @ y  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize("width", [4, 5, 16, 33])
def test_mean_of_the_unbiased_cka_of_each_matrix(width: int) -> None:
    """Of models whose dimensions are in the same order already, nothing but CKA is left."""
    a, layers_a, embedding = make(0, width=width)
    rng = np.random.default_rng(1)
    layers_b = [{role: x + rng.normal(size=x.shape) for role, x in layer.items()} for layer in layers_a]
    score = aligned(a, model(layers_b, embedding))
    for role in ROLES:
        expected = np.mean([cka(x[role], y[role]) for x, y in zip(layers_a, layers_b, strict=True)])
        assert score.per_role[role] == pytest.approx(expected, abs=1e-10)
    assert score.value == pytest.approx(np.mean(list(score.per_role.values())), abs=1e-12)
    assert score.alignment == "same depth"


@pytest.mark.parametrize("width", [4, 7, 16, 64])
@pytest.mark.parametrize("inner", [3, 24])
def test_independent_matrices_score_zero_in_the_mean(width: int, inner: int) -> None:
    """The biased estimator of CKA would give 0.2 to 0.9 here."""
    rng = np.random.default_rng(width)
    embedding = rng.normal(size=(80, width))
    scores = []
    for _ in range(40):
        a, b = (model(random_layers(rng, 2, width, inner), embedding) for _ in range(2))
        scores.append(aligned(a, b).value)
    assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(len(scores)) + 0.02


def biased(x: Array, y: Array) -> float:
    k, l = ((z - z.mean(1, keepdims=True)).T @ (z - z.mean(1, keepdims=True)) for z in (x, y))  # noqa: E741
    return float((k * l).sum() / np.linalg.norm(k) / np.linalg.norm(l))


def test_the_biased_estimator_would_not_score_zero() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([biased(rng.normal(size=(24, 16)), rng.normal(size=(24, 16))) for _ in range(40)]) > 0.3


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_permutation_of_the_hidden_dimensions_with_signs_is_undone(num_layers: int) -> None:
    a, layers, embedding = make(0, num_layers=num_layers)
    rng = np.random.default_rng(1)
    order, sign = rng.permutation(16), rng.choice([-1.0, 1.0], 16)
    moved = model(
        [{role: x[:, order] * sign for role, x in layer.items()} for layer in layers], embedding[:, order] * sign
    )
    for pair in ((a, moved), (moved, a)):
        assert aligned(*pair).value == pytest.approx(1, abs=1e-10)
    unsigned = model([{role: x[:, order] for role, x in layer.items()} for layer in layers], embedding[:, order] * sign)
    assert aligned(a, unsigned).value < 0.5


def test_a_change_of_basis_of_the_other_side_does_not_matter() -> None:
    """Heads exchanged, rotated, reflected, all rescaled: what is done to queries among themselves."""
    a, layers, embedding = make(0)
    rng = np.random.default_rng(1)
    b, _, _ = make(2)
    turned = [
        {role: rng.uniform(0.1, 9) * np.linalg.qr(rng.normal(size=(12, 12)))[0] @ x for role, x in layer.items()}
        for layer in layers
    ]
    assert aligned(a, model(turned, embedding)).value == pytest.approx(1, abs=1e-10)
    assert aligned(b, model(turned, embedding)).value == pytest.approx(aligned(b, a).value, abs=1e-10)


def test_order_of_the_arguments_matters_to_strangers_alone_and_little() -> None:
    a, layers, embedding = make(0)
    b = make(1)[0]
    assert aligned(a, a).value == pytest.approx(1, abs=1e-12)
    assert aligned(a, b).value == pytest.approx(0, abs=0.1)
    assert aligned(b, a).value == pytest.approx(0, abs=0.1)
    rng = np.random.default_rng(1)
    tuned = [{role: x + 0.1 * rng.normal(size=x.shape) for role, x in layer.items()} for layer in layers]
    same_signs = model(tuned, embedding)
    assert aligned(a, same_signs).value == pytest.approx(aligned(same_signs, a).value, abs=1e-12)
    sign = rng.choice([-1.0, 1.0], 16)
    turned = model([{role: sign * x for role, x in layer.items()} for layer in tuned], sign * embedding)
    assert 0.95 < aligned(turned, a).value < 1
    assert aligned(turned, a).value == pytest.approx(aligned(a, turned).value, abs=0.01)


@pytest.mark.parametrize("keep", [[0], [0, 1, 2], [2, 4], [4]])
def test_layers_that_were_removed_are_found_by_assignment(keep: list[int]) -> None:
    a, layers, embedding = make(0, num_layers=5)
    pruned = model([layers[index] for index in keep], embedding)
    for pair in ((a, pruned), (pruned, a)):
        score = aligned(*pair)
        assert score.value == pytest.approx(1, abs=1e-10)
        assert score.alignment == "layers by assignment"


def test_no_layer_of_the_deeper_model_is_given_twice() -> None:
    a, layers, embedding = make(0, num_layers=5)
    twice = model([layers[3], layers[3]], embedding)
    other = max(
        np.mean([cka(layers[3][role], layers[index][role]) for role in ROLES]) for index in range(5) if index != 3
    )
    assert aligned(a, twice).value == pytest.approx((1 + other) / 2, abs=1e-10)


@pytest.mark.parametrize(("wide", "narrow"), [(16, 11), (9, 8)])
def test_a_narrower_model_is_matched_with_the_dimensions_it_kept(wide: int, narrow: int) -> None:
    a, layers, embedding = make(0, width=wide)
    rng = np.random.default_rng(1)
    order, sign = rng.permutation(wide)[:narrow], rng.choice([-1.0, 1.0], narrow)
    b = model([{role: x[:, order] * sign for role, x in layer.items()} for layer in layers], embedding[:, order] * sign)
    for pair in ((a, b), (b, a)):
        assert aligned(*pair).value == pytest.approx(1, abs=1e-10)


def test_chunks_of_layers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [make(seed, num_layers=layers)[0] for seed, layers in ((0, 5), (1, 5), (2, 7))]
    values = [aligned(x, y).value for x in models for y in models]
    monkeypatch.setitem(aligned.__globals__, "CHUNK", 2 * 4 * 16 * 16)  # two layers at a time
    fresh = [make(seed, num_layers=layers)[0] for seed, layers in ((0, 5), (1, 5), (2, 7))]
    assert [aligned(x, y).value for x in fresh for y in fresh] == pytest.approx(values, abs=1e-13)


def test_a_model_compared_with_many_is_what_it_is_in_each_pair_alone() -> None:
    """What is kept of the first model between pairs must not be spoiled by one of them."""
    others = [make(seed, width=width)[0] for seed, width in ((1, 16), (2, 11), (3, 16), (4, 20))]
    one = make(0)[0]
    assert [aligned(one, other).value for other in others] == [
        aligned(make(0)[0], make(seed, width=width)[0]).value for seed, width in ((1, 16), (2, 11), (3, 16), (4, 20))
    ]


@pytest.mark.parametrize("seed", range(5))
def test_dimensions_are_matched_however_the_tokens_shifted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(80, 13))
    order, sign = rng.permutation(13), rng.choice([-1.0, 1.0], 13)
    b = (a[:, order] * sign) * rng.uniform(0.1, 10, 13) + rng.normal(size=13)
    b += 0.3 * b.std(0) * rng.normal(size=b.shape)
    order_a, order_b, signs = match_dimensions(a, b)
    assert order_a.tolist() == list(range(13))
    assert order[order_b].tolist() == list(range(13))
    assert signs.tolist() == sign[order_b].tolist()


def test_a_dead_dimension_does_not_keep_the_others_from_being_matched() -> None:
    a, layers, embedding = make(0)
    dead = embedding.copy()
    dead[:, 5] = 0.7
    assert aligned(a, model(layers, dead)).value == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_matches_nothing(bad: float) -> None:
    a, layers, embedding = make(0)
    broken = embedding.copy()
    broken[70, 3] = bad
    for pair in ((a, model(layers, broken, name="bad")), (model(layers, broken, name="bad"), a)):
        score = aligned(*pair)
        assert np.isnan(score.value)
        assert score.reason == "bad: its word embedding holds NaN or infinite weights"


def test_what_cannot_be_compared_says_why() -> None:
    a, layers, embedding = make(0)
    for other in (make(1, tokenizer="u")[0], make(1, tokenizer=None)[0]):
        assert str(aligned(a, other).reason).startswith("the tokenizers differ")
    unknown = make(1, tokenizer=None)[0]
    assert str(aligned(unknown, unknown).reason).startswith("the tokenizers differ")
    assert aligned(a, model(layers, None, name="bare")).reason == "bare: its word embedding was not found"
    few = aligned(a, model(layers, embedding[:63]))
    assert np.isnan(few.value)
    assert few.reason == "63 shared tokens are too few to match hidden dimensions, 64 are needed"
    assert np.isfinite(aligned(a, model(layers, embedding[:64])).value)
    narrow = aligned(make(0, width=3)[0], make(1)[0])
    assert narrow.reason == "3 hidden dimensions are too few, 4 are needed"


@pytest.mark.parametrize(("fill", "role"), [(0.0, "q"), (0.3, "v"), (1e8, "o"), (np.nan, "k")])
def test_a_matrix_without_shape_leaves_the_score_undefined(fill: float, role: str) -> None:
    a, layers, embedding = make(0)
    flat = [dict(layer) for layer in layers]
    flat[1][role] = np.full((12, 16), fill)
    score = aligned(a, model(flat, embedding))
    assert np.isnan(score.value)
    assert score.reason == "a matrix is constant or not finite, so its CKA is not defined"


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_weights_does_not_matter(scale: float) -> None:
    a, layers, embedding = make(0)
    b = make(1)[0]
    scaled = model([{role: scale * x for role, x in layer.items()} for layer in layers], embedding)
    assert aligned(scaled, b).value == pytest.approx(aligned(a, b).value, abs=1e-12)

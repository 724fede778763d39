"""Likeness in common directions against its definition written out, and what it must not react to."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from modelassay.fingerprints.aligned import aligned
from modelassay.fingerprints.curves import ROLES
from modelassay.fingerprints.weights import Weights

Array = np.ndarray
Layers = list[dict[str, Array]]


def random_layers(rng: np.random.Generator, num_layers: int, width: int, inner: int = 12) -> Layers:
    """Matrices with the hidden dimension last: [inner, width]."""
    return [{role: rng.normal(size=(inner, width)) for role in ROLES} for _ in range(num_layers)]


def model(layers: Layers, embedding: Array | None, *, name: str = "m", tokens: list[str] | None = None, neurons: Array | None = None,
          norms: Array | None = None) -> Weights:  # fmt: skip
    grams = np.array([[layer[role].T @ layer[role] for role in ROLES] for layer in layers])
    names = [f"t{row}" for row in range(0 if embedding is None else len(embedding))] if tokens is None else tokens
    return Weights(name=name, num_layers=len(layers), tokens=tuple(names), read_norms=lambda: norms, read_neurons=lambda: neurons,
                   read_embedding=lambda: embedding, read_grams=lambda at: grams[at.start : at.stop])  # fmt: skip


def make(
    seed: int, num_layers: int = 3, width: int = 16, tokens: int = 100, **options: Any
) -> tuple[Weights, Layers, Array]:
    rng = np.random.default_rng(seed)
    layers, embedding = random_layers(rng, num_layers, width), rng.normal(size=(tokens, width))
    return model(layers, embedding, **options), layers, embedding


def turn_of(width: int, seed: int = 1) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def directions(a: Array, b: Array) -> tuple[Array, Array]:
    """Common directions by eigenvectors, not by singular ones, the leading eighth left out."""
    cross = (a - a.mean(0)).T @ (b - b.mean(0))
    values, left = np.linalg.eigh(cross @ cross.T)
    left = left[:, np.argsort(-values)]
    right = cross.T @ left
    right /= np.linalg.norm(right, axis=0)
    first = left.shape[1] // 8
    return left[:, first:], right[:, first:]


def cosine(x: Array, y: Array) -> float:
    """Of the inner products of the columns of two matrices, each less its mean diagonal."""
    k, l = (z.T @ z for z in (x, y))  # noqa: E741 - the letters of the literature
    k, l = (g - np.trace(g) / len(g) * np.eye(len(g)) for g in (k, l))  # noqa: E741
    return float(np.trace(k @ l) / np.linalg.norm(k) / np.linalg.norm(l))


@pytest.mark.parametrize("width", [5, 16, 33])
def test_mean_cosine_in_the_common_directions(width: int) -> None:
    a, layers_a, embedding = make(0, width=width)
    rng = np.random.default_rng(1)
    moved = embedding + 0.2 * rng.normal(size=embedding.shape)
    layers_b = [{role: x + rng.normal(size=x.shape) for role, x in layer.items()} for layer in layers_a]
    by_embeddings = dataclasses.replace(model(layers_b, moved), read_neurons=lambda: None)
    score = aligned(a, by_embeddings)
    left, right = directions(embedding, moved)
    for role in ROLES:
        expected = np.mean([cosine(x[role] @ left, y[role] @ right) for x, y in zip(layers_a, layers_b, strict=True)])
        assert score.per_role[role] == pytest.approx(expected, abs=1e-8)
    assert score.value == pytest.approx(np.mean(list(score.per_role.values())), abs=1e-12)
    assert score.alignment == "same depth"


@pytest.mark.parametrize("width", [7, 16, 64])
@pytest.mark.parametrize("inner", [3, 24])
def test_matrices_turned_at_random_score_zero_in_the_mean(width: int, inner: int) -> None:
    """One layer each, so that no layer is chosen: with the diagonal's mean kept it would be 0.2 to 0.9."""
    rng = np.random.default_rng(width)
    embedding = rng.normal(size=(80, width))
    scores = [
        aligned(*(model(random_layers(rng, 1, width, inner), embedding) for _ in range(2))).value for _ in range(60)
    ]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(len(scores))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_rotation_of_the_hidden_dimensions_is_undone(num_layers: int) -> None:
    a, layers, embedding = make(0, num_layers=num_layers)
    turn = turn_of(16)
    moved = model([{role: x @ turn for role, x in layer.items()} for layer in layers], embedding @ turn)
    for pair in ((a, moved), (moved, a)):
        assert aligned(*pair).value == pytest.approx(1, abs=1e-10)
    unturned = model([{role: x @ turn for role, x in layer.items()} for layer in layers], embedding)
    assert aligned(a, unturned).value < 0.5


def test_norms_folded_into_the_matrices_before_a_rotation_are_undone() -> None:
    _, layers, embedding = make(0)
    norms = np.random.default_rng(5).uniform(0.2, 3, size=(3, 2, 16))
    a, turn = model(layers, embedding, norms=norms), turn_of(16)
    folded = [
        {role: (x * norms[at, 0] if role != "o" else x) @ turn for role, x in layer.items()}
        for at, layer in enumerate(layers)
    ]
    assert aligned(a, model(folded, embedding @ turn, norms=np.ones((3, 2, 16)))).value == pytest.approx(1, abs=1e-10)
    assert aligned(a, model(folded, embedding @ turn, norms=norms)).value < 0.9


def test_tokens_are_shared_by_their_names_wherever_their_rows_stand() -> None:
    a, layers, embedding = make(0)
    order, turn = np.random.default_rng(2).permutation(100), turn_of(16)
    turned = [{role: x @ turn for role, x in layer.items()} for layer in layers]
    grown = np.concatenate([(embedding @ turn)[order], np.random.default_rng(3).normal(size=(20, 16))])
    names = [f"t{row}" for row in order] + [f"new{row}" for row in range(20)]
    assert aligned(a, model(turned, grown, tokens=names)).value == pytest.approx(1, abs=1e-10)
    assert aligned(a, model(turned, (embedding @ turn)[order])).value < 0.5  # the rows under wrong names


@pytest.mark.parametrize("tokens", [["u"] * 0, [f"u{row}" for row in range(100)]])
def test_without_shared_tokens_neurons_of_one_number_give_the_turn(tokens: list[str]) -> None:
    _, layers, embedding = make(0)
    neurons, turn = np.random.default_rng(4).normal(size=(2, 3, 40, 16)).astype(np.float32), turn_of(16)
    a = model(layers, embedding, neurons=neurons)
    b = model([{role: x @ turn for role, x in layer.items()} for layer in layers], np.random.default_rng(9).normal(size=(100, 16)),
              tokens=tokens, neurons=(neurons @ turn).astype(np.float32))  # fmt: skip
    for pair in ((a, b), (b, a)):
        assert aligned(*pair).value == pytest.approx(1, abs=1e-5)


def test_an_embedding_trained_anew_does_not_hide_a_body_that_was_kept() -> None:
    """The turn is the one under which the feed-forward networks, whatever their order, are most alike."""
    _, layers, embedding = make(0)
    neurons = np.random.default_rng(4).normal(size=(2, 3, 40, 16)).astype(np.float32)
    order = np.random.default_rng(6).permutation(40)
    a = model(layers, embedding, neurons=neurons)
    b = model(layers, np.random.default_rng(9).normal(size=(100, 16)), neurons=neurons[:, :, order])
    assert aligned(a, b).value == pytest.approx(1, abs=1e-10)
    assert aligned(a, model(layers, b.embedding)).value < 0.5  # without networks nothing shows which turn is right


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


def test_exchanging_the_arguments_changes_rounding_alone() -> None:
    a, layers, _ = make(0)
    b, c = make(1)[0], make(2, num_layers=5, width=11)[0]
    assert aligned(a, a).value == pytest.approx(1, abs=1e-12)
    for x, y in ((a, b), (a, c), (b, c)):
        assert aligned(x, y).value == pytest.approx(aligned(y, x).value, abs=1e-9)
    twenty = [make(seed, num_layers=20, width=8)[0] for seed in (3, 4)]
    assert aligned(*twenty).value == pytest.approx(aligned(*twenty[::-1]).value, abs=1e-9)


@pytest.mark.parametrize("num_layers", [3, 8, 20])
def test_layers_in_reverse_are_matched(num_layers: int) -> None:
    a, layers, embedding = make(0, num_layers=num_layers)
    score = aligned(a, model(layers[::-1], embedding))
    assert score.value == pytest.approx(1, abs=1e-10)
    assert score.alignment == "layers by assignment"


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
    twice = aligned(a, model([layers[3], layers[3]], embedding)).value
    assert 0.5 < twice < 0.9


@pytest.mark.parametrize(("wide", "narrow"), [(16, 11), (24, 9)])
def test_a_narrower_model_is_compared_in_the_dimensions_it_kept(wide: int, narrow: int) -> None:
    a, layers, embedding = make(0, width=wide)
    kept = np.random.default_rng(1).permutation(wide)[:narrow]
    exact = np.linalg.qr(embedding - embedding.mean(0))[0]  # uncorrelated dimensions: the directions are the kept ones
    a = model(layers, exact)
    b = model([{role: x[:, kept] for role, x in layer.items()} for layer in layers], exact[:, kept])
    for pair in ((a, b), (b, a)):
        assert aligned(*pair).value == pytest.approx(1, abs=1e-10)


def test_fewer_tokens_than_dimensions_compare_the_directions_they_span() -> None:
    a, layers, embedding = make(0, width=96, tokens=70)
    turn = turn_of(96)
    b = model([{role: x @ turn for role, x in layer.items()} for layer in layers], embedding @ turn)
    assert aligned(a, b).value == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("spoilt", [[70], list(range(30))])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_left_out(bad: float, spoilt: list[int]) -> None:
    a, layers, embedding = make(0)
    broken = embedding.copy()
    broken[spoilt, 3] = bad
    b = model(layers, broken)
    assert aligned(a, b).value == pytest.approx(1, abs=1e-10)
    assert aligned(b, a).value == pytest.approx(1, abs=1e-10)


def test_an_embedding_of_zeros_leaves_the_numbers_of_the_dimensions() -> None:
    a, layers, embedding = make(0)
    assert aligned(a, model(layers, 0 * embedding)).value == pytest.approx(1, abs=1e-10)
    wide = make(1, width=20)[0]
    reason = str(aligned(wide, model(layers, 0 * embedding)).reason)
    assert reason.startswith("the embeddings of shared tokens have too few common directions")


def test_what_cannot_be_compared_says_why() -> None:
    a, layers, embedding = make(0)
    wide = make(1, width=20)[0]
    few = model(layers, embedding[:63])
    assert str(aligned(few, wide).reason).startswith("63 shared tokens are too few, 64 are needed")
    bare = model(layers, None, name="bare", tokens=[f"t{row}" for row in range(100)])
    assert str(aligned(bare, wide).reason).startswith("bare: its word embedding was not found")
    assert np.isfinite(aligned(model(layers, embedding[:64]), wide).value)
    thin = make(0, width=3)[0]
    assert np.isnan(aligned(thin, thin).value)


@pytest.mark.parametrize(("fill", "role"), [(0.0, "q"), (np.inf, "v"), (1e200, "o"), (np.nan, "k")])
def test_a_matrix_without_shape_leaves_the_score_undefined(fill: float, role: str) -> None:
    a, layers, embedding = make(0)
    flat = [dict(layer) for layer in layers]
    flat[1][role] = np.full((12, 16), fill)
    with np.errstate(all="ignore"):
        other = model(flat, embedding)
    score = aligned(a, other)
    assert np.isnan(score.value)
    assert str(score.reason).startswith("a matrix is zero or not finite")


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_weights_does_not_matter(scale: float) -> None:
    a, layers, embedding = make(0)
    b = make(1)[0]
    scaled = model([{role: scale * x for role, x in layer.items()} for layer in layers], scale * embedding)
    assert aligned(scaled, b).value == pytest.approx(aligned(a, b).value, abs=1e-9)

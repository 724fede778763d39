"""Both scores against few-line oracles, and what they must not react to."""

import re

import numpy as np
import pytest
from scipy.stats import pearsonr, zscore

from modelassay.fingerprints.curves import (
    BEYOND,
    PRODUCTS,
    ROLES,
    Curves,
    comparable,
    corrected,
    extended,
    invariant,
    paper_exact,
)
from support.curve_cases import child, make, process, walk


def with_sigma(model: Curves, name: str, change: object) -> Curves:
    return Curves(name=name, sigma={r: change(model.sigma[r]) for r in ROLES}, stratum=0)  # type: ignore[operator]


def paper_oracle(a: Curves, b: Curves) -> float:
    depth = max(a.num_layers, b.num_layers)
    total = 0.0
    for role in ROLES:
        x, y = (
            np.interp(np.linspace(0, 1, depth), np.linspace(0, 1, len(c)), c) for c in (a.sigma[role], b.sigma[role])
        )
        total += float(np.mean(zscore(x) * zscore(y)))
    return total / 4


def residual_oracle(sigma: np.ndarray) -> np.ndarray:
    x = np.arange(len(sigma))
    return np.log(sigma) - np.polyval(np.polyfit(x, np.log(sigma), 1), x)


@pytest.mark.parametrize(("depth_a", "depth_b"), [(8, 8), (28, 28), (5, 8), (64, 28)])
def test_paper_exact_is_its_definition(depth_a: int, depth_b: int) -> None:
    a, b = walk("a", depth_a, seed=1), walk("b", depth_b, seed=2)
    assert paper_exact(a, b).value == pytest.approx(paper_oracle(a, b), abs=1e-12)
    assert paper_exact(b, a).value == pytest.approx(paper_exact(a, b).value, abs=1e-14)


def test_paper_exact_golden_value() -> None:
    a = Curves(name="a", sigma=dict.fromkeys(ROLES, np.array([1.0, 2.0, 3.0, 4.0])), stratum=4)
    b = Curves(name="b", sigma=dict.fromkeys(ROLES, np.array([1.0, 3.0, 2.0, 4.0])), stratum=4)
    score = paper_exact(a, b)  # deviations (-3, -1, 1, 3)/2 and (-3, 1, -1, 3)/2: 16 / 20
    assert score.value == pytest.approx(0.8, abs=1e-15)
    assert score.per_role == pytest.approx(dict.fromkeys(ROLES, 0.8))
    assert score.alignment == "same depth"


def test_paper_exact_ignores_scale_and_shift_of_sigma() -> None:
    a, b = walk("a", 12, seed=1), walk("b", 12, seed=2)
    moved = Curves(name="m", sigma={r: (i + 2) * a.sigma[r] + i for i, r in enumerate(ROLES)}, stratum=12)
    assert paper_exact(moved, b).value == pytest.approx(paper_exact(a, b).value, abs=1e-12)
    assert paper_exact(moved, a).value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("depth", [4, 8, 29])
def test_corrected_is_its_definition_at_equal_depth(depth: int) -> None:
    a, b = walk("a", depth, seed=1), walk("b", depth, seed=2)
    expected = {r: pearsonr(residual_oracle(a.sigma[r]), residual_oracle(b.sigma[r])).statistic for r in ROLES}
    score = corrected(a, b)
    assert score.per_role == pytest.approx(expected, abs=1e-11)
    assert score.value == pytest.approx(np.mean(list(expected.values())), abs=1e-11)
    assert corrected(b, a) == score


def test_corrected_ignores_scale_and_an_exponential_trend_that_fools_paper_exact() -> None:
    rng = np.random.default_rng(0)
    white = process(rng, 2, 28, phi=0.0)
    a, b = make("a", white[0]), make("b", white[1])
    trend = 5 * np.exp(0.05 * np.arange(28))
    trended_a, trended_b = with_sigma(a, "ta", lambda s: s * trend), with_sigma(b, "tb", lambda s: s * trend)
    assert corrected(trended_a, trended_b).value == pytest.approx(corrected(a, b).value, abs=1e-10)
    assert paper_exact(trended_a, trended_b).value > 0.95
    assert abs(corrected(trended_a, trended_b).value) < 0.3


def test_a_child_keeps_its_curves() -> None:
    parent = walk("p", 28, seed=3)
    assert corrected(parent, parent).value == pytest.approx(1, abs=1e-12)
    assert corrected(parent, child(parent, "c")).value > 0.99


@pytest.mark.parametrize(
    ("keep", "alignment"),
    [(slice(0, 20), "head"), (slice(8, 28), "tail"), (slice(0, 28, 3), "proportional")],
)
def test_a_depth_pruned_child_is_found_under_the_right_reading(keep: slice, alignment: str) -> None:
    parent = walk("p", 28, seed=3)
    pruned = with_sigma(parent, "c", lambda s: s[keep])
    score = corrected(parent, pruned)
    assert score.alignment == alignment
    assert score.value == pytest.approx(1, abs=1e-9)
    assert corrected(pruned, parent) == score


def test_the_best_reading_counts() -> None:
    a, b = walk("a", 8, seed=1), walk("b", 12, seed=2)
    resampled = {r: np.interp(np.linspace(0, 1, 8), np.linspace(0, 1, 12), np.log(b.sigma[r])) for r in ROLES}
    logs = {r: np.log(b.sigma[r]) for r in ROLES}
    readings = [resampled, {r: logs[r][:8] for r in ROLES}, {r: logs[r][4:] for r in ROLES}]
    best = max(
        np.mean([pearsonr(residual_oracle(a.sigma[r]), residual_oracle(np.exp(x[r]))).statistic for r in ROLES])
        for x in readings
    )
    assert corrected(a, b).value == pytest.approx(best, abs=1e-11)


def test_what_has_no_shape_has_no_score() -> None:
    a = walk("a", 12, seed=1)
    flat = Curves(name="flat", sigma={**a.sigma, "v": np.full(12, 0.02)}, stratum=12)
    line = Curves(name="line", sigma={**a.sigma, "k": 0.02 * 1.1 ** np.arange(12)}, stratum=12)
    for score in (paper_exact(a, flat), paper_exact(flat, a)):
        assert np.isnan(score.value)
        assert score.reason == "flat: role v is constant over depth, so its correlation is not defined"
        assert np.isfinite(score.per_role["q"])
    assert np.isnan(corrected(a, line).value)
    assert "line: role k is a straight line" in str(corrected(a, line).reason)
    assert np.isfinite(paper_exact(a, line).value)


def test_three_layers_are_too_few_once_the_trend_is_gone() -> None:
    score = corrected(walk("a", 3, seed=1), walk("b", 3, seed=2))
    assert np.isnan(score.value)
    assert "3 layers" in str(score.reason)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_value_that_is_no_deviation_is_named(bad: float) -> None:
    curve = np.ones(5)
    curve[3] = bad
    with pytest.raises(ValueError, match=r"base: role k: layer 3: .* must be finite and positive"):
        Curves(name="base", sigma={**dict.fromkeys(ROLES, np.ones(5)), "k": curve}, stratum=5)


def test_missing_roles_unequal_lengths_and_matrices_are_named() -> None:
    curve = np.ones(5)
    with pytest.raises(ValueError, match="base: the roles must have one value per layer each, got no values"):
        Curves(name="base", sigma={}, stratum=5)
    with pytest.raises(ValueError, match="q 5, k 5, v 4, o 5"):
        Curves(name="base", sigma={**dict.fromkeys(ROLES, curve), "v": np.ones(4)}, stratum=5)
    with pytest.raises(ValueError, match=re.escape("shape (5, 1)")):
        Curves(name="base", sigma={**dict.fromkeys(ROLES, curve), "o": curve[:, None]}, stratum=5)


def test_models_of_other_projections_have_no_score_and_the_reason_names_them() -> None:
    rng = np.random.default_rng(0)
    factors = {role: np.exp(rng.normal(size=6)) for role in ("q-a", "q-b", "kv-a", "kv-b", "o")}
    whole = Curves(name="whole", sigma={role: np.exp(rng.normal(size=6)) for role in ROLES}, stratum=6)
    latent = Curves(name="latent", sigma=factors, stratum=6)
    for method in (paper_exact, corrected):
        score = method(whole, latent)
        assert np.isnan(score.value)
        assert (
            score.reason
            == "the projections of attention differ: whole has q, k, v, o and latent has o, q-a, q-b, kv-a, kv-b"
        )
        assert method(latent, latent).value == pytest.approx(1)
    other = Curves(name="other", sigma={role: np.exp(rng.normal(size=6)) for role in factors}, stratum=6)
    expected = np.mean([np.corrcoef(latent.sigma[role], other.sigma[role])[0, 1] for role in factors])
    assert paper_exact(latent, other).value == pytest.approx(expected)
    assert comparable(whole, latent) is None


def test_role_without_a_curve_costs_the_methods_that_need_it() -> None:
    rng = np.random.default_rng(0)
    extra = {name: np.exp(rng.normal(size=6)) for name in PRODUCTS}
    sigma = {role: np.exp(rng.normal(size=6)) for role in ROLES if role != "v"}
    broken = Curves(name="a", sigma=sigma, extra=extra, stratum=6, faults={"v": "layer 1: v is constant (h.1.attn.v)"})
    for score in (paper_exact(broken, broken), corrected(broken, broken), extended(broken, broken)):
        assert np.isnan(score.value)
    assert paper_exact(broken, broken).reason == "a: layer 1: v is constant (h.1.attn.v), so that role has no curve"
    assert invariant(broken, broken).value == pytest.approx(1)


def test_curves_are_a_copy_that_cannot_be_written() -> None:
    curve = np.arange(1.0, 6.0)
    model = Curves(name="a", sigma=dict.fromkeys(ROLES, curve), stratum=5)
    curve[:] = 7
    assert model.sigma["q"].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="read-only"):
        model.sigma["q"][0] = 3


def with_extra(model: Curves, roles: tuple[str, ...], seed: int) -> Curves:
    rng = np.random.default_rng(seed)
    extra = {role: np.exp(rng.normal(size=model.num_layers)) for role in roles}
    return Curves(name=model.name, sigma=model.sigma, stratum=0, extra=extra)


def mean_r(a: Curves, b: Curves, roles: tuple[str, ...]) -> float:
    rows = [(dict(x.sigma) | dict(x.extra)) for x in (a, b)]
    return float(np.mean([pearsonr(*(residual_oracle(row[role]) for row in rows)).statistic for role in roles]))


@pytest.mark.parametrize("depth", [4, 9])
def test_extended_takes_every_curve_that_both_have(depth: int) -> None:
    a = with_extra(walk("a", depth, seed=1), BEYOND, 3)
    b = with_extra(walk("b", depth, seed=2), ("up", "norm-1", "q-bias", "qk-top"), 4)
    score = extended(a, b)
    shared = (*ROLES, "q-bias", "norm-1", "up")  # products are another method's
    assert tuple(score.per_role) == shared
    assert score.value == pytest.approx(mean_r(a, b, shared), abs=1e-11)
    assert extended(b, a) == score


def test_extended_of_the_four_matrices_alone_is_not_a_score_of_its_own() -> None:
    a, b = walk("a", 12, seed=1), walk("b", 8, seed=2)
    for one, two in ((a, b), (with_extra(a, ("up",), 1), with_extra(b, ("down", "qk-top"), 2))):
        score = extended(one, two)
        assert np.isnan(score.value)
        assert score.reason == "beyond the attention matrices nothing was measured of both models"


@pytest.mark.parametrize(("depth_a", "depth_b"), [(8, 8), (8, 11)])
def test_invariant_looks_at_the_products_alone(depth_a: int, depth_b: int) -> None:
    a = with_extra(walk("a", depth_a, seed=1), PRODUCTS, 3)
    b = with_extra(walk("b", depth_b, seed=2), PRODUCTS, 4)
    other = Curves(name="b", sigma=walk("c", depth_b, seed=9).sigma, stratum=0, extra=b.extra)
    assert invariant(a, b) == invariant(a, other)
    assert tuple(invariant(a, b).per_role) == PRODUCTS
    if depth_a == depth_b:
        assert invariant(a, b).value == pytest.approx(mean_r(a, b, PRODUCTS), abs=1e-11)
    assert invariant(a, a).value == pytest.approx(1, abs=1e-12)


def test_products_that_were_not_measured_are_named() -> None:
    a = with_extra(walk("a", 8, seed=1), PRODUCTS, 3)
    b = with_extra(walk("b", 8, seed=2), PRODUCTS[:5], 4)
    for score in (invariant(a, b), invariant(b, a)):
        assert np.isnan(score.value)
        assert score.reason == "b: the products of its matrices were not measured"


def test_a_curve_beyond_the_four_that_has_no_shape_is_named() -> None:
    a = with_extra(walk("a", 8, seed=1), ("norm-1",), 3)
    line = Curves(name="line", sigma=walk("b", 8, seed=2).sigma, stratum=0, extra={"norm-1": 0.1 * 1.1 ** np.arange(8)})
    score = extended(a, line)
    assert np.isnan(score.value)
    assert (
        score.reason
        == "line: role norm-1 is a straight line over depth (in log sigma), so its correlation is not defined"
    )
    assert np.isfinite(corrected(a, line).value)


def test_curves_beyond_the_four_pass_the_same_gate() -> None:
    sigma = dict.fromkeys(ROLES, np.arange(1.0, 6.0))
    with pytest.raises(ValueError, match="base: role up: 4 values for 5 layers"):
        Curves(name="base", sigma=sigma, stratum=5, extra={"up": np.ones(4)})
    with pytest.raises(ValueError, match=r"base: role up: layer 0: .* must be finite and positive"):
        Curves(name="base", sigma=sigma, stratum=5, extra={"up": np.zeros(5)})
    curve = np.ones(5)
    model = Curves(name="base", sigma=sigma, stratum=5, extra={"up": curve})
    curve[:] = 7
    assert model.extra["up"].tolist() == [1] * 5
    assert model.rows(("up", "q")).tolist() == [[1] * 5, [1, 2, 3, 4, 5]]

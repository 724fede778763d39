"""Rank p-values by counting; their distance from uniform under strangers, lucky strangers and hidden kin."""

import numpy as np
import pytest
from scipy.stats import kstest

import scored_worlds as worlds
from modelassay.accuracy_bootstrap import Scored
from modelassay.calibration import (
    RankPs,
    false_positive_rate,
    rank_p_values,
    root_share,
    stranger_p_values,
    true_positive_rate,
    uniformity,
)
from modelassay.confusion import wilson
from modelassay.stats import rank_p

Array = np.ndarray


def suspects_of(rng: np.random.Generator, num_roots: int, *, related: bool, num: int = 60) -> Scored:
    root_a = rng.integers(0, num_roots, num)
    root_b = root_a if related else (root_a + rng.integers(1, num_roots, num)) % num_roots
    return worlds.make(rng.normal(size=num) + 2.0 * related, root_a, root_b)


def test_p_is_the_rank_among_strangers_that_share_no_root() -> None:
    rng = np.random.default_rng(0)
    score = np.round(worlds.lucky_scores(rng, 9, 0.2), 1)
    score[[3, 17]] = np.nan
    strangers = worlds.strangers(score)
    for suspects in (suspects_of(rng, 9, related=False), suspects_of(rng, 9, related=True), strangers):
        found = rank_p_values(suspects, strangers)
        for row in range(suspects.score.size):
            own = {suspects.root_a[row], suspects.root_b[row]}
            judges = [s for s, a, b in zip(strangers.score, strangers.root_a, strangers.root_b, strict=True)
                      if np.isfinite(s) and not own & {a, b}]  # fmt: skip
            if np.isnan(suspects.score[row]):
                assert np.isnan((found.p[row], found.floor[row])).all()
                continue
            expected = rank_p(suspects.score[row], judges)
            assert found.p[row] == pytest.approx(expected.p, rel=1e-14)
            assert found.floor[row] == pytest.approx(expected.floor, rel=1e-14)


def test_how_many_strangers_judge() -> None:
    strangers = worlds.strangers(np.arange(28.0))
    np.testing.assert_allclose(1 / stranger_p_values(strangers).floor, 1 + 6 * 5 / 2)
    related = suspects_of(np.random.default_rng(0), 8, related=True)
    np.testing.assert_allclose(1 / rank_p_values(related, strangers).floor, 1 + 7 * 6 / 2)


def test_without_judges_there_is_no_p() -> None:
    found = stranger_p_values(worlds.strangers(np.arange(3.0)))
    assert np.isnan(found.p).all()
    with pytest.raises(ValueError, match="needs a defined p-value"):
        uniformity(found)
    rate = false_positive_rate(found)
    assert (rate.share, rate.interval, rate.compared) == (None, None, 0)
    assert "none has a p-value" in rate.note


def test_strangers_must_be_strangers_and_one_pair_of_roots_each() -> None:
    suspects = worlds.make(np.array([1.0]), np.array([0]), np.array([1]))
    with pytest.raises(ValueError, match="1 related pairs among them"):
        rank_p_values(suspects, worlds.make(np.ones(2), np.array([0, 1]), np.array([0, 2])))
    with pytest.raises(ValueError, match="two pairs of the same roots"):
        stranger_p_values(worlds.make(np.ones(2), np.array([0, 1]), np.array([1, 0])))


def test_many_suspects_are_judged_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    strangers = worlds.strangers(rng.normal(size=300))
    suspects = suspects_of(rng, 25, related=False, num=30_000)  # two chunks of 13,981 and a rest
    found = rank_p_values(suspects, strangers)
    for row in (0, 13_980, 13_981, 27_962, 29_999):
        one = worlds.make(suspects.score[[row]], suspects.root_a[[row]], suspects.root_b[[row]])
        assert rank_p_values(one, strangers).p[0] == found.p[row]


def test_p_is_uniform_on_its_grid_for_exchangeable_pairs() -> None:
    """P(p <= k / (1 + n)) = k / (1 + n) with n = 28 of 10 roots, each to 3.5 standard errors of 400 worlds (0.0012)."""
    rng = np.random.default_rng(0)
    p = np.concatenate([stranger_p_values(worlds.strangers(rng.normal(size=45))).p for _ in range(400)])
    for k in (1, 3, 14, 28):
        assert np.mean(p <= k / 29 + 1e-12) == pytest.approx(k / 29, abs=0.012)


def by_hand(found: RankPs) -> float:
    defined = np.isfinite(found.p)
    p, floor = found.p[defined], found.floor[defined]
    times = np.unique(np.concatenate([np.arange(1, round(1 / f) + 1) * f for f in floor]))
    uniform = [np.mean([np.floor(t / f + 1e-9) * f for f in floor]) for t in times]
    return max(abs(np.mean(p <= t + 1e-12) - u) for t, u in zip(times, uniform, strict=True))


def test_the_distance_is_taken_on_the_grid() -> None:
    score = worlds.lucky_scores(np.random.default_rng(3), 9, 0.3)
    score[[0, 5, 9]] = np.nan  # floors of several sizes
    found = stranger_p_values(worlds.strangers(score))
    assert np.unique(found.floor[np.isfinite(found.floor)]).size > 1
    far = uniformity(found, simulations=9)
    assert far.ks == pytest.approx(by_hand(found), abs=1e-12)
    assert far.n == 33
    np.testing.assert_array_equal(far.observed, np.sort(found.p[np.isfinite(found.p)]))
    assert (np.diff(far.expected) >= 0).all()
    assert far.expected.mean() == pytest.approx(np.mean((1 + far_floor(found)) / 2), abs=0.02)


def far_floor(found: RankPs) -> Array:
    return found.floor[np.isfinite(found.floor)]


def test_p_values_that_fill_their_grid_are_at_no_distance() -> None:
    """n suspects with scores between those of n - 1 strangers: every p once."""
    strangers = worlds.strangers(np.arange(10.0))
    root = np.full(11, 7)
    suspects = worlds.make(np.arange(11) - 0.5, root, root)
    far = uniformity(rank_p_values(suspects, strangers))
    assert far.ks == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(far.observed, far.expected)
    assert far.p_value is None
    assert "suspects of one family share its luck" in far.note


def test_few_roots_are_not_tested() -> None:
    far = uniformity(stranger_p_values(worlds.strangers(np.random.default_rng(0).normal(size=21))))
    assert (far.p_value, far.root_share) == (None, None)
    assert "7 roots are fewer than 8" in far.note


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_share_of_a_root_is_found(share: float) -> None:
    rng = np.random.default_rng(0)
    found = [root_share(worlds.strangers(np.exp(worlds.lucky_scores(rng, 30, share)))) for _ in range(30)]
    assert np.mean(found) == pytest.approx(share, abs=0.04)
    assert root_share(worlds.strangers(np.zeros(45))) == 0


NULLS = {
    "no luck": lambda rng: worlds.lucky_scores(rng, 12, 0.0),
    "a quarter luck": lambda rng: worlds.lucky_scores(rng, 12, 0.25),
    "all luck": lambda rng: worlds.lucky_scores(rng, 12, 0.5),
    "curves": lambda rng: worlds.curve_scores(rng, 12),
    "curves with a common bow": lambda rng: worlds.curve_scores(rng, 12, bow=4.0),
}


@pytest.mark.parametrize("null", NULLS.values(), ids=NULLS)
def test_the_level_holds_where_roots_are_exchangeable(null: object) -> None:
    """At most 10 % of 100 worlds at 0.1, and two standard errors (0.06)."""
    p_values = [
        uniformity(stranger_p_values(worlds.strangers(null(np.random.default_rng(world)))), simulations=99, seed=world).p_value
        for world in range(100)
    ]  # fmt: skip
    assert np.mean(np.array(p_values) <= 0.1) <= 0.16
    assert np.median(p_values) > 0.3


def test_kolmogorovs_own_reference_would_not_hold() -> None:
    """It takes the pairs for independent: far too wide without luck of the roots, too narrow where luck is all there is."""
    sizes = {share: [] for share in (0.0, 0.5)}
    for share, found in sizes.items():
        for world in range(100):
            ranks = stranger_p_values(worlds.strangers(worlds.lucky_scores(np.random.default_rng(world), 18, share)))
            found.append(kstest(ranks.p - ranks.floor / 2, "uniform").pvalue)
    assert min(sizes[0.0]) > 0.5
    assert np.mean(np.array(sizes[0.5]) <= 0.05) < 0.05


def test_hidden_kin_are_found() -> None:
    """Eight of 18 'strangers' are kin: their pairs score four standard deviations higher."""
    a, b = np.triu_indices(18, 1)
    found = []
    for world in range(20):
        score = np.random.default_rng(world).normal(size=a.size) + 4.0 * ((a < 8) & (b < 8))
        found.append(uniformity(stranger_p_values(worlds.strangers(score)), simulations=99).p_value)
    assert np.mean(np.array(found) <= 0.05) >= 0.8


def test_a_false_positive_rate_is_a_count_with_two_intervals() -> None:
    rng = np.random.default_rng(0)
    strangers = worlds.strangers(worlds.lucky_scores(rng, 14, 0.3))
    suspects = suspects_of(rng, 14, related=False, num=500)
    suspects = worlds.make(np.where(np.arange(500) % 10 == 0, np.nan, suspects.score), suspects.root_a, suspects.root_b)
    ranks = rank_p_values(suspects, strangers)
    found = false_positive_rate(ranks, alpha=0.1, draws=299)
    assert found.share == wilson(sum(p <= 0.1 for p in ranks.p), 500)
    assert found.compared == 0.9
    assert found.interval.low < found.share.value < found.interval.high
    assert false_positive_rate(ranks, alpha=0.1, draws=299) == found
    on_the_grid = false_positive_rate(stranger_p_values(strangers), alpha=5 / 67, draws=9)
    assert on_the_grid.share.count == np.count_nonzero(stranger_p_values(strangers).p * 67 < 5.5)
    assert np.any(np.round(stranger_p_values(strangers).p * 67) == 5)
    with pytest.raises(ValueError, match="500 unrelated pairs"):
        true_positive_rate(ranks)


def test_the_interval_over_roots_knows_of_their_luck() -> None:
    """One root in ten is alike to everyone: its pairs are called together, and Wilson takes them for independent."""
    a, b = (np.repeat(ends, 20) for ends in np.triu_indices(10, 1))
    suspects = worlds.make(np.where(b == 9, 9.0, -9.0), a, b)
    found = false_positive_rate(rank_p_values(suspects, worlds.strangers(np.random.default_rng(0).normal(size=45))))
    assert found.share.count == 9 * 20
    assert found.interval.low == 0
    assert found.interval.high > 2 * found.share.high


def test_suspects_of_one_family_have_no_interval() -> None:
    """A resample misses the root that all of them share in 35 % of the draws, (9/10)^10."""
    suspects = worlds.make(np.full(45, -9.0), np.zeros(45, int), np.repeat(np.arange(1, 10), 5))
    found = false_positive_rate(rank_p_values(suspects, worlds.strangers(np.random.default_rng(0).normal(size=45))))
    assert (found.share.count, found.share.total) == (0, 45)
    assert np.isnan(found.interval.low)
    assert found.interval.undefined / 999 == pytest.approx(0.9**10, abs=0.05)
    assert found.note.startswith("no interval: ")


def test_power_counts_related_pairs() -> None:
    rng = np.random.default_rng(0)
    strangers = worlds.strangers(rng.normal(size=45))
    ranks = rank_p_values(suspects_of(rng, 10, related=True, num=200), strangers)
    found = true_positive_rate(ranks, draws=99)
    assert found.share.count == np.count_nonzero(ranks.p <= 0.05)
    assert 0.3 < found.share.value < 0.7
    with pytest.raises(ValueError, match="200 related pairs"):
        false_positive_rate(ranks)


def test_a_level_below_the_floor_is_said_to_be_out_of_reach() -> None:
    ranks = stranger_p_values(worlds.strangers(np.random.default_rng(0).normal(size=21)))
    found = false_positive_rate(ranks, alpha=0.05)
    assert found.share is None
    assert found.note == "no pair could be called related at alpha = 0.05: the lowest floor is 0.091"
    for alpha in (0.0, 1.0, np.nan):
        with pytest.raises(ValueError, match=r"a level in \(0, 1\)"):
            false_positive_rate(ranks, alpha=alpha)


def test_a_rate_of_nothing_leaves_wilson_alone() -> None:
    suspects = worlds.strangers(np.full(45, -9.0))
    found = false_positive_rate(rank_p_values(suspects, worlds.strangers(np.random.default_rng(0).normal(size=45))))
    assert (found.share.count, found.interval.low, found.interval.high) == (0, 0, 0)
    assert "Wilson's interval alone" in found.note
    assert found.share.high > 0.07

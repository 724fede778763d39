"""Rank p-values by counting; their distance from uniform under negatives, lucky negatives and hidden kin."""

import numpy as np
import pytest
from scipy.stats import kstest

from modelassay.statistics.calibration import (
    RankPs,
    false_positive_rate,
    rank_p_values,
    true_positive_rate,
    uniformity,
)
from modelassay.statistics.proportions import count_of, wilson
from modelassay.statistics.ranks import rank_p
from modelassay.statistics.resampling import Scored
from support import simulated_scores as simulated

Array = np.ndarray


def among_themselves(negatives: Scored) -> RankPs:
    return rank_p_values(negatives, negatives)


def pairs_of(rng: np.random.Generator, num_groups: int, *, positive: bool, num: int = 60) -> Scored:
    group_a = rng.integers(0, num_groups, num)
    group_b = group_a if positive else (group_a + rng.integers(1, num_groups, num)) % num_groups
    return simulated.make(rng.normal(size=num) + 2.0 * positive, group_a, group_b)


def test_p_is_the_rank_among_negatives_that_share_no_root() -> None:
    rng = np.random.default_rng(0)
    score = np.round(simulated.group_scores(rng, 9, 0.2), 1)
    score[[3, 17]] = np.nan
    negatives = simulated.negatives(score)
    for pairs in (pairs_of(rng, 9, positive=False), pairs_of(rng, 9, positive=True), negatives):
        ranks = rank_p_values(pairs, negatives)
        for row in range(pairs.score.size):
            own = {pairs.group_a[row], pairs.group_b[row]}
            judges = [s for s, a, b in zip(negatives.score, negatives.group_a, negatives.group_b, strict=True)
                      if np.isfinite(s) and not own & {a, b}]  # fmt: skip
            if np.isnan(pairs.score[row]):
                assert np.isnan((ranks.p[row], ranks.min_p[row])).all()
                continue
            expected = rank_p(pairs.score[row], judges)
            assert ranks.p[row] == pytest.approx(expected.p, rel=1e-14)
            assert ranks.min_p[row] == pytest.approx(expected.min_p, rel=1e-14)


def test_how_many_negatives_judge() -> None:
    negatives = simulated.negatives(np.arange(28.0))
    np.testing.assert_allclose(1 / among_themselves(negatives).min_p, 1 + 6 * 5 / 2)
    positive = pairs_of(np.random.default_rng(0), 8, positive=True)
    np.testing.assert_allclose(1 / rank_p_values(positive, negatives).min_p, 1 + 7 * 6 / 2)


def test_without_judges_there_is_no_p() -> None:
    ranks = among_themselves(simulated.negatives(np.arange(3.0)))
    assert np.isnan(ranks.p).all()
    with pytest.raises(ValueError, match="needs a defined p-value"):
        uniformity(ranks)
    rate = false_positive_rate(ranks)
    assert (rate.defined, rate.has_interval, rate.n) == (False, False, 3)
    assert "none has a p-value" in rate.note


def test_negatives_must_be_negatives_and_one_pair_of_roots_each() -> None:
    pairs = simulated.make(np.array([1.0]), np.array([0]), np.array([1]))
    with pytest.raises(ValueError, match="1 positive pairs among them"):
        rank_p_values(pairs, simulated.make(np.ones(2), np.array([0, 1]), np.array([0, 2])))
    with pytest.raises(ValueError, match="two pairs of the same groups"):
        among_themselves(simulated.make(np.ones(2), np.array([0, 1]), np.array([1, 0])))


def test_many_suspects_are_judged_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    negatives = simulated.negatives(rng.normal(size=300))
    pairs = pairs_of(rng, 25, positive=False, num=30_000)  # two chunks of 13,981 and a rest
    ranks = rank_p_values(pairs, negatives)
    for row in (0, 13_980, 13_981, 27_962, 29_999):
        one = simulated.make(pairs.score[[row]], pairs.group_a[[row]], pairs.group_b[[row]])
        assert rank_p_values(one, negatives).p[0] == ranks.p[row]


def test_p_is_uniform_on_its_grid_for_exchangeable_pairs() -> None:
    """P(p <= k / (1 + n)) = k / (1 + n) with n = 28 of 10 groups, each to 3.5 standard errors of 400 worlds (0.0012)."""
    rng = np.random.default_rng(0)
    p = np.concatenate([among_themselves(simulated.negatives(rng.normal(size=45))).p for _ in range(400)])
    for k in (1, 3, 14, 28):
        assert np.mean(p <= k / 29 + 1e-12) == pytest.approx(k / 29, abs=0.012)


def by_hand(ranks: RankPs) -> float:
    defined = np.isfinite(ranks.p)
    p, floor = ranks.p[defined], ranks.min_p[defined]
    times = np.unique(np.concatenate([np.arange(1, round(1 / f) + 1) * f for f in floor]))
    uniform = [np.mean([np.floor(t / f + 1e-9) * f for f in floor]) for t in times]
    return max(abs(np.mean(p <= t + 1e-12) - u) for t, u in zip(times, uniform, strict=True))


def test_the_distance_is_taken_on_the_grid() -> None:
    score = simulated.group_scores(np.random.default_rng(3), 9, 0.3)
    score[[0, 5, 9]] = np.nan  # floors of several sizes
    ranks = among_themselves(simulated.negatives(score))
    assert np.unique(ranks.min_p[np.isfinite(ranks.min_p)]).size > 1
    far = uniformity(ranks, simulations=9)
    assert far.ks.value == pytest.approx(by_hand(ranks), abs=1e-12)
    assert far.ks.n == 33
    np.testing.assert_array_equal(far.observed, np.sort(ranks.p[np.isfinite(ranks.p)]))
    assert (np.diff(far.expected) >= 0).all()
    assert far.expected.mean() == pytest.approx(np.mean((1 + far_floor(ranks)) / 2), abs=0.02)


def far_floor(ranks: RankPs) -> Array:
    return ranks.min_p[np.isfinite(ranks.min_p)]


def test_p_values_that_fill_their_grid_are_at_no_distance() -> None:
    """n pairs with scores between those of n - 1 negatives: every p once."""
    negatives = simulated.negatives(np.arange(10.0))
    group = np.full(11, 7)
    pairs = simulated.make(np.arange(11) - 0.5, group, group)
    far = uniformity(rank_p_values(pairs, negatives))
    assert far.ks.value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(far.observed, far.expected)
    assert far.ks.p is None
    assert "pairs of one group share its effect" in far.ks.note


def test_few_roots_are_not_tested() -> None:
    far = uniformity(among_themselves(simulated.negatives(np.random.default_rng(0).normal(size=21))))
    assert (far.ks.p, far.intraclass_correlation) == (None, None)
    assert "7 groups are fewer than 8" in far.ks.note


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_share_of_a_root_is_found(share: float) -> None:
    rng = np.random.default_rng(0)
    correlations = [correlation_of(np.exp(simulated.group_scores(rng, 30, share))) for _ in range(30)]
    assert np.mean(correlations) == pytest.approx(share, abs=0.04)
    assert correlation_of(np.zeros(45)) == 0


def correlation_of(score: Array) -> float:
    correlation = uniformity(among_themselves(simulated.negatives(score)), simulations=1).intraclass_correlation
    assert correlation is not None
    return correlation


NULLS = {
    "no effects": lambda rng: simulated.group_scores(rng, 12, 0.0),
    "a quarter effects": lambda rng: simulated.group_scores(rng, 12, 0.25),
    "all effects": lambda rng: simulated.group_scores(rng, 12, 0.5),
    "curves": lambda rng: simulated.curve_scores(rng, 12),
    "curves with a common bow": lambda rng: simulated.curve_scores(rng, 12, bow=4.0),
}


@pytest.mark.parametrize("null", NULLS.values(), ids=NULLS)
def test_the_level_holds_where_roots_are_exchangeable(null: object) -> None:
    """At most 10 % of 100 worlds at 0.1, and two standard errors (0.06)."""
    p_values = [
        uniformity(among_themselves(simulated.negatives(null(np.random.default_rng(world)))), simulations=99, seed=world).ks.p
        for world in range(100)
    ]  # fmt: skip
    assert np.mean(np.array(p_values) <= 0.1) <= 0.16
    assert np.median(p_values) > 0.3


def test_kolmogorovs_own_reference_would_not_hold() -> None:
    """It takes the pairs for independent: far too wide without effects of the groups, too narrow where effects is all there is."""
    sizes = {share: [] for share in (0.0, 0.5)}
    for share, shares in sizes.items():
        for world in range(100):
            ranks = among_themselves(
                simulated.negatives(simulated.group_scores(np.random.default_rng(world), 18, share))
            )
            shares.append(kstest(ranks.p - ranks.min_p / 2, "uniform").pvalue)
    assert min(sizes[0.0]) > 0.5
    assert np.mean(np.array(sizes[0.5]) <= 0.05) < 0.05


def test_hidden_kin_are_found() -> None:
    """Eight of 18 'negatives' are kin: their pairs score four standard deviations higher."""
    a, b = np.triu_indices(18, 1)
    p_values = []
    for world in range(20):
        score = np.random.default_rng(world).normal(size=a.size) + 4.0 * ((a < 8) & (b < 8))
        p_values.append(uniformity(among_themselves(simulated.negatives(score)), simulations=99).ks.p)
    assert np.mean(np.array(p_values) <= 0.05) >= 0.8


def test_a_false_positive_rate_is_a_count_with_two_intervals() -> None:
    rng = np.random.default_rng(0)
    negatives = simulated.negatives(simulated.group_scores(rng, 14, 0.3))
    pairs = pairs_of(rng, 14, positive=False, num=500)
    pairs = simulated.make(np.where(np.arange(500) % 10 == 0, np.nan, pairs.score), pairs.group_a, pairs.group_b)
    ranks = rank_p_values(pairs, negatives)
    rate = false_positive_rate(ranks, alpha=0.1, draws=299)
    share = wilson(sum(p <= 0.1 for p in ranks.p), 500)
    assert (rate.value, rate.n, count_of(rate)) == (share.value, 500, count_of(share))
    assert rate.low < rate.value < rate.high
    assert false_positive_rate(ranks, alpha=0.1, draws=299) == rate
    on_the_grid = false_positive_rate(among_themselves(negatives), alpha=5 / 67, draws=9)
    assert count_of(on_the_grid) == np.count_nonzero(among_themselves(negatives).p * 67 < 5.5)
    assert np.any(np.round(among_themselves(negatives).p * 67) == 5)
    with pytest.raises(ValueError, match="500 negative pairs"):
        true_positive_rate(ranks)


def test_the_interval_over_roots_knows_of_their_luck() -> None:
    """One group in ten is alike to everyone: its pairs are called together, and Wilson takes them for independent."""
    a, b = (np.repeat(ends, 20) for ends in np.triu_indices(10, 1))
    pairs = simulated.make(np.where(b == 9, 9.0, -9.0), a, b)
    rate = false_positive_rate(rank_p_values(pairs, simulated.negatives(np.random.default_rng(0).normal(size=45))))
    assert (count_of(rate), rate.low) == (9 * 20, 0)
    assert rate.high > 2 * wilson(9 * 20, rate.n).high


def test_pairs_of_one_family_have_no_interval() -> None:
    """A resample misses the group that all of them share in 35 % of the draws, (9/10)^10."""
    pairs = simulated.make(np.full(45, -9.0), np.zeros(45, int), np.repeat(np.arange(1, 10), 5))
    rate = false_positive_rate(rank_p_values(pairs, simulated.negatives(np.random.default_rng(0).normal(size=45))))
    assert (count_of(rate), rate.n, rate.has_interval) == (0, 45, False)
    words = rate.note.split()
    assert words[:2] == ["no", "interval:"]
    assert int(words[2]) / 999 == pytest.approx(0.9**10, abs=0.05)


def test_power_counts_related_pairs() -> None:
    rng = np.random.default_rng(0)
    negatives = simulated.negatives(rng.normal(size=45))
    ranks = rank_p_values(pairs_of(rng, 10, positive=True, num=200), negatives)
    rate = true_positive_rate(ranks, draws=99)
    assert count_of(rate) == np.count_nonzero(ranks.p <= 0.05)
    assert 0.3 < rate.value < 0.7
    with pytest.raises(ValueError, match="200 positive pairs"):
        false_positive_rate(ranks)


def test_a_level_below_the_floor_is_said_to_be_out_of_reach() -> None:
    ranks = among_themselves(simulated.negatives(np.random.default_rng(0).normal(size=21)))
    rate = false_positive_rate(ranks, alpha=0.05)
    assert not rate.defined
    assert rate.note == "no pair could be called positive at alpha = 0.05: the smallest there is is 0.091"
    for alpha in (0.0, 1.0, np.nan):
        with pytest.raises(ValueError, match=r"a level in \(0, 1\)"):
            false_positive_rate(ranks, alpha=alpha)


def test_a_rate_of_nothing_leaves_wilson_alone() -> None:
    pairs = simulated.negatives(np.full(45, -9.0))
    rate = false_positive_rate(rank_p_values(pairs, simulated.negatives(np.random.default_rng(0).normal(size=45))))
    assert (count_of(rate), rate.low, rate.high) == (0, 0, 0)
    assert "Wilson's interval alone" in rate.note
    assert wilson(0, rate.n).high > 0.07

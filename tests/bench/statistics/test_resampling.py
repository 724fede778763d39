"""Resampled groups against families drawn and paired one by one; what the intervals cover."""

import numpy as np
import pytest

from modelassay.statistics.classification import METRICS, accuracy, auroc, difference
from modelassay.statistics.intervals import percentile
from modelassay.statistics.resampling import (
    Ranked,
    Scored,
    Steps,
    group_counts,
    pair_weights,
    resampled,
    steps_of,
)
from modelassay.statistics.roc import roc
from support import simulated_scores as simulated

Array = np.ndarray


def drawn_again(scored: Scored, drawn: Array) -> Scored:
    """The pairs of a list of groups drawn with replacement, built by copying; copies of one group are not paired."""
    rows = []
    for i, f in enumerate(drawn):
        rows += [p for p in range(scored.score.size) if scored.group_a[p] == scored.group_b[p] == f]
        for g in drawn[i + 1 :]:
            rows += [p for p in range(scored.score.size) if f != g and {scored.group_a[p], scored.group_b[p]} == {f, g}]
    return simulated.make(scored.score[rows], scored.group_a[rows], scored.group_b[rows])


@pytest.mark.parametrize("scored", [simulated.families(np.random.default_rng(0), 6), simulated.tied(np.random.default_rng(1), missing=0.1)])  # fmt: skip
def test_weights_are_families_drawn_anew(scored: Scored) -> None:
    renamed = simulated.make(scored.score, 10 * scored.group_a + 3, 10 * scored.group_b + 3)
    groups = renamed.groups
    drawn = np.random.default_rng(2).choice(groups, size=(8, groups.size))
    counts = np.stack([(drawn == group).sum(axis=1) for group in groups], axis=1).astype(float)
    steps = list(resampled(renamed, counts, groups))
    for name, metric in METRICS.items():
        values = np.concatenate([metric(step) for step in steps])
        expected = [metric(steps_of(drawn_again(renamed, chosen)))[0] for chosen in drawn]
        np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-13, err_msg=name)


def test_chunks_are_seamless() -> None:
    scored = simulated.families(np.random.default_rng(0), 40)  # 900 pairs: 291 resamples in a chunk
    counts = group_counts(40, draws=600, seed=0)
    steps = list(resampled(scored, counts, scored.groups))
    assert len(steps) == 3
    values = np.concatenate([METRICS["auroc"](step) for step in steps])
    for draw in (0, 290, 291, 599):
        weights = pair_weights(scored.group_a, scored.group_b, scored.groups, counts[draw : draw + 1])[0]
        assert values[draw] == pytest.approx(auroc(scored, weights), abs=1e-13)


def test_counts_are_those_of_drawing_with_replacement() -> None:
    counts = group_counts(7, draws=20_000, seed=1)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), 6 / 7, atol=0.03)
    np.testing.assert_array_equal(group_counts(7, draws=9, seed=1), group_counts(7, draws=9, seed=1))
    with pytest.raises(ValueError, match="at least 1 draw"):
        group_counts(7, draws=0, seed=1)


def test_the_interval_covers_and_one_over_pairs_would_not() -> None:
    """The expected AUROC is P(normal with mean 1.5 and variance 2 > 0); intervals over 18 to 40 groups were found to cover 0.88 to 0.95."""
    truth, num_worlds, draws = 0.8556, 120, 199
    over_roots = over_pairs = 0
    for world in range(num_worlds):
        rng = np.random.default_rng(world)
        scored = simulated.families(rng, 24, children=6)
        interval = percentile(truth, auroc_over(scored, group_counts(24, draws=draws, seed=world)))
        over_roots += interval.low <= truth <= interval.high
        num_pairs = scored.score.size
        drawn = rng.multinomial(num_pairs, np.full(num_pairs, 1 / num_pairs), size=draws).astype(float)
        ranked = Ranked(scored)
        naive = percentile(truth, METRICS["auroc"](Steps(ranked, drawn[:, ranked.order_P])))
        over_pairs += naive.low <= truth <= naive.high
    assert 0.87 <= over_roots / num_worlds <= 0.99
    assert over_pairs / num_worlds < 0.75


def auroc_over(scored: Scored, counts: Array) -> Array:
    return np.concatenate([METRICS["auroc"](steps) for steps in resampled(scored, counts, scored.groups)])


def test_an_interval_holds_its_value_and_a_seed_fixes_it() -> None:
    scored = simulated.families(np.random.default_rng(5), 20)
    result, again, other = (accuracy(scored, draws=199, seed=seed) for seed in (3, 3, 4))
    for name, metric in result.metrics.items():
        assert metric.low <= metric.value <= metric.high
        assert (metric.n, metric.method, metric.level) == (20, "percentile", 0.95)
        assert again.metrics[name] == metric
    assert other.metrics["auroc"].low != result.metrics["auroc"].low
    assert (result.num_groups, result.num_positive_groups, result.num_positive, result.num_negative) == (
        20,
        20,
        60,
        190,
    )
    assert result.notes == ()


def test_resamples_without_relatives_are_counted_and_many_leave_no_interval() -> None:
    """Of 18 groups, those with descendants are all missed with probability (1 - k/18)^18: 3.8 % at k = 3, 36 % at k = 1."""
    pairs = simulated.families(np.random.default_rng(0), 18)
    for with_descendants, expected in ((3, (15 / 18) ** 18), (1, (17 / 18) ** 18)):
        selection = ~pairs.positive | (pairs.group_a < with_descendants)
        scored = simulated.make(pairs.score[selection], pairs.group_a[selection], pairs.group_b[selection])
        result = accuracy(scored)
        auc = result.metrics["auroc"]
        band = roc(scored, draws=999)
        assert band.undefined / 999 == pytest.approx(expected, abs=0.04)
        assert auc.has_interval == (with_descendants == 3)
        assert ("resamples of the groups leave it undefined" in auc.note) == (with_descendants == 1)
        assert f"positive pairs come from {with_descendants} group" in result.notes[0]
        assert auc.has_interval or f"no interval: {band.undefined} of 999" in auc.note


def test_separation_is_said_to_be_blind() -> None:
    scored = simulated.families(np.random.default_rng(0), 20, shift=40.0)
    auroc = accuracy(scored, draws=99).metrics["auroc"]
    assert (auroc.value, auroc.low, auroc.high) == (1, None, None)
    assert auroc.note == (
        "complete separation of 60 positive pairs (20 groups) from 190 negative pairs; the bootstrap cannot see below 1"
    )


def test_missing_pairs_are_told() -> None:
    result = accuracy(simulated.tied(np.random.default_rng(2), missing=0.2), draws=9)
    assert result.compared == 29 / 42
    assert "13 of 42 pairs cannot be compared and count as below every score" in result.notes[0]


def test_a_difference_is_paired() -> None:
    good = simulated.families(np.random.default_rng(0), 20)
    noise = np.random.default_rng(1).normal(size=good.score.size)
    bad = simulated.make(good.score + 0.5 * noise, good.group_a, good.group_b)
    estimate = difference(good, bad, "auroc", draws=499)
    counts = group_counts(20, draws=499, seed=0)
    expected = np.quantile(auroc_over(good, counts) - auroc_over(bad, counts), [0.025, 0.975])
    assert estimate.value == pytest.approx(auroc(good) - auroc(bad), abs=1e-13)
    np.testing.assert_allclose((estimate.low, estimate.high), expected, atol=1e-13)
    alone = accuracy(good, draws=499).metrics["auroc"]
    assert estimate.high - estimate.low < alone.high - alone.low
    same = difference(good, good, "mahalanobis", draws=9)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert "all resamples of 20 groups agree" in same.note


def test_a_difference_of_other_pairs_of_the_same_roots() -> None:
    scored = simulated.families(np.random.default_rng(0), 12)
    easy = np.arange(scored.score.size) % 3 > 0
    subset = simulated.make(scored.score[easy], scored.group_a[easy], scored.group_b[easy])
    estimate = difference(scored, subset, "ks", draws=99)
    backwards = difference(subset, scored, "ks", draws=99)
    assert estimate.value == -backwards.value
    assert estimate.low == pytest.approx(-backwards.high, abs=1e-13)
    some = (scored.group_a > 3) & (scored.group_b > 3)
    fewer = simulated.make(scored.score[some], scored.group_a[some], scored.group_b[some])
    other_way = difference(fewer, scored, "ks", draws=99)
    assert other_way.low == pytest.approx(-difference(scored, fewer, "ks", draws=99).high, abs=1e-13)
    with pytest.raises(ValueError, match="no metric 'auc'; there are auroc"):
        difference(scored, subset, "auc")


def test_the_band_of_a_roc_is_the_interval_at_each_rate() -> None:
    scored = simulated.families(np.random.default_rng(0), 20)
    band = roc(scored, fpr=np.array([0.0, 0.01, 0.5]), draws=499, seed=2)
    at_one_percent = accuracy(scored, draws=499, seed=2).metrics["tpr-at-fpr"]
    assert band.tpr[1] == at_one_percent.value
    assert (band.low[1], band.high[1]) == (at_one_percent.low, at_one_percent.high)
    assert (band.low <= band.tpr).all()
    assert (band.tpr <= band.high).all()

"""Metrics against their definitions pair by pair, and what must hold of them whatever the scores."""

import warnings

import numpy as np
import pytest
from scipy.stats import ks_2samp, mannwhitneyu

from modelassay.statistics.classification import (
    METRICS,
    accuracy,
    auroc,
    difference,
    ks_distance,
    mahalanobis,
    partial_auc,
    tpr_at_fpr,
)
from modelassay.statistics.resampling import Scored, steps_of
from modelassay.statistics.roc import roc
from support import simulated_scores as simulated

Array = np.ndarray

CASES = {
    "continuous": simulated.families(np.random.default_rng(0), 9),
    "ties": simulated.tied(np.random.default_rng(1)),
    "missing": simulated.tied(np.random.default_rng(2), missing=0.2),
    "missing-continuous": simulated.make(
        np.where(np.arange(63) % 5 == 0, np.nan, simulated.families(np.random.default_rng(3), 9).score),
        simulated.families(np.random.default_rng(3), 9).group_a, simulated.families(np.random.default_rng(3), 9).group_b),
}  # fmt: skip
each_case = pytest.mark.parametrize("scored", CASES.values(), ids=CASES)


def split(scored: Scored) -> tuple[Array, Array]:
    low = np.where(np.isnan(scored.score), -1e9, scored.score)
    return low[scored.positive], low[~scored.positive]


def points(scored: Scored) -> list[tuple[float, float]]:
    """(FPR, TPR) of every threshold, by counting; the last is (1, 1), reached by calling all positive."""
    positive, negative = split(scored)
    thresholds = sorted(set(scored.score[np.isfinite(scored.score)]), reverse=True)
    return [
        (0.0, 0.0),
        *((float(np.mean(negative >= t)), float(np.mean(positive >= t))) for t in thresholds),
        (1.0, 1.0),
    ]


@each_case
def test_auroc_is_the_share_of_comparisons_won(scored: Scored) -> None:
    positive, negative = split(scored)
    won = np.mean([(r > u) + (r == u) / 2 for r in positive for u in negative])
    assert auroc(scored) == pytest.approx(won, abs=1e-13)
    statistic = mannwhitneyu(positive, negative).statistic
    assert auroc(scored) == pytest.approx(statistic / (positive.size * negative.size), abs=1e-13)


@each_case
@pytest.mark.parametrize("max_fpr", [0.01, 0.05, 0.37, 1.0])
def test_partial_auc_is_the_mean_of_the_interpolated_roc(scored: Scored, max_fpr: float) -> None:
    """Integrated on a fine grid: the ROC is linear between its points, so the midpoint rule is good to one cell."""
    fpr, tpr = np.array(points(scored)).T
    grid = (np.arange(400_000) + 0.5) / 400_000 * max_fpr
    right = np.clip(np.searchsorted(fpr, grid, side="left"), 1, None)
    slope = (tpr[right] - tpr[right - 1]) / (fpr[right] - fpr[right - 1])
    expected = np.mean(tpr[right - 1] + slope * (grid - fpr[right - 1]))
    assert partial_auc(scored, max_fpr) == pytest.approx(expected, abs=2e-5)


def test_partial_auc_of_chance_and_of_perfection() -> None:
    rng = np.random.default_rng(0)
    chance = simulated.families(rng, 60, children=40, shift=0.0)
    assert partial_auc(chance, 0.2) == pytest.approx(0.1, abs=0.03)
    assert partial_auc(simulated.families(rng, 9, shift=50.0), 0.05) == 1


@each_case
@pytest.mark.parametrize("level", [0.05, 0.1, 1 / 3, 1.0])
def test_tpr_at_fpr_is_the_best_allowed_threshold(scored: Scored, level: float) -> None:
    assert tpr_at_fpr(scored, level) == max(tpr for fpr, tpr in points(scored)[:-1] if fpr <= level + 1e-12)


def test_tpr_at_fpr_needs_as_many_strangers_as_it_takes_to_see_the_rate() -> None:
    groups = np.triu_indices(15, 1)
    for num_negative, defined in ((99, False), (100, True)):
        group_a = np.append(groups[0][:num_negative], 0)
        scored = simulated.make(np.arange(num_negative + 1.0), group_a, np.append(groups[1][:num_negative], 0))
        assert tpr_at_fpr(scored, 0.01) == (1.0 if defined else None)
        estimate = accuracy(scored, draws=9).metrics["tpr-at-fpr"]
        assert estimate.value == (1.0 if defined else pytest.approx(np.nan, nan_ok=True))
        assert ("99 negative pairs cannot show" in estimate.note) != defined


@each_case
def test_ks_is_scipys(scored: Scored) -> None:
    assert ks_distance(scored) == pytest.approx(ks_2samp(*split(scored)).statistic, abs=1e-13)


@each_case
def test_mahalanobis_is_pooled_over_the_compared(scored: Scored) -> None:
    finite = np.isfinite(scored.score)
    positive, negative = scored.score[scored.positive & finite], scored.score[~scored.positive & finite]
    freedom = positive.size + negative.size - 2
    variance = ((positive.size - 1) * positive.var(ddof=1) + (negative.size - 1) * negative.var(ddof=1)) / freedom
    expected = abs(positive.mean() - negative.mean()) / np.sqrt(variance)
    assert mahalanobis(scored) == pytest.approx(expected, rel=1e-12)
    shifted = simulated.make(scored.score + 1e6, scored.group_a, scored.group_b)
    assert mahalanobis(shifted) == pytest.approx(expected, rel=1e-8)


def test_mahalanobis_without_spread_is_undefined() -> None:
    scored = simulated.make(
        np.array([0.7, 0.7, 0.7, 0.1, 0.1, 0.1]), np.array([0, 1, 2, 0, 0, 1]), np.array([0, 1, 2, 1, 2, 2])
    )
    assert mahalanobis(scored) is None
    estimate = accuracy(scored, draws=99).metrics["mahalanobis"]
    assert not estimate.defined
    assert "no spread" in estimate.note


@each_case
def test_weights_are_repetition(scored: Scored) -> None:
    times = np.random.default_rng(4).integers(0, 4, scored.score.size)
    again = simulated.make(*(np.repeat(field, times) for field in (scored.score, scored.group_a, scored.group_b)))
    for metric in METRICS.values():
        repeated, weighted = metric(steps_of(again)), metric(steps_of(scored, times.astype(float)))
        np.testing.assert_allclose(weighted, repeated, rtol=1e-12)
    assert auroc(scored, times.astype(float)) == pytest.approx(auroc(again), abs=1e-13)


@each_case
def test_a_monotone_map_of_the_score_changes_nothing_but_mahalanobis(scored: Scored) -> None:
    mapped = simulated.make(np.exp(scored.score / 3), scored.group_a, scored.group_b)
    for name, metric in METRICS.items():
        same = np.array_equal(metric(steps_of(mapped)), metric(steps_of(scored)))
        assert same == (name != "mahalanobis")
    np.testing.assert_array_equal(roc(mapped, draws=9).high, roc(scored, draws=9).high)


@pytest.mark.parametrize("name", ["continuous", "ties"])
def test_a_flipped_score_is_the_mirror_image(name: str) -> None:
    scored = CASES[name]
    flipped = simulated.make(-scored.score, scored.group_a, scored.group_b)
    assert auroc(flipped) == pytest.approx(1 - auroc(scored), abs=1e-13)
    assert ks_distance(flipped) == pytest.approx(ks_distance(scored), abs=1e-13)
    assert mahalanobis(flipped) == pytest.approx(mahalanobis(scored), rel=1e-12)


def test_the_order_of_the_pairs_does_not_matter() -> None:
    scored = CASES["missing"]
    order = np.random.default_rng(0).permutation(scored.score.size)
    mixed = simulated.make(scored.score[order], scored.group_b[order], scored.group_a[order])
    metrics, other = accuracy(scored, draws=99).metrics, accuracy(mixed, draws=99).metrics
    for name in ("auroc", "partial-auc", "ks", "mahalanobis"):
        assert other[name].value == pytest.approx(metrics[name].value, rel=1e-12)
        assert other[name].low == pytest.approx(metrics[name].low, rel=1e-9)


def test_all_ties_are_chance() -> None:
    scored = CASES["continuous"]
    metrics = accuracy(simulated.make(np.zeros(scored.score.size), scored.group_a, scored.group_b), draws=99).metrics
    assert metrics["auroc"].value == 0.5
    assert metrics["partial-auc"].value == pytest.approx(0.025)
    assert metrics["ks"].value == 0
    assert metrics["mahalanobis"].defined is False
    assert "all resamples of 9 groups agree" in metrics["auroc"].note


def test_a_method_that_compares_nothing_is_chance_and_calls_nothing() -> None:
    scored = simulated.families(np.random.default_rng(0), 16)
    blind = simulated.make(np.full(scored.score.size, np.nan), scored.group_a, scored.group_b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = accuracy(blind, draws=99)
    assert result.compared == 0
    assert result.metrics["auroc"].value == 0.5
    assert result.metrics["tpr-at-fpr"].value == 0
    assert not result.metrics["mahalanobis"].defined
    assert roc(blind, draws=9).tpr.max() == 0


@pytest.mark.parametrize(("kind", "reason"), [("positive", "no negative pairs"), ("negative", "no positive pairs")])
def test_one_kind_of_pairs_has_no_accuracy(kind: str, reason: str) -> None:
    pairs = CASES["continuous"]
    selection = pairs.positive if kind == "positive" else ~pairs.positive
    scored = simulated.make(pairs.score[selection], pairs.group_a[selection], pairs.group_b[selection])
    for function in (auroc, partial_auc, tpr_at_fpr, ks_distance, mahalanobis, roc):
        with pytest.raises(ValueError, match=reason):
            function(scored)
    result = accuracy(scored, draws=9)
    assert not any(metric.defined for metric in result.metrics.values())
    assert all(metric.note == reason for metric in result.metrics.values())
    assert difference(pairs, scored, "ks").note == f"second: {reason}"


def test_no_pairs_and_one_root() -> None:
    none = simulated.make(np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert accuracy(none, draws=9).metrics["auroc"].note == "no positive and no negative pairs"
    assert np.isnan(none.compared)
    one = simulated.make(np.ones(3), np.zeros(3, int), np.zeros(3, int))
    assert accuracy(one, draws=9).num_groups == 1
    assert accuracy(one, draws=9).metrics["auroc"].defined is False


GOOD = {"score": [0.5, 0.1], "positive": [True, False], "group_a": [0, 0], "group_b": [0, 1]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": [0.5, np.inf]}, "1 infinite score"),
        ({"score": [0.5]}, "one length"),
        ({"score": [[0.5, 0.1]]}, "one length"),
        ({"positive": [True, True]}, "1 pairs are not"),
        ({"positive": [0.5, 0.0]}, "positive must be"),
        ({"group_b": [0, 1.5]}, "group_b must be"),
        ({"group_b": [0, np.nan]}, "group_b must be"),
        ({"group_b": [0, -1]}, "negative"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(changed: dict[str, object], message: str) -> None:
    assert auroc(Scored(**GOOD)) == 1
    with pytest.raises(ValueError, match=message):
        Scored(**{**GOOD, **changed})


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [np.nan, 1.0]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights: needs 2 finite numbers"):
        auroc(Scored(**GOOD), np.array(weights))


def test_weights_that_leave_one_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="the weights leave no"):
        auroc(Scored(**GOOD), np.array([1.0, 0.0]))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, np.nan])
def test_rates_outside_their_range_are_refused(rate: float) -> None:
    for function in (partial_auc, tpr_at_fpr):
        with pytest.raises(ValueError, match=r"a rate in \(0, 1\]"):
            function(Scored(**GOOD), rate)


@each_case
def test_roc_goes_through_every_threshold(scored: Scored) -> None:
    fpr, _ = np.array(points(scored)[:-1]).T
    curve = roc(scored, fpr=fpr, draws=9)
    expected = [max(t for f, t in points(scored)[:-1] if f <= limit + 1e-12) for limit in fpr]
    np.testing.assert_allclose(curve.tpr, expected, atol=1e-13)
    assert (np.diff(curve.tpr) >= 0).all()


def test_roc_refuses_what_is_no_rate() -> None:
    with pytest.raises(ValueError, match="false-positive rates"):
        roc(CASES["ties"], fpr=np.array([0.5, 1.5]))


def test_a_level_is_met_despite_rounding() -> None:
    """0.29 * 100 is 28.999999999999996; 29 false positives of 100 are a rate of 0.29."""
    groups = np.triu_indices(15, 1)
    score = np.append(np.arange(100.0), 70.5)  # 29 negatives lie above the positive pair
    scored = simulated.make(score, np.append(groups[0][:100], 0), np.append(groups[1][:100], 0))
    assert tpr_at_fpr(scored, 0.29) == 1
    assert tpr_at_fpr(scored, 0.28) == 0

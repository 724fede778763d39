"""Thresholds that other seeds chose: by exhaustive search, at chance where there is nothing, and intervals that hold for seeds."""

import math

import numpy as np
import pytest

from modelassay.statistics.proportions import clopper_pearson
from modelassay.statistics.thresholds import best_threshold, clustered_share, lagged_correlation, left_out_alarms


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(31) < 0.4
    score = np.round(rng.normal(size=31) + positive, 1)  # ties among them

    def gain(cut: float) -> float:
        return float((score[positive] > cut).mean() - (score[~positive] > cut).mean())

    chosen = best_threshold(score, positive)
    assert gain(chosen) >= max(gain(cut) for cut in np.linspace(-5, 6, 2201)) - 1e-12


def test_a_threshold_does_not_know_the_seed_it_is_judged_on() -> None:
    """The odd seed has the score the wrong way round: it is called wrongly throughout, and the others, but for it, rightly."""
    truth = np.tile([False, False, True, True], (6, 1))
    score = np.where(truth, 1.0, 0.0)
    score[2] = 1 - score[2]
    alarms = left_out_alarms(score, truth)
    assert alarms.sensitivity.value == pytest.approx(10 / 12)
    assert alarms.false_alarms.value == pytest.approx(2 / 12)


def test_where_there_is_nothing_sensitivity_is_the_false_alarm_rate() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(60):
        truth = rng.random((6, 12)) < 0.5
        alarms = left_out_alarms(rng.normal(size=truth.shape), truth)
        gains.append(alarms.sensitivity.value - alarms.false_alarms.value)
    assert abs(np.mean(gains)) < 4 * np.std(gains) / math.sqrt(60)
    assert abs(np.mean(gains)) < 0.05


def test_what_cannot_be_chosen_or_judged_is_undefined() -> None:
    score = np.arange(12.0).reshape(3, 4)
    only = np.zeros((3, 4), dtype=bool)
    only[0, 3] = True
    assert not left_out_alarms(score, only).sensitivity.defined  # without seed 0 there is none
    assert not left_out_alarms(score, np.ones((3, 4), dtype=bool)).false_alarms.defined
    with pytest.raises(ValueError, match="some are positive"):
        best_threshold([1.0, math.nan], [True, False])
    with pytest.raises(ValueError, match="one shape"):
        left_out_alarms(score, only[:2])
    counted = np.zeros((3, 4), dtype=bool)
    assert not left_out_alarms(score, only, counted).sensitivity.defined


def test_a_share_of_seeds_that_agree_within_is_one_of_seeds() -> None:
    called = np.repeat([[True], [True], [True], [False], [True], [True]], 8, axis=1)
    share = clustered_share(called, np.ones_like(called))
    assert share.value == pytest.approx(5 / 6)
    exact = clopper_pearson(5, 6)
    assert share.low is not None
    assert exact.low is not None
    assert share.low <= exact.low + 0.05  # not that of 40 of 48, 0.70
    everything = clustered_share(np.ones_like(called), np.ones_like(called))
    assert (everything.low, everything.high) == (pytest.approx(clopper_pearson(6, 6).low), 1.0)


def test_the_interval_covers_where_seeds_differ() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        rates = rng.beta(6, 2, size=(8, 1))
        called = rng.random((8, 10)) < rates
        share = clustered_share(called, np.ones_like(called))
        covered += bool(share.low is not None and share.high is not None and share.low <= 0.75 <= share.high)
    assert covered >= 0.91 * 200  # 95 % nominal, a standard error of 1.5 %


def test_a_lag_is_found_where_it_was_planted() -> None:
    rng = np.random.default_rng(2)
    early = rng.normal(size=(5, 40))
    late = np.concatenate([rng.normal(size=(5, 2)), early[:, :-2]], axis=1)
    means = {lag: float(lagged_correlation(early, late, lag).mean()) for lag in range(-4, 5)}
    assert means[2] == pytest.approx(1.0)
    assert all(abs(mean) < 0.3 for lag, mean in means.items() if lag != 2)
    for lag in (-3, 0, 1):
        cut = (early[0, : 40 - lag], late[0, lag:]) if lag >= 0 else (early[0, -lag:], late[0, :lag])
        assert lagged_correlation(early, late, lag)[0] == pytest.approx(np.corrcoef(*cut)[0, 1])
    assert np.isnan(lagged_correlation(np.ones((2, 6)), late[:2, :6], 0)).all()

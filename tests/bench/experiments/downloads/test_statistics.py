"""The statistics against values worked out otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from modelassay.experiments.downloads.statistics import (
    difference,
    filter_p,
    mean,
    rank_correlation,
    separation,
    share,
    spread_ratio,
    threshold_at,
)

RNG = np.random.default_rng(7)
FEW, MANY = RNG.beta(0.7, 0.9, 60), RNG.beta(4.0, 4.0, 31)


def test_spread_ratio_is_of_deviations_with_brown_forsythe() -> None:
    estimate = spread_ratio(FEW, MANY)
    ratio = np.sqrt(np.sum((FEW - FEW.mean()) ** 2) / 59) / np.sqrt(np.sum((MANY - MANY.mean()) ** 2) / 30)
    assert estimate.value == pytest.approx(ratio, rel=1e-12)
    away = [np.abs(group - np.median(group)) for group in (FEW, MANY)]
    assert estimate.p == pytest.approx(scipy_stats.f_oneway(*away).pvalue, rel=1e-9)
    assert estimate.low is not None
    assert estimate.high is not None
    assert 1 < estimate.low < ratio < estimate.high
    turned = spread_ratio(MANY, FEW)
    assert turned.value == pytest.approx(1 / ratio, rel=1e-12)


def test_spread_that_cannot_be_told_is_not() -> None:
    assert np.isnan(spread_ratio(FEW[:2], MANY).value)
    assert "2 members with few downloads and 31 with many" in spread_ratio(FEW[:2], MANY).note
    assert "do not vary" in spread_ratio(FEW, np.full(9, 0.5)).note


def test_spearman_is_of_ranks() -> None:
    downloads = np.round(10 ** RNG.uniform(0, 5, 60))
    correlation = rank_correlation(FEW, downloads)
    ranks = [scipy_stats.rankdata(values) for values in (FEW, downloads)]
    assert correlation.value == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-11)
    again = rank_correlation(FEW, np.log10(downloads))
    assert (again.value, again.low, again.high) == (correlation.value, correlation.low, correlation.high)
    assert np.isnan(rank_correlation(FEW, np.ones(60)).value)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"), [(5, 117, 0.0184, 0.0962), (2, 27, 0.0206, 0.2337), (0, 27, 0.0, 0.1246)]
)
def test_shares_carry_wilsons_interval(count: int, total: int, low: float, high: float) -> None:
    """(p + z^2/2n -+ z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n), the published false-negative rates."""
    estimate = share(np.arange(total) < count)
    assert (estimate.value, estimate.note) == (count / total, f"{count} of {total}")
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_filter_p_is_fishers() -> None:
    passing, failing = np.repeat((0.0, 1.0), (2, 25)), np.repeat((0.0, 1.0), (3, 62))
    assert filter_p(passing, failing, 0.5) == pytest.approx(scipy_stats.fisher_exact([[2, 25], [3, 62]]).pvalue)
    assert filter_p(passing, np.array([]), 0.5) is None


@pytest.mark.parametrize("size", [20, 39, 40, 101])
def test_threshold_lets_through_no_more_than_alpha(size: int) -> None:
    strangers = RNG.random(size)
    threshold = threshold_at(strangers, 0.05)
    assert threshold is not None
    assert (strangers >= threshold).mean() <= 0.05
    assert (strangers >= np.nextafter(threshold, 0)).sum() == int(
        0.05 * size
    ) + 1  # the next lower one lets too many through
    assert threshold_at(strangers[:19], 0.05) is None


def test_separation_is_of_all_pairs() -> None:
    related, strangers = np.round(FEW, 2), np.round(MANY, 2)
    wins = np.mean((related[:, None] > strangers[None]) + 0.5 * (related[:, None] == strangers[None]))
    estimate = separation(related, strangers, "auroc")
    assert estimate.value == pytest.approx(wins, rel=1e-12)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < wins < estimate.high
    assert "31 strangers cannot show" in separation(related, strangers, "tpr-at-fpr").note
    many = np.linspace(0, 0.5, 200)
    assert separation(related, many, "tpr-at-fpr").value == pytest.approx(
        np.mean(related > np.sort(many)[-3]), rel=1e-12
    )


def test_means_and_their_difference() -> None:
    a, b = mean(FEW), difference(FEW, MANY)
    assert a.value == pytest.approx(FEW.mean())
    assert b.value == pytest.approx(FEW.mean() - MANY.mean())
    assert a.low is not None
    assert a.high is not None
    error = FEW.std(ddof=1) / np.sqrt(60)
    assert (a.low, a.high) == (
        pytest.approx(FEW.mean() - 1.96 * error, abs=0.25 * error),
        pytest.approx(FEW.mean() + 1.96 * error, abs=0.25 * error),
    )
    assert b.p == pytest.approx(scipy_stats.mannwhitneyu(FEW, MANY).pvalue)
    assert np.isnan(mean(FEW[:2]).value)

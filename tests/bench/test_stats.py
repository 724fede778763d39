"""Intervals against known distributions, ranks against counting, Holm against its definition."""

import numpy as np
import pytest

from modelassay.stats import Interval, bootstrap_interval, holm, rank_p


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_interval_of_a_mean_matches_the_normal_one(method: str) -> None:
    sample = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    half = 1.959964 * sample.std(ddof=1) / np.sqrt(400)
    interval = bootstrap_interval([sample], np.mean, method=method, seed=1)  # type: ignore[arg-type]
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.02)
    assert interval.method == method


def test_a_seed_fixes_the_interval() -> None:
    sample = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval([sample], np.mean, seed=5) == bootstrap_interval([sample], np.mean, seed=5)
    assert bootstrap_interval([sample], np.mean, seed=5) != bootstrap_interval([sample], np.mean, seed=6)


def test_paired_samples_are_resampled_together() -> None:
    x = np.random.default_rng(0).normal(size=50)

    def difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray((a - b).mean(axis))

    together = bootstrap_interval([x + 1, x], difference, method="percentile", paired=True)
    apart = bootstrap_interval([x + 1, x], difference, method="percentile", paired=False)
    assert together.high - together.low < 1e-12
    assert apart.high - apart.low > 0.3


def test_few_undefined_resamples_are_counted_and_many_leave_no_interval() -> None:
    def mean_unless(limit: float) -> object:
        return lambda x, axis=-1: np.where(x.mean(axis) > limit, np.nan, x.mean(axis))

    sample = np.arange(101.0)  # standard error of the mean: 2.90
    few = bootstrap_interval([sample], mean_unless(50 + 2.4 * 2.90), method="percentile")  # type: ignore[arg-type]
    assert 0 < few.undefined < 0.02 * few.draws
    assert few.high < 50 + 2.4 * 2.90
    many = bootstrap_interval([sample], mean_unless(50), method="percentile")  # type: ignore[arg-type]
    assert many.undefined > 0.4 * many.draws
    assert np.isnan(many.low)
    assert np.isnan(many.high)


def test_degenerate_data_has_no_bca_interval() -> None:
    interval = bootstrap_interval([np.ones(10)], np.mean)
    assert isinstance(interval, Interval)
    assert np.isnan(interval.low)


def test_rank_p_counts_the_observed_value_and_ties() -> None:
    null = np.array([0.0, 1.0, 2.0, 3.0])
    for observed, reached in [(5.0, 0), (3.0, 1), (2.0 + 1e-13, 2), (-1.0, 4)]:
        ranked = rank_p(observed, null)
        assert ranked.p == (1 + reached) / 5
        assert ranked.floor == 0.2


@pytest.mark.parametrize(("observed", "null"), [(np.nan, [1.0]), (1.0, []), (1.0, [np.nan, 2.0])])
def test_rank_p_refuses_what_has_no_rank(observed: float, null: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        rank_p(observed, null)


def test_holm_is_its_definition() -> None:
    p_values = np.random.default_rng(3).random(9) ** 3
    order = np.argsort(p_values)
    expected = np.empty(9)
    expected[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * (9 - np.arange(9))))
    result = holm(list(p_values), alpha=0.1)
    np.testing.assert_allclose(result.adjusted, expected, rtol=1e-14)
    assert result.reject == tuple(expected <= 0.1)
    assert holm([]).adjusted == ()

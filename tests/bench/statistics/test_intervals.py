"""Intervals against known distributions, ranks against counting, Holm against its definition."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp as t_test

from modelassay.statistics.intervals import bootstrap, percentile, student_half_width, student_mean
from modelassay.statistics.multiplicity import holm
from modelassay.statistics.ranks import p_of_rank, rank_p


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_interval_of_a_mean_matches_the_normal_one(method: str) -> None:
    sample = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    half = 1.959964 * sample.std(ddof=1) / np.sqrt(400)
    interval = bootstrap([sample], np.mean, method=method, seed=1)  # type: ignore[arg-type]
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.02)
    assert (interval.method, interval.level, interval.n) == (method, 0.95, 400)
    assert interval.value == sample.mean()


def test_students_interval_is_scipys() -> None:
    sample = np.random.default_rng(1).normal(0.5, 0.2, size=7)
    expected = t_test(sample, 0).confidence_interval(0.9)
    mean = student_mean(sample, level=0.9)
    np.testing.assert_allclose((mean.low, mean.high), (expected.low, expected.high), rtol=1e-12)
    assert (mean.value, mean.n, mean.method) == (sample.mean(), 7, "Student")
    assert student_half_width(sample, 0.9) == pytest.approx((expected.high - expected.low) / 2, rel=1e-12)
    assert student_mean([0.1, 0.9], bounds=(0, 1)).low == 0
    assert not student_mean([0.4]).has_interval


@pytest.mark.parametrize(("num_nan", "defined"), [(0, True), (50, True), (51, False), (1000, False)])
def test_a_percentile_interval_needs_nineteen_of_twenty_resamples(num_nan: int, defined: bool) -> None:
    values = np.random.default_rng(0).normal(size=1000)
    values[:num_nan] = np.nan
    estimate = percentile(0.0, values, unit="root")
    assert estimate.has_interval == defined
    if defined:
        np.testing.assert_allclose((estimate.low, estimate.high), np.nanquantile(values, [0.025, 0.975]))
    else:
        assert estimate.note == f"no interval: {num_nan} of 1000 resamples of the roots leave it undefined"


def test_a_seed_fixes_the_interval() -> None:
    sample = np.random.default_rng(0).normal(size=30)
    assert bootstrap([sample], np.mean, seed=5) == bootstrap([sample], np.mean, seed=5)
    assert bootstrap([sample], np.mean, seed=5) != bootstrap([sample], np.mean, seed=6)


def test_paired_samples_are_resampled_together() -> None:
    x = np.random.default_rng(0).normal(size=50)

    def difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray((a - b).mean(axis))

    together = bootstrap([x + 1, x], difference, method="percentile", paired=True)
    apart = bootstrap([x + 1, x], difference, method="percentile", paired=False)
    assert together.high - together.low < 1e-12
    assert apart.high - apart.low > 0.3


def test_few_undefined_resamples_are_counted_and_many_leave_no_interval() -> None:
    def mean_unless(limit: float) -> object:
        return lambda x, axis=-1: np.where(x.mean(axis) > limit, np.nan, x.mean(axis))

    sample = np.arange(101.0)  # standard error of the mean: 2.90
    few = bootstrap([sample], mean_unless(50 + 2.4 * 2.90), method="percentile")  # type: ignore[arg-type]
    assert few.has_interval
    assert few.high < 50 + 2.4 * 2.90
    many = bootstrap([sample], mean_unless(50), method="percentile")  # type: ignore[arg-type]
    assert not many.has_interval
    assert int(many.note.split()[2]) > 0.4 * 9_999  # no interval: N of 9999 resamples


def test_degenerate_data_has_no_bca_interval() -> None:
    estimate = bootstrap([np.ones(10)], np.mean)
    assert (estimate.value, estimate.has_interval) == (1.0, False)
    assert "all are equal" in estimate.note


def test_rank_p_counts_the_observed_value_and_ties() -> None:
    null = np.array([0.0, 1.0, 2.0, 3.0])
    for observed, reached in [(5.0, 0), (3.0, 1), (2.0 + 1e-13, 2), (-1.0, 4)]:
        ranked = rank_p(observed, null)
        assert ranked.p == (1 + reached) / 5
        assert ranked.min_p == 0.2
        assert p_of_rank(reached, 4) == ranked.p


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


def test_t_intervals_cover() -> None:
    """Five normal samples, 2,000 times: 95 % of the intervals hold the mean, within four standard errors of that share."""
    samples = np.random.default_rng(0).standard_normal((2_000, 5))
    covered = np.mean([abs(row.mean()) <= student_half_width(row) for row in samples])
    assert abs(covered - 0.95) < 4 * (0.95 * 0.05 / 2_000) ** 0.5

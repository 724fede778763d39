"""Counts by counting, intervals by the formula of the score test."""

import numpy as np
import pytest
from scipy.stats import binom

from modelassay.statistics.proportions import clopper_pearson, count_of, wilson


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 20), (7, 20), (20, 20), (153, 7000)])
def test_wilson_is_where_the_score_test_turns(count: int, total: int) -> None:
    """(share - p)^2 = z^2 p (1 - p) / n at both ends: roots of a quadratic."""
    z2, share = 1.959963984540054**2, count / total
    ends = np.sort(np.roots([1 + z2 / total, -(2 * share + z2 / total), share**2]).real)
    interval = wilson(count, total)
    np.testing.assert_allclose((interval.low, interval.high), ends, atol=1e-12)
    assert interval.value == share
    assert 0 <= interval.low <= share <= interval.high <= 1


@pytest.mark.parametrize(("count", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="0 <= count <= total"):
        wilson(count, total)


def test_a_share_says_what_it_counts() -> None:
    share = wilson(7, 20)
    assert (share.n, share.level, share.method, share.note, count_of(share)) == (20, 0.95, "Wilson", "7 of 20", 7)
    assert all(count_of(wilson(count, 7000)) == count for count in range(0, 7001, 13))


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 20), (7, 20), (20, 20), (153, 7000)])
def test_clopper_pearson_leaves_its_tails(count: int, total: int) -> None:
    """At the upper end a count of at most this many has probability 0.025, at the lower end one of at least this many."""
    interval = clopper_pearson(count, total)
    assert interval.value == count / total
    if count < total:
        assert binom.cdf(count, total, interval.high) == pytest.approx(0.025, abs=1e-9)
    if count:
        assert binom.sf(count - 1, total, interval.low) == pytest.approx(0.025, abs=1e-9)
    assert (interval.low == 0) == (count == 0)
    assert (interval.high == 1) == (count == total)
    with pytest.raises(ValueError, match="0 <= count <= total"):
        clopper_pearson(total + 1, total)

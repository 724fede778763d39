"""Tests of groups against independent computations, and what they say of data that has no spread."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from modelassay.statistics.groups import cohens_d, games_howell, hedges_g, sign_change, smallest_effect, welch_anova

RNG = np.random.default_rng(3)
GROUPS = [RNG.normal(0, 1, 5), RNG.normal(1, 3, 7), RNG.normal(0.5, 0.2, 6)]


def test_welch_is_its_own_formula() -> None:
    """Welch 1951, equation by equation."""
    sizes, means = np.array([g.size for g in GROUPS]), np.array([g.mean() for g in GROUPS])
    weights = sizes / np.array([g.var(ddof=1) for g in GROUPS])
    grand = (weights * means).sum() / weights.sum()
    k = len(GROUPS)
    spare = ((1 - weights / weights.sum()) ** 2 / (sizes - 1)).sum()
    f = ((weights * (means - grand) ** 2).sum() / (k - 1)) / (1 + 2 * (k - 2) / (k**2 - 1) * spare)
    ours = welch_anova(GROUPS)
    assert ours.value == pytest.approx(f, rel=1e-9)
    assert ours.p == pytest.approx(stats.f.sf(f, k - 1, (k**2 - 1) / (3 * spare)), rel=1e-9)


def test_games_howell_is_the_studentised_range_of_each_pair() -> None:
    pairs = games_howell(GROUPS)
    for (i, j), ours in pairs.items():
        a, b = GROUPS[i], GROUPS[j]
        va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
        df = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
        q = abs(a.mean() - b.mean()) / math.sqrt((va + vb) / 2)
        assert ours.value == pytest.approx(a.mean() - b.mean())
        assert ours.p == pytest.approx(stats.studentized_range.sf(q, len(GROUPS), df), rel=1e-4)


@pytest.mark.parametrize("n", [2, 5, 6, 9])
def test_sign_changes_are_all_gone_through(n: int) -> None:
    values = np.random.default_rng(n).normal(0.7, 1.0, n)
    own = abs(values.mean())
    sums = [abs(np.dot(signs, values)) / n for signs in itertools.product((1, -1), repeat=n)]
    ours = sign_change(values)
    assert ours.p == pytest.approx(np.mean([each >= own - 1e-12 for each in sums]))
    assert ours.min_p == 2 / 2**n <= ours.p


def test_sign_changes_with_ties_and_without_spread() -> None:
    assert sign_change([0.0, 0.0, 0.0]).p == 1.0
    assert sign_change([1.0] * 6).p == 2 / 64
    assert not sign_change([1.0]).defined
    assert not sign_change([1.0, math.nan]).defined
    with pytest.raises(ValueError, match="at most 16"):
        sign_change(np.ones(17))


def test_effect_sizes_have_intervals_that_hold_their_own_t() -> None:
    """The ends are the effects at which the t that was seen is a 2.5 % tail, by numerical integration of the noncentral t's definition."""
    one, other = GROUPS[0], GROUPS[1]
    d = cohens_d(one, other)
    scale, df = math.sqrt(1 / one.size + 1 / other.size), one.size + other.size - 2
    t = stats.ttest_ind(one, other).statistic
    assert d.value == pytest.approx(t * scale)

    def below(centre: float) -> float:
        def integrand(s: float) -> float:  # P(Z + centre <= t s / sqrt(df)) over the law of s, chi with df degrees
            return float(stats.norm.cdf(t * s / math.sqrt(df) - centre) * stats.chi.pdf(s, df))

        return float(integrate.quad(integrand, 0, np.inf)[0])

    assert d.low is not None
    assert d.high is not None
    assert below(d.low / scale) == pytest.approx(0.975, abs=1e-5)
    assert below(d.high / scale) == pytest.approx(0.025, abs=1e-5)
    assert hedges_g(one, other).value == pytest.approx(d.value * (1 - 3 / (4 * df - 1)), rel=2e-3)


def test_what_has_no_spread_has_no_test() -> None:
    flat = [np.ones(4), np.ones(4), np.full(4, 2.0)]
    assert not welch_anova(flat).defined
    assert not any(pair.defined for pair in games_howell(flat).values())
    assert not cohens_d([1.0, 1.0], [2.0, 2.0]).defined


def test_the_smallest_effect_is_seen_in_four_of_five_runs() -> None:
    rng = np.random.default_rng(0)
    d = smallest_effect(6, paired=True)
    draws = rng.normal(d, 1.0, (4000, 6))
    seen = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert abs(seen.mean() - 0.8) < 0.03
    assert smallest_effect(1, paired=True) == math.inf

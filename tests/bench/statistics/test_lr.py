"""Likelihood ratios against values by hand and a fit by another route."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from modelassay.statistics.lr import calibrate, cllr, cllr_estimate, held_out_ratios, tippett
from modelassay.statistics.resampling import Scored


def world(num_roots: int = 8, children: int = 3, *, apart: float = 2.0, seed: int = 0) -> Scored:
    """Children of each root score around ``apart``, all pairs of roots around 0."""
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(num_roots, 1)
    own = np.repeat(np.arange(num_roots), children)
    score = np.concatenate([rng.normal(apart, 1, own.size), rng.normal(0, 1, first.size)])
    return Scored(score=score, positive=np.arange(score.size) < own.size, group_a=np.concatenate([own, first]),
                  group_b=np.concatenate([own, second]))  # fmt: skip


def test_cllr_by_hand() -> None:
    """LR 4 and 1 of related pairs, 1/2 of an unrelated one: ((log2 1.25 + log2 2) / 2 + log2 1.5) / 2."""
    related = np.array([True, True, False])
    expected = ((math.log2(1.25) + 1) / 2 + math.log2(1.5)) / 2
    assert cllr(np.log10([4, 1, 0.5]), related) == pytest.approx(expected, abs=1e-12)
    weighted = ((3 * math.log2(1.25) + 1) / 4 + math.log2(1.5)) / 2
    assert cllr(np.log10([4, 1, 0.5]), related, np.array([3.0, 1.0, 7.0])) == pytest.approx(weighted, abs=1e-12)
    assert cllr(np.zeros(3), related) == 1.0
    assert cllr(np.log10([1e-9, 1e-9, 1e9]), related) > 29  # misleading costs more than silence
    assert math.isnan(cllr(np.zeros(2), np.array([True, True])))


def test_fit_is_the_minimum_and_each_root_weighs_the_same() -> None:
    """Against a general optimiser on the loss as it is written down, pairs of one root sharing its weight."""
    pairs = world(children=4)
    kinds = pairs.positive
    target = np.where(kinds, 9 / 10, 1 / 9)  # 8 families; 8 roots are 7 strangers to any
    weight = np.where(kinds, 1 / 4 / 8, 1 / 28)

    def loss(line: np.ndarray) -> float:
        odds = line[0] + line[1] * pairs.score
        return float(weight @ (np.logaddexp(0, odds) - target * odds))

    best = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-10}).x / math.log(10)
    fit = calibrate(pairs)
    np.testing.assert_allclose((fit.intercept, fit.slope), best, atol=1e-6)
    assert (fit.highest, fit.lowest) == (math.log10(8), -math.log10(9))
    near = calibrate(pairs, start=fit)
    np.testing.assert_allclose((near.intercept, near.slope), (fit.intercept, fit.slope), atol=1e-8)


def test_separated_kinds_stay_within_what_so_many_roots_can_show() -> None:
    pairs = world(apart=1000.0)
    held_out = held_out_ratios(pairs)
    assert np.isfinite(held_out.log10_lr).all()
    related = held_out.log10_lr[pairs.positive]
    assert related.max() <= math.log10(7)  # without the suspect's root 7 are left: 6 strangers to each
    assert related.min() > 0.7
    assert held_out.log10_lr[~pairs.positive].min() >= -math.log10(7)  # 6 families are left of two roots held out
    assert held_out.bound == pytest.approx(math.log10(8))  # one root held out leaves 7 families
    estimate = cllr_estimate(pairs, held_out)
    assert 0 < estimate.value < 0.25
    assert "at most 0.90" in estimate.note


def test_a_pair_is_calibrated_without_its_roots() -> None:
    """Move the scores of one family far away: the ratios of pairs with that family change only as the line is applied."""
    pairs = world()
    moved = np.where((pairs.group_a == 2) | (pairs.group_b == 2), pairs.score - 1.0, pairs.score)
    other = Scored(score=moved, positive=pairs.positive, group_a=pairs.group_a, group_b=pairs.group_b)
    own = np.flatnonzero(pairs.positive & (pairs.group_a == 2))
    apart = (pairs.group_a != 2) & (pairs.group_b != 2)
    fit = calibrate(pairs, apart)
    for scored in (pairs, other):
        ratios = held_out_ratios(scored).log10_lr
        np.testing.assert_allclose(ratios[own], [fit.log10(score) for score in scored.score[own]], atol=1e-7)


def test_scores_that_say_nothing_cost_one_bit_and_undefined_ones_are_no_evidence() -> None:
    pairs = world(apart=0.0, num_roots=30, children=2)
    assert cllr_estimate(pairs, held_out_ratios(pairs)).value == pytest.approx(1.0, abs=0.03)
    holes = Scored(score=np.where(np.arange(pairs.score.size) % 5 == 0, np.nan, pairs.score), positive=pairs.positive,
                   group_a=pairs.group_a, group_b=pairs.group_b)  # fmt: skip
    ratios = held_out_ratios(holes).log10_lr
    assert (ratios[::5] == 0).all()
    equal = Scored(
        score=np.ones(pairs.score.size), positive=pairs.positive, group_a=pairs.group_a, group_b=pairs.group_b
    )
    assert calibrate(equal).slope == 0


def test_too_few_groups_give_no_ratio() -> None:
    one_family = Scored(score=[0.9, 0.1], positive=[True, False], group_a=[0, 0], group_b=[0, 1])
    with pytest.raises(ValueError, match="got 0 families and 2 roots"):
        calibrate(one_family, np.array([False, True]))
    held_out = held_out_ratios(one_family)
    assert np.isnan(held_out.log10_lr).all()
    assert not cllr_estimate(one_family, held_out).defined


def test_tippett_counts_from_above() -> None:
    at, share = tippett(
        np.array([0.5, -0.2, 0.5, 1.0, np.nan]),
        np.array([True, True, True, False, True]),
        np.array([1.0, 2.0, 1.0, 9.0, 9.0]),
    )
    np.testing.assert_allclose((at, share), ([-0.2, 0.5], [1.0, 0.5]))

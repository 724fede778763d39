"""Slopes, levels and bands on curves whose truth is known."""

import math

import numpy as np
import pytest

from modelassay.statistics.equivalence import simultaneous_band
from modelassay.statistics.trends import at_levels, crossing, is_flat, slope


def wander(rng: np.random.Generator, size: int, correlation: float) -> np.ndarray:
    """Noise of variance 1 that remembers the point before."""
    values = np.empty(size)
    values[0] = rng.standard_normal()
    for at in range(1, size):
        values[at] = correlation * values[at - 1] + math.sqrt(1 - correlation**2) * rng.standard_normal()
    return values


def test_a_slope_is_least_squares_and_its_interval_covers_it() -> None:
    rng = np.random.default_rng(0)
    x, covered = np.arange(80.0), 0
    for world in range(120):
        y = 1 - 0.002 * x + 0.05 * wander(rng, 80, 0.3)
        estimate = slope(x, y, draws=200, seed=world)
        assert estimate.value == pytest.approx(np.polyfit(x, y, 1)[0])
        covered += estimate.low <= -0.002 <= estimate.high
    assert 0.78 <= covered / 120 <= 0.97  # nominally 0.90; binomial error 0.027, and blocks cover too little


def test_noise_makes_no_curve_flat() -> None:
    """Stopping when an interval contains 0 stops soonest where noise is largest; two one-sided tests do the opposite."""
    rng = np.random.default_rng(1)
    x = np.arange(60.0)
    quiet, loud = (slope(x, 0.5 + size * rng.standard_normal(60)) for size in (0.001, 0.5))
    assert is_flat(quiet, 1e-3)
    assert loud.low < 0 < loud.high
    assert not is_flat(loud, 1e-3)
    assert not is_flat(slope(x, 1 - 0.005 * x), 1e-3)
    assert not slope(x[:5], x[:5]).defined
    assert not slope(x, np.where(x == 3, np.nan, x)).defined


def test_levels_are_reached_once() -> None:
    assert crossing([0, 2, 4], [0.2, 0.1, 0.0], 0.5) == 0.0
    assert crossing([0, 2, 4, 6], [1.0, 0.4, 0.9, 0.1], 0.7) == pytest.approx(1.0)
    # x falls back between its highest points, which does not count
    np.testing.assert_allclose(at_levels([0, 2, 1, 3], [1.0, 0.6, 9.0, 0.2], [1.0, 2.5]), [0.8, 0.4])


def test_a_band_holds_the_whole_curve_as_often_as_it_says() -> None:
    """Four texts and six prompts, both random, curves that remember: 200 worlds of a true difference of 0.1."""
    rng = np.random.default_rng(2)
    inside, points, worlds = 0, 12, 200
    for world in range(worlds):
        texts = np.stack([wander(rng, points, 0.9) for _ in range(4)])
        prompts = np.stack([wander(rng, points, 0.9) for _ in range(6)])
        rest = 0.5 * rng.standard_normal((4, 6, points))
        band = simultaneous_band(0.1 + texts[:, None] + 0.7 * prompts[None] + rest, worlds=300, seed=world)
        assert band.num_units == 4
        inside += bool(((band.low_T <= 0.1) & (band.high_T >= 0.1)).all())
    assert inside / worlds >= 0.9  # nominally 0.95, binomial error 0.015; never below the larger of two variances


def test_a_band_of_two_like_curves_is_equivalence_and_of_unlike_ones_a_difference() -> None:
    rng = np.random.default_rng(3)
    noise = 0.002 * rng.standard_normal((5, 5, 9))
    same, apart = simultaneous_band(noise), simultaneous_band(noise + 0.2)
    assert same.verdict(0.05) == "equivalent"
    assert same.power(0.05) > 0.95
    assert apart.verdict(0.05) == "different"
    vague = simultaneous_band(rng.standard_normal((3, 5, 9)))
    assert vague.verdict(0.05) == "undecided"
    assert vague.power(0.05) == 0.0
    equal = simultaneous_band(np.zeros((2, 2, 4)))
    assert (equal.critical, equal.verdict(0.01)) == (0.0, "equivalent")


def test_few_units_make_a_wide_band() -> None:
    rng = np.random.default_rng(4)
    values = np.stack([wander(rng, 10, 0.9) for _ in range(64)]).reshape(8, 8, 10)
    assert simultaneous_band(values[:2]).critical > 10 > simultaneous_band(values).critical > 2


@pytest.mark.parametrize("shape", [(1, 5, 4), (5, 1, 4), (5, 5)])
def test_one_text_is_no_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two groups and two items at least"):
        simultaneous_band(np.zeros(shape))

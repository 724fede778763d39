"""P-values of discrete exact tests: uniform on their steps when drawn from them, not when the test errs."""

import math

import numpy as np
import pytest

from modelassay.statistics.known_laws import uniformity_on_steps
from modelassay.statistics.permutations import fixed_points_log_p


def steps_of(units: int) -> np.ndarray:
    """What the p-value of fixed points can be, ascending."""
    return np.array([math.exp(fixed_points_log_p(count, [units], [units])) for count in range(12, -1, -1)])


def p_of(permutations: np.ndarray, law: np.ndarray) -> list[float]:
    counts = (permutations == np.arange(permutations.shape[1])).sum(1)
    return [float(law[12 - count]) for count in counts]


def test_random_permutations_are_uniform_on_their_steps() -> None:
    """The size of the test over 200 worlds of 60 pairs: about 5 % below 0.05, where the continuous table never rejects."""
    law, rng = steps_of(40), np.random.default_rng(1)
    ps = [uniformity_on_steps(p_of(rng.permuted(np.tile(np.arange(40), (60, 1)), axis=1), law), [law] * 60, simulations=99, seed=world).ks.p
          for world in range(200)]  # fmt: skip
    assert 0.015 <= np.mean(np.array(ps) <= 0.05) <= 0.09
    assert 0.4 < np.mean(ps) < 0.62


def test_one_too_many_fixed_points_shows() -> None:
    law, rng = steps_of(40), np.random.default_rng(2)
    permutations = rng.permuted(np.tile(np.arange(1, 40), (100, 1)), axis=1)
    fixed = np.concatenate([np.zeros((100, 1), dtype=int), permutations], axis=1)
    distance = uniformity_on_steps(p_of(fixed, law), [law] * 100, simulations=199)
    assert distance.ks.p == distance.ks.min_p == pytest.approx(1 / 200)
    assert distance.ks.value == pytest.approx(1 - 0.632, abs=0.02)  # every pair has a fixed point, not 63 %


def test_laws_are_mixed_by_how_many_have_them() -> None:
    coin, die = np.array([0.5, 1.0]), np.array([1 / 6, 1.0])
    mixed = uniformity_on_steps([0.5, 1.0, 1.0, 1 / 6], [coin, coin, die, die], simulations=9)
    # at 1/6: 1 of 4 against (0 + 0 + 1/6 + 1/6) / 4; at 1/2: 2 of 4 against (1/2 + 1/2 + 1/6 + 1/6) / 4
    assert mixed.ks.value == pytest.approx(max(0.25 - 1 / 12, 0.5 - 1 / 3))
    np.testing.assert_allclose(mixed.observed, [1 / 6, 0.5, 1, 1])


@pytest.mark.parametrize(("p", "count"), [([0.4], 1), ([], 0), ([0.5], 2)])
def test_what_no_law_allows_is_refused(p: list[float], count: int) -> None:
    with pytest.raises(ValueError, match="uniformity: "):
        uniformity_on_steps(p, [np.array([0.5, 1.0])] * count)

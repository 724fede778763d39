"""The laws of random permutations against every permutation there is, and against draws."""

import itertools
import math

import numpy as np
import pytest

from modelassay.statistics.permutations import fixed_points_log_p, inversions, inversions_log_p


@pytest.mark.parametrize(("matched", "size"), [(1, 1), (3, 3), (6, 6), (2, 5), (4, 6)])
def test_fixed_points_of_every_injection(matched: int, size: int) -> None:
    counts = [sum(at == to for at, to in enumerate(image)) for image in itertools.permutations(range(size), matched)]
    for count in range(matched + 2):
        share = np.mean(np.array(counts) >= count)
        log_p = fixed_points_log_p(count, [matched], [size])
        assert math.exp(log_p) == pytest.approx(share, abs=1e-15), count


def test_fixed_points_of_two_permutations_together() -> None:
    singles = [
        [sum(at == to for at, to in enumerate(image)) for image in itertools.permutations(range(n))] for n in (4, 5)
    ]
    sums = np.add.outer(*map(np.array, singles)).ravel()
    for count in range(10):
        assert math.exp(fixed_points_log_p(count, [4, 5], [4, 5])) == pytest.approx(np.mean(sums >= count), abs=1e-15)


def test_fixed_points_far_in_the_tail_keep_their_order() -> None:
    logs = [fixed_points_log_p(count, [1024] * 8, [1536] * 8) for count in range(0, 2000, 7)]
    assert all(later < earlier or earlier == 0 for earlier, later in itertools.pairwise(logs))
    # The largest count has probability (n - m)! / n! in each: the bound may not fall below it.
    exact = 8 * (math.lgamma(512 + 1) - math.lgamma(1536 + 1))
    assert exact <= fixed_points_log_p(8 * 1024, [1024] * 8, [1536] * 8) < 0.5 * exact
    assert fixed_points_log_p(5, [2, 2], [3, 3]) == -math.inf


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_inversions_of_every_permutation(size: int) -> None:
    counts = np.array([inversions(order) for order in itertools.permutations(range(size))])
    for count in range(int(counts.max()) + 2):
        assert math.exp(inversions_log_p(count, [size])) == pytest.approx(np.mean(counts <= count), rel=1e-12)


def test_the_bound_on_inversions_is_above_the_law_and_close_to_it() -> None:
    for size in (20, 100, 150):
        mean, spread = size * (size - 1) / 4, math.sqrt(size * (size - 1) * (2 * size + 5) / 72)
        for away in (1.0, 3.0, 8.0):
            count = max(0, int(mean - away * spread))
            exact = inversions_log_p(count, [size])
            bound = inversions_log_p(count, [size, 1])  # a permutation of one unit has none
            assert exact <= bound <= exact + math.log(100)


def test_p_values_of_random_permutations_are_no_smaller_than_uniform() -> None:
    random = np.random.default_rng(0)
    fixed, falling = [], []
    for _ in range(2000):
        order = random.permutation(40)
        fixed.append(math.exp(fixed_points_log_p(int((order == np.arange(40)).sum()), [40], [40])))
        falling.append(math.exp(inversions_log_p(inversions(order), [40])))
    for level in (0.01, 0.05, 0.2, 0.5):
        margin = 3 * math.sqrt(level * (1 - level) / 2000)
        assert np.mean(np.array(fixed) <= level) <= level + margin
        assert abs(np.mean(np.array(falling) <= level) - level) <= margin + 0.005

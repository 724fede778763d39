"""Counts by counting, intervals by the formula of the score test."""

import numpy as np
import pytest

from modelassay.confusion import confusion, wilson


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 20), (7, 20), (20, 20), (153, 7000)])
def test_wilson_is_where_the_score_test_turns(count: int, total: int) -> None:
    """(share - p)^2 = z^2 p (1 - p) / n at both ends: roots of a quadratic."""
    z2, share = 1.959963984540054**2, count / total
    ends = np.sort(np.roots([1 + z2 / total, -(2 * share + z2 / total), share**2]).real)
    found = wilson(count, total)
    np.testing.assert_allclose((found.low, found.high), ends, atol=1e-12)
    assert found.value == share
    assert 0 <= found.low <= share <= found.high <= 1


@pytest.mark.parametrize(("count", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="0 <= count <= total"):
        wilson(count, total)


def test_confusion_counts_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    names = np.array(["sft", "lora", "noise", "none of these"])
    true = list(names[rng.integers(0, 3, 200)])
    called = list(names[rng.integers(0, 4, 200)])
    found = confusion(true, called)
    for i, label in enumerate(found.labels):
        for j, other in enumerate(found.labels):
            assert found.counts[i, j] == sum(t == label and c == other for t, c in zip(true, called, strict=True))
    place = found.labels.index("none of these")
    assert place == 3
    assert found.recall[place] is None
    for label, recall in zip(found.labels[:3], found.recall[:3], strict=True):
        right = sum(t == c == label for t, c in zip(true, called, strict=True))
        assert recall == wilson(right, true.count(label))
    assert found.accuracy == wilson(int(np.trace(found.counts)), 200)


@pytest.mark.parametrize(("true", "called"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_confusion_refuses_lists_that_do_not_match(true: list[str], called: list[str]) -> None:
    with pytest.raises(ValueError, match="two lists of one length above 0"):
        confusion(true, called)

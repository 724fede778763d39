"""What an estimate must be, and that a range is none."""

import math
from typing import Any

import pytest

from modelassay.statistics.estimate import LEVEL, Estimate, Range, undefined


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"low": 0.1}, "two ends"),
        ({"high": 0.1}, "two ends"),
        ({"low": 0.3, "high": 0.1}, "ascending"),
        ({"low": math.nan, "high": 0.1}, "ascending"),
        ({"level": 0.95}, "goes with an interval"),
        ({"low": 0.0, "high": 1.0, "level": 95.0}, r"in \(0, 1\)"),
        ({"p": 1.5}, "p lies between 0 and 1"),
        ({"p": 0.01, "min_p": 0.05}, "p lies between 0.05 and 1"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Estimate(value=0.2, **fields)


def test_the_three_kinds_of_ends() -> None:
    exact, bound = Estimate(value=0.2), Estimate(value=0.2, low=0.1, high=math.inf)
    interval = Estimate(value=0.2, low=0.1, high=0.5, level=LEVEL)
    assert [kind.has_interval for kind in (exact, bound, interval)] == [False, True, True]
    assert [kind.level for kind in (exact, bound, interval)] == [None, None, 0.95]
    assert [kind.half_width for kind in (exact, bound, interval)] == [0.0, math.inf, pytest.approx(1.0)]
    assert Estimate(value=0.0, low=-1.0, high=1.0).half_width == math.inf


def test_no_value_says_why() -> None:
    nothing = undefined("no trials", n=0)
    assert (nothing.defined, nothing.has_interval, nothing.note) == (False, False, "no trials")
    assert math.isnan(nothing.value)


def test_a_range_is_no_estimate() -> None:
    assert not isinstance(Range(value=0.5, low=0.1, high=0.9, n=3), Estimate)


def test_an_exact_value_has_no_interval() -> None:
    assert Estimate(value=0.5, exact=True).exact
    with pytest.raises(ValueError, match="an exact value has no interval"):
        Estimate(value=0.5, low=0.4, high=0.6, exact=True)

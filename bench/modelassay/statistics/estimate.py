"""The form in which a number leaves an analysis: a value with its interval, or with the range of what was seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.95
"""Nominal coverage of every interval."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and, where there is one, the interval around it and the p-value of a hypothesis about it.

    >>> Estimate(value=0.25, low=0.1, high=0.4, level=0.95, method="Wilson", n=20).has_interval
    True
    """

    value: float
    """NaN where it is not defined; ``note`` says why."""
    low: float | None = None
    """Lower end of the interval; None without one, as where the value is exact given its inputs."""
    high: float | None = None
    level: float | None = None
    """Nominal coverage of the interval; None of a bound that holds for certain, and without an interval."""
    method: str = ""
    """How the interval was made: ``Wilson``, ``percentile``, ``BCa``, ``Student``, ``residual bound``."""
    n: int | None = None
    """Independent units it rests on: trials, groups, probes."""
    p: float | None = None
    min_p: float | None = None
    """The smallest p that so many units allow; None where nothing limits it."""
    unit: str = ""
    """Of the value and both ends; empty for a pure number."""
    note: str = ""
    """What the interval means, or why there is no value or no interval."""
    exact: bool = False
    """Whether the value is what its inputs give, with no sampling about which an interval would tell: a count of all there is, a
    statistic of two fixed checkpoints. A claim about these very inputs can be tested by it; of others it says nothing."""

    def __post_init__(self) -> None:
        """Check what must hold of any interval.

        Raises:
            ValueError: one end without the other, an exact value with ends, ends that are not numbers or stand in the wrong order, a level without
                ends or outside (0, 1), or a p outside [0, 1] or below the smallest there is.
        """
        if (self.low is None) != (self.high is None):
            raise ValueError(f"estimate: an interval has two ends, got {self.low} and {self.high}")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            message = f"estimate: the ends must be numbers in ascending order, got {self.low} and {self.high}; leave both out where there is no interval"
            raise ValueError(message)
        if self.exact and self.low is not None:
            raise ValueError(f"estimate: an exact value has no interval, got {self.low} and {self.high}")
        if self.level is not None and (self.low is None or not 0 < self.level < 1):
            raise ValueError(f"estimate: a level in (0, 1) goes with an interval, got {self.level}")
        if self.p is not None and not (self.min_p or 0) <= self.p <= 1:
            raise ValueError(f"estimate: p lies between {self.min_p or 0:g} and 1, got {self.p}")

    @property
    def defined(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the value; 0 without one, infinite where the value is 0 and the interval is not.

        >>> Estimate(value=2.0, low=1.0, high=3.0).half_width
        0.5
        """
        half = 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2
        return half / abs(self.value) if self.value else math.inf if half else 0.0


@dataclass(frozen=True, kw_only=True)
class Range:
    """A typical value and the smallest and the largest of those it stands for: no interval, and no test can be read off it."""

    value: float
    """Median or mean of the values, as ``note`` says."""
    low: float
    """The smallest."""
    high: float
    """The largest."""
    n: int
    """How many values."""
    unit: str = ""
    note: str = ""


def undefined(note: str, *, n: int | None = None) -> Estimate:
    """Return an estimate without a value, and why.

    >>> undefined("no trials").note
    'no trials'
    """
    return Estimate(value=math.nan, n=n, note=note)

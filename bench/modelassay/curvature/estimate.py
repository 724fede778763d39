"""A number with its interval and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from modelassay.errors import UsageError

if TYPE_CHECKING:
    from modelassay.curvature.operators import Operator
    from modelassay.curvature.vectors import VectorStore

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an estimate took."""

    products: int
    """Vectors multiplied by the operator."""
    vector_bytes: int
    """Vectors kept by the estimator at once, wherever they lay."""
    device_peak_bytes: int | None
    """Highest allocation on a CUDA device since its counters were last reset; None elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and an interval around it; what the estimates of one run share is counted in each of their costs."""

    value: float
    low: float
    high: float
    level: float | None
    """Coverage of a random interval; None for a bound."""
    method: str
    cost: Cost

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the value; infinite where the value is 0 and the interval is not."""
        half = (self.high - self.low) / 2
        return half / abs(self.value) if self.value else float("inf") if half else 0.0


class Spending:
    """Counts an operator's products from its making on.

    Args:
        operator: whose products are counted.
    """

    def __init__(self, operator: Operator) -> None:
        """Remember where the operator's counter stands."""
        self._operator, self._before = operator, operator.products

    def cost(self, *stores: VectorStore, more_bytes: int = 0) -> Cost:
        """Return what was spent so far, with the vectors in ``stores`` and ``more_bytes`` of others."""
        held = sum(sum(store.bytes_held.values()) for store in stores)
        return Cost(products=self._operator.products - self._before, vector_bytes=held + more_bytes,
                    device_peak_bytes=self._operator.device_peak_bytes)  # fmt: skip


def check_probes(name: str, num_probes: int, level: float) -> None:
    """Refuse what has no interval.

    Raises:
        UsageError: fewer than two probes, or a level outside 0 .. 1.
    """
    if num_probes < 2:
        raise UsageError(
            f"{name}: one probe has no spread and so no interval; give at least 2 probes, got {num_probes}"
        )
    if not 0 < level < 1:
        raise UsageError(f"{name}: level must lie between 0 and 1, got {level}")


def half_interval(samples: NDArray[np.float64], level: float) -> float:
    """Return half the Student-t interval of a mean of independent samples.

    >>> round(half_interval(np.array([1.0, 2.0, 3.0]), 0.95), 3)
    2.484
    """
    spread = float(np.std(samples, ddof=1)) / len(samples) ** 0.5
    half: float = float(student.ppf((1 + level) / 2, len(samples) - 1)) * spread
    return half

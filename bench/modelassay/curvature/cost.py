"""What an estimate cost, and what it needs to have an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelassay.errors import UsageError

if TYPE_CHECKING:
    from modelassay.curvature.operators import Operator
    from modelassay.curvature.vectors import VectorStore


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an estimate took."""

    products: int
    """Vectors multiplied by the operator."""
    vector_bytes: int
    """Vectors kept by the estimator at once, wherever they lay."""
    device_peak_bytes: int | None
    """Highest allocation on a CUDA device since its counters were last reset; None elsewhere."""


class CostMeter:
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

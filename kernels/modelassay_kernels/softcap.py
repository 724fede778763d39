"""Which soft caps c of softcap(s) = c tanh(s / c) have an answer in fp32."""

from __future__ import annotations

LOWEST, HIGHEST = 1e-30, 1e30
"""Beyond these s / c or c itself leaves fp32, and the formula becomes 0 times infinity."""


def check_softcap(operation: str, softcap: float | None) -> None:
    """Raise unless there is none, or one in range.

    Raises:
        ValueError: it is not positive, not finite, or beyond fp32.
    """
    if softcap is not None and not LOWEST <= softcap <= HIGHEST:
        raise ValueError(
            f"{operation}: softcap must be above 0, from {LOWEST:g} to {HIGHEST:g}, got {softcap}; None means no cap"
        )

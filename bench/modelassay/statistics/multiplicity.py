"""Many tests at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Holm:
    """Holm's step-down adjustment, in the order of the input."""

    adjusted: tuple[float, ...]
    reject: tuple[bool, ...]


def holm(p_values: Sequence[float], *, alpha: float = 0.05) -> Holm:
    """Return Holm-adjusted p-values and which of them are at most ``alpha``; valid under any dependence. Holm 1979.

    >>> holm([0.04, 0.01, 0.03]).adjusted
    (0.06, 0.03, 0.06)
    """
    if not p_values:
        return Holm((), ())
    from statsmodels.stats.multitest import multipletests  # here: it loads pandas, which cells must not

    reject, adjusted, _, _ = multipletests(p_values, alpha=alpha, method="holm")
    return Holm(tuple(float(p) for p in adjusted), tuple(bool(r) for r in reject))

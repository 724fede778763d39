"""How often the parent that `lineage` names was the wrong one, by kind, where that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scipy.special import betaincinv

DIRECTIONS: Final[Mapping[str, tuple[int, int]]] = {
    "tuned": (0, 31), "continued": (0, 26), "lora": (0, 8), "noise": (0, 24), "int8": (0, 8), "pruned": (0, 8), "depth": (0, 16),
    "moe": (0, 8), "several": (0, 31), "merged": (0, 24), "rounded": (0, 16), "truncated": (0, 16), "copy": (0, 50),
}  # fmt: skip
"""Kind to how many of the parents named were wrong, and how many were named."""


def error_rate(kind: str, *, level: float = 0.95) -> str:
    """Return the rate of wrong parents of a kind with its exact interval (Clopper and Pearson 1934), and where it was measured.

    >>> error_rate("int8").partition(" (")[2]
    "exact 95 % interval 0 to 37 %), if one is the other's parent at all"
    """
    if kind not in DIRECTIONS:
        return "how often the parent named is wrong was not measured for this kind"
    wrong, total = DIRECTIONS[kind]
    tail = (1 - level) / 2
    low = betaincinv(wrong, total - wrong + 1, tail) if wrong else 0.0
    high = betaincinv(wrong + 1, total - wrong, 1 - tail) if wrong < total else 1.0
    return (f"the parent named was wrong in {wrong} of {total} pairs of root and child of the zoo (exact {level:.0%} interval "
            f"{100 * low:.0f} to {100 * high:.0f} %), if one is the other's parent at all").replace("95% ", "95 % ")  # fmt: skip

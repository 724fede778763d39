"""How often the parent that `lineage` names was the wrong one, by kind, where that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scipy.special import betaincinv


@dataclass(frozen=True)
class Named:
    """Parents of one kind of child that were named, and how many of them were wrong."""

    pairs: int
    roots: int
    """Roots that the pairs have between them: children of one root are not independent."""
    wrong: int = 0
    wrong_roots: int = 0
    """Roots of which at least one parent was wrong."""


DIRECTIONS: Final[Mapping[str, Named]] = {
    "tuned": Named(29, 8), "continued": Named(23, 7), "lora": Named(7, 7), "noise": Named(24, 17), "int8": Named(8, 8),
    "pruned": Named(8, 8), "depth": Named(18, 17), "moe": Named(7, 7), "several": Named(27, 7), "merged": Named(175, 25),
    "rounded": Named(50, 25), "truncated": Named(50, 25), "copy": Named(50, 25),
}  # fmt: skip
"""By kind. Roots on which a threshold was set are left out: ``base``, and of merged, rounded and truncated the eight that these were
tried on. A copy is one in a coarser format, bf16 or fp16."""


def error_rate(kind: str, *, level: float = 0.95) -> str:
    """Return the rate of wrong parents of a kind, and the exact interval of its rate over roots (Clopper and Pearson 1934).

    >>> error_rate("int8").partition(" (")[2]
    "exact 95 % interval over 8 roots 0 to 37 %), if one is the other's parent at all"
    """
    if kind not in DIRECTIONS:
        return "how often the parent named is wrong was not measured for this kind"
    named = DIRECTIONS[kind]
    tail = (1 - level) / 2
    low = betaincinv(named.wrong_roots, named.roots - named.wrong_roots + 1, tail) if named.wrong_roots else 0.0
    high = (
        betaincinv(named.wrong_roots + 1, named.roots - named.wrong_roots, 1 - tail)
        if named.wrong_roots < named.roots
        else 1.0
    )
    return (f"the parent named was wrong in {named.wrong} of {named.pairs} pairs of root and child of the zoo (exact {100 * level:g} % interval "
            f"over {named.roots} roots {100 * low:.0f} to {100 * high:.0f} %), if one is the other's parent at all")  # fmt: skip

"""What a lineage says, and the signs that it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "copy", "noise", "int8", "pruned", "lora", "tuned", "continued", "depth", "moe",
    "heads", "neurons", "rotated", "scaled", "merged", "thinned", "folded", "renumbered", "turned", "reordered", "narrowed",
    "regrouped", "rounded", "truncated", "flipped", "vocabulary", "untied", "several", "unknown",
]  # fmt: skip
Side = Literal["a", "b"]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How one checkpoint was made from another, as far as their weights tell."""

    kind: Kind
    """``several`` where more than one thing was done, or where the two are siblings."""
    steps: tuple[Kind, ...]
    """What was done; one entry where ``kind`` is that."""
    parent: Side | None
    """None where it cannot be told."""
    evidence: str
    """What was seen, in sentences."""
    measures: Mapping[str, float]
    """The numbers behind it; growths and decays are of b relative to a."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One thing that was seen to have been done, and which side it says is the parent."""

    kind: Kind
    text: str
    parent: Side | None = None

"""One tensor, quantised again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Remade:
    """How much of a tensor is the same bits when it is made again."""

    name: str
    """In the quantised model."""
    format: str
    """As it is stored there."""
    recipe: str
    """The way that came closest, of those that libraries go."""
    equal: int
    """Units that are the same bits: blocks of a GGUF tensor, otherwise single codes and scales."""
    of: int
    num_weights: int
    """Numbers of the source's tensor."""
    is_narrower: bool
    """Whether it is stored in fewer bits than the source's, or in another dtype of as many."""

    @property
    def is_equal(self) -> bool:
        """Whether all are."""
        return self.equal == self.of

    def __str__(self) -> str:
        """Say it in words; a share is cut off, never rounded up to all.

        >>> str(Remade(name="w", format="Q4_0", recipe="direct", equal=99_999, of=100_000, num_weights=3_200_000, is_narrower=True))
        'w (Q4_0): 99,999 of 100,000 units'
        """
        return f"{self.name} ({self.format}): {self.equal:,} of {self.of:,} units"

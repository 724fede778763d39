"""What an operation cannot avoid: the measure that a benchmark holds a time against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Least bytes moved and floating-point operations done; every operation has a function that returns it.

    >>> Work(bytes=8, flops=3) + Work(bytes=2, flops=0)
    Work(bytes=10, flops=3)
    """

    bytes: int
    """Every input read once and every result written once."""
    flops: int
    """A product and a sum are two; an exponential is one."""

    def __add__(self, other: Work) -> Work:
        return Work(bytes=self.bytes + other.bytes, flops=self.flops + other.flops)

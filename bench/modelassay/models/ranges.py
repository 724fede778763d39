"""Ranges of a file's bytes: which are there, which are missing, and which requests fetch them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

GAP_BYTES: Final = 65_536
"""The longest gap between two ranges that one request may bridge: about what a request of its own costs in time."""

MAX_BRIDGED: Final = 0.01
"""Bytes fetched in gaps, as a share of those asked for."""

Range = tuple[int, int]
"""First byte, and the one after the last."""


class Ranges:
    """Disjoint ranges in ascending order; those that touch are one.

    >>> ranges = Ranges([(0, 10), (20, 30)])
    >>> ranges.add(10, 15)
    >>> list(ranges), ranges.missing(5, 25), ranges.num_bytes
    ([(0, 15), (20, 30)], [(15, 20)], 25)
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        """Begin with some."""
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in ranges:
            self.add(begin, end)

    def __iter__(self) -> Iterator[Range]:
        """Go through them in ascending order."""
        return iter(list(zip(self._begins, self._ends, strict=True)))

    @property
    def num_bytes(self) -> int:
        """How many bytes they hold."""
        return sum(self._ends) - sum(self._begins)

    def add(self, begin: int, end: int) -> None:
        """Add a range, which may overlap others; an empty one adds nothing."""
        if begin >= end:
            return
        first, last = bisect_left(self._ends, begin), bisect_right(self._begins, end)
        if first < last:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[last - 1])
        self._begins[first:last], self._ends[first:last] = [begin], [end]

    def missing(self, begin: int, end: int) -> list[Range]:
        """Return the parts of a range that are not there, in ascending order."""
        gaps, at = [], begin
        for index in range(bisect_right(self._ends, begin), len(self._begins)):
            if self._begins[index] >= end:
                break
            if self._begins[index] > at:
                gaps.append((at, self._begins[index]))
            at = self._ends[index]
        return [*gaps, (at, end)] if at < end else gaps


def plan(ranges: Iterable[Range], present: Ranges, *, longest: int) -> list[Range]:
    """Return what to ask for so that ``ranges`` are there, in ascending order: nothing that is, and at most ``longest`` bytes each.

    Gaps of at most `GAP_BYTES` are bridged, the shortest first, as long as what is fetched in them is at most `MAX_BRIDGED` of the
    bytes that are missing. Bytes that are ``present`` are never asked for again.

    >>> plan([(0, 1000), (1005, 2000), (90_000, 91_000)], Ranges([(0, 500)]), longest=1200)
    [(500, 1700), (1700, 2000), (90000, 91000)]
    """
    needed = Ranges(gap for begin, end in ranges for gap in present.missing(begin, end))
    budget, pieces = int(MAX_BRIDGED * needed.num_bytes), list(needed)
    gaps = sorted(
        (after[0] - before[1], before[1], after[0]) for before, after in zip(pieces, pieces[1:], strict=False)
    )
    for length, begin, end in gaps:
        if length > min(budget, GAP_BYTES):
            break
        if present.missing(begin, end) == [(begin, end)]:
            needed.add(begin, end)
            budget -= length
    return [(at, min(at + longest, end)) for begin, end in needed for at in range(begin, end, longest)]

"""Grids of test cases: any two values meet in CI, all combinations at night."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def pairwise(*axes: Iterable[Any]) -> list[Any]:
    """The product of the axes; all but a few that hold every pair of values of two axes are marked ``nightly``.

    Greedy: the next of the few is the first combination with the most pairs that none before it has.

    >>> [case.values for case in pairwise("ab", "cd", "ef") if not case.marks]
    [('a', 'c', 'e'), ('a', 'd', 'f'), ('b', 'c', 'f'), ('b', 'd', 'e')]
    """
    product = list(itertools.product(*(list(axis) for axis in axes)))
    indices = list(itertools.product(*(range(len(list(axis))) for axis in axes)))
    pairs = [set(itertools.combinations(enumerate(index), 2)) for index in indices]
    missing, chosen = set().union(*pairs), set()
    while missing:
        best = max(range(len(pairs)), key=lambda i: len(pairs[i] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return [pytest.param(*case, marks=() if i in chosen else pytest.mark.nightly) for i, case in enumerate(product)]

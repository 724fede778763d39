"""Grids of test cases: any two values meet in CI, all combinations at night."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def pairwise(*axes: Iterable[Any]) -> list[Any]:
    """The product of the axes; all but a few that hold every pair of values of two axes are marked ``nightly``.

    >>> [case.values for case in pairwise("ab", "cd", "ef") if not case.marks]
    [('a', 'c', 'e'), ('a', 'd', 'f'), ('b', 'c', 'f'), ('b', 'd', 'e')]
    """
    return _covering(2, axes)


def each_value(*axes: Iterable[Any]) -> list[Any]:
    """The product of the axes; all but a few that hold every value of every axis are marked ``nightly``.

    >>> [case.values for case in each_value("ab", "cde") if not case.marks]
    [('a', 'c'), ('a', 'e'), ('b', 'd')]
    """
    return _covering(1, axes)


def _covering(strength: int, axes: Iterable[Iterable[Any]]) -> list[Any]:
    """Greedy: the next of the few is the first combination with the most groups of values that none before it has."""
    values = [list(axis) for axis in axes]
    indices = list(itertools.product(*(range(len(axis)) for axis in values)))
    groups = [set(itertools.combinations(enumerate(index), strength)) for index in indices]
    missing, chosen = set().union(*groups), set()
    while missing:
        best = max(range(len(groups)), key=lambda i: len(groups[i] & missing))
        chosen.add(best)
        missing -= groups[best]
    product = itertools.product(*values)
    return [pytest.param(*case, marks=() if i in chosen else pytest.mark.nightly) for i, case in enumerate(product)]

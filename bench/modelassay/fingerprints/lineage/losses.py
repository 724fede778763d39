"""What cannot come back: values rounded to few, spectra cut off; and signs exchanged, which looks like a mixture otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modelassay.fingerprints.lineage.deltas import GRID_ROWS, Delta

FEW = 0.75
"""Of the other side's share of different values, in a row or in several: a scale may belong to part of a row or to a whole matrix.
Medians over matrices in the zoo: FP8 0.09 to 0.19, 4 bits 0.38 to 0.47 (27 each); int8, which has its own mark, 0.76 and more (17)."""
MAX_OWN_RANK = 0.75
"""Of full rank, of a matrix itself, where the other side's is full: every child of the zoo but those whose spectrum was cut has full rank."""
FULL_RANK = 0.95
SAME_SIZE = 0.99
"""Share of elements that are equal but for their sign."""
MIN_SHARE = 0.9
"""Share of the changed matrices that must show it."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One of these, and which side it says is the parent."""

    kind: Literal["rounded", "truncated", "flipped"]
    text: str
    parent: Literal["a", "b"] | None


def loss(deltas: Sequence[Delta]) -> Loss | None:
    """Return the first of these that nearly all changed matrices show; None without one."""
    moved = [delta for delta in deltas if delta.kind == "matrix" and delta.changed]
    if not moved:
        return None
    if _share([delta.same_size >= SAME_SIZE for delta in moved]) >= MIN_SHARE:
        return Loss(kind="flipped", parent=None, text="the matrices are equal but for signs, which works both ways")
    probed = [delta.own_rank for delta in moved if delta.own_rank is not None]
    for child, parent in ((0, 1), (1, 0)):
        names: tuple[Literal["a"], Literal["b"]] = ("a", "b")
        if _share([ranks[child] <= MAX_OWN_RANK and ranks[parent] >= FULL_RANK for ranks in probed]) >= MIN_SHARE:
            rank = float(np.median([ranks[child] for ranks in probed]))
            text = f"{names[child]}'s matrices have {rank:.0%} of full rank, {names[parent]}'s all of it"
            return Loss(kind="truncated", text=text, parent=names[parent])
        for rows, where in ((0, "a row"), (1, f"{GRID_ROWS} rows")):
            shares = [(delta.distinct[child][rows], delta.distinct[parent][rows]) for delta in moved]
            if _share([few < FEW * many for few, many in shares]) >= MIN_SHARE:
                few, many = np.median(shares, axis=0)
                text = f"{few:.0%} of the values in {where} of {names[child]}'s matrices are different, {many:.0%} in {names[parent]}'s"
                return Loss(kind="rounded", text=text, parent=names[parent])
    return None


def _share(holds: Sequence[bool]) -> float:
    return float(np.mean(holds)) if holds else math.nan

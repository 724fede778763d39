"""What `derivation` said of related pairs whose making is known: named rightly, parent found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from modelassay.claims import Finding, Table
from modelassay.confusion import Share, wilson
from modelassay.record import Tables

NAMES = {
    "sft": "tuned", "cpt": "continued", "noise": "noise", "prune": "pruned", "rotate": "rotated", "scale": "scaled",
    "int8": "int8", "lora": "lora", "depth": "depth", "moe": "moe", "heads": "heads", "neurons": "neurons",
}  # fmt: skip
"""What a step of the zoo is called by `derivation`, by the step's name up to its first hyphen. Merging, folding of norms and
a permutation of the residual stream have no name there: one pair cannot show the first, the others were not looked for."""
SYMMETRIC = ("heads", "neurons", "rotate", "scale", "hidden", "fold")
"""Steps that leave no trace of which side was first."""


@dataclass(frozen=True, kw_only=True)
class Derived:
    """One answer of `derivation` on a suspect and its root."""

    made_by: str
    """What was done to the root, in order."""
    kind: str
    """What it was called."""
    root_is_parent: bool | None
    """Whether the root was named as the parent; None where neither was."""

    @property
    def steps(self) -> list[str]:
        """The zoo's steps without their strength."""
        return [step.split("-")[0] for step in self.made_by.split("+")]


def swapped(name: str, other: str) -> bool:
    """Return in which order two models are given to `derivation`, so that no order can look like a direction.

    >>> swapped("a", "b") == swapped("b", "a")
    False
    """
    return hashlib.blake2b(f"{name} {other}".encode()).digest() > hashlib.blake2b(f"{other} {name}".encode()).digest()


def derived_pairs(tables: Tables, made_by: Mapping[tuple[str, str], str]) -> list[Derived]:
    """Return what the cells recorded of the pairs whose making is in ``made_by`` (by references of suspect and root)."""
    if "kind" not in tables.metrics.columns:
        return []
    of_cell = dict(tables.cells.select("cell", "model").iter_rows())
    found = tables.metrics.filter(pl.col("name") == "derivation").select("cell", "other", "kind", "value")
    making = ((made_by.get((of_cell[cell], other)), kind, value) for cell, other, kind, value in found.iter_rows())
    return [
        Derived(made_by=made, kind=str(kind), root_is_parent=None if np.isnan(value) else bool(value))
        for made, kind, value in making if made not in (None, "root", "not known")
    ]  # fmt: skip


def score_derivations(pairs: Sequence[Derived]) -> tuple[list[Finding], list[Table]]:
    """Return ``derivation[what]``: the share of single steps named rightly, and of suspects whose root was called the parent.

    Nothing where there is no such pair. The direction is scored where it can be told at all: not of copies under another
    basis, nor of a merge, whose two parents both lie between it and the root.
    """
    if not pairs:
        return [], []
    single = [pair for pair in pairs if len(pair.steps) == 1 and pair.steps[0] in NAMES]
    named = wilson(sum(NAMES[pair.steps[0]] == pair.kind for pair in single), len(single)) if single else None
    tellable = [pair for pair in pairs if not set(pair.steps) <= set(SYMMETRIC) and "merge" not in pair.steps]
    findings = []
    if named is not None:
        findings.append(_finding("named", named, "single steps named rightly"))
    for what, answer, text in (
        ("parent-found", True, "root called the parent"),
        ("parent-wrong", False, "root called the child"),
    ):
        if tellable:
            share = wilson(sum(pair.root_is_parent is answer for pair in tellable), len(tellable))
            findings.append(_finding(what, share, text))
    rows = []
    for made_by in dict.fromkeys(pair.made_by for pair in pairs):
        mine = [pair for pair in pairs if pair.made_by == made_by]
        called = ", ".join(f"{kind} {count}" for kind, count in Counter(pair.kind for pair in mine).most_common())
        parents = Counter(pair.root_is_parent for pair in mine)
        rows.append((made_by, called, str(parents[True]), str(parents[None]), str(parents[False])))
    columns = ("made by", "called", "root is the parent", "not told", "root is the child")
    return findings, [Table(title="derivation, told from the two checkpoints alone", columns=columns, rows=rows)]


def _finding(what: str, share: Share, text: str) -> Finding:
    return Finding(name="derivation", value=share.value, low=share.low, high=share.high, labels={"what": what},
                   note=f"{share.count} of {share.total} {text}; Wilson's interval")  # fmt: skip

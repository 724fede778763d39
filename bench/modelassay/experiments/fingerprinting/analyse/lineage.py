"""What `lineage` said of related pairs whose making is known: named rightly, parent found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from modelassay.experiments.findings import Finding, Table
from modelassay.models.reference import short_name
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.proportions import wilson

NAMES = {
    "sft": "tuned", "cpt": "continued", "noise": "noise", "prune": "pruned", "rotate": "rotated", "scale": "scaled",
    "int8": "int8", "lora": "lora", "depth": "depth", "moe": "moe", "heads": "heads", "neurons": "neurons",
    "hidden": "renumbered", "fold": "folded", "mix": "merged", "svd": "truncated", "int4": "rounded", "fp8": "rounded",
    "reversed": "reordered", "narrow": "narrowed", "thin": "thinned", "mha": "regrouped", "signs": "flipped", "flips": "flipped",
    "deepen": "depth", "quarot": "turned", "untied": "untied", "padded": "vocabulary", "renumbered": "vocabulary", "grown": "vocabulary",
    "retokenised": "vocabulary",
}  # fmt: skip
"""What a step of the zoo is called by `lineage`, by the step's name up to its first hyphen. An average of relatives has no
name there, since one pair cannot show it."""
SYMMETRIC = (
    "heads", "neurons", "rotate", "scale", "hidden", "fold", "quarot", "signs", "renumbered", "reversed", "untied", "padded", "grown",
    "mha", "flips",
)  # fmt: skip
"""Steps that can be undone bit by bit or up to rounding, so that nothing tells which side was first."""


@dataclass(frozen=True, kw_only=True)
class Derived:
    """One answer of `lineage` on a suspect and its root."""

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


def derived_pairs(tables: RunData, made_by: Mapping[tuple[str, str], str]) -> list[Derived]:
    """Return what the cells recorded of the pairs whose making is in ``made_by`` (by references of suspect and root)."""
    if "kind" not in tables.metrics.columns:
        return []
    of_cell = dict(tables.cells.select("cell", "model").iter_rows())
    answers = tables.metrics.filter(pl.col("name") == "derivation").select("cell", "other", "kind", "value")
    making = ((made_by.get((of_cell[cell], other)), kind, value) for cell, other, kind, value in answers.iter_rows())
    return [
        Derived(made_by=steps, kind=str(kind), root_is_parent=None if np.isnan(value) else bool(value))
        for steps, kind, value in making if steps not in (None, "root", "not known")
    ]  # fmt: skip


def not_derived(tables: RunData, families: Mapping[str, str | None]) -> list[str]:
    """Return a note on pairs of one family that were compared without being asked how one was made of the other.

    A cell knows the family of its own model; of the models that it is compared with only what its ``families`` say.
    """
    if "other" not in tables.metrics.columns:
        return []
    of_cell = dict(tables.cells.select("cell", "model").iter_rows())
    recorded: dict[str, dict[tuple[str, str], None]] = {"score": {}, "derivation": {}}
    rows = tables.metrics.filter(pl.col("name").is_in(list(recorded))).select("name", "cell", "other")
    for name, cell, other in rows.iter_rows():
        recorded[name][of_cell[cell], other] = None
    related = [
        (model, other)
        for model, other in recorded["score"]
        if (model, other) not in recorded["derivation"]
        and (family := families.get(model)) is not None
        and family == families.get(other)
    ]
    if not related:
        return []
    model, other = related[0]
    return [
        f"pairs of one family without a derivation: {len(related)}, {short_name(model)} · {short_name(other)} first; the cell of the"
        f" one does not know the other's family; say it in families, as {{{other}: {families[other]}}}"
    ]


def score_derivations(pairs: Sequence[Derived]) -> tuple[list[Finding], list[Table]]:
    """Return ``derivation[what]``: the share of single steps named rightly, and of suspects whose root was called the parent.

    Nothing where there is no such pair. The direction is scored where it can be told at all: not of copies under another
    basis, nor of a merge, whose two parents both lie between it and the root.
    """
    if not pairs:
        return [], []
    single = [pair for pair in pairs if len(pair.steps) == 1 and pair.steps[0] in NAMES]
    named = wilson(sum(NAMES[pair.steps[0]] == pair.kind for pair in single), len(single)) if single else None
    tellable = [
        pair for pair in pairs if not set(pair.steps) <= set(SYMMETRIC) and not {"merge", "mix"} & set(pair.steps)
    ]
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
        alike = [pair for pair in pairs if pair.made_by == made_by]
        called = ", ".join(f"{kind} {count}" for kind, count in Counter(pair.kind for pair in alike).most_common())
        parents = Counter(pair.root_is_parent for pair in alike)
        rows.append((made_by, called, str(parents[True]), str(parents[None]), str(parents[False])))
    columns = ("made by", "called", "root is the parent", "not told", "root is the child")
    return findings, [Table(title="derivation, told from the two checkpoints alone", columns=columns, rows=rows)]


def _finding(what: str, share: Estimate, text: str) -> Finding:
    note = f"{share.note} {text}; Wilson's interval"
    return Finding(name="derivation", labels={"what": what}, estimate=replace(share, note=note))

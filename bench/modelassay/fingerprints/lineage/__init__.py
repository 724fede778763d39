"""Which of two related checkpoints was made from the other, and how, from their weights and configurations alone.

::

    answer = lineage(open_checkpoint("models/a"), open_checkpoint("models/b"))
    print(answer.kind, answer.parent, answer.evidence)

Related models are assumed; one is taken to descend from the other. Method, what cannot be told, and evidence on the zoo: docs/methods/lineage.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from modelassay.fingerprints.lineage.bodies import compare_bodies
from modelassay.fingerprints.lineage.deltas import MIN_COSINE
from modelassay.fingerprints.lineage.differences import Difference, compare
from modelassay.fingerprints.lineage.losses import loss
from modelassay.fingerprints.lineage.measures import measures_of
from modelassay.fingerprints.lineage.mixtures import mixture
from modelassay.fingerprints.lineage.rates import DIRECTIONS, error_rate
from modelassay.fingerprints.lineage.result import Kind, Lineage, Side, Sign
from modelassay.fingerprints.lineage.signs import MIN_ZEROS, residual, structure, symmetries
from modelassay.fingerprints.lineage.tensors import MIN_ROWS, OUTSIDE, Tensors
from modelassay.fingerprints.lineage.vocabulary import vocabulary_signs
from modelassay.fingerprints.weights import weights_of
from modelassay.models.checkpoints import Checkpoint

__all__ = ["Kind", "Lineage", "Side", "lineage", "swapped"]

MAX_NAMES = 6
"""Equal tensors that are named."""


@np.errstate(over="ignore", invalid="ignore")  # of finite weights whose squares are not
def lineage(a: Checkpoint, b: Checkpoint) -> Lineage:
    """Say which of two related checkpoints is the parent and what was done to it.

    Reads every tensor of both once (`differences.compare`), of a Hub repository after fetching all of its weights; 25 to 100 ms of
    processor time for models of 8 layers x 64, linear beyond that. Swapping the arguments swaps the parent and the signs
    of what is measured from a to b.

    Raises:
        CheckpointError: a file was changed since it was opened, or cannot be read.
    """
    reason = _incomparable(a, b) or _folded(a, b)
    if reason is not None:
        return _other_body(a, b, reason, {})
    difference = compare(Tensors(a), Tensors(b))
    if broken := [delta for delta in difference.deltas if not delta.is_defined]:
        where = broken[0].name if broken[0].layer == OUTSIDE else f"{broken[0].layer}.{broken[0].name}"
        text = f"{len(broken)} tensors hold NaN, infinite weights or such as cannot be squared ({where} first): nothing can be told of them"
        return Lineage(kind="unknown", steps=(), parent=None, evidence=text, measures={})
    measures = measures_of(difference)
    if difference.match < MIN_COSINE or measures["cosine"] < MIN_COSINE:
        lost = loss(difference.deltas)
        flipped = [Sign(kind="flipped", text=lost.text)] if lost is not None and lost.kind == "flipped" else []
        if signs := [*flipped, *_mixed(difference, measures)]:
            return _with_limits(_verdict(signs, difference, measures))
        evidence = (
            f"corresponding matrices have a median cosine of {measures['cosine']:.2f} (matched layers {difference.match:.2f}), too "
            "low to tell the transformation; no order of heads or neurons, rotation of heads or factor raises it"
        )
        return _other_body(a, b, evidence, measures)
    if difference.num_unpaired and difference.experts[0] == difference.experts[1]:
        evidence = (
            f"{difference.num_unpaired} tensors of their layers have no counterpart of their shape: widths were changed"
        )
        is_thinned = a.intermediate_size != b.intermediate_size
        kind: Kind = "thinned" if is_thinned else "unknown"
        return Lineage(
            kind=kind, steps=(kind,) if is_thinned else (), parent=None, evidence=evidence, measures=measures
        )
    mixed = list(_mixed(difference, measures))
    signs = [*structure(difference, a, b), *symmetries(difference), *(mixed or residual(difference, measures))]
    of_vocabulary = list(
        vocabulary_signs(a, b, difference.tokens, difference.rows, difference.heads, difference.unlike)
    )
    if of_vocabulary and not signs:
        last, coarser = of_vocabulary[-1], difference.narrowed
        rounded = f" once rounded to the format of {coarser}, which is coarser" if coarser else ""
        of_vocabulary[-1] = replace(last, text=f"{last.text}; all other corresponding tensors are equal{rounded}")
    answer = _verdict([*signs, *of_vocabulary], difference, measures)
    return _with_limits(replace(answer, evidence=f"{answer.evidence}{_frozen(difference)}{_sampled(difference)}"))


def _other_body(a: Checkpoint, b: Checkpoint, reason: str, measures: Mapping[str, float]) -> Lineage:
    """Say what shows once one body was turned onto the other; ``unknown`` for ``reason`` where nothing does."""
    body = compare_bodies(a, b)
    if body is None:
        return Lineage(kind="unknown", steps=(), parent=None, evidence=reason, measures=measures)
    return Lineage(kind=body.changes[0] if len(body.changes) == 1 else "several", steps=body.changes, parent=None,
                   evidence=f"{body.text}; what else was done, and which came first, is not told",
                   measures={**measures, "aligned": body.aligned})  # fmt: skip


def _mixed(difference: Difference, measures: Mapping[str, float]) -> Iterator[Sign]:
    """Yield that one side is a linear mixture of the other with something independent, where every matrix says so."""
    if (
        difference.symmetries
        or loss(difference.deltas) is not None
        or abs(measures["zeros_b"] - measures["zeros_a"]) >= MIN_ZEROS
    ):
        return
    for parent, child in (("a", "b"), ("b", "a")):
        share = mixture(difference.deltas, of_a=parent == "a")
        if share is not None:
            yield Sign(kind="merged", parent="a" if parent == "a" else "b", text=(
                f"in every matrix {child} is {1 - share.share:.2f} of {parent} and an independent rest of {share.ratio:.2f} times the size that "
                f"a mixture with weight {share.share:.2f} has: as a linear merge with a model that shares no origin with {parent}, which is "
                "another parent"))  # fmt: skip


def _frozen(difference: Difference) -> str:
    """Return which tensors are the same bits in both, where some are and some are not."""
    same = [delta for delta in difference.deltas if delta.kind != "vector" and delta.dd == 0 and not delta.has_symmetry]
    matrices = [delta for delta in difference.deltas if delta.kind != "vector"]
    if not same or len(same) == len(matrices):
        return ""
    names = [f"{delta.layer}.{delta.name}" if delta.layer != OUTSIDE else delta.name for delta in same]
    shown = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    return f"; frozen: {len(same)} of {len(matrices)} matrices are equal in both ({shown})"


def _sampled(difference: Difference) -> str:
    if not difference.num_sampled:
        return ""
    return (f"; for {difference.num_sampled} of {len(difference.deltas)} tensors rows at even distances stand, at least {MIN_ROWS} of each, and "
            "sizes of change are estimates with 95 % intervals by how rows vary")  # fmt: skip


def _with_limits(answer: Lineage) -> Lineage:
    """Add what the answer does not exclude, and how often a parent of this kind was named wrongly; without that rate none is named."""
    limits = ""
    if {"tuned", "continued"} & set(answer.steps):
        limits = "; a merge of relatives looks the same and is not excluded: ask `parents` with candidates"
    if answer.parent is not None:
        limits += f"; {error_rate(answer.kind)}"
        if answer.kind not in DIRECTIONS:
            limits += f", so {answer.parent}, which the signs point to, is not named as the parent"
    parent = answer.parent if answer.kind in DIRECTIONS else None
    return replace(answer, parent=parent, evidence=f"{answer.evidence}{limits}")


def _incomparable(a: Checkpoint, b: Checkpoint) -> str | None:
    for what, x, y in (
        ("hidden size", a.hidden_size, b.hidden_size),
        ("query heads", a.num_heads, b.num_heads),
        ("key-value heads", a.num_kv_heads, b.num_kv_heads),
        ("head dimension", a.head_dim, b.head_dim),
        ("projections of attention", ", ".join(a.roles), ", ".join(b.roles)),
    ):
        if x != y:
            return f"{what} {x} and {y}: their tensors do not correspond, so what was done cannot be read off them"
    return None


def _folded(a: Checkpoint, b: Checkpoint) -> str | None:
    """Return why the two cannot be compared where one side's norms were folded into its matrices, which moves all of them."""
    norms = [weights_of(side).norms for side in (a, b)]
    plain = [norm is not None and bool((norm == 1).all()) for norm in norms]
    if plain[0] == plain[1]:
        return None
    side = "a" if plain[0] else "b"
    return f"all layer norms of {side} are 1, as after folding them into the matrices: what else was done is hidden, and so is the order"


def _verdict(signs: list[Sign], difference: Difference, measures: Mapping[str, float]) -> Lineage:
    steps = tuple(dict.fromkeys(sign.kind for sign in signs))
    parents = {sign.parent for sign in signs} - {None}
    text = "; ".join(sign.text for sign in signs)
    if not signs:
        parent: Side | None = None
        text = "all corresponding tensors are equal"
        if difference.narrowed:
            parent = "b" if difference.narrowed == "a" else "a"
            text += (
                f" once rounded to the format of {difference.narrowed}, which is coarser, so that {parent} holds more"
            )
        return Lineage(kind="copy", steps=("copy",), parent=parent, evidence=text, measures=measures)
    if len(parents) > 1:
        text += "; these signs are on different sides, as of siblings, or of a chain that hides its order: no parent is named"
    parent = next(iter(parents)) if len(parents) == 1 else None
    kind = steps[0] if len(steps) == 1 else "several"
    return Lineage(kind=kind, steps=steps, parent=parent, evidence=text, measures=measures)


def swapped(name: str, other: str) -> bool:
    """Return in which order two models are given to `lineage`, so that no order can look like a direction.

    >>> swapped("a", "b") == swapped("b", "a")
    False
    """
    return hashlib.blake2b(f"{name} {other}".encode()).digest() > hashlib.blake2b(f"{other} {name}".encode()).digest()

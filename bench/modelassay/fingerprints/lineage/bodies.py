"""What was done where tensors do not correspond element by element: another basis, order of layers, width or grouping of heads."""

# G = key-value heads of the model with fewer, R = those of the other for each, C = elements of a head's projection

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from modelassay.fingerprints.aligned import aligned, best_basis
from modelassay.fingerprints.lineage.tensors import files_of
from modelassay.fingerprints.tokens import texts_of
from modelassay.fingerprints.weights import Weights, weights_of
from modelassay.models.checkpoints import Checkpoint

Change = Literal["folded", "renumbered", "turned", "reordered", "narrowed", "regrouped"]

MIN_ALIGNED = 0.3
"""Score of `aligned` that shows a common origin: strange roots of one shape in the zoo have at most 0.07 (303 pairs), children continued
for four times their root's training 0.59 or more (3)."""
MIN_PEAK = 0.8
"""Median over dimensions of the largest entry of the turn: 0.986 and more where dimensions correspond one to one (52 children
of the zoo), 0.26 to 0.39 for a rotation of all of them, 0.51 to 0.56 in blocks of 16 (8 each)."""
MIN_REPEATED = 0.9
"""Median cosine of a key head with that of its group: 1 where it was repeated, at most 0.07 with another root's (8 each)."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """What two checkpoints have in common once one was turned onto the other."""

    changes: tuple[Change, ...]
    text: str
    aligned: float


def compare_bodies(a: Checkpoint, b: Checkpoint) -> Body | None:
    """Return what was done to bodies whose tensors do not correspond; None where no common origin shows.

    None of it tells a direction by itself: a basis can be turned back, a layer order reversed, a model narrowed or widened.
    """
    first, second = (weights_of(side, texts_of(files_of(side))) for side in (a, b))
    score, basis = aligned(first, second), best_basis(first, second)
    if basis is None or not score.value >= MIN_ALIGNED:
        return None
    changes: list[Change] = []
    texts = [f"in common directions (by {basis.made_by}) the attention matrices have a likeness of {score.value:.3f}"]
    if a.hidden_size != b.hidden_size:
        changes.append("narrowed")
        texts.append(f"hidden sizes are {a.hidden_size} and {b.hidden_size}: dimensions were taken away or added")
    elif np.median(np.abs(basis.turn_DE).max(1)) < MIN_PEAK:
        changes.append("turned")
        texts.append("hidden dimensions of one are combinations of the other's: the residual stream was rotated")
        if _folded(first) != _folded(second):
            texts.append("layer norms of one are all 1, without which a rotation would change the function")
    elif np.mean(np.abs(basis.turn_DE).argmax(1) == np.arange(a.hidden_size)) < MIN_PEAK:
        changes.append("renumbered")
        texts.append("hidden dimensions correspond one to one in another order")
    if a.num_layers == b.num_layers and score.alignment != "same depth":
        changes.append("reordered")
        texts.append("layers correspond in another order")
    if _folded(first) != _folded(second) and "turned" not in changes:
        changes.append("folded")
        texts.append(
            f"all layer norms of {'a' if _folded(first) else 'b'} are 1, as after folding them into the matrices"
        )
    if a.num_kv_heads != b.num_kv_heads and (share := _repeated(a, b)) >= MIN_REPEATED:
        changes.append("regrouped")
        texts.append(f"key heads of the one are those of the other repeated or averaged (median cosine {share:.3f})")
    return Body(changes=tuple(changes), text="; ".join(texts), aligned=score.value) if changes else None


def _folded(weights: Weights) -> bool:
    return weights.norms is not None and bool((weights.norms == 1).all())


def _repeated(a: Checkpoint, b: Checkpoint) -> float:
    """Return the median cosine of the key heads of the model with fewer and of the means of their groups in the other; 0 where sizes differ."""
    few, many = (a, b) if a.num_kv_heads < b.num_kv_heads else (b, a)
    if many.num_kv_heads % few.num_kv_heads or a.head_dim != b.head_dim or a.hidden_size != b.hidden_size:
        return 0.0
    cosines = []
    for one, other in zip(few.matrices_of("k"), many.matrices_of("k"), strict=False):
        x_GC = few.read(one).float().numpy().reshape(few.num_kv_heads, -1)
        y_GC = (
            many
            .read(other)
            .float()
            .numpy()
            .reshape(few.num_kv_heads, many.num_kv_heads // few.num_kv_heads, -1)
            .mean(1)
        )
        size = np.linalg.norm(x_GC, axis=1) * np.linalg.norm(y_GC, axis=1)
        cosines.extend((np.abs((x_GC * y_GC).sum(1)) / np.maximum(size, 1e-30)).tolist())
    return float(np.median(cosines))

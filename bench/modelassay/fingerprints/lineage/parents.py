"""Which of several candidates a model inherited from, and how much of each: a set of parents, with weights.

::

    result = parents(child.checkpoint(), [b.checkpoint(), c.checkpoint()])
    for parent in result.parents:
        print(parent.name, parent.weight)
"""

# S = sampled elements of all matrices compared, N = candidates

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelassay.fingerprints.aligned import best_basis
from modelassay.fingerprints.lineage.tensors import step_over
from modelassay.fingerprints.weights import weights_of
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.architectures import INNER_ROLES

MAX_ROWS, MAX_LAYERS = 128, 8
"""Rows of each matrix, and layers at even distances, that are fitted: 4 million elements at 1,024 dimensions."""
MIN_EXPLAINED = 0.05
"""Share of a model's sum of squares from which a candidate counts as a parent. Of the zoo 25 roots explain at most 3.4e-4 of another of
their shape (90 pairs); an ingredient of 30 % explains 14 to 16 % of a mixture (25)."""
EXACT = 1e-10
"""Share left that is rounding."""
PIECE = 1 << 20
MIN_GAIN = 0.5
"""Share of what is left that a further parent must explain: a sibling of the true parent explains some, an ingredient nearly all."""


Floats = NDArray[np.float32]
Turn = Callable[[NDArray[Any], int], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A candidate that a model's weights are partly made of."""

    name: str
    weight: float
    """Its coefficient: 1 for a copy, 1 - alpha and alpha for a linear mixture; below 0 for a difference (task arithmetic)."""
    explains: float
    """Share of the child's sum of squares that the fit loses without it."""


@dataclass(frozen=True, kw_only=True)
class Parents:
    """What a model's weights are made of, as far as the candidates tell."""

    child: str
    parents: tuple[Parent, ...]
    """The strongest first; empty where no candidate's matrices are in it."""
    residual: float
    """Share of the child's sum of squares that the parents leave; 1 without any."""
    excluded: tuple[tuple[str, str], ...]
    """The other candidates, each with the reason."""

    @property
    def sentence(self) -> str:
        """What was seen and what it does not exclude, in plain words."""
        if not self.parents:
            return f"{self.child}: no candidate's matrices are part of its own; {self._not_excluded()}"
        named = " + ".join(f"{parent.weight:.3f} {parent.name}" for parent in self.parents)
        rest = f"{self.residual:.2g} of its sum of squares is left unexplained"
        kind = "a linear mixture" if len(self.parents) > 1 else "of these candidates nearest to"
        return f"{self.child}: {kind} {named}; {rest}. {self._not_excluded().capitalize()}"

    def _not_excluded(self) -> str:
        return ("which came first is not told here, and a parent that is not among the candidates, whether between the two or mixed in, "
                "is not excluded.")  # fmt: skip


def parents(child: Checkpoint, candidates: Sequence[Checkpoint]) -> Parents:
    """Return the candidates that a checkpoint's attention matrices are made of, with weights, by least squares.

    1. Each candidate is brought into the child's coordinates: as it is where the median cosine of corresponding matrices shows
       that they are comparable, else turned by the common directions of `aligned`.
    2. Candidates are added one by one, the one that explains most first; a further one only if it explains at least
       `MIN_GAIN` of what was left, two at once only if both do so in turn. Weights are those of the joint fit, without an intercept and not forced to add up to 1.

    A single parent is the nearest candidate: a child trained for long may lie nearer to its parent's other child than to the
    parent. The set is told with certainty only where little is left, as of mixtures and copies.

    Reads at most `MAX_ROWS` rows of q, k, v and o of `MAX_LAYERS` layers of each. Candidates of another depth, width or head shape are
    excluded with the reason. The names are the checkpoints' references; a candidate given twice is used once.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    names: list[str] = []
    excluded: list[tuple[str, str]] = []
    target = _elements(child)
    columns = [target]
    for candidate in {candidate.reference: candidate for candidate in candidates}.values():
        if (reason := _incomparable(child, candidate)) is not None:
            excluded.append((candidate.reference, reason))
            continue
        columns.append(_in_coordinates_of(child, candidate, target))
        names.append(candidate.reference)
    products = np.array([[_dot(x, y) for y in columns] for x in columns])
    if not (np.isfinite(products).all() and products[0, 0] > 0):
        excluded += [(name, "its matrices or the child's are zero or not finite") for name in names]
        return Parents(child=child.reference, parents=(), residual=1.0, excluded=tuple(excluded))
    chosen = _forward(products)
    weights, left = _fit(products, chosen)
    inherited = []
    for place, index in enumerate(chosen):
        without = _fit(products, [other for other in chosen if other != index])[1]
        inherited.append(Parent(name=names[index - 1], weight=float(weights[place]), explains=without - left))
    excluded += [(name, _why_left_out(products, index, bool(chosen)))
                 for index, name in enumerate(names, start=1) if index not in chosen]  # fmt: skip
    return Parents(child=child.reference, parents=tuple(sorted(inherited, key=lambda parent: -parent.explains)),
                   residual=left, excluded=tuple(excluded))  # fmt: skip


def _incomparable(a: Checkpoint, b: Checkpoint) -> str | None:
    for what, x, y in (
        ("layers", a.num_layers, b.num_layers), ("hidden size", a.hidden_size, b.hidden_size), ("query heads", a.num_heads, b.num_heads),
        ("key-value heads", a.num_kv_heads, b.num_kv_heads), ("head dimension", a.head_dim, b.head_dim),
        ("projections of attention", ", ".join(a.roles), ", ".join(b.roles)),
    ):  # fmt: skip
        if x != y:
            return f"{what} {x} and {y}: their matrices do not correspond element by element"
    return None


def _in_coordinates_of(child: Checkpoint, candidate: Checkpoint, target: Floats) -> Floats:
    plain = _elements(candidate)
    if _explained(target, plain) >= MIN_EXPLAINED:
        return plain
    weights, of_child = weights_of(candidate), weights_of(child)
    basis = best_basis(weights, of_child)
    if basis is None or basis.made_by == "numbers":
        return plain
    ones = np.ones((child.num_layers, child.hidden_size))
    before, after = (ones if model.norms is None else model.norms[:, 0] for model in (weights, of_child))
    turned = _elements(candidate, lambda rows, layer: (rows * before[layer]) @ basis.turn_DE / np.where(after[layer] == 0, 1, after[layer]),
                       lambda rows, _: rows @ basis.turn_DE)  # fmt: skip
    return turned if _explained(target, turned) > _explained(target, plain) else plain


def _elements(
    checkpoint: Checkpoint, turn_inputs: Turn = lambda rows, _: rows, turn_outputs: Turn = lambda rows, _: rows
) -> Floats:
    """Return sampled rows of the attention matrices, hidden dimensions last, one below the other: [S]."""
    layers = {round(at) for at in np.linspace(0, checkpoint.num_layers - 1, min(checkpoint.num_layers, MAX_LAYERS))}
    parts = []
    for matrix in checkpoint.matrices:
        width = matrix.shape[0 if matrix.role == "o" else 1]
        if matrix.layer in layers and matrix.role not in INNER_ROLES and width == checkpoint.hidden_size:
            stored = checkpoint.read(matrix).float().numpy()
            rows = stored.T if matrix.role == "o" else stored
            turn = turn_outputs if matrix.role == "o" else turn_inputs
            parts.append(turn(rows[:: step_over(len(rows), MAX_ROWS)], matrix.layer).astype(np.float32).ravel())
    return np.concatenate(parts)


def _forward(products: NDArray[np.float64]) -> list[int]:
    """Choose columns one by one, or two at once where one alone gains too little: a root is nearer to the average of two of its children than each of these.

    ``products`` are those of the target, which comes first, and all columns, [N + 1, N + 1].
    """
    chosen: list[int] = []
    left = 1.0
    while left > EXACT:
        for step in (1, 2) if chosen else (1,):
            rest = {
                added: _fit(products, [*chosen, *added])[1]
                for added in combinations([index for index in range(1, len(products)) if index not in chosen], step)
            }
            best = min(rest, key=lambda added: rest[added], default=None)
            needed = (1 - MIN_GAIN) ** step * left if chosen else 1 - MIN_EXPLAINED
            if best is not None and rest[best] <= needed:
                break
        else:
            break
        assert best is not None
        chosen.extend(best)
        left = rest[best]
    return _without_idle(products, chosen)


def _without_idle(products: NDArray[np.float64], chosen: list[int]) -> list[int]:
    """Leave out what a later choice made superfluous, as a root beside the two descendants of which a model is the average."""
    while len(chosen) > 1:
        left = _fit(products, chosen)[1]
        without = {index: _fit(products, [other for other in chosen if other != index])[1] for index in chosen}
        idlest = min(chosen, key=lambda index: without[index])
        if without[idlest] > EXACT and without[idlest] - left >= MIN_GAIN * without[idlest]:
            break
        chosen = [index for index in chosen if index != idlest]
    return chosen


def _fit(products: NDArray[np.float64], chosen: Sequence[int]) -> tuple[NDArray[np.float64], float]:
    """Return the least-squares weights of some columns, and the share of the target's sum of squares they leave."""
    if not chosen:
        return np.zeros(0), 1.0
    size = np.sqrt(np.maximum(np.diagonal(products), 1e-300))
    scaled = products / size / size[:, None]
    weights = np.linalg.lstsq(scaled[np.ix_(chosen, chosen)], scaled[list(chosen), 0], rcond=EXACT)[0]
    return weights * size[0] / size[list(chosen)], max(0.0, 1.0 - float(weights @ scaled[list(chosen), 0]))


def _dot(x: Floats, y: Floats) -> float:
    """Inner product, summed in float64 a piece at a time."""
    pieces = range(0, len(x), PIECE)
    return sum(
        float(np.dot(x[at : at + PIECE].astype(np.float64), y[at : at + PIECE].astype(np.float64))) for at in pieces
    )


def _explained(target: Floats, column: Floats) -> float:
    size = _dot(target, target) * _dot(column, column)
    return _dot(target, column) ** 2 / size if size > 0 else 0.0


def _why_left_out(products: NDArray[np.float64], index: int, has_parents: bool) -> str:
    share = 1 - _fit(products, [index])[1]
    if has_parents and share >= MIN_EXPLAINED:
        return f"explains {share:.2g} of the sum of squares alone, but under {MIN_GAIN:g} of what the parents leave"
    return f"explains {share:.1g} of the sum of squares, {MIN_EXPLAINED:g} is needed"

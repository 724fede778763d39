"""The difference of two checkpoints, tensor by tensor: what corresponds, what of it is a symmetry, and what is left.

A layer's attention or one feed-forward network at a time, so that memory is bounded by the largest of these.

Of large matrices (`tensors.sampled_rows`) rows stand for all: what is asked of a matrix are shares, moments and ranks, and what changes one
changes its rows. A layer is compared whole where its rows do not decide: where they show a symmetry, do not correspond, or are equal
in both while the matrices are not.
"""

# C = columns of a matrix, n = rows that stand for it

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelassay.fingerprints.identical import equal_bits
from modelassay.fingerprints.lineage.decay import decay, decay_of
from modelassay.fingerprints.lineage.deltas import Delta, Kind, delta
from modelassay.fingerprints.lineage.symmetries import MIN_COSINE, Floats, Symmetry, undo_attention, undo_neurons
from modelassay.fingerprints.lineage.tensors import (
    MAX_ELEMENTS,
    OUTSIDE,
    Tensors,
    match_layers,
    sampled_rows,
    signing_roles,
)
from modelassay.fingerprints.lineage.vocabulary import (
    MIN_ALIKE,
    Rows,
    SharedTokens,
    centred_cosine,
    choose_rows,
    own_head,
    shared_tokens,
)
from modelassay.machine.threads import in_order
from modelassay.models.checkpoints.architectures import ROLES
from modelassay.models.checkpoints.prepare import read_ahead

MIN_VOCABULARY = 128
"""Rows of what counts as an embedding whose rows are tokens."""
EMBEDDING_ELEMENTS = 1 << 21
"""Of an embedding too large to be compared whole, about so many are compared at once."""
SAMPLED_COLUMNS = 256
"""Hidden dimensions by which symmetries of large attention matrices are looked for, all heads among them."""


@dataclass(kw_only=True)
class Difference:
    """All that two checkpoints differ in."""

    deltas: list[Delta] = field(default_factory=list)
    symmetries: dict[Symmetry, int] = field(default_factory=dict)
    """How many of the layers each was seen in."""
    decays: list[tuple[float, float]] = field(default_factory=list)
    """`decay` of differing tensors outside the stack of at least `MIN_VOCABULARY` rows."""
    num_sampled: int = 0
    """Differing matrices for which rows stand."""
    layers: list[tuple[int, int]] = field(default_factory=list)
    """Corresponding layers of a and b."""
    match: float = 1.0
    """Mean cosine of layers that were matched because the depths differ."""
    repeated: float = 0.0
    """Share of the deeper model's remaining layers that equal one of the shallower's too."""
    experts: tuple[bool, bool] = (False, False)
    expert_cosine: float = 1.0
    """Median over dense feed-forward matrices of the largest cosine with one of the experts'."""
    num_unpaired: int = 0
    """Matrices of corresponding layers that only one model has, or tensors that differ in shape."""
    expert_copies: tuple[int, int] = (0, 0)
    """How many dense feed-forward matrices are one of the experts' bit by bit, and how many were looked at."""
    unlike: dict[str, float] = field(default_factory=dict)
    """Embeddings whose rows do not correspond, with the `centred_cosine` of the two: they are not among the deltas."""
    tokens: SharedTokens | None = None
    """Where the two vocabularies differ."""
    rows: Rows | None = None
    """How rows of the first embedding were compared then."""
    heads: tuple[float | None, float | None] = (None, None)
    """Of a and b, the cosine of an output matrix that only that one has with its embedding."""
    narrowed: str = ""
    """``a`` or ``b`` where that one is stored in a coarser format and the other holds more than it."""

    def count(self, symmetries: set[Symmetry]) -> None:
        """Add what was seen in one place."""
        for symmetry in symmetries:
            self.symmetries[symmetry] = self.symmetries.get(symmetry, 0) + 1

    def add(self, part: Difference) -> None:
        """Add what was seen in one pair of layers, after those before it."""
        self.deltas += part.deltas
        self.decays += part.decays
        self.num_sampled += part.num_sampled
        self.num_unpaired += part.num_unpaired
        self.unlike |= part.unlike
        self.rows = self.rows or part.rows
        self.narrowed = part.narrowed or self.narrowed
        for symmetry, times in part.symmetries.items():
            self.symmetries[symmetry] = self.symmetries.get(symmetry, 0) + times


def _as_pair(x: Tensor, y: Tensor, into: Difference) -> tuple[Floats, Floats, float]:
    """Both in fp32 after rounding to the coarser format, and that format's spacing."""
    if x.dtype != y.dtype:
        coarser = x.dtype if torch.finfo(x.dtype).eps > torch.finfo(y.dtype).eps else y.dtype
        finer = y if x.dtype == coarser else x
        if not torch.equal(finer.to(coarser).to(finer.dtype), finer):
            into.narrowed = "a" if x.dtype == coarser else "b"
        x, y = x.to(coarser), y.to(coarser)
    return x.float().numpy(), y.float().numpy(), torch.finfo(x.dtype).eps


def compare(a: Tensors, b: Tensors) -> Difference:
    """Read two checkpoints and return what they differ in. Linear in their size, but for orders of neurons.

    Both must have one hidden size and one head layout; which layers correspond is told by `match_layers`.
    """
    difference = Difference(
        experts=(_has_experts(a), _has_experts(b)), tokens=shared_tokens(a.checkpoint, b.checkpoint),
        heads=(own_head(a, b), own_head(b, a)),
    )  # fmt: skip
    difference.layers, difference.match, difference.repeated = match_layers(a, b)
    probes = {difference.layers[len(difference.layers) * i // 4][0] for i in (1, 3)} if difference.layers else set()
    expert_cosines: list[tuple[float, bool]] = []
    turn_a = _mass(a) > _mass(b)

    def of_layers(at: int) -> tuple[Difference, list[tuple[float, bool]]]:
        i, j = difference.layers[at]
        part, cosines = Difference(tokens=difference.tokens), list[tuple[float, bool]]()
        if at + 1 < len(difference.layers):
            for tensors, layer in zip((a, b), difference.layers[at + 1], strict=True):
                read_ahead(tensors.matrices[layer, role].span for role in tensors.checkpoint.roles)
        _compare_attention(a, b, i, j, part, probe=i in probes, turn_a=turn_a)
        names = a.by_layer.get(i, {}).keys() & b.by_layer.get(j, {}).keys()
        part.num_unpaired += _num_alone(a, i, names) + _num_alone(b, j, names)
        _compare_rest(a, b, i, j, sorted(names), part, probe=i in probes)
        if difference.experts[0] != difference.experts[1] and i in probes:
            dense, sparse = ((a, i), (b, j)) if difference.experts[1] else ((b, j), (a, i))
            cosines += _expert_cosines(*dense, *sparse)
        return part, cosines

    for part, cosines in in_order(of_layers, range(len(difference.layers))):
        difference.add(part)
        expert_cosines += cosines
    outside = a.by_layer.get(OUTSIDE, {}).keys() & b.by_layer.get(OUTSIDE, {}).keys()
    _compare_rest(a, b, OUTSIDE, OUTSIDE, sorted(outside), difference, probe=False)
    if expert_cosines:
        difference.expert_cosine = float(np.median([cosine for cosine, _ in expert_cosines]))
        difference.expert_copies = sum(equal for _, equal in expert_cosines), len(expert_cosines)
    return difference


def _num_alone(weights: Tensors, layer: int, names: set[str]) -> int:
    alone = weights.by_layer.get(layer, {}).keys() - names
    return sum(len(weights.info(layer, name).shape) > 1 for name in alone)


def _mass(weights: Tensors) -> float:
    """What decides which of two models has its symmetries undone: a number of the model's own, not of the arguments' order."""
    return sum(
        float(weights.checkpoint.read(weights.matrices[0, role]).abs().sum(dtype=torch.float64))
        for role in signing_roles(weights.checkpoint)[::2]
    )


def _has_experts(weights: Tensors) -> bool:
    return any("experts." in name for names in weights.by_layer.values() for name in names)


def _compare_attention(a: Tensors, b: Tensors, i: int, j: int, difference: Difference, *, probe: bool, turn_a: bool) -> None:  # fmt: skip
    roles = a.checkpoint.roles
    stored = {role: (a.checkpoint.read(a.matrices[i, role]), b.checkpoint.read(b.matrices[j, role])) for role in roles}
    biases = {role: (own, other) for role in roles if role != "o" and (own := a.bias(i, role)) is not None
              and (other := b.bias(j, role)) is not None}  # fmt: skip
    heads_alike = set(ROLES) <= set(roles) and a.has_heads(i) and b.has_heads(j)
    rows = {role: sampled_rows(pair[0].shape) for role, pair in stored.items()}
    if any(rows.values()) and not (heads_alike and _has_symmetry(a, stored, turn_a=turn_a)):
        for role, pair in stored.items():
            if role in biases:
                p, q, eps = _as_pair(*biases[role], difference)
                difference.deltas.append(delta(p, q, i, f"{role}.bias", "vector", eps))
            _compare_rows(*pair, rows[role], difference, i, role, probe=probe)
        return
    sides: tuple[dict[str, Floats], dict[str, Floats]] = ({}, {})
    eps = 0.0
    for role, pair in stored.items():
        x, y, eps = _as_pair(*pair, difference)
        if role in biases:
            p, q, _ = _as_pair(*biases[role], difference)
            x, y = np.column_stack([x, p]), np.column_stack([y, q])
        sides[0][role], sides[1][role] = x, y
    first, second = sides if turn_a else sides[::-1]
    symmetries: set[Symmetry] = set()
    fixed: dict[str, Floats] = first
    if heads_alike:
        fixed, symmetries = undo_attention(first, second, a.heads)
    difference.count(symmetries)
    sides = (fixed, sides[1]) if turn_a else (sides[0], fixed)
    for role in roles:
        x, y = sides[0][role], sides[1][role]
        if role in biases:
            difference.deltas.append(
                delta(x[:, -1], y[:, -1], i, f"{role}.bias", "vector", eps, has_symmetry=bool(symmetries))
            )
            x, y = x[:, :-1], y[:, :-1]
        difference.deltas.append(delta(x, y, i, role, "matrix", eps, has_symmetry=bool(symmetries), probe=probe))


def _has_symmetry(a: Tensors, stored: Mapping[str, tuple[Tensor, Tensor]], *, turn_a: bool) -> bool:
    """Return whether `undo_attention` finds a symmetry along some of the hidden dimensions; biases are left out."""
    sides: tuple[dict[str, Floats], dict[str, Floats]] = ({}, {})
    for role, pair in stored.items():
        width = pair[0].shape[0 if role == "o" else 1]
        keep = torch.linspace(0, width - 1, min(width, SAMPLED_COLUMNS), dtype=torch.float64).long()
        for side, matrix in zip(sides, pair, strict=True):
            side[role] = (matrix[keep] if role == "o" else matrix[:, keep]).float().numpy()
    first, second = sides if turn_a else sides[::-1]
    return bool(undo_attention(first, second, a.heads)[1])


def _compare_rows(x: Tensor, y: Tensor, rows: list[int] | None, difference: Difference, layer: int, name: str, *, probe: bool) -> None:  # fmt: skip
    """Add the difference of two matrices at hand by their ``rows``; of all of them where there are none, or where they alone are equal."""
    if rows is not None and (x.dtype != y.dtype or not torch.equal(x, y)):
        u, v, eps = _as_pair(x[rows], y[rows], difference)
        if np.array_equal(u, v):
            rows = None
    if rows is None:
        u, v, eps = _as_pair(x, y, difference)
        difference.deltas.append(delta(u, v, layer, name, "matrix", eps, probe=probe))
        return
    u, v, eps = _as_pair(x[rows], y[rows], difference)
    part = delta(u, v, layer, name, "matrix", eps, probe=probe, of=x.numel())
    difference.num_sampled += part.differs
    difference.deltas.append(part)


def _compare_rest(
    a: Tensors, b: Tensors, i: int, j: int, names: list[str], difference: Difference, *, probe: bool
) -> None:
    biases = {a.bias_name(i, role) for role in a.checkpoint.roles if role != "o"} if i != OUTSIDE else set()
    groups: dict[str, list[str]] = {}
    for name in names:
        if name not in biases and a.readable(i, name) and b.readable(j, name):
            groups.setdefault(".".join(name.split(".")[:-2]) if i != OUTSIDE else name, []).append(name)
    for group in groups.values():
        if not _compare_group_by_rows(a, b, i, j, group, difference, probe=probe):
            _compare_group(a, b, i, j, group, difference, probe=probe)


def _compare_group_by_rows(
    a: Tensors, b: Tensors, i: int, j: int, names: list[str], difference: Difference, *, probe: bool
) -> bool:
    """Compare tensors of one place of which some are large by rows; False, and nothing is compared, where rows do not decide."""
    shapes = {name: a.info(i, name).shape for name in names}
    sampled = {
        name: sampled_rows(shape, EMBEDDING_ELEMENTS if i == OUTSIDE else None) for name, shape in shapes.items()
    }
    turned = i != OUTSIDE and a.matrices[i, "o"].inputs_first
    renumbered = i == OUTSIDE and difference.tokens is not None and bool(difference.tokens.rows[0])
    if (
        not any(sampled.values())
        or turned
        or renumbered
        or any(b.info(j, name).shape != shapes[name] for name in names)
    ):
        return False
    pairs: dict[str, tuple[Tensor, Tensor, list[int] | None]] = {}
    for name, rows in sampled.items():
        if rows is None:
            pairs[name] = a.read(i, name), b.read(j, name), None
            continue
        x, y = a.read_some(i, name, rows), b.read_some(j, name, rows)
        if not (x.dtype == y.dtype and torch.equal(x, y)):
            if i != OUTSIDE and not _rows_correspond(x, y):
                return False
        elif not equal_bits(*a.place(i, name), *b.place(j, name)):
            return False
        pairs[name] = x, y, rows
    for name, (x, y, rows) in pairs.items():
        u, v, eps = _as_pair(x, y, difference)
        u, v = (_as_matrix(side, turned=False) for side in (u, v))
        of = None if rows is None else math.prod(shapes[name])
        part = _add(u, v, i, name, difference, eps, probe=probe, of=of)
        if part is not None and part.kind == "embedding" and shapes[name][0] >= MIN_VOCABULARY and part.dd:
            difference.decays.append(decay(u, v) if rows is None else _decay_in_blocks(a, b, name, difference))
    return True


def _rows_correspond(x: Tensor, y: Tensor) -> bool:
    """Return whether most rows of one are nearer to those of the same number than chance is: no unit was given another number."""
    cosines = torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=1)
    return bool(cosines.median() > MIN_COSINE)


def _decay_in_blocks(a: Tensors, b: Tensors, name: str, difference: Difference) -> tuple[float, float]:
    """Return `decay_of` an embedding of which `EMBEDDING_ELEMENTS` are held at once, of too many elements of rows at even distances."""
    rows, width = a.info(OUTSIDE, name).shape
    kept = np.linspace(0, rows - 1, min(rows, max(MAX_ELEMENTS // width, 1))).astype(np.intp)
    step = max(EMBEDDING_ELEMENTS // width, 1)

    def take(chosen: NDArray[np.intp]) -> tuple[Floats, Floats]:
        numbers = kept[chosen].tolist()
        x, y, _ = _as_pair(a.read_some(OUTSIDE, name, numbers), b.read_some(OUTSIDE, name, numbers), difference)
        return x, y

    return decay_of((take(np.arange(at, min(at + step, len(kept)))) for at in range(0, len(kept), step)), take)


def _compare_group(
    a: Tensors, b: Tensors, i: int, j: int, names: list[str], difference: Difference, *, probe: bool
) -> None:
    sides: tuple[dict[str, Floats], dict[str, Floats]] = ({}, {})
    eps, turned = 0.0, i != OUTSIDE and a.matrices[i, "o"].inputs_first
    for name in names:
        shapes = a.info(i, name).shape, b.info(j, name).shape
        rows = None
        if shapes[0] != shapes[1]:
            if i != OUTSIDE or not (len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][1] == shapes[1][1]):
                difference.num_unpaired += 1
                continue
            rows = min(shapes[0][0], shapes[1][0])
        x, y, eps = _as_pair(a.read(i, name, rows), b.read(j, name, rows), difference)
        x, y = (_as_matrix(side, turned=turned) for side in (x, y))
        if i == OUTSIDE and x.ndim == 2 and min(shapes[0][0], shapes[1][0]) >= MIN_VOCABULARY:
            x, y = _of_shared_tokens(a, b, name, (x, y), difference)
        sides[0][name], sides[1][name] = x, y
    symmetries: set[Symmetry] = set()
    fixed = sides[0]
    if i != OUTSIDE:
        fixed, symmetries = undo_neurons(*sides, a.checkpoint.hidden_size)
    difference.count(symmetries)
    for name, x in fixed.items():
        y = sides[1][name]
        part = _add(x, y, i, name, difference, eps, probe=probe, has_symmetry=bool(symmetries))
        if part is not None and part.kind == "embedding" and len(x) >= MIN_VOCABULARY and part.dd:
            difference.decays.append(decay(x, y))


def _add(x: Floats, y: Floats, layer: int, name: str, difference: Difference, eps: float, *, probe: bool, has_symmetry: bool = False,
         of: int | None = None) -> Delta | None:  # fmt: skip
    """Add the difference of two tensors, rows of them where ``of`` says how many elements they have; None where rows do not correspond."""
    kind: Kind = "vector" if min(x.shape) == 1 or x.ndim < 2 else "embedding" if layer == OUTSIDE else "matrix"
    part = delta(x, y, layer, name, kind, eps, has_symmetry=has_symmetry, probe=probe, of=of)
    num_rows = 0 if kind == "vector" else part.num_elements // x.shape[1]
    if kind == "embedding" and num_rows >= MIN_VOCABULARY and part.dd and (alike := centred_cosine(x, y)) < MIN_ALIKE:
        difference.unlike[name] = alike
        return None
    difference.num_sampled += of is not None and part.differs
    difference.deltas.append(part)
    return part


def _of_shared_tokens(
    a: Tensors, b: Tensors, name: str, by_number: tuple[Floats, Floats], difference: Difference
) -> tuple[Floats, Floats]:
    """Return the rows of the tokens that both know where vocabularies differ, unless rows of one number are more alike."""
    tokens = difference.tokens
    if tokens is None or not tokens.rows[0]:
        return by_number
    if any(max(rows) >= side.info(OUTSIDE, name).shape[0] for side, rows in zip((a, b), tokens.rows, strict=True)):
        return by_number
    x, y, _ = _as_pair(
        a.read_rows(OUTSIDE, name, tokens.rows[0]), b.read_rows(OUTSIDE, name, tokens.rows[1]), difference
    )
    first, second, rows = choose_rows(by_number, (x, y))
    difference.rows = difference.rows or rows
    return first, second


def _as_matrix(x: Floats, *, turned: bool) -> Floats:
    """Rows are output channels: experts one below the other, Conv1D turned, which stores [inputs, outputs]."""
    if x.ndim == 2 and turned:
        return np.ascontiguousarray(x.T)
    return x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x


def _expert_cosines(dense: Tensors, i: int, sparse: Tensors, j: int) -> Iterator[tuple[float, bool]]:
    """For each feed-forward matrix of a dense layer, the largest cosine with a matrix of that shape among the experts, and whether one is equal."""
    candidates = [
        block
        for name in sparse.by_layer.get(j, {})
        if sparse.readable(j, name)
        for block in _blocks(sparse.read(j, name))
    ]
    for name in dense.by_layer.get(i, {}).keys() - sparse.by_layer.get(j, {}).keys():
        if not dense.readable(i, name) or len(dense.info(i, name).shape) != 2:
            continue
        x = dense.read(i, name).float()
        cosines = [float(torch.nn.functional.cosine_similarity(x.reshape(-1), y.reshape(-1), dim=0))
                   for y in candidates if y.shape == x.shape]  # fmt: skip
        yield max(map(abs, cosines), default=0.0), any(y.shape == x.shape and torch.equal(x, y) for y in candidates)


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """What a tensor of experts may hold of one dense matrix: itself, its first expert, halves and transposes of these."""
    if x.ndim == 2:
        yield x.float()
    elif x.ndim == 3:
        first = x[0].float()
        for block in (first, *first.chunk(2, 0), *first.chunk(2, 1)):
            yield block
            yield block.T

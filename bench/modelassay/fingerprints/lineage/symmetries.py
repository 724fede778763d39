"""Changes of weights that leave a model's function as it is: found between two models, and undone before they are compared.

Each is looked for only where two blocks differ, and taken back from the first model, so that what then remains of the
difference is what was really done. All are symmetric: the same change leads back, so none of them tells a direction.
"""

# G = key-value heads (groups), R = query heads of a group, D = elements of a head, P = rotary pairs = D / 2
# C = what a row of a projection holds: the hidden size, and the bias where there is one

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Symmetry = Literal["heads", "neurons", "rotated", "scaled"]

MIN_COSINE = 0.5
"""Below it two blocks are not the same block changed: random ones have 0 +- 1/sqrt(elements), a heavily trained child
(continued for as long as its root was trained) keeps 0.94; for four times as long 0.82."""
MIN_ANGLE = 0.3
"""Radians. Training turns a rotary pair of queries and keys by less, and not both by the same angle."""
MIN_LOG_SCALE = 0.1
"""Training changes a head's size by a few percent, and two factors of a product in the same sense."""
CHUNK = 2048
"""Neurons that are compared with all others at once, so that the table of similarities stays bounded."""
NEURON_SAMPLE = 256
"""Hidden dimensions that neurons are told apart by; two random neurons then have a cosine of 0 +- 0.06."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How the rows of a layer's projections fall into heads."""

    groups: int
    per_group: int
    size: int

    @property
    def count(self) -> int:
        """Query heads."""
        return self.groups * self.per_group


def undo_attention(
    a: Mapping[str, Floats], b: Mapping[str, Floats], heads: Heads
) -> tuple[dict[str, Floats], set[Symmetry]]:
    """Return a layer's first projections as near to the second's as function-preserving changes bring them, and which.

    Head order comes first, by the columns of ``o``, which nothing else moves; then rotations of rotary pairs shared by a
    group's queries and keys, then factors shared by queries and keys, or by values and output.

    Args:
        a: ``q``, ``k``, ``v`` [rows, C] with any bias as last column, ``o`` [hidden, rows of q].
        b: the same of the other model.
        heads: of both.
    """
    symmetries: set[Symmetry] = set()
    fixed = dict(a)
    if all(np.array_equal(a[role], b[role]) for role in "qkvo"):
        return fixed, symmetries
    order = _head_order(fixed["o"], b["o"], heads)
    if order is not None:
        fixed = _reorder_heads(fixed, order, heads)
        symmetries.add("heads")
    angles = _angles(fixed, b, heads)
    if angles is not None:
        fixed |= angles
        symmetries.add("rotated")
    for pair in (("q", "k"), ("v", "o")):
        scaled = _scaled(fixed, b, heads, *pair)
        if scaled is not None:
            fixed |= scaled
            symmetries.add("scaled")
    return fixed, symmetries


def _head_order(a: Floats, b: Floats, heads: Heads) -> NDArray[np.intp] | None:
    """Which of the first model's heads stands at each place of the second; None for the same order or none at all."""
    if np.array_equal(a, b):
        return None
    x, y = (_unit(np.ascontiguousarray(o.T).reshape(heads.count, -1)) for o in (a, b))
    order = _assignment(y @ x.T)
    if order is None:
        return None
    groups = order.reshape(heads.groups, heads.per_group) // heads.per_group
    return order if (groups == groups[:, :1]).all() else None


def _assignment(cosines: Floats) -> NDArray[np.intp] | None:
    """The column that is nearest to each row, if that is one to one, clear, and not the diagonal."""
    if np.median(np.diagonal(cosines)) > MIN_COSINE:
        return None
    order = cosines.argmax(1)
    one_to_one = np.unique(order).size == order.size
    clear = np.median(cosines[np.arange(order.size), order]) > MIN_COSINE
    return order if one_to_one and clear else None


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return unit


def _reorder_heads(blocks: Mapping[str, Floats], order: NDArray[np.intp], heads: Heads) -> dict[str, Floats]:
    groups = order[:: heads.per_group] // heads.per_group
    rows = (order[:, None] * heads.size + np.arange(heads.size)).ravel()
    key_rows = (groups[:, None] * heads.size + np.arange(heads.size)).ravel()
    return {"q": blocks["q"][rows], "k": blocks["k"][key_rows], "v": blocks["v"][key_rows], "o": blocks["o"][:, rows]}


def _halves(x: Floats, heads: int, size: int) -> NDArray[np.complex64]:
    """Rotary pairs (i, i + D/2), as Llama and Qwen have them, as complex numbers: [heads, P, C]."""
    halves = x.reshape(heads, 2, size // 2, -1)
    return halves[:, 0] + 1j * halves[:, 1]


def _neighbours(x: Floats, heads: int, size: int) -> NDArray[np.complex64]:
    """Rotary pairs (2i, 2i + 1), as GPT-J, GLM and Cohere have them: [heads, P, C]."""
    pairs = x.reshape(heads, size // 2, 2, -1)
    return pairs[:, :, 0] + 1j * pairs[:, :, 1]


def _from_halves(z: NDArray[np.complex64]) -> Floats:
    return np.stack([z.real, z.imag], 1).reshape(-1, z.shape[-1])


def _from_neighbours(z: NDArray[np.complex64]) -> Floats:
    return np.stack([z.real, z.imag], 2).reshape(-1, z.shape[-1])


_LAYOUTS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
    (_halves, _from_halves),
    (_neighbours, _from_neighbours),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Turn:
    """How rotary pairs of one layout are turned from the first model to the second."""

    unit_GP: NDArray[np.complexfloating]
    """Of modulus 1: the turn that queries and keys share."""
    apart: float
    """Median angle between those of queries and keys."""
    coherence: float
    """Median of |sum conj(z_a) z_b| / (|z_a| |z_b|) over pairs, the smaller of queries' and keys': 1 for a pure turn."""

    @property
    def nowhere(self) -> bool:
        """Whether under a quarter of the pairs is turned by more than training does."""
        return bool(np.mean(abs(np.angle(self.unit_GP)) > MIN_ANGLE) < 0.25)


def _angles(a: Mapping[str, Floats], b: Mapping[str, Floats], heads: Heads) -> dict[str, Floats] | None:
    """The first queries and keys with each rotary pair turned as in the second; None where no common angle turns them.

    Where the usual layout of pairs shows them turned or shows nothing, the layout that fits better decides.
    """
    if heads.size % 2 or all(np.array_equal(a[role], b[role]) for role in "qk"):
        return None
    (cut, join), other = _LAYOUTS
    turn = _turn(a, b, heads, cut)
    if turn.coherence >= MIN_COSINE and turn.nowhere:
        return None
    second = _turn(a, b, heads, other[0])
    if second.coherence > turn.coherence:
        turn, (cut, join) = second, other
    if turn.coherence < MIN_COSINE or turn.nowhere or turn.apart > MIN_ANGLE:
        return None
    phase = turn.unit_GP[:, None, :, None].astype(np.complex64)
    return {role: join((_pairs(a[role], heads, cut) * phase).reshape(-1, *phase.shape[2:3], a[role].shape[1]))
            for role in "qk"}  # fmt: skip


def _pairs(x: Floats, heads: Heads, cut: Callable[..., Any]) -> NDArray[np.complex64]:
    """Rotary pairs by group: [G, heads of the group, P, C]."""
    z: NDArray[np.complex64] = cut(x, len(x) // heads.size, heads.size)
    return z.reshape(heads.groups, -1, heads.size // 2, x.shape[1])


def _turn(a: Mapping[str, Floats], b: Mapping[str, Floats], heads: Heads, cut: Callable[..., Any]) -> _Turn:
    turned, coherence = {}, []
    for role in "qk":
        x, y = _pairs(a[role], heads, cut), _pairs(b[role], heads, cut)
        turned[role] = (x.conj() * y).sum((1, 3))
        size = np.sqrt((abs(x) ** 2).sum((1, 3)) * (abs(y) ** 2).sum((1, 3)))
        coherence.append(float(np.median(abs(turned[role]) / np.maximum(size, 1e-30))))
    shared = sum(product / np.maximum(abs(product), 1e-30) for product in turned.values())
    return _Turn(
        unit_GP=shared / np.maximum(abs(shared), 1e-30),
        apart=float(np.median(abs(np.angle(turned["q"] * turned["k"].conj())))),
        coherence=min(coherence),
    )


def _scaled(
    a: Mapping[str, Floats], b: Mapping[str, Floats], heads: Heads, first: str, second: str
) -> dict[str, Floats] | None:
    """The first model's two factors with each group rescaled as in the second; None where no group was.

    The factor of a group is +-|b| / |a|, signed as <a, b>. Two are reciprocal where their logs differ by more than their sum;
    both may be negative. Half the groups must be, since one that training happened to change so is no symmetry.
    """
    blocks = {name: (_by_group(a[name], name, heads), _by_group(b[name], name, heads)) for name in (first, second)}
    factors, similar = {}, np.ones(heads.groups, dtype=bool)
    for name, (x, y) in blocks.items():
        xx, yy, xy = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
        similar &= abs(xy) > MIN_COSINE * np.sqrt(xx * yy)
        factors[name] = np.sign(xy) * np.sqrt(yy / np.maximum(xx, 1e-30))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: np.log(abs(factor)) for name, factor in factors.items()}
        size = np.minimum(abs(logs[first]), abs(logs[second]))
        reciprocal = (size > MIN_LOG_SCALE) & (abs(logs[first] + logs[second]) < 0.5 * size)
        flipped = (factors[first] < 0) & (factors[second] < 0)
        moved = similar & (reciprocal | flipped)
        if moved.mean() < 0.5:
            return None
        scale = np.sqrt(abs(factors[first] / factors[second]))
    scale = np.where(moved, scale * np.sign(factors[first]), 1).astype(np.float32)
    return {
        first: _from_groups(blocks[first][0] * scale[:, None], first, a[first].shape),
        second: _from_groups(blocks[second][0] / scale[:, None], second, a[second].shape),
    }


def _by_group(x: Floats, role: str, heads: Heads) -> Floats:
    return (x.T if role == "o" else x).reshape(heads.groups, -1)


def _from_groups(x: Floats, role: str, shape: tuple[int, ...]) -> Floats:
    return x.reshape(shape[::-1]).T if role == "o" else x.reshape(shape)


def undo_neurons(
    a: Mapping[str, Floats], b: Mapping[str, Floats], hidden_size: int
) -> tuple[dict[str, Floats], set[Symmetry]]:
    """Return a feed-forward network's first tensors with their inner units in the order of the second, and whether moved.

    An inner unit is a row or column of every matrix that has the hidden size on its other side; what decides its place is
    its cosine in all of them together. Costs a product of units x units x ``NEURON_SAMPLE`` where the order differs,
    otherwise one pass.
    """
    fixed: dict[str, Floats] = dict(a)
    widths = {n for x in a.values() if x.ndim == 2 and hidden_size in x.shape for n in x.shape} - {hidden_size}
    symmetries: set[Symmetry] = set()
    for width in widths:
        names = [name for name, x in a.items() if x.ndim == 2 and sorted(x.shape) == sorted((width, hidden_size))]
        if all(np.array_equal(a[name], b[name]) for name in names):
            continue
        keep = np.linspace(0, hidden_size - 1, min(hidden_size, NEURON_SAMPLE)).astype(int)
        x, y = (
            _unit(np.concatenate([_unit(_units(side[n], width)[:, keep]) for n in names], axis=1)) for side in (a, b)
        )
        if np.median((x * y).sum(1)) > MIN_COSINE:
            continue
        nearest = [(y[i : i + CHUNK] @ x.T).argmax(1) for i in range(0, width, CHUNK)]
        order = np.concatenate(nearest)
        clear = np.median((x[order] * y).sum(1)) > MIN_COSINE
        if np.unique(order).size < width or not clear:
            continue
        symmetries.add("neurons")
        for name, tensor in a.items():
            if name in names:
                fixed[name] = tensor[order] if tensor.shape[0] == width else tensor[:, order]
            elif tensor.shape == (width,):
                fixed[name] = tensor[order]
    return fixed, symmetries


def _units(x: Floats, width: int) -> Floats:
    return x if x.shape[0] == width else x.T

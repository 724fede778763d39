"""The difference of two checkpoints, tensor by tensor: what corresponds, what of it is a change of gauge, and what is left.

Everything is read once, a layer's attention or one feed-forward network at a time, so that memory is bounded by the
largest of these (seven matrices of at most `MAX_ELEMENTS` for each model). Larger tensors than that, embeddings of large
vocabularies mostly, are represented by rows at even distances, the last one included, the same in both models.
"""

# R = rows of a matrix (output channels), C = columns; V = rows of an embedding

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.experiments.fingerprinting.gauges import Floats, Gauge, Heads, undo_attention, undo_neurons
from modelassay.models.architectures import ROLES, Role, find_architecture
from modelassay.models.checkpoint import Checkpoint
from modelassay.models.hub import open_files
from modelassay.models.matrices import TORCH_DTYPES, Matrix, TensorTable, read_elements
from modelassay.models.safetensors_index import DTYPE_BITS, TensorInfo

MAX_ELEMENTS = 1 << 26
"""Of one tensor; 256 MB in fp32, which holds any matrix of a layer of 30 billion parameters' models whole."""
BLOCK = 256
"""Rows and columns of the sample of a difference whose singular values are taken; adapters have ranks of 4 to 128."""
GRID_ROWS = 16
"""Rows that are tried for an int8 grid; a row off the grid passes by chance with 0.004 ** elements."""
OUTSIDE = -1
"""Layer of what stands outside the stack."""

Kind = Literal["matrix", "embedding", "vector"]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What two corresponding tensors have in common, the first one's gauge already that of the second.

    Sums run over the elements that are zero in neither.
    """

    layer: int
    name: str
    kind: Kind
    """``matrix`` lies in the stack, ``embedding`` outside of it."""
    num_elements: int
    eps: float
    """Spacing of the coarser of the two formats, relative."""
    gauged: bool
    """A change of gauge was undone, which leaves rounding."""
    aa: float = 0.0
    bb: float = 0.0
    dd: float = 0.0
    """Sum of squares of b - a."""
    ad: float = 0.0
    """Sum of a (b - a)."""
    d_kurtosis: float = 0.0
    """E d^4 / (E d^2)^2 - 3, d = b - a; 0 for Gaussian noise."""
    kurtosis_growth: float = 0.0
    """Kurtosis of b less that of a."""
    zeros: tuple[float, float] = (0.0, 0.0)
    """Share of elements that are exactly zero, in a and b."""
    on_grid: tuple[bool, bool] = (False, False)
    """Whether the rows of a, b are whole multiples of their maximum / 127."""
    within_half_step: tuple[float, float] = (0.0, 0.0)
    """Share of elements of the other side that round to this one's, where this one is on a grid."""
    spectrum: tuple[float, float, float] | None = None
    """Of a block of b - a: rank / full rank, largest singular value / that of noise of its size, share of dd that
    rounding explains; None where not taken."""

    @property
    def relative(self) -> float:
        """|b - a| / |a|, geometric mean with |b - a| / |b|."""
        return math.sqrt(self.dd / max(math.sqrt(self.aa * self.bb), 1e-300))

    @property
    def changed(self) -> bool:
        """Whether more than the rounding of a change of gauge is left."""
        return self.relative > (8 * self.eps + 1e-5 if self.gauged else 0.0)


@dataclass(kw_only=True)
class Difference:
    """All that two checkpoints differ in."""

    deltas: list[Delta] = field(default_factory=list)
    gauges: dict[Gauge, int] = field(default_factory=dict)
    """How many of the layers each was found in."""
    embeddings: list[tuple[Floats, Floats]] = field(default_factory=list)
    """Pairs of differing tensors outside the stack of at least `MIN_VOCABULARY` rows [V, C]."""
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
    """Tensors, other than experts and routers, that only one model has or that differ in shape."""
    narrowed: str = ""
    """``a`` or ``b`` where that one is stored in a coarser format and the other holds more than it."""


MIN_VOCABULARY = 128


class Weights:
    """Every tensor of a checkpoint by layer and name below it, attention by role."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Sort the names; only headers are read."""
        reference = str(checkpoint.reference)
        if checkpoint.revision is not None:
            reference = f"{reference.partition('@')[0]}@{checkpoint.revision}"
        self.checkpoint = checkpoint
        self.heads = Heads(
            groups=checkpoint.num_kv_heads,
            per_group=checkpoint.num_heads // checkpoint.num_kv_heads,
            size=checkpoint.head_dim,
        )
        self._table = TensorTable(open_files(reference))
        self.matrices: dict[tuple[int, str], Matrix] = {(m.layer, m.role): m for m in checkpoint.matrices}
        self.by_layer: dict[int, dict[str, str]] = {}
        taken = {m.tensor_name for m in checkpoint.matrices}
        architecture = find_architecture(checkpoint.architecture)
        assert architecture is not None
        self._parts = architecture.parts
        stack = re.compile(re.escape(architecture.layer.partition("{layer}")[0]) + r"(\d+)\.")
        first = stack.search(checkpoint.matrices[0].tensor_name)
        prefix = "" if first is None else first.string[: first.start()]
        for name in self._table.names():
            if name in taken:
                continue
            below = name.removeprefix(prefix)
            match = stack.match(below) if name.startswith(prefix) else None
            layer, rest = (int(match[1]), below[match.end() :]) if match else (OUTSIDE, below)
            self.by_layer.setdefault(layer, {})[rest] = name

    def info(self, layer: int, name: str) -> TensorInfo:
        """Return dtype and shape of a tensor."""
        return self._table.find(self.by_layer[layer][name])[1]

    def readable(self, layer: int, name: str) -> bool:
        """Return whether the tensor's stored numbers are its weights."""
        info = self.info(layer, name)
        return info.dtype in TORCH_DTYPES and not info.dtype.startswith("F8") and math.prod(info.shape) > 0

    def read(self, layer: int, name: str, rows: int | None = None) -> Tensor:
        """Return a tensor, of its first ``rows`` rows, or rows at even distances where there are too many elements."""
        path, info = self._table.find(self.by_layer[layer][name])
        count = info.shape[0] if rows is None and info.shape else rows or 1
        width = math.prod(info.shape[1:])
        if count * width <= MAX_ELEMENTS:
            flat = read_elements(path, info.dtype, info.offset, count * width)
            return flat.reshape(count, *info.shape[1:]) if info.shape else flat
        kept = torch.linspace(0, count - 1, max(MAX_ELEMENTS // width, 1), dtype=torch.float64).long().tolist()
        row_bytes = width * DTYPE_BITS[info.dtype] // 8
        sampled = [read_elements(path, info.dtype, info.offset + row * row_bytes, width) for row in kept]
        return torch.stack(sampled).reshape(len(kept), *info.shape[1:])

    def bias_name(self, layer: int, role: str) -> str | None:
        """Return the name below the layer of the bias that belongs to a role's tensor, None where there is none."""
        full = self.matrices[layer, role].tensor_name.removesuffix(".weight") + ".bias"
        return next((below for below, stored in self.by_layer.get(layer, {}).items() if stored == full), None)

    def bias(self, layer: int, role: Role) -> Tensor | None:
        """Return the part of a bias that belongs to a role: [outputs]."""
        name = self.bias_name(layer, role)
        if name is None or not self.readable(layer, name):
            return None
        part, stored = self._parts[role], self.read(layer, name)
        if not part.shares:
            return stored
        groups = self.heads.groups if part.grouped else 1
        sizes = [self.matrices[layer, sharer].shape[0] // groups for sharer in part.shares]
        start, own = sum(sizes[: part.shares.index(role)]), sizes[part.shares.index(role)]
        return stored.reshape(groups, -1)[:, start : start + own].reshape(-1)


def _as_pair(x: Tensor, y: Tensor, into: Difference) -> tuple[Floats, Floats, float]:
    """Both in fp32 after rounding to the coarser format, and that format's spacing."""
    if x.dtype != y.dtype:
        coarser = x.dtype if torch.finfo(x.dtype).eps > torch.finfo(y.dtype).eps else y.dtype
        finer = y if x.dtype == coarser else x
        if not torch.equal(finer.to(coarser).to(finer.dtype), finer):
            into.narrowed = "a" if x.dtype == coarser else "b"
        x, y = x.to(coarser), y.to(coarser)
    return x.float().numpy(), y.float().numpy(), torch.finfo(x.dtype).eps


def compare(a: Weights, b: Weights) -> Difference:
    """Read two checkpoints and return what they differ in. Linear in their size, but for orders of neurons.

    Both must have one hidden size and one head layout; which layers correspond is found by `match_layers`.
    """
    found = Difference(experts=(_has_experts(a), _has_experts(b)))
    found.layers, found.match, found.repeated = match_layers(a, b)
    probes = {found.layers[len(found.layers) * i // 4][0] for i in (1, 3)} if found.layers else set()
    expert_cosines: list[float] = []
    for i, j in found.layers:
        _compare_attention(a, b, i, j, found, probe=i in probes)
        names = a.by_layer.get(i, {}).keys() & b.by_layer.get(j, {}).keys()
        _compare_rest(a, b, i, j, sorted(names), found, probe=i in probes)
        if found.experts[0] != found.experts[1] and i in probes:
            dense, sparse = ((a, i), (b, j)) if found.experts[1] else ((b, j), (a, i))
            expert_cosines += _expert_cosines(*dense, *sparse)
    outside = a.by_layer.get(OUTSIDE, {}).keys() & b.by_layer.get(OUTSIDE, {}).keys()
    _compare_rest(a, b, OUTSIDE, OUTSIDE, sorted(outside), found, probe=False)
    if expert_cosines:
        found.expert_cosine = float(np.median(expert_cosines))
    return found


def _has_experts(weights: Weights) -> bool:
    return any("experts." in name for names in weights.by_layer.values() for name in names)


def _compare_attention(a: Weights, b: Weights, i: int, j: int, found: Difference, *, probe: bool) -> None:
    sides: tuple[dict[str, Floats], dict[str, Floats]] = ({}, {})
    eps, biased = 0.0, set()
    for role in ROLES:
        x, y, eps = _as_pair(
            a.checkpoint.read(a.matrices[i, role]), b.checkpoint.read(b.matrices[j, role]), found
        )
        biases = (a.bias(i, role), b.bias(j, role)) if role != "o" else (None, None)
        if biases[0] is not None and biases[1] is not None:
            p, q, _ = _as_pair(biases[0], biases[1], found)
            x, y = np.column_stack([x, p]), np.column_stack([y, q])
            biased.add(role)
        sides[0][role], sides[1][role] = x, y
    fixed, gauges = undo_attention(*sides, a.heads)
    for gauge in gauges:
        found.gauges[gauge] = found.gauges.get(gauge, 0) + 1
    for role in ROLES:
        x, y = fixed[role], sides[1][role]
        if role in biased:
            found.deltas.append(delta(x[:, -1], y[:, -1], i, f"{role}.bias", "vector", eps, gauged=bool(gauges)))
            x, y = x[:, :-1], y[:, :-1]
        found.deltas.append(delta(x, y, i, role, "matrix", eps, gauged=bool(gauges), probe=probe))


def _compare_rest(
    a: Weights, b: Weights, i: int, j: int, names: list[str], found: Difference, *, probe: bool
) -> None:
    taken = {a.bias_name(i, role) for role in ("q", "k", "v")} if i != OUTSIDE else set()
    groups: dict[str, list[str]] = {}
    for name in names:
        if name not in taken and a.readable(i, name) and b.readable(j, name):
            groups.setdefault(".".join(name.split(".")[:-2]) if i != OUTSIDE else name, []).append(name)
    for group in groups.values():
        _compare_group(a, b, i, j, group, found, probe=probe)


def _compare_group(
    a: Weights, b: Weights, i: int, j: int, names: list[str], found: Difference, *, probe: bool
) -> None:
    sides: tuple[dict[str, Floats], dict[str, Floats]] = ({}, {})
    eps, turned = 0.0, i != OUTSIDE and a.matrices[i, "o"].inputs_first
    for name in names:
        shapes = a.info(i, name).shape, b.info(j, name).shape
        rows = None
        if shapes[0] != shapes[1]:
            if i != OUTSIDE or not (len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][1] == shapes[1][1]):
                found.num_unpaired += 1
                continue
            rows = min(shapes[0][0], shapes[1][0])
        x, y, eps = _as_pair(a.read(i, name, rows), b.read(j, name, rows), found)
        sides[0][name], sides[1][name] = (_as_matrix(side, turned) for side in (x, y))
    gauges: set[Gauge] = set()
    fixed = sides[0]
    if i != OUTSIDE:
        fixed, gauges = undo_neurons(*sides, a.checkpoint.hidden_size)
    for gauge in gauges:
        found.gauges[gauge] = found.gauges.get(gauge, 0) + 1
    for name, x in fixed.items():
        y = sides[1][name]
        kind: Kind = "vector" if min(x.shape) == 1 or x.ndim < 2 else "embedding" if i == OUTSIDE else "matrix"
        found.deltas.append(delta(x, y, i, name, kind, eps, gauged=bool(gauges), probe=probe))
        if kind == "embedding" and len(x) >= MIN_VOCABULARY and found.deltas[-1].dd:
            found.embeddings.append((x, y))


def _as_matrix(x: Floats, turned: bool) -> Floats:
    """Rows are output channels: experts one below the other, Conv1D turned, which stores [inputs, outputs]."""
    if x.ndim == 2 and turned:
        return np.ascontiguousarray(x.T)
    return x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x


def delta(x: Floats, y: Floats, layer: int, name: str, kind: Kind, eps: float, *, gauged: bool = False,
          probe: bool = False) -> Delta:  # fmt: skip
    """Return the statistics of two tensors of one shape; with ``probe``, singular values of a block of the difference."""
    common = {"layer": layer, "name": name, "kind": kind, "num_elements": x.size, "eps": eps, "gauged": gauged}
    if np.array_equal(x, y):
        size = _dot(x, x)
        return Delta(**common, aa=size, bb=size)
    zeros = tuple(1 - np.count_nonzero(side) / side.size for side in (x, y))
    grid, half_step = (False, False), (0.0, 0.0)
    if kind == "matrix":
        grid = tuple(_on_grid(side, eps) for side in (x, y))
        half_step = tuple(
            _within_half_step(side, other, eps) if on else 0.0 for side, other, on in ((x, y, grid[0]), (y, x, grid[1]))
        )
    kurtosis_growth = _kurtosis(y) - _kurtosis(x) if kind == "matrix" else 0.0
    if max(zeros) > 0:
        both = (x != 0) & (y != 0)
        x, y = x * both, y * both
    d = y - x
    dd = _dot(d, d)
    squares = d * d
    support = max((1 - max(zeros)) * d.size, 1)
    fourth = _dot(squares, squares)
    return Delta(
        **common,
        aa=_dot(x, x),
        bb=_dot(y, y),
        dd=dd,
        ad=_dot(x, d),
        d_kurtosis=fourth * support / dd**2 - 3 if dd else 0.0,
        kurtosis_growth=kurtosis_growth,
        zeros=zeros,
        on_grid=grid,
        within_half_step=half_step,
        spectrum=_spectrum(d, math.sqrt(_dot(x, x) / x.size), eps) if probe and kind == "matrix" and dd else None,
    )


def _dot(x: Floats, y: Floats) -> float:
    return float(np.dot(x.reshape(-1), y.reshape(-1)))


def _kurtosis(x: Floats) -> float:
    squares = x * x
    return _dot(squares, squares) * x.size / max(float(squares.sum()), 1e-30) ** 2


def _sample(count: int, limit: int) -> slice:
    return slice(None, None, max(1, -(-count // limit)))


def _on_grid(x_RC: Floats, eps: float) -> bool:
    """Whether the rows are whole multiples of their maximum / 127, as far as the format can tell.

    Multiples small enough for the format's spacing to be under a twentieth of a step are asked (all in fp32, up to 12
    in bf16), zeros not, which any pruned matrix has.
    """
    rows_RC = x_RC[_sample(len(x_RC), GRID_ROWS)]
    step_R1 = abs(rows_RC).max(1, keepdims=True) / 127
    with np.errstate(divide="ignore", invalid="ignore"):
        level_RC = abs(rows_RC) / step_R1
    asked = (level_RC > 0.5) & (level_RC < 0.05 / eps) & (level_RC < 126.5)
    if np.count_nonzero(asked) < GRID_ROWS:
        return False
    levels = level_RC[asked]
    off = abs(levels - np.rint(levels))
    return bool(np.mean(off <= levels * eps + 2e-3) > 0.99)


def _within_half_step(grid_RC: Floats, x_RC: Floats, eps: float) -> float:
    """Share of elements that are no farther from those on the grid than rounding to it takes them."""
    step_R1 = abs(grid_RC).max(1, keepdims=True) / 127
    slack = 0.5 + 1e-3 + 127 * eps
    return float(np.mean(abs(grid_RC - x_RC) <= slack * step_R1))


def _spectrum(d_RC: Floats, rms: float, eps: float) -> tuple[float, float, float]:
    """Rank, largest singular value and rounding share of a difference, from at most `BLOCK` of its rows and columns.

    A block of a matrix of rank r has rank r or less, and one of white noise is white. Singular values count towards the rank
    above 1e-4 of the largest and above what rounding of weights of size ``rms`` makes: eps rms / sqrt(12) per element.
    """
    block = d_RC[_sample(len(d_RC), BLOCK), _sample(d_RC.shape[1], BLOCK)]
    values = np.linalg.svd(block, compute_uv=False)
    edge = math.sqrt(block.shape[0]) + math.sqrt(block.shape[1])
    size = math.sqrt(max(float(np.mean(block * block)), 1e-60))
    rounding = eps * rms / math.sqrt(12)
    rank = int(np.count_nonzero(values > max(1e-4 * float(values[0]), 1.5 * rounding * edge)))
    return rank / values.size, float(values[0]) / (size * edge), (rounding / size) ** 2


def match_layers(a: Weights, b: Weights) -> tuple[list[tuple[int, int]], float, float]:
    """Return corresponding layers in order, their mean cosine, and how many of the rest repeat a layer of the shallower.

    Models of one depth correspond layer by layer. Otherwise the matching with increasing layers of both that has the
    largest sum of cosines, each the larger of those of v and o in a block of at most `BLOCK` rows and columns (rotations and
    factors of queries and keys leave these alone): layers x layers products, and as many steps.
    """
    depths = a.checkpoint.num_layers, b.checkpoint.num_layers
    if depths[0] == depths[1]:
        return [(i, i) for i in range(depths[0])], 1.0, 0.0
    cosine_LL = np.maximum(*(_signatures(a, role) @ _signatures(b, role).T for role in ("v", "o")))
    flip = depths[0] > depths[1]
    cosine_SD = cosine_LL.T if flip else cosine_LL
    shallow, deep = cosine_SD.shape
    best = np.full((shallow + 1, deep + 1), -np.inf)
    best[0] = 0
    for i in range(1, shallow + 1):
        for j in range(i, deep + 1):
            best[i, j] = max(best[i, j - 1], best[i - 1, j - 1] + cosine_SD[i - 1, j - 1])
    pairs, j = [], deep
    for i in range(shallow, 0, -1):
        while j > i and best[i, j] == best[i, j - 1]:
            j -= 1
        pairs.append((i - 1, j - 1))
        j -= 1
    matched = [cosine_SD[pair] for pair in pairs]
    rest = [layer for layer in range(deep) if layer not in {pair[1] for pair in pairs}]
    repeated = float(np.mean(cosine_SD[:, rest].max(0) > 0.5))
    layers = [(d, s) if flip else (s, d) for s, d in reversed(pairs)]
    return layers, float(np.mean(matched)), repeated


def _signatures(weights: Weights, role: str) -> Floats:
    """A block of each layer's matrix as a row of norm 1."""
    rows = []
    for layer in range(weights.checkpoint.num_layers):
        x_RC = weights.checkpoint.read(weights.matrices[layer, role])
        block = x_RC[_sample(x_RC.shape[0], BLOCK), _sample(x_RC.shape[1], BLOCK)].float().numpy().reshape(-1)
        rows.append(block / max(float(np.linalg.norm(block)), 1e-30))
    return np.stack(rows)


def _expert_cosines(dense: Weights, i: int, sparse: Weights, j: int) -> Iterator[float]:
    """For each feed-forward matrix of a dense layer, the largest cosine with a matrix of that shape among the experts."""
    candidates = [
        block for name in sparse.by_layer.get(j, {}) if sparse.readable(j, name) for block in _blocks(sparse.read(j, name))
    ]
    for name in dense.by_layer.get(i, {}).keys() - sparse.by_layer.get(j, {}).keys():
        if not dense.readable(i, name) or len(dense.info(i, name).shape) != 2:
            continue
        x = dense.read(i, name).float()
        cosines = [float(torch.nn.functional.cosine_similarity(x.reshape(-1), y.reshape(-1), dim=0))
                   for y in candidates if y.shape == x.shape]  # fmt: skip
        yield max(map(abs, cosines), default=0.0)


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """What a tensor of experts may hold of one dense matrix: itself, its first expert, halves and transposes of these."""
    if x.ndim == 2:
        yield x.float()
    elif x.ndim == 3:
        first = x[0].float()
        for block in (first, *first.chunk(2, 0), *first.chunk(2, 1)):
            yield block
            yield block.T


def shapes_of(weights: Weights) -> Mapping[str, tuple[int, int]]:
    """Return the shapes of the first layer's projections by role."""
    return {role: weights.matrices[0, role].shape for role in ROLES}

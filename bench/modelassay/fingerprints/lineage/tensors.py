"""Every tensor of a checkpoint by its place in the model, and which layers of two checkpoints correspond.

Of a matrix of more than `WHOLE_ELEMENTS` elements rows at even distances are compared, the first and the last among them, the same in
any two of one shape (`sampled_rows`); all of it where these do not decide (`differences`). No tensor outside attention of more
than `MAX_ELEMENTS` is read whole.
"""

# S = layers of the shallower model, D = of the deeper, L = of either, R = rows and C = columns of a matrix

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modelassay.fingerprints.lineage.symmetries import Floats, Heads
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.architectures import ROLES, Role
from modelassay.models.checkpoints.factors import is_plain
from modelassay.models.checkpoints.layers import bias_name
from modelassay.models.checkpoints.opened import open_form
from modelassay.models.checkpoints.safetensors import TensorInfo, read_elements, read_rows
from modelassay.models.checkpoints.tensors import Matrix
from modelassay.models.hub import Files

MAX_ELEMENTS = 1 << 26
"""Of one tensor; 256 MB in fp32, which holds any matrix of a layer of 30 billion parameters' models whole."""
WHOLE_ELEMENTS = 1 << 21
"""Of a matrix; of larger ones rows stand for all. Matrices of models up to some 0.3 billion parameters are compared whole."""
SAMPLED_ELEMENTS = 1 << 19
"""About so many are compared of a larger matrix: its size of change is then known to a few thousandths of itself."""
MIN_ROWS = 256
"""Rows of a larger matrix, at least."""
BLOCK = 256
"""Rows and columns that stand for a matrix where all would cost too much: of layers to match, of a difference's spectrum."""
OUTSIDE = -1
"""Layer of what stands outside the stack."""
WITHOUT = -2
"""Layer of what stands in layers without attention, which nothing compares."""


def step_over(count: int, limit: int = BLOCK) -> int:
    """Return the distance at which no more than ``limit`` rows or columns stand for all.

    >>> step_over(64), step_over(257)
    (1, 2)
    """
    return max(1, -(-count // limit))


def sampled_rows(shape: Sequence[int], elements: int | None = None) -> list[int] | None:
    """Return the rows that stand for a matrix, of about ``elements`` elements (`SAMPLED_ELEMENTS`); None where it is compared whole.

    >>> len(sampled_rows((5632, 2048))), sampled_rows((1024, 2048))
    (256, None)
    """
    if len(shape) != 2 or math.prod(shape) <= WHOLE_ELEMENTS:
        return None
    count = max(MIN_ROWS, (SAMPLED_ELEMENTS if elements is None else elements) // shape[1])
    return None if count >= shape[0] else torch.linspace(0, shape[0] - 1, count, dtype=torch.float64).long().tolist()


def files_of(checkpoint: Checkpoint) -> Files:
    """Return the files of a checkpoint, of a repository those of the commit that was opened."""
    reference = str(checkpoint.reference)
    if checkpoint.revision is not None:
        reference = f"{reference.partition('@')[0]}@{checkpoint.revision}"
    return open_form(reference)


class Tensors:
    """Every tensor of a checkpoint by layer and name below it, attention by role."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Sort the names; only headers are read."""
        self.checkpoint = checkpoint
        self.heads = Heads(
            groups=checkpoint.num_kv_heads,
            per_group=checkpoint.num_heads // checkpoint.num_kv_heads,
            size=checkpoint.head_dim,
        )
        self._table = checkpoint.tensors
        self.matrices: dict[tuple[int, str], Matrix] = {(m.layer, m.role): m for m in checkpoint.matrices}
        self.by_layer: dict[int, dict[str, str]] = {}
        names = {m.tensor_name for m in checkpoint.matrices}
        stacks = re.compile(rf"({'|'.join(map(re.escape, checkpoint.prefixes))})\d+\.")
        places = {layer.path: at for at, layer in reversed(list(enumerate(checkpoint.layers)))}
        outer = _outer(checkpoint.prefixes[0])
        for name in self._table.names():
            if name in names:
                continue
            match = stacks.match(name)
            if match is None:
                self.by_layer.setdefault(OUTSIDE, {})[name.removeprefix(outer)] = name
            else:
                self.by_layer.setdefault(places.get(match[0], WITHOUT), {})[name[match.end() :]] = name

    def has_heads(self, layer: int) -> bool:
        """Return whether the projections of a layer fall into the heads that config.json counts; of some models a few layers do not."""
        rows = {"q": self.heads.count, "k": self.heads.groups, "v": self.heads.groups}
        return all(self.matrices[layer, role].shape[0] == count * self.heads.size for role, count in rows.items())

    def info(self, layer: int, name: str) -> TensorInfo:
        """Return dtype and shape of a tensor."""
        return self._table.find(self.by_layer[layer][name])[1]

    def readable(self, layer: int, name: str) -> bool:
        """Return whether the tensor's stored numbers are its weights, which nothing multiplies."""
        info = self.info(layer, name)
        return is_plain(self._table, self.by_layer[layer][name], info) and math.prod(info.shape) > 0

    def read(self, layer: int, name: str, rows: int | None = None) -> Tensor:
        """Return a tensor, of its first ``rows`` rows, or rows at even distances where there are too many elements."""
        path, info = self._table.find(self.by_layer[layer][name])
        count = info.shape[0] if rows is None and info.shape else rows or 1
        width = math.prod(info.shape[1:])
        if count * width <= MAX_ELEMENTS:
            flat = read_elements(path, info.dtype, info.offset, count * width)
            return flat.reshape(count, *info.shape[1:]) if info.shape else flat
        sample = torch.linspace(0, count - 1, max(MAX_ELEMENTS // width, 1), dtype=torch.float64).long().tolist()
        return read_rows(path, info, sample).reshape(len(sample), *info.shape[1:])

    def place(self, layer: int, name: str) -> tuple[Path, TensorInfo]:
        """Return where a tensor is stored."""
        return self._table.find(self.by_layer[layer][name])

    def read_some(self, layer: int, name: str, rows: Sequence[int]) -> Tensor:
        """Return these rows of a matrix, and no other is read."""
        return read_rows(*self.place(layer, name), rows)

    def read_rows(self, layer: int, name: str, rows: Sequence[int]) -> Tensor:
        """Return some rows of a matrix in that order, or of too many those at even distances."""
        path, info = self._table.find(self.by_layer[layer][name])
        width = info.shape[1]
        if math.prod(info.shape) <= MAX_ELEMENTS:
            return self.read(layer, name)[torch.tensor(rows)]
        few = rows[:: step_over(len(rows), max(MAX_ELEMENTS // width, 1))]
        return read_rows(path, info, few)

    def bias_name(self, layer: int, role: str) -> str | None:
        """Return the name below the layer of the bias that belongs to a role's tensor, None where there is none."""
        full = bias_name(self.matrices[layer, role])
        return next((below for below, stored in self.by_layer.get(layer, {}).items() if stored == full), None)

    def bias(self, layer: int, role: Role) -> Tensor | None:
        """Return the part of a bias that belongs to a role: [outputs]."""
        name = self.bias_name(layer, role)
        if name is None or not self.readable(layer, name):
            return None
        matrix, stored = self.matrices[layer, role], self.read(layer, name)
        start, own = matrix.block()[0], matrix.shape[0] // matrix.turns
        return stored.reshape(matrix.turns, -1)[:, start : start + own].reshape(-1)


def _outer(prefix: str) -> str:
    """Return what stands before a stack's container, so that a model saved without its head has the same names below it.

    >>> _outer("model.layers."), _outer("bert.encoder.layer."), _outer("transformer.h."), _outer("layers.")
    ('model.', 'bert.', 'transformer.', '')
    """
    parts = prefix.split(".")[:-2]
    if parts and parts[-1] in {"encoder", "decoder"} or (parts and prefix.endswith("transformer.layer.")):
        parts.pop()
    return "".join(f"{part}." for part in parts)


def match_layers(a: Tensors, b: Tensors) -> tuple[list[tuple[int, int]], float, float]:
    """Return corresponding layers in order, their mean cosine, and how many of the rest repeat a layer of the shallower.

    Models of one depth correspond layer by layer. Otherwise the matching with increasing layers of both that has the
    largest sum of cosines, each the largest of those of v, of o and of q^T q off its diagonal, in a block of at most `BLOCK`
    rows and columns. What is done to queries and keys leaves the first two alone, the order of heads the third. A repetition
    is told by v and o alone: Gram matrices of different layers have something in common. Costs layers x layers products.
    """
    depths = a.checkpoint.num_layers, b.checkpoint.num_layers
    if depths[0] == depths[1]:
        return [(i, i) for i in range(depths[0])], 1.0, 0.0
    cosine_RLL = np.stack([_signatures(a, role) @ _signatures(b, role).T for role in signing_roles(a.checkpoint)])
    flip = depths[0] > depths[1]
    cosine_RSD = cosine_RLL.transpose(0, 2, 1) if flip else cosine_RLL
    pairs = _increasing(cosine_RSD.max(0))
    matched = [cosine_RSD[:, s, d].max() for s, d in pairs]
    rest = [layer for layer in range(max(depths)) if layer not in {pair[1] for pair in pairs}]
    repeated = float(np.mean(cosine_RSD[:2, :, rest].max((0, 1)) > 0.5))
    return [(d, s) if flip else (s, d) for s, d in pairs], float(np.mean(matched)), repeated


def _increasing(cosine_SD: Floats) -> list[tuple[int, int]]:
    """The matching of every row with a column, both increasing, that has the largest sum.

    >>> _increasing(np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]], dtype=np.float32))
    [(0, 0), (1, 2)]
    """
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
    return pairs[::-1]


def signing_roles(checkpoint: Checkpoint) -> tuple[Role, ...]:
    """Return the roles by which layers are told: of whole projections v, o and q, else the last ones of attention's factors."""
    return ("v", "o", "q") if set(ROLES) <= set(checkpoint.roles) else ("kv-a", "o", checkpoint.roles[0])


def _signatures(weights: Tensors, role: Role) -> Floats:
    """A block of each layer's matrix, of q of its Gram matrix, as a row of norm 1."""
    rows = []
    for layer in range(weights.checkpoint.num_layers):
        x_RC = weights.checkpoint.read(weights.matrices[layer, role])
        block = x_RC[:: 1 if role == "q" else step_over(x_RC.shape[0]), :: step_over(x_RC.shape[1])].float().numpy()
        if role == "q":
            block = block.T @ block
            np.fill_diagonal(block, 0)
        rows.append(block.reshape(-1) / max(float(np.linalg.norm(block)), 1e-30))
    return np.stack(rows)

"""Every tensor of a checkpoint by its place in the model, and which layers of two checkpoints correspond.

A tensor of more than `MAX_ELEMENTS` elements outside attention, embeddings of large vocabularies mostly, is represented by
rows at even distances, the last one included, the same in any two of one shape.
"""

# S = layers of the shallower model, D = of the deeper, L = of either, R = rows and C = columns of a matrix

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from modelassay.fingerprints.lineage.symmetries import Floats, Heads
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.architectures import Role, find_architecture
from modelassay.models.checkpoints.factors import is_plain
from modelassay.models.checkpoints.safetensors import TensorInfo, read_elements, read_rows
from modelassay.models.checkpoints.tensors import Matrix, TensorTable
from modelassay.models.hub import Files, open_files

MAX_ELEMENTS = 1 << 26
"""Of one tensor; 256 MB in fp32, which holds any matrix of a layer of 30 billion parameters' models whole."""
BLOCK = 256
"""Rows and columns that stand for a matrix where all would cost too much: of layers to match, of a difference's spectrum."""
OUTSIDE = -1
"""Layer of what stands outside the stack."""


def step_over(count: int, limit: int = BLOCK) -> int:
    """Return the distance at which no more than ``limit`` rows or columns stand for all.

    >>> step_over(64), step_over(257)
    (1, 2)
    """
    return max(1, -(-count // limit))


def files_of(checkpoint: Checkpoint) -> Files:
    """Return the files of a checkpoint, of a repository those of the commit that was opened."""
    reference = str(checkpoint.reference)
    if checkpoint.revision is not None:
        reference = f"{reference.partition('@')[0]}@{checkpoint.revision}"
    return open_files(reference)


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
        self._table = TensorTable(files_of(checkpoint))
        self.matrices: dict[tuple[int, str], Matrix] = {(m.layer, m.role): m for m in checkpoint.matrices}
        self.by_layer: dict[int, dict[str, str]] = {}
        names = {m.tensor_name for m in checkpoint.matrices}
        architecture = find_architecture(checkpoint.architecture)
        assert architecture is not None
        self._parts = architecture.parts
        stack = re.compile(re.escape(architecture.layer.partition("{layer}")[0]) + r"(\d+)\.")
        first = stack.search(checkpoint.matrices[0].tensor_name)
        prefix = "" if first is None else first.string[: first.start()]
        for name in self._table.names():
            if name in names:
                continue
            below = name.removeprefix(prefix)
            match = stack.match(below) if name.startswith(prefix) else None
            layer, rest = (int(match[1]), below[match.end() :]) if match else (OUTSIDE, below)
            self.by_layer.setdefault(layer, {})[rest] = name

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
    cosine_RLL = np.stack([_signatures(a, role) @ _signatures(b, role).T for role in ("v", "o", "q")])
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

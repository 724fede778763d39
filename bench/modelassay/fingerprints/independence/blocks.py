"""Blocks of consecutive rows of a few matrices, at places that only the sizes tell: what a sampled comparison reads of a model."""

# n = rows of a block, C = columns as stored, D = hidden dimensions

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from modelassay.fingerprints.independence.matrices import Floats
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.layers import layer_spans, network_matrices, norm_weights, read_span
from modelassay.models.checkpoints.prepare import prepare_spans
from modelassay.models.checkpoints.safetensors import DTYPE_BITS
from modelassay.models.checkpoints.tensors import Matrix

if TYPE_CHECKING:
    from modelassay_kernels import FileSpan

Axis = Literal["neurons", "dimensions", "heads"]
Role = Literal["gate", "up", "q", "o"]

NUM_LAYERS = 4
"""Layers of which blocks are read, at even distances, the first and the last among them: those that a pruned or a grown copy keeps."""

ROLES: tuple[Role, ...] = ("gate", "up", "q", "o")


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Consecutive rows of one matrix as stored, read."""

    rows_nC: Floats
    begin: int
    """Number of the first."""
    of: int
    """Rows of the matrix."""
    row_axis: Axis
    column_axis: Axis


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stored:
    """Where a matrix lies."""

    span: FileSpan
    """Rows and columns as stored."""
    row_axis: Axis
    column_axis: Axis

    def block(self, begin: int, count: int) -> FileSpan:
        """Return where ``count`` rows from ``begin`` on lie, without their scales."""
        offset = self.span.offset + begin * self.span.row_stride * DTYPE_BITS[self.span.dtype] // 8
        return self.span._replace(offset=offset, num_rows=count, scale=None, block=None)


_AXES: Mapping[str, tuple[Axis, Axis]] = {
    "gate": ("neurons", "dimensions"), "up": ("neurons", "dimensions"), "q": ("heads", "dimensions"), "o": ("dimensions", "heads"),
}  # fmt: skip
"""What the outputs and the inputs of a matrix are."""


class SampledModel:
    """What can be read in blocks of one checkpoint; nothing is read before it is asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read nothing."""
        self.checkpoint = checkpoint
        self.width, self.num_layers = checkpoint.hidden_size, checkpoint.num_layers

    @property
    def layers(self) -> list[int]:
        """The layers that are sampled, in order; as many in every model, where it has so many."""
        return [round(at) for at in np.linspace(0, self.num_layers - 1, NUM_LAYERS)]

    @cached_property
    def _networks(self) -> list[dict[str, list[Matrix]]]:
        return network_matrices(self.checkpoint)

    @cached_property
    def _others(self) -> list[dict[str, list[FileSpan]]]:
        return layer_spans(self.checkpoint)

    def extents(self, layer: int) -> dict[Role, tuple[int, int]]:
        """Return rows and columns, as stored, of each matrix of a layer that can be sampled."""
        return {role: (m.span.num_rows, m.span.num_cols) for role, m in self._matrices(layer).items()}

    def column_axis(self, layer: int, role: Role) -> Axis:
        """Return what the columns of a matrix stand for, as it is stored."""
        return self._matrices(layer)[role].column_axis

    def _matrices(self, layer: int) -> dict[Role, _Stored]:
        matrices: dict[Role, _Stored] = {}
        firsts = [group[0] for group in self._networks[layer].values() if group]  # of a layer's experts the first
        for matrix in (*firsts, *self.checkpoint.matrices_in(layer)):
            extents = matrix.shape[::-1] if matrix.inputs_first else matrix.shape
            role = next((name for name in ROLES if name == matrix.role), None)
            if role is not None and (matrix.span.num_rows, matrix.span.num_cols) == extents:  # no roles that take turns
                rows, columns = _AXES[role][::-1] if matrix.inputs_first else _AXES[role]
                matrices[role] = _Stored(span=matrix.span, row_axis=rows, column_axis=columns)
        return matrices

    def spans(self, places: Mapping[tuple[int, Role], tuple[int, int]]) -> Iterator[FileSpan]:
        """Yield what `read` reads: the blocks, and the norms before the networks."""
        for (layer, role), (begin, count) in places.items():
            yield self._matrices(layer)[role].block(begin, count)
        for layer in dict.fromkeys(layer for layer, _ in places):
            yield from self._others[layer].get("norm-2", [])[:1]

    def read(
        self, places: Mapping[tuple[int, Role], tuple[int, int]], *, after_norm: bool = True
    ) -> dict[tuple[int, Role], Block]:
        """Read the rows ``(begin, count)`` of some matrices, as float32; ``after_norm`` gate and up as their inputs meet them.

        Raises:
            CheckpointError: they cannot be read.
            HostError: the Hub cannot be reached, or the cache cannot be written.
        """
        prepare_spans(self.spans(places))
        return {place: self._read(*place, *rows, after_norm=after_norm) for place, rows in places.items()}

    def _read(self, layer: int, role: Role, begin: int, count: int, *, after_norm: bool) -> Block:
        stored = self._matrices(layer)[role]
        rows = read_span(stored.block(begin, count)).float().numpy()
        if stored.span.scale is not None:
            scale_rc = stored.span.scale.float().numpy()
            per_row, per_column = stored.span.num_rows // scale_rc.shape[0], stored.span.num_cols // scale_rc.shape[1]
            scale = scale_rc[np.arange(begin, begin + count) // per_row]
            rows = rows * np.repeat(scale, per_column, axis=1)
        norm = self._others[layer].get("norm-2", [])
        if after_norm and role in ("gate", "up") and norm and norm[0].num_cols == self.width:
            norm_D = norm_weights(self.checkpoint, norm[0]).reshape(-1).float().numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                rows = rows * (norm_D if stored.row_axis == "neurons" else norm_D[begin : begin + count, None])
        return Block(rows_nC=np.ascontiguousarray(rows, dtype=np.float32), begin=begin, of=stored.span.num_rows,
                     row_axis=stored.row_axis, column_axis=stored.column_axis)  # fmt: skip


def places_of(
    a: SampledModel, b: SampledModel, count: int, *, most: int, seed: int
) -> list[dict[tuple[int, Role], tuple[int, int]]]:
    """Return of both models where ``count`` rows are read of each matrix that has one shape in both: the same rows.

    Only sizes and ``seed`` decide where a block begins, so that it says nothing of the weights; a block of more rows, up to
    ``most``, begins at the same place. Rows that stand for hidden dimensions are the same in all layers.
    """
    places: list[dict[tuple[int, Role], tuple[int, int]]] = [{}, {}]
    for number, layers in enumerate(zip(a.layers, b.layers, strict=True)):
        if any(layer in (used for used, _ in side) for layer, side in zip(layers, places, strict=True)):
            continue  # of models of few layers
        extents = [model.extents(layer) for model, layer in zip((a, b), layers, strict=True)]
        for role in ROLES:
            if role not in extents[0] or extents[0][role] != extents[1].get(role):
                continue
            rows = extents[0][role][0]
            axis = a._matrices(layers[0])[role].row_axis
            begin = block_begin(rows, most, [seed, _STREAMS[axis], 0 if axis == "dimensions" else number])
            for side, layer in enumerate(layers):
                places[side][layer, role] = begin, min(count, rows - begin)
    return places


_STREAMS: Mapping[Axis, int] = {"neurons": 0, "dimensions": 1, "heads": 2}


def block_begin(rows: int, most: int, seed: Sequence[int]) -> int:
    """Return where a block of up to ``most`` of ``rows`` rows begins: anywhere, equally likely.

    >>> block_begin(100, 128, [0])
    0
    """
    return int(np.random.default_rng(seed).integers(max(rows - most, 0) + 1))

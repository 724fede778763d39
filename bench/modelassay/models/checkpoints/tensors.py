"""A checkpoint's tensors by name, and each matrix cut out of its file as a span."""

# R = rows and C = columns as stored

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import printable
from modelassay.models.checkpoints.adapters import Merged
from modelassay.models.checkpoints.architectures import language_config
from modelassay.models.checkpoints.factors import quantization_of, read_scale, refuse_stored
from modelassay.models.checkpoints.forms import stored_in
from modelassay.models.checkpoints.gguf_tensors import GgufTensors
from modelassay.models.checkpoints.packed import Unpacked
from modelassay.models.checkpoints.pickled import Pickles
from modelassay.models.checkpoints.projections import Part
from modelassay.models.checkpoints.safetensors import (
    DTYPE_BITS,
    TORCH_DTYPES,
    TensorInfo,
    read_elements,
    read_rows,
)
from modelassay.models.checkpoints.shards import Shards, Source, absent
from modelassay.models.checkpoints.stacks import plain_names
from modelassay.models.gate import one_line, read_json
from modelassay.models.hub import Files
from modelassay.models.places import CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    from modelassay_kernels import FileSpan


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """One projection of one layer, and where it lies."""

    role: str
    """Of attention a `Role`; else ``gate``, ``up`` or ``down``."""
    layer: int
    """Counts from 0 over the layers that have attention."""
    tensor_name: str
    """Tensor the block is cut from; roles that were fused name the same one."""
    span: FileSpan
    """The block as stored. An fp8 scale is float32 whose extents divide the block's rows and columns evenly."""
    shape: tuple[int, int]
    """(outputs, inputs), as `torch.nn.Linear` holds it; a span of roles that take turns has a row for each turn instead."""
    inputs_first: bool = False
    """The span holds the transpose."""
    shares: tuple[tuple[str, int], ...] = ()
    """Roles fused in the tensor and their outputs, in storing order; empty where the role has it alone."""
    turns: int = 1
    """How often these take turns."""

    def block(self) -> tuple[int, int]:
        """Return where the role begins among the outputs of one turn, and the outputs of a turn that all sharers have."""
        names = [role for role, _ in self.shares]
        if self.role not in names:
            return 0, self.shape[0]
        outputs = [rows // self.turns for _, rows in self.shares]
        return sum(outputs[: names.index(self.role)]), sum(outputs)


class Named:
    """The tensors of a form without what wraps their names (`plain_names`)."""

    def __init__(self, source: Source) -> None:
        """Sort the names."""
        self._source = source
        self.notes: tuple[str, ...] = source.notes
        self._stored, self.removed = plain_names(source.names())

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._stored.keys()

    def open_files(self, names: Iterable[str]) -> None:
        """Open the files that hold some tensors."""
        self._source.open_files(self._stored[name] for name in names)

    def files_read(self) -> list[str]:
        """Return the names of the files that were opened so far."""
        return self._source.files_read()

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return where a tensor can be read."""
        return self._source.find(self._stored[name])


class TensorTable:
    """Every tensor of a checkpoint by name, in whichever form it is stored; a file is got and opened when first asked for one of its tensors."""

    def __init__(self, files: Files, *, as_stored: bool = False) -> None:
        """Find out which file holds what; ``as_stored`` leaves what a quantiser packed as it is, where no adapter changes it."""
        named = Named(source_of(files))
        self.removed = named.removed
        is_packed = as_stored and files.adapter is None
        self._source: Source = named if is_packed else Unpacked(named, _quantization(files))
        if files.adapter is not None:
            self._source = Merged(self._source, files.adapter)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results should know of the form, a sentence each."""
        return self._source.notes

    def names(self) -> Collection[str]:
        """Return the names of all tensors, without what `plain_names` removes (`removed`)."""
        return self._source.names()

    def open_files(self, names: Iterable[str]) -> None:
        """Open the files that hold some tensors, of a repository several at once: each costs an answer's time."""
        self._source.open_files(names)

    def files_read(self) -> list[str]:
        """Return the names of the files whose headers were read so far, sorted."""
        return self._source.files_read()

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return the file in which a tensor can be read, and where in it."""
        return self._source.find(name)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._source.names())

    def companions(self, stem: str) -> list[str]:
        """Return the other tensors whose names go on from a module's: its bias, and what a quantiser left beside its weight."""
        names, companions = self._sorted, []
        for at in range(bisect_left(names, stem), len(names)):
            if not names[at].startswith(stem):
                break
            if names[at][len(stem) : len(stem) + 1] in {".", "_"} and names[at] != f"{stem}.weight":
                companions.append(names[at])
        return companions


def _quantization(files: Files) -> Mapping[str, Any]:
    """Return what config.json says of a quantiser; empty without one."""
    path = files.get(CONFIG)
    if path is None:
        return {}
    config = read_json(path)
    return quantization_of(config, language_config(config)[1], str(path))


def source_of(files: Files) -> Source:
    """Return the tensors as a checkpoint's files name them.

    Raises:
        CheckpointError: there are no weights, or in no form that is read.
    """
    stored = stored_in(files, files.open_weights)
    if stored.form == "gguf":
        return GgufTensors(files, stored)
    return Pickles(files, stored) if stored.form == "pickle" else Shards(files, stored)


def fetch_weights(files: Files) -> None:
    """Get every file that holds weights onto this machine.

    Raises:
        CheckpointError: there is none, or one that the index names is not there.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    stored = stored_in(files, files.get)
    for name in stored.files:
        if files.get(name, required=True) is None:
            raise absent(files, name, stored.index)


class PlainShapes(Mapping[str, tuple[int, ...]]):
    """The shapes of a checkpoint's tensors, each looked up in its file's header when asked for."""

    def __init__(self, tensors: TensorTable, quantization: Mapping[str, Any]) -> None:
        """``quantization`` is config.json's section on it, or empty."""
        self._tensors, self._quantization = tensors, quantization

    def __getitem__(self, name: str) -> tuple[int, ...]:
        """Return a shape.

        Raises:
            CheckpointError: the tensor's dtype is not a plain number, so that its shape is not the weights'.
        """
        path, info = self._tensors.find(name)
        if info.dtype not in TORCH_DTYPES:
            raise refuse_stored(f"{one_line(path)}: {printable(name)}", info, self._quantization)
        return info.shape

    def __contains__(self, name: object) -> bool:
        return name in self._tensors.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.names())

    def __len__(self) -> int:
        return len(self._tensors.names())


def cut(
    tensors: TensorTable, part: Part, role: str, layer: int, quantization: Mapping[str, Any], *, at: int = 0
) -> Matrix:
    """Return the block of a tensor that is ``role``; ``quantization`` is config.json's section on it, or empty.

    ``at`` is the element at which the matrix begins in a tensor that holds several, one behind the other.

    Raises:
        CheckpointError: a dtype that is not a plain number, or what `read_scale` raises of its scales.
    """
    from modelassay_kernels import FileSpan

    path, info = tensors.find(part.tensor)
    where = f"{one_line(path)}: {printable(part.tensor)}"
    if info.dtype not in TORCH_DTYPES:
        raise refuse_stored(where, info, quantization)
    matrix = Matrix(role=role, layer=layer, tensor_name=part.tensor, span=FileSpan(str(path), 0, info.dtype, 1, 1, 1), shape=part.shape,
                    inputs_first=part.inputs_first, shares=part.shares, turns=part.turns)  # fmt: skip
    (rows, columns), turns, (start, total) = part.shape, part.turns, matrix.block()
    is_part = turns > 1 or part.inputs_first
    scale = read_scale(tensors, part.tensor, info, quantization, cut=is_part)
    if scale is not None and part.shares and scale.shape[0] > 1:
        scale = scale.repeat_interleave(info.shape[0] // scale.shape[0], 0)[start : start + rows]
    if part.inputs_first:
        first, block = start, (columns, rows, total)
        if turns > 1:  # a neuron's gate and up side by side
            first, block = start, (columns * turns, rows // turns, total)
    elif turns > 1:
        first, block = start * columns, (turns, rows // turns * columns, total * columns)
    else:
        first, block = start * columns, (rows, columns, columns)
    offset = info.offset + (at + first) * DTYPE_BITS[info.dtype] // 8
    one_factor = scale is None or scale.numel() == 1
    scaled = None if scale is None or one_factor else (rows // scale.shape[0], columns // scale.shape[1])
    return replace(matrix, span=FileSpan(str(path), offset, info.dtype, *block, scale, scaled))


def read_matrix(matrix: Matrix) -> Tensor:
    """Return a copy of a matrix as `torch.nn.Linear` holds it: [outputs, inputs] in the stored dtype.

    fp8 with scales comes back multiplied out in float32. Costs a read from the block's first byte to its last: up to three
    times the block where q, k and v take turns in the rows of one tensor.
    """
    span = matrix.span
    count = (span.num_rows - 1) * span.row_stride + span.num_cols
    flat = read_elements(Path(span.path), span.dtype, span.offset, count)
    block_RC = flat.as_strided((span.num_rows, span.num_cols), (span.row_stride, 1))
    if span.scale is not None:
        rows, columns = span.num_rows // span.scale.shape[0], span.num_cols // span.scale.shape[1]
        block_RC = block_RC.float() * span.scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    if matrix.inputs_first:
        return block_RC.reshape(matrix.shape[::-1]).T.contiguous()
    return block_RC.contiguous().view(matrix.shape)


def read_outputs(matrix: Matrix, step: int) -> Tensor:
    """Return every ``step``-th output of a matrix as `read_matrix` does, the first among them: [outputs / step, inputs].

    Where outputs lie as rows of their own only these are read.
    """
    span = matrix.span
    is_plain = (
        span.scale is None and (span.num_rows, span.num_cols) == matrix.shape and span.row_stride == span.num_cols
    )
    if matrix.inputs_first or not is_plain:
        return read_matrix(matrix)[::step]
    size = DTYPE_BITS[span.dtype] // 8
    info = TensorInfo(span.dtype, (span.num_rows, span.row_stride), span.offset, span.num_rows * span.row_stride * size)
    return read_rows(Path(span.path), info, range(0, span.num_rows, step))

"""A checkpoint's tensors by name, and each matrix cut out of its file as a span."""

# R = rows and C = columns as stored

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.factors import read_scale, refuse_stored
from modelassay.models.checkpoints.recognise import Part
from modelassay.models.checkpoints.safetensors import (
    DTYPE_BITS,
    TORCH_DTYPES,
    TensorInfo,
    read_elements,
    read_header,
    read_shard_index,
)
from modelassay.models.checkpoints.stacks import plain_names
from modelassay.models.gate import one_line
from modelassay.models.hub import Files

if TYPE_CHECKING:
    from torch import Tensor

    from modelassay_kernels import FileSpan

_SHARD_INDEX = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"


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


class TensorTable:
    """Every tensor of a checkpoint by name; a file is got and its header read when first asked for one of its tensors."""

    def __init__(self, files: Files) -> None:
        """Find out which file holds what: the single file if there is one, as transformers prefers it, else the index."""
        self._files = files
        self._headers: dict[str, dict[str, TensorInfo]] = {}
        self._paths: dict[str, Path] = {}
        holder = _weights_at(files, files.open_weights)
        file_of = holder if isinstance(holder, dict) else dict.fromkeys(self._header(holder), holder)
        self._stored, self.removed = plain_names(file_of.keys())
        self._file_of = {name: file_of[stored] for name, stored in self._stored.items()}

    def names(self) -> Collection[str]:
        """Return the names of all tensors, without what `plain_names` removes (`removed`)."""
        return self._file_of.keys()

    def open_files(self, names: Iterable[str]) -> None:
        """Open the files that hold some tensors, of a repository several at once: each costs an answer's time."""
        self._files.open_all(self._file_of[name] for name in names)

    def files_read(self) -> list[str]:
        """Return the names of the files whose headers were read so far, sorted."""
        return sorted(self._headers)

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return the file that holds a tensor, and where in it."""
        file = self._file_of[name]
        header, stored = self._header(file), self._stored[name]
        path = self._paths[file]
        if stored not in header:
            raise CheckpointError(
                f"{one_line(path)}: no tensor {printable(stored)}, though {_SHARD_INDEX} says so; fetch or save the checkpoint again"
            )
        return path, header[stored]

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._file_of)

    def companions(self, stem: str) -> list[str]:
        """Return the other tensors whose names go on from a module's: its bias, and what a quantiser left beside its weight."""
        names, companions = self._sorted, []
        for at in range(bisect_left(names, stem), len(names)):
            if not names[at].startswith(stem):
                break
            if names[at][len(stem) : len(stem) + 1] in {".", "_"} and names[at] != f"{stem}.weight":
                companions.append(names[at])
        return companions

    def _header(self, file: str) -> dict[str, TensorInfo]:
        if file not in self._headers:
            path = self._files.open_weights(file, required=True)
            if path is None:
                raise CheckpointError(f"{one_line(self._files.reference)}: {_why_absent(self._files, file)}")
            self._headers[file], self._paths[file] = read_header(path), path
        return self._headers[file]


def _weights_at(files: Files, open_file: Callable[[str], Path | None]) -> str | dict[str, str]:
    """Return the one file of all tensors, or which file holds each; ``open_file`` tells whether there is a file."""
    if open_file(_SINGLE_FILE) is not None:
        return _SINGLE_FILE
    if (index := files.get(_SHARD_INDEX)) is not None:
        return read_shard_index(index)
    match files.weight_files():
        case [only]:
            return only
        case []:
            got, remedy = "none", "convert other formats with `save_pretrained(..., safe_serialization=True)`"
        case several:
            got, remedy = printable(", ".join(several[:4])), f"keep one, or add {_SHARD_INDEX}"
    raise CheckpointError(
        f"{one_line(files.reference)}: expected {_SINGLE_FILE}, {_SHARD_INDEX} or one other safetensors file, got {got}; {remedy}"
    )


def fetch_weights(files: Files) -> None:
    """Get every file that holds weights onto this machine.

    Raises:
        CheckpointError: there is none, or one that the index names is not there.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    holder = _weights_at(files, files.get)
    for name in sorted(set(holder.values())) if isinstance(holder, dict) else [holder]:
        _require(files, name)


def _require(files: Files, name: str) -> Path:
    path = files.get(name, required=True)
    if path is None:
        raise CheckpointError(f"{one_line(files.reference)}: {_why_absent(files, name)}")
    return path


def _why_absent(files: Files, name: str) -> str:
    """Return why there is no file ``name``, and what to do."""
    path = files.folder / name
    if path.is_symlink():
        return (
            f"{name} is a link to {printable(str(path.readlink()))}, which is not there; restore that file, or the link"
        )
    if path.exists():
        return f"{name} is not a file; take it away, or put the weights there"
    if files.get(_SHARD_INDEX) is not None:
        return f"{_SHARD_INDEX} names {name}, which is not there; fetch the missing shard"
    return f"{name} is not there; fetch or save the checkpoint again"


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

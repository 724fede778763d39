"""Finding a checkpoint's attention matrices by name, and cutting each out of its file as a span."""

# R = rows and C = columns as stored

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.architectures import ROLES, Architecture, Part, Role, Sizes
from modelassay.models.checkpoints.factors import PACKED, read_scale, refuse_packed, refuse_stored
from modelassay.models.checkpoints.safetensors import (
    DTYPE_BITS,
    TORCH_DTYPES,
    TensorInfo,
    read_elements,
    read_header,
    read_shard_index,
)
from modelassay.models.gate import one_line, shown
from modelassay.models.hub import Files

if TYPE_CHECKING:
    from torch import Tensor

    from modelassay_kernels import FileSpan

_SHARD_INDEX = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_ATTENTION_LIKE = re.compile(r"att(en|n)|query|qkv|[._][qkvo]_?proj", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """One attention projection of one layer, and where it lies."""

    role: Role
    layer: int
    """Counts from 0."""
    tensor_name: str
    """Tensor the block is cut from; roles that were fused name the same one."""
    span: FileSpan
    """The block as stored. An fp8 scale is float32 whose extents divide the block's rows and columns evenly."""
    shape: tuple[int, int]
    """(outputs, inputs), as `torch.nn.Linear` holds it; a grouped span's rows are whole key-value groups instead."""
    inputs_first: bool = False
    """The span holds the transpose."""
    grouped: bool = False
    """Fused with other roles, which take turns once per key-value head."""


class TensorTable:
    """Every tensor of a checkpoint by name; a file is got and its header read when first asked for one of its tensors."""

    def __init__(self, files: Files) -> None:
        """Find out which file holds what: the single file if there is one, as transformers prefers it, else the index."""
        self._files = files
        self._headers: dict[str, dict[str, TensorInfo]] = {}
        self._paths: dict[str, Path] = {}
        holder = _weights_at(files, files.open_weights)
        self._file_of = holder if isinstance(holder, dict) else dict.fromkeys(self._header(holder), holder)

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
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
        header = self._header(file)
        path = self._paths[file]
        if name not in header:
            raise CheckpointError(
                f"{one_line(path)}: no tensor {printable(name)}, though {_SHARD_INDEX} says so; fetch or save the checkpoint again"
            )
        return path, header[name]

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


def known_names(files: Files) -> Collection[str]:
    """Return the tensor names that can be had without fetching weights; none where that takes the weights."""
    if files.local:
        return TensorTable(files).names()
    index = files.get(_SHARD_INDEX)
    return () if index is None else read_shard_index(index).keys()


def attention_like(names: Iterable[str], limit: int = 4) -> str:
    """Return the first few names that look like attention, for an error message.

    >>> attention_like(["wte.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"])
    'h.0.attn.c_attn.weight'
    """
    similar = [name for name in names if _ATTENTION_LIKE.search(name) and "norm" not in name]
    return (
        ", ".join(shown(name)[1:-1] for name in similar[:limit])
        + (f" and {len(similar) - limit} more" if len(similar) > limit else "")
        or "none"
    )


def locate(where: str, architecture: Architecture, sizes: Sizes, names: Collection[str]) -> dict[tuple[int, Role], str]:
    """Return the tensor that holds each layer's roles.

    Raises:
        CheckpointError: no prefix of the architecture fits, a quantiser packed a matrix, layers or roles are missing, or
            there are more layers than config.json counts.
    """

    def stem(layer: int, role: Role, prefix: str) -> str:
        return prefix + architecture.layer.format(layer=layer) + architecture.parts[role].module

    suffixes = (".weight", *PACKED)
    prefix = next(
        (p for p in architecture.prefixes if any(stem(0, "q", p) + suffix in names for suffix in suffixes)), None
    )
    if prefix is None:
        expected = " or ".join(stem(0, "q", p) + ".weight" for p in architecture.prefixes[:3])
        raise CheckpointError(
            f"{one_line(where)}: expected {expected}, got {attention_like(names)}; is config.json that of these weights?"
        )
    if sizes.num_layers > len(names):
        raise CheckpointError(
            f"{one_line(where)}: config.json counts {sizes.num_layers:,} layers, the weights are {len(names):,} tensors; "
            f"correct config.json, or fetch the checkpoint again"
        )
    stems = {(layer, role): stem(layer, role, prefix) for layer in range(sizes.num_layers) for role in ROLES}
    for name in dict.fromkeys(stems.values()):
        refuse_packed(where, name, names)
    missing = list(dict.fromkeys(name + ".weight" for name in stems.values() if name + ".weight" not in names))
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise CheckpointError(
            f"{one_line(where)}: {len(missing)} attention tensors of {sizes.num_layers} layers are missing: {', '.join(missing[:6])}{more}; "
            f"fetch the checkpoint again, or correct config.json"
        )
    beyond = stem(sizes.num_layers + sizes.num_extra_layers, "q", prefix) + ".weight"
    if beyond in names:
        raise CheckpointError(
            f"{one_line(where)}: config.json counts {sizes.num_layers} layers, but there is {beyond}; correct config.json"
        )
    return {key: name + ".weight" for key, name in stems.items()}


def cut(
    tensors: TensorTable, name: str, role: Role, layer: int, part: Part, sizes: Sizes, quantization: Mapping[str, Any]
) -> Matrix:
    """Return the block of tensor ``name`` that is ``role``; ``quantization`` is config.json's section on it, or empty.

    Raises:
        CheckpointError: a dtype that is not a plain number, a shape other than config.json implies, or what `read_scale`
            raises of its scales.
    """
    from modelassay_kernels import FileSpan

    path, info = tensors.find(name)
    where = f"{one_line(path)}: {printable(name)}"
    rows, columns = sizes.shape(role)
    sharers = part.shares or (role,)
    total = sum(sizes.shape(sharer)[0] for sharer in sharers)
    start = sum(sizes.shape(sharer)[0] for sharer in sharers[: sharers.index(role)])
    expected = (columns, total) if part.inputs_first else (total, columns)
    if info.dtype not in TORCH_DTYPES:
        raise refuse_stored(where, info, quantization)
    if info.shape != expected:
        raise CheckpointError(
            f"{where}: config.json implies a shape of {list(expected)}, got {shown(list(info.shape))}; "
            f"is config.json that of these weights?"
        )
    scale = read_scale(tensors, name, info, quantization, cut=part.grouped or part.inputs_first)
    if scale is not None and part.shares and scale.shape[0] > 1:
        scale = scale.repeat_interleave(info.shape[0] // scale.shape[0], 0)[start : start + rows]
    if part.inputs_first:
        first, block = start, (columns, rows, total)
    elif part.grouped:
        groups = sizes.num_kv_heads
        first, block = start // groups * columns, (groups, rows // groups * columns, total // groups * columns)
    else:
        first, block = start * columns, (rows, columns, columns)
    offset = info.offset + first * DTYPE_BITS[info.dtype] // 8
    one_factor = scale is None or scale.numel() == 1
    scaled = None if scale is None or one_factor else (rows // scale.shape[0], columns // scale.shape[1])
    span = FileSpan(str(path), offset, info.dtype, *block, scale, scaled)
    return Matrix(
        role=role, layer=layer, tensor_name=name, span=span, shape=(rows, columns), inputs_first=part.inputs_first,
        grouped=part.grouped,
    )  # fmt: skip


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
    return block_RC.T.contiguous() if matrix.inputs_first else block_RC.contiguous().view(matrix.shape)

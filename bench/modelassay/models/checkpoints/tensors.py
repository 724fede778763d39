"""Finding a checkpoint's attention matrices by name, and cutting each out of its file as a span."""

# R = rows and C = columns as stored, S = rows or columns of a scale

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.architectures import ROLES, Architecture, Part, Role, Sizes
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, TensorInfo, read_header, read_shard_index
from modelassay.models.hub import Files

if TYPE_CHECKING:
    from torch import Tensor

    from modelassay_kernels import FileSpan

TORCH_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The dtypes a matrix may be stored in, and torch's names for them."""

PACKED = {
    ".qweight": "GPTQ or AWQ packs several weights into one integer",
    ".weight_packed": "compressed-tensors packs several weights into one integer",
    ".weight.absmax": "bitsandbytes packs two 4-bit weights into one byte",
    ".SCB": "bitsandbytes stores 8-bit integers with a scale per row",
    ".weight_blocks": "MXFP4 packs two 4-bit weights into one byte",
}
"""Tensors that give away a module whose weights are not stored as numbers, and what was done to it."""

SCALES = (".weight_scale_inv", ".weight_scale")
"""Names of what stored fp8 values are multiplied by, despite the first one's `inv`."""

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
    """The block as stored. An fp8 scale is float32 [S, S] whose extents divide the block's rows and columns evenly."""
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
        place = _weights_at(files)
        self._file_of = place if isinstance(place, dict) else dict.fromkeys(self._header(place), place)

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._file_of.keys()

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return the file that holds a tensor, and where in it."""
        file = self._file_of[name]
        path = self._files.folder / file
        header = self._header(file)
        if name not in header:
            raise CheckpointError(
                f"{path}: no tensor {name}, though {_SHARD_INDEX} says so; fetch or save the checkpoint again"
            )
        return path, header[name]

    def _header(self, file: str) -> dict[str, TensorInfo]:
        if file not in self._headers:
            self._headers[file] = read_header(_require(self._files, file))
        return self._headers[file]


def _weights_at(files: Files) -> str | dict[str, str]:
    """Return the one file of all tensors, or which file holds each."""
    if files.get(_SINGLE_FILE) is not None:
        return _SINGLE_FILE
    if (index := files.get(_SHARD_INDEX)) is not None:
        return read_shard_index(index)
    match files.weight_files():
        case [only]:
            return only
        case []:
            got, remedy = "none", "convert other formats with `save_pretrained(..., safe_serialization=True)`"
        case several:
            got, remedy = ", ".join(several[:4]), f"keep one, or add {_SHARD_INDEX}"
    raise CheckpointError(
        f"{files.reference}: expected {_SINGLE_FILE}, {_SHARD_INDEX} or one other safetensors file, got {got}; {remedy}"
    )


def fetch_weights(files: Files) -> None:
    """Get every file that holds weights onto this machine.

    Raises:
        CheckpointError: there is none, or one that the index names is not there.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    place = _weights_at(files)
    for name in sorted(set(place.values())) if isinstance(place, dict) else [place]:
        _require(files, name)


def _require(files: Files, name: str) -> Path:
    path = files.get(name, required=True)
    if path is None:
        raise CheckpointError(f"{files.reference}: {_why_absent(files, name)}")
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
    return ", ".join(similar[:limit]) + (f" and {len(similar) - limit} more" if len(similar) > limit else "") or "none"


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
            f"{where}: expected {expected}, got {attention_like(names)}; is config.json that of these weights?"
        )
    stems = {(layer, role): stem(layer, role, prefix) for layer in range(sizes.num_layers) for role in ROLES}
    for name in stems.values():
        for suffix, reason in PACKED.items():
            if name + suffix in names:
                raise CheckpointError(
                    f"{where}: {name}{suffix}: {reason}, so that the stored numbers are no weights; "
                    f"open the model it was quantised from, or save a dequantised copy"
                )
    missing = list(dict.fromkeys(name + ".weight" for name in stems.values() if name + ".weight" not in names))
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise CheckpointError(
            f"{where}: {len(missing)} attention tensors of {sizes.num_layers} layers are missing: {', '.join(missing[:6])}{more}; "
            f"fetch the checkpoint again, or correct config.json"
        )
    beyond = stem(sizes.num_layers + sizes.num_extra_layers, "q", prefix) + ".weight"
    if beyond in names:
        raise CheckpointError(
            f"{where}: config.json counts {sizes.num_layers} layers, but there is {beyond}; correct config.json"
        )
    return {key: name + ".weight" for key, name in stems.items()}


def cut(
    tensors: TensorTable, name: str, role: Role, layer: int, part: Part, sizes: Sizes, quantization: Mapping[str, Any]
) -> Matrix:
    """Return the block of tensor ``name`` that is ``role``; ``quantization`` is config.json's section on it, or empty.

    Raises:
        CheckpointError: a dtype that is not a plain number, a shape other than config.json implies, or fp8 scales that
            are missing or fit no known pattern.
    """
    from modelassay_kernels import FileSpan

    path, info = tensors.find(name)
    where = f"{path}: {name}"
    rows, columns = sizes.shape(role)
    sharers = part.shares or (role,)
    total = sum(sizes.shape(sharer)[0] for sharer in sharers)
    start = sum(sizes.shape(sharer)[0] for sharer in sharers[: sharers.index(role)])
    expected = (columns, total) if part.inputs_first else (total, columns)
    if info.shape != expected:
        raise CheckpointError(
            f"{where}: config.json implies a shape of {list(expected)}, got {list(info.shape)}; "
            f"is config.json that of these weights?"
        )
    if info.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"{where}: {info.dtype} holds no plain weights, expected one of {', '.join(TORCH_DTYPES)}; "
            f"open the model it was quantised from"
        )
    scale = _scale(tensors, where, name, info, part, slice(start, start + rows), quantization)
    if part.inputs_first:
        first, block = start, (columns, rows, total)
    elif part.grouped:
        groups = sizes.num_kv_heads
        first, block = start // groups * columns, (groups, rows // groups * columns, total // groups * columns)
    else:
        first, block = start * columns, (rows, columns, columns)
    offset = info.offset + first * DTYPE_BITS[info.dtype] // 8
    span = FileSpan(str(path), offset, info.dtype, *block, scale)
    return Matrix(
        role=role, layer=layer, tensor_name=name, span=span, shape=(rows, columns), inputs_first=part.inputs_first,
        grouped=part.grouped,
    )  # fmt: skip


def _scale(
    tensors: TensorTable,
    where: str,
    name: str,
    info: TensorInfo,
    part: Part,
    rows: slice,
    quantization: Mapping[str, Any],
) -> Tensor | None:
    """Return what a block's fp8 values are multiplied by, None where nothing is said to scale them."""
    if not info.dtype.startswith("F8_"):
        return None
    stem = name.removesuffix(".weight")
    scale_name = next((stem + suffix for suffix in SCALES if stem + suffix in tensors.names()), None)
    if scale_name is None:
        if quantization:
            raise CheckpointError(
                f"{where}: fp8 without {' or '.join(SCALES)}, got {quantization}; open the model it was quantised from"
            )
        return None
    path, scale_info = tensors.find(scale_name)
    if scale_info.dtype not in {"F32", "BF16", "F16"} or part.grouped or part.inputs_first:
        raise CheckpointError(
            f"{path}: {scale_name}: {scale_info.dtype} scales of a {part} cannot be read; open the model it was quantised from"
        )
    stored = read_elements(path, scale_info.dtype, scale_info.offset, math.prod(scale_info.shape)).float()
    scale_SS = stored.reshape(scale_info.shape if len(scale_info.shape) == 2 else (-1, 1))
    for axis, extent in enumerate(info.shape):
        scale_SS = _even_out(scale_SS, axis, extent, _block_size(quantization), f"{path}: {scale_name}")
    if part.shares:
        scale_SS = scale_SS.repeat_interleave(info.shape[0] // scale_SS.shape[0], 0)[rows]
    return scale_SS.contiguous()


def _even_out(scale_SS: Tensor, axis: int, extent: int, block: tuple[int, int] | None, where: str) -> Tensor:
    """Return scales whose number along ``axis`` divides ``extent``, repeating them where the last block is not full."""
    count = scale_SS.shape[axis]
    if count in {1, extent}:
        return scale_SS
    if block is None or count != -(-extent // block[axis]):
        raise CheckpointError(
            f"{where}: {count} scales for {extent} {'columns' if axis else 'rows'} in blocks of {block}; "
            f"expected one per tensor, row, or block of config.json's weight_block_size"
        )
    if count * block[axis] == extent:
        return scale_SS
    return scale_SS.repeat_interleave(block[axis], axis).narrow(axis, 0, extent)


def _block_size(quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return rows and columns of a scale's block: `weight_block_size`, or compressed-tensors' `block_structure`.

    >>> _block_size({"quant_method": "fp8", "weight_block_size": [128, 128]})
    (128, 128)
    """
    groups = quantization.get("config_groups")
    nested = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, dict) else []
    for value in (quantization.get("weight_block_size"), *(weights.get("block_structure") for weights in nested)):
        match value:
            case [int(rows), int(columns)] if rows > 0 and columns > 0:
                return rows, columns
    return None


def read_elements(path: Path, dtype: str, offset: int, count: int) -> Tensor:
    """Return ``count`` elements of a file from byte ``offset`` on, as a copy in the stored dtype: [count]."""
    import torch

    size_bytes = count * DTYPE_BITS[dtype] // 8
    with path.open("rb") as file:
        file.seek(offset)
        data = bytearray(file.read(size_bytes))
    if len(data) < size_bytes:
        raise CheckpointError(f"{path}: ends before byte {offset + size_bytes}; was it changed since it was opened?")
    return torch.frombuffer(data, dtype=getattr(torch, TORCH_DTYPES[dtype]))


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

"""What a safetensors file says it holds, and where: headers and shard indices, read without touching a weight.

The header is parsed here because `safetensors.safe_open` does not tell byte offsets, which reading in place needs.
Everything a header claims is checked here, once; whoever holds a `TensorInfo` may trust it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from modelassay.errors import CheckpointError
from modelassay.models.gate import DAMAGED, HEADER, INDEX, load_json, one_line, read_json, refuse_page, shown
from modelassay.models.parts import ensure, prepare
from modelassay.models.ranges import GAP_BYTES

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = HEADER.size_bytes
"""Longest header that is read; the largest published ones take a few."""

MAX_RANK = 64
"""Extents of a shape, each below 2**63."""

DTYPE_BITS = {
    **dict.fromkeys(["F64", "I64", "U64", "C64"], 64),
    **dict.fromkeys(["F32", "I32", "U32"], 32),
    **dict.fromkeys(["F16", "BF16", "I16", "U16"], 16),
    **dict.fromkeys(["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "I8", "U8", "BOOL"], 8),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    "F4": 4,
}
"""Bits per element of every dtype code of the format."""


TORCH_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The dtypes a matrix may be stored in, and torch's names for them."""


class TensorInfo(NamedTuple):
    """Where one tensor lies in its file."""

    dtype: str
    """safetensors code, a key of `DTYPE_BITS`."""
    shape: tuple[int, ...]
    offset: int
    """Byte of the first element, counted from the start of the file."""
    size_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a safetensors file by name, in file order, from its header alone.

    Costs one read of the header, about 100 bytes per tensor.

    Raises:
        CheckpointError: the file cannot be opened, or its header is too long or too short, is not JSON, names a tensor
            twice, knows a dtype we do not, or describes data that overlap, leave gaps, or end elsewhere than the file.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{one_line(path)}: {_absent(path)}; check the path, or fetch the checkpoint again")
        file_size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if length > min(MAX_HEADER_BYTES, file_size - 8):
                _refuse_other(path, prefix + file.read(256))
            if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, file_size - 8):
                raise CheckpointError(
                    f"{one_line(path)}: the header claims {length} bytes in a file of {file_size} (at most {MAX_HEADER_BYTES} are read); {DAMAGED}"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{one_line(path)}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from None
    return _parse_header(path, text, data_start=8 + length, file_size=file_size)


def _refuse_other(path: Path, data: bytes) -> None:
    """Refuse what is called a safetensors file and is another."""
    refuse_page(path, data)
    for start, what, ending in ((b"GGUF", "a GGUF file", ".gguf"), (b"PK\3\4", "what torch.save wrote", ".bin")):
        if data.startswith(start):
            raise CheckpointError(
                f"{one_line(path)}: is {what}, no safetensors file; give it a name that ends in {ending}"
            )


def _absent(path: Path) -> str:
    return "not a regular file" if path.exists() else "No such file or directory"


def _parse_header(path: Path, text: bytes, *, data_start: int, file_size: int) -> dict[str, TensorInfo]:
    header = load_json(path, text, f"the header; {DAMAGED}", HEADER, unique=True)
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(path, name, entry, data_start) for name, entry in header.items()}
    expected = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size_bytes)):
        if info.offset != expected:
            raise CheckpointError(
                f"{one_line(path)}: {shown(name)[1:-1]}: data start at byte {info.offset}, expected {expected}; {DAMAGED}"
            )
        expected += info.size_bytes
    if expected != file_size:
        raise CheckpointError(f"{one_line(path)}: tensors end at byte {expected} in a file of {file_size}; {DAMAGED}")
    return tensors


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if len(
            shape
        ) <= MAX_RANK and all(_is_size(number) for number in (*shape, begin, end)):
            pass
        case _:
            raise CheckpointError(
                f"{one_line(path)}: {shown(name)[1:-1]}: expected dtype, shape and data_offsets, got {shown(entry)}; {DAMAGED}"
            )
    if dtype not in DTYPE_BITS:
        raise CheckpointError(
            f"{one_line(path)}: {shown(name)[1:-1]}: unknown dtype {shown(dtype)}; known are {', '.join(DTYPE_BITS)}; save the model in one of them"
        )
    if 8 * (end - begin) != math.prod(shape) * DTYPE_BITS[dtype]:
        raise CheckpointError(
            f"{one_line(path)}: {shown(name)[1:-1]}: {dtype} {shown(shape)} does not fill the {end - begin} bytes {begin}..{end}; {DAMAGED}"
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, end - begin)


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


def read_shard_index(path: Path) -> dict[str, str]:
    """Return which file of its folder holds each tensor, from a `model.safetensors.index.json`.

    Raises:
        CheckpointError: not JSON, no weight_map, or a file name that leads out of the folder.
    """
    index = read_json(path, INDEX, unique=True)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{one_line(path)}: weight_map: expected tensor names and their files, got {shown(weight_map)}; {DAMAGED}"
        )
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_inside(file):
            raise CheckpointError(
                f"{one_line(path)}: weight_map: {shown(name)[1:-1]}: {shown(file)} is not a file of this folder; "
                f"do not use this checkpoint"
            )
    return weight_map


def _is_inside(file: str) -> bool:
    """Return whether a name is that of a file of the folder itself or below it, and one that can be written in a line."""
    parts = PurePosixPath(file)
    is_name = file.isprintable() and 0 < len(file.encode()) < 256 and bool(parts.parts)
    return is_name and "\\" not in file and ".." not in parts.parts and not parts.root


def read_bytes(path: Path, offset: int, count: int) -> bytearray:
    """Return ``count`` bytes of a file from ``offset`` on; what is not there is fetched or made."""
    ensure(path, offset, count)
    data = bytearray(count)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        _read_into(file, memoryview(data), path, offset)
    return data


def read_elements(path: Path, dtype: str, offset: int, count: int) -> Tensor:
    """Return ``count`` elements of a file from byte ``offset`` on, as a copy in the stored dtype: [count]; of the Hub they are fetched."""
    import torch

    size = count * DTYPE_BITS[dtype] // 8
    ensure(path, offset, size)
    elements = torch.empty(count, dtype=getattr(torch, TORCH_DTYPES[dtype]))
    if size:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            _read_into(file, elements.view(torch.uint8).numpy().data, path, offset)
    return elements


def read_rows(path: Path, info: TensorInfo, rows: Sequence[int]) -> Tensor:
    """Return some rows of a tensor, the first extent's, as a copy in the stored dtype: [rows, elements of a row].

    Of the Hub the whole tensor is fetched where a request for each row would take longer.
    """
    import torch

    width = math.prod(info.shape[1:])
    row_bytes = width * DTYPE_BITS[info.dtype] // 8
    ranges = [(info.offset + row * row_bytes, info.offset + (row + 1) * row_bytes) for row in rows]
    is_dense = info.size_bytes <= len(rows) * GAP_BYTES
    prepare({str(path): [(info.offset, info.offset + info.size_bytes)] if is_dense else ranges})
    elements = torch.empty((len(ranges), width), dtype=getattr(torch, TORCH_DTYPES[info.dtype]))
    if elements.numel():
        view = elements.reshape(-1).view(torch.uint8).numpy().data
        with path.open("rb", buffering=0) as file:
            for at, begin, count in _runs(ranges):
                file.seek(begin)
                _read_into(file, view[at * row_bytes : at * row_bytes + count], path, begin)
    return elements


def _read_into(file: FileIO, view: memoryview, path: Path, offset: int) -> None:
    """Fill a view from where the file stands, byte ``offset``; one call reads at most 2 GiB."""
    at = 0
    while at < len(view):
        count = file.readinto(view[at:])
        if not count:
            raise CheckpointError(
                f"{one_line(path)}: ends before byte {offset + len(view)}; was it changed since it was opened?"
            )
        at += count


def _runs(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield runs of ranges that follow each other: the number of the first, where it begins, and how many bytes the run has.

    >>> list(_runs([(0, 4), (4, 8), (12, 16)]))
    [(0, 0, 8), (2, 12, 4)]
    """
    first = 0
    for at in range(1, len(ranges) + 1):
        if at == len(ranges) or ranges[at][0] != ranges[at - 1][1]:
            if ranges:
                yield first, ranges[first][0], ranges[at - 1][1] - ranges[first][0]
            first = at

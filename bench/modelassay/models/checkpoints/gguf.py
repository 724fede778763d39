"""What a GGUF file says it holds, and where: its header, read without touching a weight.

The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian. Everything a header claims is checked here, once.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from modelassay.errors import CheckpointError
from modelassay.models.gate import DAMAGED, one_line

TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""ggml's number of a type and its name."""

BLOCKS: Final = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22),
                 "Q5_1": (32, 24), "Q8_0": (32, 34)}  # fmt: skip
"""Weights and bytes of a block, of the types that can be made again."""

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES: Final = 1 << 20
"""Tensors, keys, or bytes of a name; the largest files hold some thousands."""
_MAX_ITEMS: Final = 1 << 24
_MAX_RANK: Final = 4


class GgufTensor(NamedTuple):
    """Where one tensor lies."""

    type: str
    """A value of `TYPES`, or ``type N`` of one that is not known."""
    shape: tuple[int, ...]
    """Slowest extent first, as torch and NumPy count; the file has it the other way round."""
    offset: int
    """Byte of the first block, counted from the start of the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gguf:
    """A file's header."""

    path: Path
    metadata: dict[str, Any]
    """Keys with one value; arrays, which hold vocabularies, are passed over."""
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> Gguf:
    """Return the header of a GGUF file. Costs a read of it, mostly the vocabulary's.

    Raises:
        CheckpointError: it is no such file, of another version or byte order, or claims what its size cannot hold.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _Reader(file, path, size)
            magic, version = header.bytes(4), header.scalar("<I")
            if magic != b"GGUF" or version not in (2, 3):
                raise CheckpointError(
                    f"{one_line(path)}: expected GGUF of version 2 or 3, got {magic!r} {version}; convert it anew"
                )
            num_tensors, num_keys = header.count(), header.count()
            metadata = header.metadata(num_keys)
            infos = {header.string(): header.tensor() for _ in range(num_tensors)}
            if len(infos) != num_tensors:
                raise CheckpointError(f"{one_line(path)}: names a tensor twice; {DAMAGED}")
            start = file.tell()
    except OSError as error:
        raise CheckpointError(
            f"{one_line(path)}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from None
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise CheckpointError(f"{one_line(path)}: general.alignment: {alignment!r}; {DAMAGED}")
    start += -start % alignment
    tensors = {name: info._replace(offset=start + info.offset) for name, info in infos.items()}
    for name, info in tensors.items():
        if info.offset + _size(info) > size:
            raise CheckpointError(
                f"{one_line(path)}: {one_line(name)}: ends behind byte {size}, where the file does; {DAMAGED}"
            )
    return Gguf(path=path, metadata=metadata, tensors=tensors)


def _size(info: GgufTensor) -> int:
    """Return the bytes of a tensor; 1 of a type whose blocks are not known here."""
    weights, size = BLOCKS.get(info.type, (1, 0))
    return -(-math.prod(info.shape) // weights) * size or 1


class _Reader:
    """Reads what a header is made of, never beyond the file."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file, self._path, self._left = file, path, size

    def bytes(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._left else b""
        if len(data) < count:
            raise CheckpointError(f"{one_line(self._path)}: the header goes on where the file ends; {DAMAGED}")
        self._left -= count
        return data

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def count(self, limit: int = _MAX_ENTRIES) -> int:
        count: int = self.scalar("<Q")
        if count > min(limit, self._left):
            raise CheckpointError(
                f"{one_line(self._path)}: the header counts {count:,} entries in a file of less; {DAMAGED}"
            )
        return count

    def string(self) -> str:
        return self.bytes(self.count(limit=_MAX_ITEMS)).decode(errors="replace")

    def metadata(self, num_keys: int) -> dict[str, Any]:
        values = {}
        for _ in range(num_keys):
            key, kind = self.string(), self.scalar("<I")
            if kind == _ARRAY:
                self._skip_array()
            else:
                values[key] = self._value(kind)
        return values

    def tensor(self) -> GgufTensor:
        rank = self.scalar("<I")
        if rank > _MAX_RANK:
            raise CheckpointError(f"{one_line(self._path)}: a tensor of {rank} dimensions; {DAMAGED}")
        shape = tuple(reversed([self.scalar("<Q") for _ in range(rank)]))
        number, offset = self.scalar("<I"), self.scalar("<Q")
        return GgufTensor(TYPES.get(number, f"type {number}"), shape, offset)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind not in _SCALARS:
            raise CheckpointError(f"{one_line(self._path)}: a value of kind {kind}; {DAMAGED}")
        return self.scalar(_SCALARS[kind])

    def _skip_array(self) -> None:
        kind, count = self.scalar("<I"), self.count(limit=_MAX_ITEMS)
        if kind in _SCALARS:
            self.bytes(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(count):
                self.bytes(self.count(limit=_MAX_ITEMS))
        else:
            raise CheckpointError(f"{one_line(self._path)}: an array of kind {kind}; {DAMAGED}")

"""What a GGUF file says it holds, and where: its header, read without touching a weight.

The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian. Everything a header claims is checked here, once, and
costs no more than `MAX_HEADER_BYTES` whatever it claims.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from modelassay.errors import CheckpointError
from modelassay.models.gate import DAMAGED, one_line, refuse_page, shown
from modelassay.models.parts import ensure

TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""ggml's number of a type and its name."""

BLOCKS: Final = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22),
                 "Q5_1": (32, 24), "Q8_0": (32, 34)}  # fmt: skip
"""Weights and bytes of a block, of the types that can be made again."""

SIZES: Final = {
    **BLOCKS, "Q8_1": (32, 40), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "Q8_K": (256, 292), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ3_XXS": (256, 98), "IQ1_S": (256, 50), "IQ4_NL": (32, 18),
    "IQ3_S": (256, 110), "IQ2_S": (256, 82), "IQ4_XS": (256, 136), "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8),
    "IQ1_M": (256, 56), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36),
}  # fmt: skip
"""Weights and bytes of a block, of every type that is known."""

MAX_HEADER_BYTES: Final = 1 << 28
"""Longest header that is read; the largest vocabularies with their merges take 16 MB."""

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES: Final = 1 << 20
"""Tensors, or keys; the largest files hold some thousands."""
_MAX_ITEMS: Final = 1 << 22
"""Of an array; vocabularies have some 300,000."""
_MAX_RANK: Final = 4
_PIECE_BYTES: Final = 1 << 20

TOKENS: Final = "tokenizer.ggml.tokens"
TOKEN_TYPES: Final = "tokenizer.ggml.token_type"


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
    """Keys with one value; of arrays, which hold vocabularies, the tokens and their types alone."""
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> Gguf:
    """Return the header of a GGUF file. Costs a read of it, mostly the vocabulary's; of a file of the Hub as much is fetched.

    Raises:
        CheckpointError: it is no such file, of another version or byte order, or claims what its size cannot hold.
    """
    try:
        size = path.stat().st_size
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read(path, _Reader(file, path, size), size)
        finally:
            os.close(file)
    except OSError as error:
        raise CheckpointError(
            f"{one_line(path)}: cannot be read: {error.strerror}; check the path and its permissions"
        ) from None


def _read(path: Path, header: _Reader, size: int) -> Gguf:
    start = header.bytes(min(size, 8))
    if start[:4] != b"GGUF":
        refuse_page(path, start + header.bytes(min(size - len(start), 248)))
    version = int.from_bytes(start[4:], "little")
    if start[:4] != b"GGUF" or version not in (2, 3):
        raise CheckpointError(
            f"{one_line(path)}: expected GGUF of version 2 or 3, got {start[:4]!r} {version}; convert it anew"
        )
    num_tensors, num_keys = header.count(), header.count()
    metadata = header.metadata(num_keys)
    infos = {header.string(): header.tensor() for _ in range(num_tensors)}
    if len(infos) != num_tensors:
        raise CheckpointError(f"{one_line(path)}: names a tensor twice; {DAMAGED}")
    begin = header.position
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise CheckpointError(f"{one_line(path)}: general.alignment: {shown(alignment)}; {DAMAGED}")
    begin += -begin % alignment
    tensors = {name: info._replace(offset=begin + info.offset) for name, info in infos.items()}
    _require_places(path, tensors, size)
    return Gguf(path=path, metadata=metadata, tensors=tensors)


def _require_places(path: Path, tensors: dict[str, GgufTensor], size: int) -> None:
    """Refuse tensors that end behind the file, lie over each other, or whose rows are no whole blocks."""
    behind, before = 0, ""
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        weights, _ = SIZES.get(info.type, (1, 0))
        if math.prod(info.shape) and info.shape[-1] % weights:
            raise CheckpointError(
                f"{one_line(path)}: {one_line(name)}: rows of {info.shape[-1]} in blocks of {weights} ({info.type}); {DAMAGED}"
            )
        end = info.offset + size_of(info)
        if end > size:
            raise CheckpointError(
                f"{one_line(path)}: {one_line(name)}: ends behind byte {size}, where the file does; {DAMAGED}"
            )
        if info.offset < behind:
            raise CheckpointError(f"{one_line(path)}: {one_line(name)}: lies over {one_line(before)}; {DAMAGED}")
        behind, before = end, name


def size_of(info: GgufTensor) -> int:
    """Return the bytes of a tensor; 1 of a type whose blocks are not known here."""
    weights, size = SIZES.get(info.type, (1, 0))
    return -(-math.prod(info.shape) // weights) * size or (1 if info.type not in SIZES else 0)


class _Reader:
    """Reads what a header is made of, never beyond the file or `MAX_HEADER_BYTES`."""

    def __init__(self, file: int, path: Path, size: int) -> None:
        self._file, self._path, self._size = file, path, size
        self._left = min(size, MAX_HEADER_BYTES)
        self._piece, self._at, self.position = b"", 0, 0

    def bytes(self, count: int) -> bytes:
        if count > self._left:
            where = (
                "goes on where the file ends"
                if self._size <= MAX_HEADER_BYTES
                else f"is longer than {MAX_HEADER_BYTES:,} bytes"
            )
            raise CheckpointError(f"{one_line(self._path)}: the header {where}; {DAMAGED}")
        if self._at + count > len(self._piece):
            self._fill(count)
        data = self._piece[self._at : self._at + count]
        if len(data) < count:
            raise CheckpointError(f"{one_line(self._path)}: the header goes on where the file ends; {DAMAGED}")
        self._at, self._left, self.position = self._at + count, self._left - count, self.position + count
        return data

    def _fill(self, count: int) -> None:
        size = min(max(count, _PIECE_BYTES), self._size - self.position)
        ensure(self._path, self.position, size)
        self._piece, self._at = os.pread(self._file, size, self.position), 0

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
        values: dict[str, Any] = {}
        for _ in range(num_keys):
            key, kind = self.string(), self.scalar("<I")
            if key in values:
                raise CheckpointError(f"{one_line(self._path)}: {shown(key)} stands twice in the header; {DAMAGED}")
            if kind != _ARRAY:
                values[key] = self._value(kind)
            elif (items := self._array(is_kept=key in (TOKENS, TOKEN_TYPES))) is not None:
                values[key] = items
        return values

    def tensor(self) -> GgufTensor:
        rank = self.scalar("<I")
        if not 0 < rank <= _MAX_RANK:
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

    def _array(self, *, is_kept: bool) -> Iterable[Any] | None:
        kind, count = self.scalar("<I"), self.count(limit=_MAX_ITEMS)
        if kind in _SCALARS:
            form = _SCALARS[kind]
            data = self.bytes(count * struct.calcsize(form))
            return struct.unpack(f"<{count}{form[1]}", data) if is_kept else None
        if kind != _STRING:
            raise CheckpointError(f"{one_line(self._path)}: an array of kind {kind}; {DAMAGED}")
        if is_kept:
            return tuple(self.string() for _ in range(count))
        for _ in range(count):
            self.bytes(self.count(limit=_MAX_ITEMS))
        return None

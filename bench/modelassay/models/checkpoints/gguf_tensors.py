"""The tensors of a GGUF file under transformers' names, dequantised by `gguf.quants` row by row, what llama.cpp's converter changed undone."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.forms import Stored
from modelassay.models.checkpoints.gguf import SIZES, Gguf, GgufTensor, read_gguf
from modelassay.models.checkpoints.llama_cpp import Converted, claims, config_of, converted, heads_of, is_norm, name_of
from modelassay.models.checkpoints.safetensors import TensorInfo
from modelassay.models.checkpoints.shards import absent
from modelassay.models.decoded import DecodedFile, Recipe
from modelassay.models.gate import DAMAGED, one_line
from modelassay.models.hub import Files
from modelassay.models.parts import ensure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PLAIN: Final = ("F32", "F16", "BF16", "F64")
MAX_EXPERTS: Final = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """One tensor of transformers' in a file."""

    file: Gguf
    info: GgufTensor
    """Of one expert where the file's tensor holds those of all."""
    heads: int | None = None
    """Into how many heads the rows fall whose halves take turns; None where they do not."""
    less_one: bool = False
    turned: bool = False


class GgufTensors:
    """Tensors of a GGUF file, or of the files into which one was split."""

    def __init__(self, files: Files, stored: Stored) -> None:
        """Read the headers."""
        self._headers = tuple(_headers(files, stored))
        metadata = self._headers[0].metadata
        self.metadata = metadata
        rules = converted(metadata, str(self._headers[0].path))
        config = config_of(metadata, rules, self.shapes)
        self._places: dict[str, _Place] = {}
        for header in self._headers:
            for name, info in header.tensors.items():
                self._add(header, name, info, rules, config)
        self._scratch = DecodedFile()
        self._infos: dict[str, tuple[Path, TensorInfo]] = {}
        self._files = stored.files
        self.notes: tuple[str, ...] = tuple(_notes(self._headers))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by llama.cpp's names."""
        return {name: info.shape for header in self._headers for name, info in header.tensors.items()}

    def config(self) -> dict[str, Any]:
        """Return what config.json would say."""
        return config_of(self.metadata, converted(self.metadata, str(self._headers[0].path)), self.shapes)

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._places.keys()

    def open_files(self, names: Iterable[str]) -> None:
        """Do nothing: the headers are read."""

    def files_read(self) -> list[str]:
        """Return the names of the files."""
        return sorted(self._files)

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return where a tensor can be read: in the file where it lies there as it is, else where it is dequantised to, in float32."""
        if name not in self._infos:
            self._infos[name] = self._find(self._places[name], name)
        return self._infos[name]

    def _add(self, header: Gguf, name: str, info: GgufTensor, rules: Converted, config: Mapping[str, Any]) -> None:
        own = name_of(rules, name)
        if own is None:
            return
        place = _Place(
            file=header, info=info, heads=heads_of(name, config) if rules.permuted else None, less_one=rules.plus_one and is_norm(name),
            turned=rules.turned and own.startswith(rules.prefix) and len(info.shape) == 2,
        )  # fmt: skip
        if "{expert}" not in own or len(info.shape) != 3:
            self._put(own.replace(".{expert}", ""), place, header)
            return
        count, rows, columns = info.shape
        if count > MAX_EXPERTS:
            raise CheckpointError(f"{one_line(header.path)}: {printable(name)}: {count:,} experts; {DAMAGED}")
        weights, size = _block(header.path, name, info)
        for expert in range(count):
            offset = info.offset + expert * rows * columns // weights * size
            one = GgufTensor(info.type, (rows, columns), offset)
            self._put(own.replace("{expert}", str(expert)), replace(place, info=one), header)

    def _put(self, name: str, place: _Place, header: Gguf) -> None:
        if name in self._places:
            raise CheckpointError(f"{one_line(header.path)}: {printable(name)}: stands twice in the file; {DAMAGED}")
        self._places[name] = place

    def _find(self, place: _Place, name: str) -> tuple[Path, TensorInfo]:
        info, path = place.info, place.file.path
        weights, size = _block(path, name, info)
        count = math.prod(info.shape)
        if info.type in _PLAIN and not (place.heads or place.less_one or place.turned):
            return path, TensorInfo(info.type, info.shape, info.offset, count * size)
        shape = info.shape[::-1] if place.turned else info.shape
        rows, columns = (info.shape[0], math.prod(info.shape[1:])) if len(info.shape) > 1 else (1, count)
        unit = _rows_of_a_unit(place, rows)
        row_bytes = columns // weights * size

        def make(first: int, last: int) -> Any:
            begin, end = first * unit, last * unit
            stored = _read_bytes(path, info.offset + begin * row_bytes, (end - begin) * row_bytes)
            return _values(stored.reshape(end - begin, row_bytes), place)

        recipe = Recipe(
            num_units=rows // unit if count else 0, unit_bytes=4 * unit * columns, make=make,
            sources=lambda first, last: [(path, (info.offset + first * unit * row_bytes, info.offset + last * unit * row_bytes))],
        )  # fmt: skip
        return self._scratch.path, TensorInfo("F32", shape, self._scratch.add(recipe), 4 * count)


def _rows_of_a_unit(place: _Place, rows: int) -> int:
    """Return how many rows are made together: one, a head's where its halves take turns, all where the matrix is transposed."""
    if place.turned:
        return max(rows, 1)
    if place.heads is not None and rows % (2 * place.heads) == 0:
        return rows // place.heads
    return 1


def _block(path: Path, name: str, info: GgufTensor) -> tuple[int, int]:
    if info.type not in SIZES or info.type in {"Q8_1", "Q8_K"}:
        raise CheckpointError(
            f"{one_line(path)}: {printable(name)}: GGUF type {info.type} is not read; open the model it was quantised from"
        )
    return SIZES[info.type]


def _read_bytes(path: Path, offset: int, count: int) -> NDArray[np.uint8]:
    import numpy as np

    ensure(path, offset, count)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(file, count, offset)
    finally:
        os.close(file)
    if len(data) < count:
        raise CheckpointError(
            f"{one_line(path)}: ends before byte {offset + count}; was it changed since it was opened?"
        )
    return np.frombuffer(data, np.uint8)


def _values(stored: NDArray[np.uint8], place: _Place) -> NDArray[np.float32]:
    """Return what some rows of blocks stand for, as the model of transformers holds them: [rows, columns], transposed where that is."""
    import numpy as np

    info = place.info
    if info.type in {"F32", "F16", "F64", "I8", "I16", "I32", "I64"}:
        code = {"F": "<f", "I": "<i"}[info.type[0]] + str(int(info.type[1:]) // 8)
        values = stored.view(code).astype(np.float32)
    else:
        from gguf import quants
        from gguf.constants import GGMLQuantizationType

        with np.errstate(
            all="ignore"
        ):  # scales that are no numbers make weights that are none, which whoever reads them says
            values = quants.dequantize(stored, GGMLQuantizationType[info.type]).astype(np.float32, copy=False)
    if place.heads is not None and len(info.shape) == 1:  # a bias
        heads = place.heads if values.size % (2 * place.heads) == 0 else 0
        values = values.reshape(heads, -1, 2).swapaxes(1, 2).reshape(values.shape) if heads else values
    elif place.heads is not None and info.shape[0] % (2 * place.heads) == 0:
        half = info.shape[0] // place.heads // 2
        values = values.reshape(-1, half, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
    if place.less_one:
        values = values - np.float32(1)
    return np.ascontiguousarray(values.T if place.turned else values)


def _headers(files: Files, stored: Stored) -> Iterator[Gguf]:
    files.open_all(stored.files if len(stored.files) > 1 else ())
    for name in stored.files:
        path = files.open_weights(name, required=True)
        if path is None:
            raise absent(files, name, stored.index)
        yield read_gguf(path)


def _notes(headers: Iterable[Gguf]) -> Iterator[str]:
    headers = list(headers)
    types = Counter(info.type for header in headers for info in header.tensors.values() if len(info.shape) > 1)
    if types:
        yield f"a GGUF file: {', '.join(f'{count} matrices in {kind}' for kind, count in types.most_common())}, read as float32"
    if (claimed := claims(headers[0].metadata)) is not None:
        yield claimed

"""Weights that a quantiser stored as integers, small floats or with scales of its own, decoded when they are read.

A format is told by the names that stand beside a module's weight and by dtypes and shapes; config.json says only what these leave open.
What is decoded is read under the weight's own name in float32, and what it was decoded of has no name any more; what nothing here
decodes keeps its names, and is refused by them (`factors`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.module import Decoded, Module
from modelassay.models.checkpoints.quantisers import FORMATS, SHAPES
from modelassay.models.checkpoints.safetensors import TensorInfo
from modelassay.models.checkpoints.shards import Source
from modelassay.models.decoded import DecodedFile, Recipe
from modelassay.models.gate import one_line
from modelassay.models.parts import prepare
from modelassay.models.ranges import Range


def _prepare_shapes(source: Source) -> None:
    """Fetch all that tells shapes at once."""
    ranges: dict[str, list[Range]] = {}
    for name in source.names():
        if name.endswith(SHAPES):
            path, info = source.find(name)
            ranges.setdefault(str(path), []).append((info.offset, info.offset + info.size_bytes))
    prepare(ranges)


_NUM_TRIED: Final = 8
"""Modules after which a format that decodes none of them is not looked for in the others: of a repository each may cost a request."""


class Unpacked:
    """The tensors of a model, those that a quantiser packed decoded."""

    def __init__(self, source: Source, quantization: Mapping[str, Any]) -> None:
        """``quantization`` is what config.json says of it, or empty. Reads headers, and the few numbers that tell shapes."""
        self._source = source
        names = source.names()
        _prepare_shapes(source)
        self._decoded: dict[str, Decoded] = {}
        counts: dict[str, int] = {}
        for suffix, what, decode in FORMATS:
            stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
            for at, stem in enumerate(stems):
                if at == _NUM_TRIED and not any(self._weight(tried, suffix) in self._decoded for tried in stems[:at]):
                    break
                if at == _NUM_TRIED:  # the headers of all the others at once
                    source.open_files(stem + suffix for stem in stems)
                weight = self._weight(stem, suffix)
                found = None if weight in self._decoded else decode(Module(source, names, stem, quantization))
                if found is not None:
                    self._decoded[weight] = found
                    counts[what] = counts.get(what, 0) + 1
        gone = {part for decoded in self._decoded.values() for part in decoded.parts}
        self._names = {**dict.fromkeys(name for name in names if name not in gone), **dict.fromkeys(self._decoded)}
        self._infos: dict[str, TensorInfo] = {}
        self._scratch = DecodedFile() if self._decoded else None
        said = [
            f"{count} matrices stored as {what} are read as the numbers they stand for"
            for what, count in counts.items()
        ]
        self.notes: tuple[str, ...] = (*source.notes, *said)

    @staticmethod
    def _weight(stem: str, suffix: str) -> str:
        return stem if suffix == "_blocks" else f"{stem}.weight"

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._names.keys()

    def open_files(self, names: Iterable[str]) -> None:
        """Open the files that hold some tensors."""
        self._source.open_files(
            part for name in names for part in (self._decoded[name].parts if name in self._decoded else (name,))
        )

    def files_read(self) -> list[str]:
        """Return the names of the files that were opened so far."""
        return self._source.files_read()

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return where a tensor can be read."""
        decoded = self._decoded.get(name)
        if decoded is None or self._scratch is None:
            return self._source.find(name)
        if name not in self._infos:
            count = math.prod(decoded.shape)
            offset = self._scratch.add(Recipe(
                num_units=decoded.units, unit_bytes=4 * count // decoded.units,
                make=lambda first, last: self._made(name, decoded, first, last),
                sources=lambda first, last: list(self._sources(decoded, first, last)),
            ))  # fmt: skip
            self._infos[name] = TensorInfo("F32", decoded.shape, offset, 4 * count)
        return self._scratch.path, self._infos[name]

    def _made(self, name: str, decoded: Decoded, first: int, last: int) -> Any:
        try:
            return decoded.make(first, last).float().contiguous().numpy()
        except (RuntimeError, IndexError, ValueError) as error:  # parts whose shapes do not go together
            raise CheckpointError(
                f"{one_line(self._source.find(decoded.parts[0])[0])}: {printable(name)}: cannot be decoded from {printable(', '.join(decoded.parts))}: "
                f"{printable(str(error))[:120]}; fetch it again, or open the model it was quantised from"
            ) from None

    def _sources(self, decoded: Decoded, first: int, last: int) -> Iterable[tuple[Path, tuple[int, int]]]:
        """Yield what is read: of the first part, that holds the weights, the units' share, all of the others."""
        for at, part in enumerate(decoded.parts):
            path, info = self._source.find(part)
            unit = info.size_bytes // decoded.units if at == 0 and info.size_bytes % decoded.units == 0 else 0
            yield (
                path,
                (
                    (info.offset + first * unit, info.offset + last * unit)
                    if unit
                    else (info.offset, info.offset + info.size_bytes)
                ),
            )

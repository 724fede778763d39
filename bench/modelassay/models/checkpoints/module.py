"""One module of a model as a quantiser left it: its tensors by suffix, what they must be, and what is said where they are not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.safetensors import TensorInfo, read_bytes
from modelassay.models.checkpoints.shards import Source
from modelassay.models.gate import one_line, shown

if TYPE_CHECKING:
    from torch import Tensor

_TORCH: Final = {
    "I8": "int8", "U8": "uint8", "BOOL": "uint8", "I32": "int32", "U32": "int32", "I64": "int64", "BF16": "bfloat16", "F16": "float16",
    "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "uint8",
}  # fmt: skip
"""How bytes are seen; exponents as bytes."""
FLOATS: Final = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """How one weight is decoded."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]
    """Tensors that it is decoded of, and those that nothing needs any more."""
    units: int
    """Rows that can be decoded alone, or 1."""
    make: Callable[[int, int], Tensor]
    """Returns float32 of the units from the first up to the second."""


class Module:
    """The tensors of one module, as a quantiser left them."""

    def __init__(self, source: Source, names: Collection[str], stem: str, quantization: Mapping[str, Any]) -> None:
        """Read nothing."""
        self._source, self._names = source, names
        self.stem, self.quantization = stem, quantization

    def has(self, *suffixes: str) -> bool:
        """Return whether it has all of some tensors."""
        return all(self.stem + suffix in self._names for suffix in suffixes)

    def info(self, suffix: str) -> TensorInfo:
        """Return where a tensor lies."""
        return self._source.find(self.stem + suffix)[1]

    def place(self, suffix: str) -> Path:
        """Return the file of a tensor."""
        return self._source.find(self.stem + suffix)[0]

    def read(self, suffix: str, first: int = 0, last: int | None = None) -> Tensor:
        """Return a tensor, or the rows from the first up to the last, as it is stored; exponents as bytes."""
        import torch

        path, info = self._source.find(self.stem + suffix)
        rows = info.shape[0] if info.shape else 1
        last = rows if last is None else last
        row_bytes = info.size_bytes // max(rows, 1)
        data = read_bytes(path, info.offset + first * row_bytes, (last - first) * row_bytes)
        shape = (last - first, *info.shape[1:]) if info.shape else ()
        return torch.frombuffer(data, dtype=getattr(torch, _TORCH[info.dtype])).reshape(shape)

    def fault(self, suffix: str, what: str) -> CheckpointError:
        """Return what is said of a tensor that is not what its format has."""
        return CheckpointError(
            f"{one_line(self.place(suffix))}: {printable(self.stem + suffix)}: {what}; fetch it again, or open the model it was quantised from"
        )

    def names(self, *suffixes: str) -> tuple[str, ...]:
        """Return the whole names of those tensors that it has."""
        return tuple(self.stem + suffix for suffix in suffixes if self.has(suffix))

    def matrix(self, suffix: str, dtypes: Collection[str]) -> tuple[int, int]:
        """Return the shape of a tensor that must be a matrix of one of some dtypes."""
        info = self.info(suffix)
        if len(info.shape) != 2 or not info.size_bytes or info.dtype not in dtypes:
            raise self.fault(
                suffix, f"expected a matrix of {' or '.join(dtypes)}, got {info.dtype} {shown(list(info.shape))}"
            )
        return info.shape[0], info.shape[1]

    def groups(self, suffix: str, rows: int, columns: int, dtypes: Collection[str] = FLOATS) -> int:
        """Return how many groups of columns share a scale: [rows, groups], or one for each row."""
        info = self.info(suffix)
        shape = info.shape if len(info.shape) == 2 else (info.shape[0] if info.shape else 0, 1)
        if shape[0] != rows or not shape[1] or columns % shape[1] or info.dtype not in dtypes:
            raise self.fault(
                suffix, f"{info.dtype} {shown(list(info.shape))} are no scales of {rows} rows and {columns} columns"
            )
        return shape[1]

"""Tensors that `torch.save` wrote: read by `torch.load(weights_only=True)`, which runs no code from the file, and mapped, not loaded."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.forms import Stored
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, TensorInfo
from modelassay.models.checkpoints.shards import absent
from modelassay.models.decoded import DecodedFile, Recipe
from modelassay.models.gate import DAMAGED, one_line, refuse_page, shown
from modelassay.models.hub import Files

if TYPE_CHECKING:
    import torch

_CODES: Final = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "complex64": "C64",
}  # fmt: skip
_WRAPPERS: Final = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which a training's checkpoint holds the model's tensors."""
_MAX_TENSORS: Final = 1 << 20


class Pickles:
    """Tensors of .bin, .pt and .pth files; a file is opened when first asked for one of its tensors, of a repository fetched whole."""

    def __init__(self, files: Files, stored: Stored) -> None:
        """Open the files only where no index tells which file holds what."""
        self.notes: tuple[str, ...] = () if stored.note is None else (stored.note,)
        self._files, self._index = files, stored.index
        self._scratch = DecodedFile()
        self._places: dict[str, dict[str, TensorInfo]] = {}
        self._file_of = stored.file_of if stored.file_of is not None else {
            name: file for file in stored.files for name in self._opened(file)
        }  # fmt: skip

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._file_of.keys()

    def open_files(self, names: Iterable[str]) -> None:
        """Do nothing: such a file is opened whole."""

    def files_read(self) -> list[str]:
        """Return the names of the files that were opened so far, sorted."""
        return sorted(self._places)

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return where a tensor can be read."""
        file = self._file_of[name]
        places = self._opened(file)
        if name not in places:
            raise CheckpointError(
                f"{one_line(self._files.folder / file)}: no tensor {printable(name)}, though {self._index} says so; fetch or save the "
                "checkpoint again"
            )
        return self._scratch.path, places[name]

    def _opened(self, file: str) -> dict[str, TensorInfo]:
        if file not in self._places:
            path = self._files.open_weights(file, required=True)
            if path is None:
                raise absent(self._files, file, self._index)
            self._places[file] = {name: self._place(path, name, tensor) for name, tensor in _load(path).items()}
        return self._places[file]

    def _place(self, path: Path, name: str, tensor: torch.Tensor) -> TensorInfo:
        code = _CODES.get(str(tensor.dtype).removeprefix("torch."))
        if code is None or tensor.layout is not _strided() or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{one_line(path)}: {printable(name)}: a tensor of {tensor.dtype} ({tensor.layout}, {tensor.device}) is not read; save the model "
                "with `save_pretrained`"
            )
        shape, size = tuple(tensor.shape), tensor.numel() * DTYPE_BITS[code] // 8
        rows = shape[0] if shape and size else 1
        return TensorInfo(code, shape, self._scratch.add(Recipe(
            num_units=rows if size else 0, unit_bytes=size // rows, make=lambda first, last: _bytes(tensor, first, last),
            sources=lambda first, last: (),
        )), size)  # fmt: skip


def _strided() -> torch.layout:
    import torch

    return torch.strided


def _bytes(tensor: torch.Tensor, first: int, last: int) -> Any:
    import torch

    rows = tensor[first:last] if tensor.ndim else tensor
    return rows.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch

    with path.open("rb") as file:
        start = file.read(256)
    refuse_page(path, start)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        raise CheckpointError(f"{one_line(path)}: is a safetensors file; give it a name that ends in .safetensors")
    try:
        try:
            data: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of before 2020, which cannot be mapped
            data = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise CheckpointError(f"{one_line(path)}: takes more memory than there is; {DAMAGED}") from None
    except Exception as error:  # whatever a hostile or damaged pickle makes torch raise
        first = next(iter(str(error).strip().splitlines()), "")
        raise CheckpointError(
            f"{one_line(path)}: torch.load(weights_only=True) cannot read it: {type(error).__name__}: {printable(first[:200])}; it is damaged, or "
            "holds more than tensors"
        ) from None
    tensors = dict(_tensors(data))
    if not tensors or len(tensors) > _MAX_TENSORS:
        raise CheckpointError(
            f"{one_line(path)}: expected tensors by name, got {shown(data)[:80]}; name the model's file of weights"
        )
    return tensors


def _tensors(data: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors by name, of the model where a training's state holds it under a key."""
    import torch

    for key in _WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
            break
    if isinstance(data, Mapping):
        for name, value in data.items():
            if isinstance(name, str) and isinstance(value, torch.Tensor) and math.prod(value.shape) >= 0:
                yield name, value

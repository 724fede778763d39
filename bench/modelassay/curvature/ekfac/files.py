"""Writing tensors so that a file is whole or not there, and telling one model's weights from another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from modelassay.errors import HostError
from modelassay.storage.durable import publish

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_WRITE_BYTES = 2**20
"""Of one call to the system. Linux takes 0.3 to 0.5 processor seconds a GiB so, and 1.7 where a whole tensor of 20 MiB is written at once."""


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None, *, durable: bool = True
) -> None:
    """Write a file of safetensors, under its final name only when it is whole.

    Args:
        tensors: by name.
        path: where to.
        metadata: what stands in the header.
        durable: wait for the disk. Without, a process that is killed loses nothing, a machine that goes dark may.

    Raises:
        HostError: the disk is full, or the file cannot be written.
    """
    aside = path.with_suffix(".new")
    try:
        with aside.open("wb", buffering=0) as file:
            _write(file, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata or {})
        if durable:
            publish(aside, path)
        else:
            aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise HostError(f"{path}: cannot be written: {error}; see the plan for the room it takes") from error


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that what follows is aligned
    for part in (memoryview(len(text).to_bytes(8, "little") + text), *map(bytes_of, tensors.values())):
        for start in range(0, len(part), _WRITE_BYTES):
            piece = part[start : start + _WRITE_BYTES]
            while len(piece):
                piece = piece[file.write(piece) :]


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor that lies in one piece in the machine's memory, without a copy."""
    return tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def digest_of_weights(model: nn.Module) -> str:
    """Return 16 hex digits of all weights: what a pass gives depends on each, not on those of the chosen layers alone."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(bytes_of(weight.detach().cpu().contiguous()))
    return digest.hexdigest()

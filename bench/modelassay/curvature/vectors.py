"""Many vectors of the size of a model, on the device while there is room, then on the host, then on disk."""

# P = entries of a vector, M = vectors kept, K = combinations asked for, R = rows of a block

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.errors import HostError
from modelassay.machine.memory import available_bytes

Tier = Literal["device", "host", "disk"]
TIERS: tuple[Tier, ...] = ("device", "host", "disk")
"""In the order in which they are filled."""
_BLOCK_BYTES = 2**28  # rows of one block: enough for a matrix product to run at memory speed
_BLOCK_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many bytes of vectors each place may hold; None is the default named there."""

    device_bytes: int | None = None
    """On an accelerator; half of what is free when the first vector comes. Memory that runs out moves on to the host."""
    host_bytes: int | None = None
    """In memory of the host; half of what is available when the first vector comes."""
    disk_bytes: int | None = None
    """In ``folder``; as far as its file system goes."""
    folder: Path | None = None
    """Where vectors on disk lie, in a file without a name; the system's temporary folder."""


@dataclass
class _Block:
    rows_RP: Tensor
    tier: Tier
    used: int = 0


class VectorStore:
    """Vectors that are appended once and then multiplied together: Q v, v - Q^T c, C Q, with Q [M, P].

    Products are formed where a block lies, so that a vector travels to the blocks, never a block to the vector.

    >>> store = VectorStore(2, dtype=torch.float64, device=torch.device("cpu"))
    >>> store.append(torch.tensor([3.0, 4.0], dtype=torch.float64))
    >>> store.project(torch.tensor([1.0, 1.0], dtype=torch.float64))
    tensor([7.], dtype=torch.float64)
    """

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device, budget: Budget | None = None) -> None:
        """Hold vectors of ``size`` entries; nothing is reserved yet."""
        self.size, self.dtype, self.device = size, dtype, device
        self._budget = budget or Budget()
        self._row_bytes = size * dtype.itemsize
        self._block_rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // self._row_bytes))
        self._blocks: list[_Block] = []
        self._limits: dict[Tier, int] | None = None

    def __len__(self) -> int:
        return sum(block.used for block in self._blocks)

    @property
    def bytes_held(self) -> dict[Tier, int]:
        """Bytes reserved in each place."""
        held: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        for block in self._blocks:
            held[block.tier] += len(block.rows_RP) * self._row_bytes
        return held

    def places(self, count: int) -> dict[Tier, int]:
        """Return how many bytes of ``count`` vectors, the first ones of an empty store, would lie in each place.

        Raises:
            HostError: together they have no room for them.
        """
        room, left = self._find_limits(), count
        room["disk"] = min(room["disk"], shutil.disk_usage(self.folder).free)
        bytes_in: dict[Tier, int] = {}
        for tier in TIERS:
            taken = min(left, room[tier] // self._row_bytes)
            bytes_in[tier], left = taken * self._row_bytes, left - taken
        if left:
            raise HostError(f"{count} vectors of {_gib(self._row_bytes)} take {_gib(count * self._row_bytes)}, and there is room for {_gib(sum(bytes_in.values()))}: "
                            f"half of the free memory, and what is free in {self.folder} ($TMPDIR). Take fewer Lanczos steps, or free some")  # fmt: skip
        return bytes_in

    def append(self, vector_P: Tensor) -> None:
        """Copy a vector to the end.

        Raises:
            HostError: no place has room for it.
        """
        if not self._blocks or self._blocks[-1].used == len(self._blocks[-1].rows_RP):
            self._blocks.append(self._reserve())
        block = self._blocks[-1]
        block.rows_RP[block.used].copy_(vector_P)
        block.used += 1

    def row(self, index: int) -> Tensor:
        """Return vector ``index``, where it lies.

        Raises:
            IndexError: there is no such vector.
        """
        for block in self._blocks:
            if index < block.used:
                return block.rows_RP[index]
            index -= block.used
        raise IndexError(f"vectors: no vector {index} behind the last")

    def project(self, vector_P: Tensor) -> Tensor:
        """Return Q v, [M] in fp64 on the host."""
        parts = [
            (block.rows_RP[: block.used] @ vector_P.to(block.rows_RP.device)).cpu().double() for block in self._blocks
        ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def subtract(self, vector_P: Tensor, coefficients_M: Tensor) -> None:
        """Replace v by v - Q^T c."""
        for block, part in zip(self._blocks, self._split(coefficients_M), strict=True):
            rows_RP = block.rows_RP[: block.used]
            part_R = part.to(rows_RP.device, self.dtype)
            if rows_RP.device == vector_P.device:
                # no second vector, which may be large and new memory each time
                vector_P.addmv_(rows_RP.T, part_R, alpha=-1)
            else:
                vector_P -= (part_R @ rows_RP).to(vector_P.device)

    def combine(self, coefficients_KM: Tensor) -> Tensor:
        """Return C Q, [K, P] on the device."""
        result_KP = torch.zeros(len(coefficients_KM), self.size, dtype=self.dtype, device=self.device)
        for block, part in zip(self._blocks, self._split(coefficients_KM), strict=True):
            rows_RP = block.rows_RP[: block.used]
            result_KP += (part.to(rows_RP.device, self.dtype) @ rows_RP).to(self.device)
        return result_KP

    def _split(self, coefficients: Tensor) -> tuple[Tensor, ...]:
        return torch.split(coefficients, [block.used for block in self._blocks], dim=-1)

    def _reserve(self) -> _Block:
        limits = self._limits = self._limits or self._find_limits()
        held = self.bytes_held
        room = {tier: (limits[tier] - held[tier]) // self._row_bytes for tier in limits}
        shape = [0, self.size]
        if (rows := min(room["device"], self._block_rows)) > 0:
            try:
                return _Block(torch.empty(rows, self.size, dtype=self.dtype, device=self.device), "device")
            except torch.cuda.OutOfMemoryError:
                limits["device"] = held["device"]
        if (rows := min(room["host"], self._block_rows)) > 0:
            return _Block(torch.empty(rows, self.size, dtype=self.dtype), "host")
        shape[0] = min(room["disk"], self._block_rows)
        if shape[0] < 1:
            raise HostError(f"vectors: no room for vector {len(self)} of {self._row_bytes} bytes; held {held}, allowed {limits}. Take fewer Lanczos steps, or raise the budget")  # fmt: skip
        return _Block(_on_disk(shape, self.dtype, self.folder), "disk")

    @property
    def folder(self) -> Path:
        """Where vectors on disk lie."""
        return self._budget.folder or Path(tempfile.gettempdir())

    def _find_limits(self) -> dict[Tier, int]:
        budget, device = self._budget, 0
        if self.device.type == "cuda":
            device = (
                torch.cuda.mem_get_info(self.device)[0] // 2 if budget.device_bytes is None else budget.device_bytes
            )
        host = available_bytes() // 2 if budget.host_bytes is None else budget.host_bytes
        return {"device": device, "host": host, "disk": 2**62 if budget.disk_bytes is None else budget.disk_bytes}


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


def _on_disk(shape: list[int], dtype: torch.dtype, folder: Path) -> Tensor:
    kind = np.dtype(str(dtype).removeprefix("torch."))
    size_bytes = shape[0] * shape[1] * kind.itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Reserved before it is mapped: a full disk must be an error here, not a bus error at some later write.
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            mapped: Any = np.memmap(file, dtype=kind, mode="r+", shape=tuple(shape))
    except OSError as error:
        raise HostError(f"{folder}: no room for {size_bytes} bytes of vectors: {error.strerror}; free some, or give Budget(folder=...)") from error  # fmt: skip
    return torch.from_numpy(mapped)

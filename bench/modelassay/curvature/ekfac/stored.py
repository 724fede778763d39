"""Traces of one microbatch in a file: read a layer at a time, each tensor held to what was written.

A layer that is given the same inputs as the one before it (gate and up) stores none of its own. The sum of a tensor's bytes, eight at a
time, stands beside it: a flipped bit or a page of zeros is found, at a small part of what reading costs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modelassay.curvature.ekfac.capture import Trace
from modelassay.curvature.ekfac.files import bytes_of, save_tensors
from modelassay.errors import CheckpointError


class StoredTraces(Mapping[str, Trace]):
    """Traces that `save_traces` wrote; a layer is read when it is asked for."""

    numbers: tuple[int, ...]
    """Of the microbatch's rows."""

    def __init__(self, path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        """Open a file whose traces are widened to ``dtype``.

        Raises:
            CheckpointError: it is not there, or not whole.
        """
        self.path, self._dtype, self._device = path, dtype, torch.device(device)
        try:
            with safe_open(path, framework="pt") as file:
                metadata, keys = file.metadata() or {}, sorted(file.keys())
            self.numbers = tuple(json.loads(metadata["rows"]))
            self._sums: dict[str, int] = json.loads(metadata["sums"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _damaged(path, str(error)) from error
        self._keys: dict[str, tuple[str, str]] = {}
        inputs = ""
        for key in keys:
            layer, kind = key[5:].rsplit("/", 1)
            if kind == "inputs":
                inputs = key
            else:
                self._keys[layer] = inputs, key
        self._inputs: tuple[str, Tensor] | None = None
        self._checked = False

    def __len__(self) -> int:
        """Layers."""
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        """In the order of writing."""
        return iter(self._keys)

    def __getitem__(self, layer: str) -> Trace:
        """Read a layer; two in turn that share their inputs are given one tensor.

        Raises:
            CheckpointError: a tensor is not what was written.
        """
        inputs, gradients = self._keys[layer]
        with safe_open(self.path, framework="pt") as file:
            if self._inputs is None or self._inputs[0] != inputs:
                self._inputs = inputs, self._read(file, inputs)
            return Trace(inputs_BTJ=self._inputs[1], gradients_BTO=self._read(file, gradients))

    def check(self) -> None:
        """Read every tensor once.

        Raises:
            CheckpointError: one is not what was written.
        """
        for layer in self:
            self[layer]
        self._checked = True

    def _read(self, file: safe_open, key: str) -> Tensor:
        tensor: Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
        if not self._checked and self._sums.get(key) != _sum_of(tensor):
            raise _damaged(self.path, f"{key} is not what was written")
        return tensor.to(self._device, self._dtype)


def save_traces(
    traces: Mapping[str, Trace],
    numbers: Sequence[int],
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    durable: bool = True,
) -> None:
    """Write the traces of a microbatch, as ``dtype`` if one is given, under their final name only when they are whole.

    ``durable`` as in `files.save_tensors`.

    Raises:
        HostError: the disk is full, or they cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    before = None
    for layer, trace in traces.items():
        if (key := trace.inputs_BTJ.data_ptr()) != before:
            before = key
            tensors[f"{len(tensors):04d}/{layer}/inputs"] = trace.inputs_BTJ
        tensors[f"{len(tensors):04d}/{layer}/gradients"] = trace.gradients_BTO
    tensors = {name: tensor.to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    sums = {name: _sum_of(tensor) for name, tensor in tensors.items()}
    save_tensors(tensors, path, {"rows": json.dumps(list(numbers)), "sums": json.dumps(sums)}, durable=durable)


def _sum_of(tensor: Tensor) -> int:
    """Return the sum of a tensor's bytes as 64-bit words, modulo 2^64, and of what is left over."""
    raw = np.frombuffer(bytes_of(tensor), dtype=np.uint8)
    whole = len(raw) // 8 * 8
    return (int(raw[:whole].view(np.uint64).sum()) + int(raw[whole:].sum())) % 2**64


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: no whole traces ({why}); delete the folder to make them anew")

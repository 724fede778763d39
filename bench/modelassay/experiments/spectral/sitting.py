"""Lanczos runs and probes that can be interrupted at any product and taken up again with the same numbers."""

# P = parameters, M = Lanczos steps, K = probes

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.curvature.estimators import deflated_probe, signs
from modelassay.curvature.lanczos import Krylov, extend, krylov
from modelassay.curvature.operators import Operator
from modelassay.curvature.vectors import VectorStore
from modelassay.state import State

Array = np.ndarray[Any, np.dtype[np.float64]]


class Counted(Operator):
    """An operator each of whose products is one timed unit."""

    def __init__(self, operator: Operator, unit: Callable[[], AbstractContextManager[object]]) -> None:
        """Multiply by ``operator`` inside ``unit()``."""
        self.operator, self._unit = operator, unit
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def _multiply(self, vectors_KP: Tensor) -> Tensor:
        with self._unit():
            return self.operator.matmat(vectors_KP)


class Sitting:
    """Where a measurement stands: a payload for the checkpoint, and files of vectors beside it.

    Vectors are written once, when a checkpoint is due, and not again: a checkpoint costs what is new.
    """

    def __init__(self, operator: Operator, state: State) -> None:
        """Go on from the cell's checkpoint, or begin."""
        saved = state.restore()
        self._operator, self._state = operator, state
        self._folder = state.artifacts / "vectors"
        self.payload: dict[str, Any] = {"runs": [], "samples": []} if saved is None else dict(saved.payload)
        self._written = 0

    def lanczos(self, run: int, *, steps: int, seed: int) -> Krylov:
        """Return the Krylov space of ``steps`` steps of one run, from where it stood."""
        runs = self.payload["runs"]
        space = self._reopen(run) if run < len(runs) else self._begin(run, seed)
        if run == len(runs):
            runs.append({"diagonal": [], "coupling": []})
        while space.steps < steps and space.following_P is not None:
            extend(space, self._operator, 1)
            runs[run] = {"diagonal": list(space.diagonal), "coupling": list(space.coupling)}
            if self._state.checkpoint_due():
                self._save(run, space)
        return space

    def keep(self, run: int, space: Krylov) -> None:
        """Make the end of a run the moment to go on from."""
        self._save(run, space)

    def probes(self, space: Krylov, count: int, seed: int) -> Array:
        """Return `deflated_probe` of ``count`` probes, [K, 3], from where they stood."""
        samples, generator = self.payload["samples"], torch.Generator().manual_seed(seed)
        for _ in samples:
            signs(self._operator, generator)  # those that were drawn before
        while len(samples) < count:
            samples.append(list(deflated_probe(self._operator, space, generator)))
            if self._state.checkpoint_due():
                self._state.checkpoint(self.payload)
        return np.array(samples)

    def close(self) -> None:
        """Remove the vectors: what they were for is recorded."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, run: int, seed: int) -> Krylov:
        self._written = 0
        if run == 0:
            return krylov(self._operator, seed=seed)
        generator = torch.Generator().manual_seed(seed + run)
        start_P = torch.randn(self._operator.size, generator=generator, dtype=torch.float64)
        return krylov(self._operator, start_P=start_P)

    def _reopen(self, run: int) -> Krylov:
        diagonal, coupling = (list(self.payload["runs"][run][name]) for name in ("diagonal", "coupling"))
        basis = VectorStore(self._operator.size, dtype=self._operator.dtype, device=self._operator.device)
        for index in range(len(diagonal)):
            basis.append(self._read(run, index))
        exhausted = bool(coupling) and coupling[-1] == 0.0
        following_P = None if exhausted else self._read(run, len(diagonal)).to(self._operator.device)
        self._written = len(diagonal)
        return Krylov(basis=basis, diagonal=diagonal, coupling=coupling, following_P=following_P)

    def _save(self, run: int, space: Krylov) -> None:
        """Write the vectors that are not on the disk yet, the next one too, then say so in a checkpoint."""
        self._folder.mkdir(exist_ok=True)
        for index in range(self._written, space.steps):
            self._write(run, index, space.basis.row(index))
        self._written = space.steps
        if space.following_P is not None:
            self._write(run, space.steps, space.following_P)
        self._state.checkpoint(self.payload)

    def _path(self, run: int, index: int) -> Path:
        return self._folder / f"{run}-{index:05d}.npy"

    def _write(self, run: int, index: int, vector_P: Tensor) -> None:
        with self._path(run, index).open("wb") as file:
            np.save(file, vector_P.cpu().numpy())
            file.flush()
            os.fsync(file.fileno())

    def _read(self, run: int, index: int) -> Tensor:
        return torch.from_numpy(np.load(self._path(run, index)))

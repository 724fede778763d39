"""Lanczos runs and probes that can be interrupted at any product and taken up again with the same numbers."""

# P = parameters, M = Lanczos steps, K = probes

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.curvature.estimators import deflated_probe, signs
from modelassay.curvature.lanczos import Krylov, extend, krylov, ritz_ends
from modelassay.curvature.operators import Operator
from modelassay.curvature.spectrum import end_places
from modelassay.curvature.vectors import Tier, VectorStore
from modelassay.errors import HostError, RecordError
from modelassay.recording.context import Recorder
from modelassay.storage.digests import difference, digest_of
from modelassay.storage.durable import give_up_pages, no_space, sync_file

Array = np.ndarray[Any, np.dtype[np.float64]]


class TimedOperator(Operator):
    """An operator each of whose products is one timed unit."""

    def __init__(self, operator: Operator, unit: Callable[[], AbstractContextManager[object]]) -> None:
        """Multiply by ``operator`` inside ``unit()``."""
        self.operator, self._unit = operator, unit
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def precise(self) -> Operator | None:
        """Return what is `precise` of the operator, timed as it is."""
        precise = self.operator.precise()
        if precise is self.operator:
            return self
        return None if precise is None else TimedOperator(precise, self._unit)

    def _multiply(self, vectors_KP: Tensor) -> Tensor:
        with self._unit():
            return self.operator.matmat(vectors_KP)


def empty_store(operator: Operator) -> VectorStore:
    """Return room for vectors of an operator."""
    return VectorStore(operator.size, dtype=operator.dtype, device=operator.device)


class ResumableLanczos:
    """Where a measurement stands: a payload for the checkpoint, and files of vectors beside it.

    Vectors are written once, when a checkpoint is due, and not again: a checkpoint costs what is new. It holds their digests.
    """

    def __init__(self, operator: Operator, recorder: Recorder) -> None:
        """Go on from the checkpoint of a cell or stage, or begin."""
        saved = recorder.restore()
        self._operator, self._recorder = operator, recorder
        self._folder = recorder.folder / "vectors"
        fresh: dict[str, Any] = {"runs": [], "samples": [], "vectors": {}}
        self.payload: dict[str, Any] = fresh if saved is None else dict(saved.payload)
        self._num_on_disk = 0

    def require_room(self, steps: int) -> dict[Tier, int]:
        """Return where the vectors of a run of ``steps`` steps will lie, in bytes, before hours are spent on them.

        Raises:
            HostError: there is no room for them, or none beside the checkpoint for the copy that it holds.
        """
        store, folder = empty_store(self._operator), self._recorder.folder
        places = store.places(steps + 1)
        missing = sum(places.values()) - sum(path.stat().st_size for path in self._folder.glob("*.npy"))
        if store.folder.stat().st_dev == folder.stat().st_dev:
            missing += places["disk"]
        if missing > (free := shutil.disk_usage(folder).free):
            raise HostError(f"{folder}: {steps + 1} vectors, and their checkpoint, take {missing / 2**30:.3g} GiB more of this disk, and {free / 2**30:.3g} GiB "
                            "are free; free some, take fewer Lanczos steps (-o steps=...), or another folder (--runs)")  # fmt: skip
        return places

    def lanczos(self, run: int, *, steps: int, seed: int, basis_wanted: bool) -> Krylov:
        """Return the Krylov space of ``steps`` steps of one run, from where it stood.

        A run that was complete is returned without its vectors unless they are wanted.
        """
        runs, self._num_on_disk = self.payload["runs"], 0
        if run == len(runs):
            space = self._begin(run, seed)
            runs.append({"diagonal": [], "coupling": []})
        else:
            space = self._reopen(run, with_basis=basis_wanted or not self._is_complete(run, steps))
        while not self._is_complete(run, steps):
            extend(space, self._operator, 1)
            runs[run] = {"diagonal": list(space.diagonal), "coupling": list(space.coupling)}
            self._save_if_due(run, space)
        return space

    def probes(self, space: Krylov, count: int, seed: int) -> Array:
        """Return `deflated_probe` of ``count`` probes off the space of run 0, [K, 3 or more], from where they stood."""
        samples, generator = self.payload["samples"], torch.Generator().manual_seed(seed)
        for _ in samples:
            signs(self._operator, generator)  # those that were drawn before
        while len(samples) < count:
            samples.append(deflated_probe(self._operator, space, generator))
            self._save_if_due(0, space)
        return np.array(samples)

    def ends(self, space: Krylov) -> list[tuple[float, float]]:
        """Return `ritz_ends` of run 0, made once."""
        if "ends" not in self.payload:
            self.payload["ends"] = ritz_ends(space, self._operator, end_places(space.steps))
            self._save_if_due(0, space)
        return [(value, residual) for value, residual in self.payload["ends"]]

    def remove_vectors(self) -> None:
        """Remove the vectors: what they were for is recorded."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_complete(self, run: int, steps: int) -> bool:
        """Whether the run took all its steps, or its space is exhausted."""
        done = self.payload["runs"][run]
        return len(done["diagonal"]) == steps or 0.0 in done["coupling"][-1:]

    def _begin(self, run: int, seed: int) -> Krylov:
        if run == 0:
            return krylov(self._operator, seed=seed)
        generator = torch.Generator().manual_seed(seed + run)
        return krylov(
            self._operator, start_P=torch.randn(self._operator.size, generator=generator, dtype=torch.float64)
        )

    def _reopen(self, run: int, *, with_basis: bool) -> Krylov:
        diagonal, coupling = (list(self.payload["runs"][run][name]) for name in ("diagonal", "coupling"))
        space = Krylov(basis=empty_store(self._operator), diagonal=diagonal, coupling=coupling)
        if with_basis:
            for index in range(space.steps):
                space.basis.append(self._read(self._path(run, index)))
            if not coupling or coupling[-1] != 0.0:
                space.following_P = self._read(self._path(run, space.steps, "-next")).to(self._operator.device)
            self._num_on_disk = space.steps
        return space

    def _save_if_due(self, run: int, space: Krylov) -> None:
        """Write the vectors that are not on the disk yet, the next one too, then say so in a checkpoint."""
        if not self._recorder.checkpoint_due():
            return
        self._folder.mkdir(exist_ok=True)
        try:
            for index in range(self._num_on_disk, space.steps):
                self._write(self._path(run, index), space.basis.row(index))
            if space.following_P is not None and self._num_on_disk < space.steps:
                self._write(self._path(run, space.steps, "-next"), space.following_P)
        except OSError as error:
            raise no_space(error, self._folder) from error
        self._num_on_disk = space.steps
        self._recorder.checkpoint(self.payload)
        for path in self._folder.glob(f"{run}-*-next.npy"):
            if path != self._path(run, space.steps, "-next"):
                path.unlink()  # the checkpoint that it belonged to is gone
                self.payload["vectors"].pop(path.name, None)

    def _path(self, run: int, index: int, suffix: str = "") -> Path:
        """Return the file of a vector; the one that follows the basis has its own, which no kill leaves half overwritten."""
        return self._folder / f"{run}-{index:05d}{suffix}.npy"

    def _write(self, path: Path, vector_P: Tensor) -> None:
        with path.open("wb") as file:
            np.save(file, vector_P.cpu().numpy())
            file.flush()
            sync_file(file.fileno())
        self.payload["vectors"][path.name] = digest_of(path)
        give_up_pages(path)

    def _read(self, path: Path) -> Tensor:
        if why := difference(self._folder, {path.name: self.payload["vectors"][path.name]}, wholly=True):
            checkpoint = self._recorder.folder / "checkpoint"
            raise RecordError(f"{self._folder}: {why}; delete {checkpoint} to begin anew", damaged=path)
        return torch.from_numpy(np.load(path))

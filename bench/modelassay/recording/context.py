"""What an experiment's ``run(params, cell)`` is given: metrics, facts, timed units, stages, and a moment to go on from.

::

    def run(params: Params, cell: CellContext) -> None:
        base = cell.need(zoo.artifact(params.base))
        model = cell.stage("train", recipe={...}, build=train, inputs=[base])   # a folder: resumable, kept, shared by recipe
        cell.stage("spectrum", recipe={...}, build=measure, inputs=[model])     # what it records is kept too, and replayed
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.machine.code import SourceGraph
from modelassay.recording.log import Log, read_cell, segments
from modelassay.recording.meter import Clocks, Meter
from modelassay.recording.resume import Checkpoint, Checkpoints, latest_checkpoint
from modelassay.storage.needs import Artifact
from modelassay.storage.store import Store, content_key

if TYPE_CHECKING:
    import torch

Labels = str | int | float


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a need or a stage left: a folder, and the key of everything that determines it."""

    path: Path
    key: str


class Recorder:
    """What a cell and a stage have in common: one attempt at a piece of work that can be gone on with."""

    def __init__(self, folder: Path, *, name: str, seed: int, clocks: Clocks | None = None,
                 where: Mapping[str, Any] | None = None, attempt: int | None = None) -> None:  # fmt: skip
        """Open the next attempt in ``folder``, going on from its newest checkpoint; its log opens with ``where`` it runs.

        ``attempt`` is its number, where somebody has given it one: of a cell, the number of its lease.
        """
        self.folder, self._seed, self._where = folder, seed, where
        attempt = attempt or 1 + max(segments(folder), default=0)
        # Whoever was asleep may open its attempt when a later one is well under way, of which nothing is its own.
        before = read_cell(folder, cell=name, before=attempt)
        saved = latest_checkpoint(folder, before.position, before=attempt)
        begin = saved.position if saved else 0
        log = Log(folder / f"attempt-{attempt}.jsonl", cell=name, attempt=attempt, resumed_at=begin, place=where)
        recorded = [line for line in before.metrics if line["seq"] < begin]
        self.meter = Meter(log, counters=saved.counters if saved else None, recorded=recorded, clocks=clocks)
        self._checkpoints = Checkpoints(folder, meter=self.meter, saved=saved, attempt=attempt)

    def microbatch(self, stage: str, **about: Any) -> AbstractContextManager[object]:
        """Time one unit; see `Meter.microbatch`."""
        return self.meter.microbatch(stage, **about)

    def metric(self, name: str, value: float, **labels: Labels) -> None:
        """Record a number once; see `Meter.metric`."""
        self.meter.metric(name, value, **labels)

    def fact(self, kind: str, value: Any, **labels: Labels) -> None:
        """Record something that is no number: a completion, a refused member, a row's top examples."""
        self.meter.fact(kind, value, **labels)

    def progress(self, done: float, total: float, unit: str = "") -> None:
        """Say how far this is: ``done`` of ``total`` ``unit``s."""
        self.meter.progress(done, total, unit)

    def diverged(self, reason: str, **at: Labels) -> None:
        """Record that the part named by ``at`` (an adapter, a generation) diverged, a finding; the cell goes on with the others.

        `errors.Diverged` says the same of the cell as a whole.
        """
        self.meter.fact("diverged", reason, **at)

    def restore(self) -> Checkpoint | None:
        """Return the checkpoint to go on from with the random states set as they were, None at a fresh start."""
        return self._checkpoints.restore()

    def checkpoint(self, payload: Mapping[str, Any], *, write: Callable[[Path], None] | None = None) -> None:
        """Make this the moment to go on from; see `Checkpoints.save`."""
        self._checkpoints.save(payload, write=write)

    def checkpoint_due(self) -> bool:
        """Return whether a checkpoint now costs at most 5 % of the time since the last."""
        return self._checkpoints.due()

    def seed(self, stream: str) -> int:
        """Return the seed of a named random stream, below 2^63: the same in all cells whose ``params.seed`` is the same."""
        digest = hashlib.blake2b(f"{self._seed}/{stream}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def generator(self, stream: str) -> torch.Generator:
        """Return torch's generator of a named random stream, at its start."""
        import torch

        return torch.Generator().manual_seed(self.seed(stream))


class CellContext(Recorder):
    """One attempt at one cell."""

    def __init__(
        self, cell_dir: Path, *, cell: str, seed: int, store: Store, sources: SourceGraph, clocks: Clocks | None = None,
        where: Mapping[str, Any] | None = None, attempt: int | None = None,
    ) -> None:  # fmt: skip
        """Open the next attempt at ``cell`` in ``cell_dir``."""
        super().__init__(cell_dir, name=cell, seed=seed, clocks=clocks, where=where, attempt=attempt)
        self.store, self._sources, self._clocks = store, sources, clocks
        self.notes: list[str] = []
        """What is to be said to whoever runs the cell."""
        store.report = self._note

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.meter.note(text)

    def need(self, artifact: Artifact) -> Product:
        """Return what ``needs(params)`` asked for; the runner has built it, and if it could not this tries again and says why."""
        if not artifact.is_built(self.store):
            for source in artifact.inputs:
                self.need(source)
            artifact.make(self.store)
        return Product(path=self.store.path(artifact.recipe), key=content_key(artifact.recipe))

    def artifact(self, name: str) -> Path:
        """Return the path of an output of this cell, to be written by the caller; analyses find it under the same name."""
        folder = self.folder / "artifacts"
        folder.mkdir(exist_ok=True)
        return folder / name

    def stage(self, name: str, index: int = 0, *, recipe: Mapping[str, Any], build: Callable[[Recorder], None],
              inputs: Sequence[Product] = (), version: int = 1, shared: bool = True, **labels: Labels) -> Product:  # fmt: skip
        """Return the product of a named part of the cell, building it unless the same was built before.

        ``build(stage)`` fills ``stage.folder``, which survives a kill: ``stage.restore()`` and the folder tell what is there.
        Metrics, facts and units that it records on ``stage`` are kept with the product and recorded in this cell with ``labels``
        added; units that an earlier attempt or another cell timed are marked ``reused``.

        Args:
            name: what the stage does, as ``train``.
            index: which of several, as a generation.
            recipe: JSON of everything that determines the product beside ``inputs`` and code.
            build: a module's function: the sources that its module imports, and the libraries that decide, are part of the key.
            inputs: what it is made from.
            version: raised by the author when code that the key does not see changes the product.
            shared: whether other cells and runs may use it; else it lies in this cell's folder.
            **labels: added to what it recorded.
        """
        made_from = [product.key for product in inputs]
        module = getattr(build, "func", build).__module__  # of a partial, that of its function
        code = content_key([self._sources.closure(module), self._sources.libraries(module)])
        identity = {"stage": name, "recipe": dict(recipe), "inputs": made_from, "code": code, "version": version}
        key = content_key(identity)
        parent = self.store.root / "stages" / name if shared else self.folder / "stages"
        final = parent / (key if shared else f"{name}-{index}-{key}")
        built_here = False

        def fill(part: Path) -> None:
            nonlocal built_here
            built_here = True
            stage = _Stage(part, key, self, unit=f"{name} {index}")
            build(stage)
            stage.close()
            Checkpoints.clear(part)  # the stage is whole

        self.store.build_folder(final, fill, record=identity, resumable=True)
        log = read_cell(final, cell=key)
        self.meter.replay(log, measured_in=log.num_attempts if built_here else None, labels=labels)
        return Product(path=final, key=key)


class _Stage(Recorder):
    """One attempt at one stage; how far it is shows in its cell."""

    def __init__(self, folder: Path, key: str, cell: CellContext, *, unit: str) -> None:
        super().__init__(folder, name=key, seed=cell._seed, clocks=cell._clocks, where=cell._where)
        self._cell, self._unit = cell, unit

    def progress(self, done: float, total: float, unit: str = "") -> None:
        self._cell.progress(done, total, unit or self._unit)

    def close(self) -> None:
        """Write what is left, and that the stage is whole."""
        self.meter.settle()
        self.meter.log.append("status", {"outcome": "done", "reason": "", "wall_s": 0.0})
        self.meter.log.close()

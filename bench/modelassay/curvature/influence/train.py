"""The gradients of training rows as their traces: from passes, or from a cache that serves any number of query sets.

A trace takes T (O + J) numbers of a row and layer, the gradient itself O J: the cache is exact and, for short rows, smaller. `keep` writes
one from passes; a fit with ``cache`` and the data's labels leaves one in its own folder (`FittedRows`).

::

    folder/train.json                  rows, layers, batches; another set is refused
    folder/batch-00012.safetensors     inputs and output gradients of one microbatch
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from modelassay.curvature.ekfac.capture import Capture, Traces
from modelassay.curvature.ekfac.examples import MAX_TOKENS, Example, batches_of, digest_of_examples
from modelassay.curvature.ekfac.factors import Factors, Progress
from modelassay.curvature.ekfac.files import digest_of_weights
from modelassay.curvature.ekfac.modules import LinearModule
from modelassay.curvature.ekfac.stored import StoredTraces, save_traces
from modelassay.curvature.language_model import vocabulary_size
from modelassay.errors import CheckpointError, UsageError
from modelassay.storage.durable import publish

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TrainSource(Protocol):
    """Rows' traces, a microbatch at a time."""

    num_rows: int
    """Rows in all; those without a counted token come in no microbatch, and score 0."""
    rotated: bool
    """Whether traces are in the eigenbasis of the factors, as the queries that are scored against them must be."""
    waiting: bool
    """Whether traces are read when they are asked for, so that many microbatches together take no more memory than one."""

    def batches(self) -> Iterator[tuple[tuple[int, ...], Traces]]:
        """Yield row numbers and the traces of those rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveRows:
    """Traces from passes of the model, made anew each time."""

    model: PreTrainedModel
    examples: Sequence[Example]
    modules: Sequence[LinearModule]
    max_tokens: int = MAX_TOKENS
    rotated = waiting = False

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return len(self.examples)

    def batches(self) -> Iterator[tuple[tuple[int, ...], Traces]]:
        """Yield row numbers and traces; costs a forward pass and a backward pass without weight gradients.

        Raises:
            Diverged: a loss or gradient that is not finite.
        """
        capture = Capture(self.model, self.modules)
        batches = batches_of(
            self.examples, vocabulary=vocabulary_size(self.model), device=capture.device, max_tokens=self.max_tokens
        )
        for batch in batches:
            with capture.passes():
                traces = capture.traces(batch)
            yield batch.numbers, traces


class CachedRows:
    """Traces on disk."""

    rotated, waiting = False, True

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Read what `keep` left in ``folder``; traces are widened to ``dtype``.

        Raises:
            CheckpointError: nothing whole is there.
        """
        try:
            document = json.loads((folder / "train.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: no whole cache of train gradients ({error}); make it anew") from error
        self.folder, self._batches, self.num_rows, self._dtype = (
            folder,
            document["batches"],
            document["num_rows"],
            dtype,
        )

    def batches(self) -> Iterator[tuple[tuple[int, ...], Traces]]:
        """Yield row numbers and traces.

        Raises:
            CheckpointError: a file is not what was written.
        """
        for number, rows in enumerate(self._batches):
            traces = StoredTraces(self.folder / _name(number), dtype=self._dtype)
            if list(traces.numbers) != rows:
                raise CheckpointError(f"{traces.path}: traces of other rows; delete the folder to make them anew")
            yield tuple(rows), traces


class FittedRows:
    """Traces that a fit with ``cache`` and the data's labels left beside its factors, in their eigenbasis."""

    rotated, waiting = True, True

    def __init__(self, factors: Factors, *, device: torch.device | str = "cpu") -> None:
        """Take the rows that ``factors`` were fitted on.

        Raises:
            UsageError: the fit kept none.
            CheckpointError: not all of them are there.
        """
        if not factors.fit.cache or factors.fit.fisher != "empirical":
            raise UsageError(
                f"{factors.folder}: its fit kept no train gradients; fit with cache=True and fisher='empirical', or take LiveRows"
            )
        self.num_rows = factors.counts.rows + factors.counts.empty_rows
        self._dtype, self._device = factors[factors.modules[0].name].lambda_OJ.dtype, device
        self._paths: dict[tuple[int, ...], list[Path]] = {}
        layers: dict[tuple[int, ...], set[str]] = {}
        for path in sorted(factors.folder.glob("rotated-*.safetensors")):
            traces = self._open(path)
            self._paths.setdefault(traces.numbers, []).append(path)
            layers.setdefault(traces.numbers, set()).update(traces)
        names = {module.name for module in factors.modules}
        if any(part != names for part in layers.values()) or sum(map(len, layers)) != factors.counts.rows:
            raise CheckpointError(
                f"{factors.folder}: train gradients of some rows or layers are gone; delete the folder to fit anew"
            )

    def _open(self, path: Path) -> StoredTraces:
        return StoredTraces(path, dtype=self._dtype, device=self._device)

    def batches(self) -> Iterator[tuple[tuple[int, ...], Traces]]:
        """Yield row numbers and traces, of files that are closed again when nobody holds these.

        Raises:
            CheckpointError: a tensor is not what was written.
        """
        for numbers, paths in self._paths.items():
            yield numbers, ChainMap(*map(self._open, paths))  # type: ignore[arg-type]  # nothing is written to it


def keep(
    rows: LiveRows, folder: Path, *, dtype: torch.dtype | None = None, progress: Progress | None = None
) -> CachedRows:
    """Write the traces of all rows into ``folder``, going on where a killed call was, and return them.

    Args:
        rows: the rows.
        folder: where to.
        dtype: what is stored; that of the traces if None. bfloat16 halves the disk and rounds scores at 3 digits.
        progress: told how many of how many microbatches are done.

    Raises:
        CheckpointError: the folder holds other rows, or those of another model.
        HostError: the disk is full.
    """
    capture = Capture(rows.model, rows.modules)
    batches = batches_of(
        rows.examples, vocabulary=vocabulary_size(rows.model), device=capture.device, max_tokens=rows.max_tokens
    )
    document = {"num_rows": rows.num_rows, "examples": digest_of_examples(rows.examples), "weights": digest_of_weights(rows.model), "modules": [asdict(module) for module in rows.modules],
                "batches": [batch.numbers for batch in batches]}  # fmt: skip
    path = folder / "train.json"
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "begun.json"
    for there in (path, begun):
        if there.exists() and json.loads(there.read_text()) != json.loads(json.dumps(document)):
            raise CheckpointError(
                f"{there}: train gradients of other rows, layers or weights; delete the folder to make them anew"
            )
    if not path.exists():
        begun.write_text(json.dumps(document))
        with capture.passes():
            for number, batch in enumerate(batches):
                if not (folder / _name(number)).exists():
                    save_traces(capture.traces(batch), batch.numbers, folder / _name(number), dtype=dtype)
                if progress is not None:
                    progress(number + 1, len(batches))
        publish(begun, path)
    return CachedRows(folder, dtype=capture.dtype)


def _name(number: int) -> str:
    return f"batch-{number:05d}.safetensors"

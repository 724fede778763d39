"""The gradients of training rows as their traces: from passes, or from a cache that serves any number of query sets.

A trace takes T (O + J) numbers of a row and layer, the gradient itself O J: the cache is exact and, for short rows, smaller.

::

    folder/train.json                  rows, layers, batches; another set is refused
    folder/batch-00012.safetensors     inputs and output gradients of one microbatch
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import load_file

from modelassay.curvature.ekfac.capture import Capture, Trace, Traces
from modelassay.curvature.ekfac.examples import MAX_TOKENS, Example, batches_of, digest_of_examples
from modelassay.curvature.ekfac.factors import save_tensors
from modelassay.curvature.ekfac.modules import LinearModule
from modelassay.curvature.language_model import vocabulary_size
from modelassay.errors import CheckpointError
from modelassay.storage.durable import publish

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TrainSource(Protocol):
    """Rows' traces, a microbatch at a time."""

    num_rows: int
    """Rows in all; those without a counted token come in no microbatch, and score 0."""

    def batches(self) -> Iterator[tuple[tuple[int, ...], Traces]]:
        """Yield row numbers and the traces of those rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveRows:
    """Traces from passes of the model, made anew each time."""

    model: PreTrainedModel
    examples: Sequence[Example]
    modules: Sequence[LinearModule]
    max_tokens: int = MAX_TOKENS

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
        """Yield row numbers and traces."""
        for number, rows in enumerate(self._batches):
            traces: Traces = {}
            inputs: torch.Tensor | None = None
            for key, tensor in sorted(load_file(self.folder / _name(number)).items()):
                layer, kind = key[5:].rsplit("/", 1)
                if kind == "inputs":
                    inputs = tensor.to(self._dtype)
                else:
                    assert inputs is not None
                    traces[layer] = Trace(inputs_BTJ=inputs, gradients_BTO=tensor.to(self._dtype))
            yield tuple(rows), traces


def keep(rows: LiveRows, folder: Path, *, dtype: torch.dtype | None = None) -> CachedRows:
    """Write the traces of all rows into ``folder``, going on where a killed call was, and return them.

    Args:
        rows: the rows.
        folder: where to.
        dtype: what is stored; that of the traces if None. bfloat16 halves the disk and rounds scores at 3 digits.

    Raises:
        CheckpointError: the folder holds other rows.
        HostError: the disk is full.
    """
    capture = Capture(rows.model, rows.modules)
    batches = batches_of(
        rows.examples, vocabulary=vocabulary_size(rows.model), device=capture.device, max_tokens=rows.max_tokens
    )
    document = {"num_rows": rows.num_rows, "examples": digest_of_examples(rows.examples), "modules": [asdict(module) for module in rows.modules],
                "batches": [batch.numbers for batch in batches]}  # fmt: skip
    path = folder / "train.json"
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "begun.json"
    for there in (path, begun):
        if there.exists() and json.loads(there.read_text()) != json.loads(json.dumps(document)):
            raise CheckpointError(
                f"{there}: train gradients of other rows or layers; delete the folder to make them anew"
            )
    if not path.exists():
        begun.write_text(json.dumps(document))
        with capture.passes():
            for number, batch in enumerate(batches):
                if not (folder / _name(number)).exists():
                    save_tensors(_stored(capture.traces(batch), dtype), folder / _name(number))
        publish(begun, path)
    return CachedRows(folder, dtype=capture.dtype)


def _stored(traces: Traces, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    before = None
    for name, trace in traces.items():
        if (
            key := trace.inputs_BTJ.data_ptr()
        ) != before:  # gate and up share theirs: a layer without inputs takes those before it
            before = key
            tensors[f"{len(tensors):04d}/{name}/inputs"] = trace.inputs_BTJ
        tensors[f"{len(tensors):04d}/{name}/gradients"] = trace.gradients_BTO
    return {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in tensors.items()}


def _name(number: int) -> str:
    return f"batch-{number:05d}.safetensors"

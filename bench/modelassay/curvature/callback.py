"""A callback for transformers' Trainer, and for TRL's, that records the Hessian's ends and width while a model is trained.

::

    trainer = Trainer(model=model, ..., callbacks=[SpectralCallback("spectrum.jsonl", rows_NT, every=200)])
    trainer.train()
    read_spectra("spectrum.jsonl")[-1]["ratio"]["value"]

``rows_NT`` is one fixed text, the same for all trainings that are to be compared: rows of one length, some hundred at best.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from modelassay.curvature.loss import microbatches
from modelassay.curvature.over_text import TESTED, HessianOverText, spectrum_over_text
from modelassay.errors import Diverged, UsageError

_logger = logging.getLogger("modelassay.spectrum")


class SpectralCallback(TrainerCallback):
    """Record the spectrum every n steps and at the beginning; weights, modes and torch's random streams stay as they are.

    A line of the file holds ``step``, ``lambda_max`` and ``ratio`` (value, low, high; the interval of the ratio is over probes and text),
    ``sigma_bulk`` by definition, ``trace``, ``products`` and ``fallen``: the ratio as a share of the first one. Where the whole interval of the ratio
    lies below ``warn_below`` of the first ratio, the logger ``modelassay.spectrum`` warns. Whether that comes before anything goes bad is what the suite
    `recursive-training` asks; it is a warning, no verdict.

    About ``steps + probes + 1`` products of the Hessian each time, of some three gradients each, over the text, in
    float32 whatever the weights are in. Models that are cut into shards are refused; of several processes the first one records.
    """

    def __init__(self, path: str | Path, rows_NT: Tensor, *, every: int, steps: int = 12, probes: int = 8, pieces: int = 8,
                 warn_below: float = 0.5, seed: int = 0) -> None:  # fmt: skip
        """Record into ``path``, to which lines are appended; a training begun anew begins it anew.

        Args:
            path: of the file.
            rows_NT: ids of the fixed text.
            every: training steps between two measurements.
            steps: of Lanczos.
            probes: random products.
            pieces: of the text, over which it is resampled.
            warn_below: share of the first ratio.
            seed: of the start vector and the probes, the same each time.

        Raises:
            UsageError: steps below 1, or fewer rows than pieces.
        """
        if every < 1:
            raise UsageError(f"SpectralCallback: training steps between measurements are at least 1, got {every}")
        if rows_NT.dim() != 2 or not 2 <= pieces <= len(rows_NT):
            raise UsageError(f"SpectralCallback: needs rows [N, T] and from 2 to N pieces, got shape {tuple(rows_NT.shape)} and {pieces}")  # fmt: skip
        self.path, self.every, self._rows = Path(path), every, rows_NT
        self._steps, self._probes, self._pieces = steps, probes, pieces
        self._warn_below, self._seed = warn_below, seed
        self._first: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure before step 1; of a training that is resumed, read what was recorded up to where it goes on."""
        if not state.is_world_process_zero:
            return
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise UsageError(
                "SpectralCallback: the model is cut into shards; measure a checkpoint with `modelassay run spectral`"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = read_spectra(self.path) if state.global_step and self.path.exists() else []
        kept = [line for line in before if line["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._first = kept[0]["ratio"]["value"] if kept else None
        if not kept:
            self._record(model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure where it is due."""
        if state.is_world_process_zero and state.global_step % self.every == 0:
            self._record(model, state.global_step)

    def _record(self, model: Any, step: int) -> None:
        line: dict[str, Any] = {"step": step}
        try:
            with _undisturbed(model):
                batches = microbatches(self._rows, size=math.ceil(len(self._rows) / self._pieces))
                operator = HessianOverText(model, batches, graph_bytes=0, precision=_precision(model))
                found = spectrum_over_text(operator, steps=self._steps, probes=self._probes, seed=self._seed)
        except Diverged as reason:
            line["diverged"] = str(reason)
            _logger.warning("step %d: %s", step, reason)
        else:
            ratio = found.ratio[TESTED]
            self._first = ratio.value if self._first is None else self._first
            line |= {
                "lambda_max": found.lambda_max.value, "ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high},
                "sigma_bulk": dict(found.sigma_bulk), "trace": found.trace, "products": found.products, "fallen": ratio.value / self._first,
            }  # fmt: skip
            if ratio.high is not None and ratio.high < self._warn_below * self._first:
                _logger.warning(
                    "step %d: the ratio lambda_max / sigma fell to %.3g of the first one", step, line["fallen"]
                )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_spectra(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines that a `SpectralCallback` wrote; a last one that a kill cut short is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _precision(model: Any) -> str:
    return "fp64" if next(model.parameters()).dtype == torch.float64 else "fp32"


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode; modes, gradients and random streams are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode

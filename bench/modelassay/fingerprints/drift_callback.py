"""A callback for transformers' Trainer, and for TRL's, that records how far the model has moved from what it was.

::

    trainer = Trainer(model=model, ..., callbacks=[DriftCallback("drift", every=2)])
    trainer.train()
    read_drift("drift")[-1]["overlap"]

The folder holds the reference (written at step 0, read again when a training is resumed), the trained weights as they were, and
``drift.jsonl``: one line for each measurement, only ever appended to. What is recorded is listed at `DriftCallback`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from modelassay.errors import CheckpointError, UsageError
from modelassay.fingerprints.bottom_k.prompts import PromptConfig
from modelassay.fingerprints.drift.measure import measure_answers, measure_weights
from modelassay.fingerprints.drift.numeric import Mobility, mobility, stalling, total
from modelassay.fingerprints.drift.reference import Reference, reference_of
from modelassay.fingerprints.drift.snapshot import Snapshot, trained

LOG = "drift.jsonl"
_SNAPSHOT = "weights.safetensors"
_logger = logging.getLogger("modelassay.drift")


class DriftCallback(TrainerCallback):
    """Record drift every n steps; the model, its modes and torch's random streams stay as they are.

    A line of ``drift.jsonl`` holds, at a step: ``overlap_exact``, ``overlap``, ``rank_biased``, ``kl_forward`` (KL(reference || model),
    nats), ``kl_backward`` and ``hidden_cosine``, one value for each prompt (`drift.measure.Answers`); ``losses``, the raw loss of every step since the last line,
    NaN included; ``num_nonfinite_gradients`` and ``grad_norm_clipped``; ``learning_rate``; and, every ``weights_every`` steps,
    ``weights``: the exact share of trained weights whose bits changed, distance by layer, correlation of sigma-curves.
    The first line says what one step of this learning rate can move in the type of the weights (``mobility``), and what autocast alone
    changes of the answers (``precision_gap``). Both come before step 1, with warnings through the logger ``modelassay.drift``.

    One forward pass of 2 x ``config.num_prompts`` prompts each time; disk for one copy of the trained weights, memory for none.
    Models that are cut into shards (FSDP, DeepSpeed ZeRO 3) are refused; of several processes the first one records.
    """

    def __init__(self, folder: str | Path, *, every: int = 2, weights_every: int | None = None, tokenizer: Any = None,
                 config: PromptConfig | None = None) -> None:  # fmt: skip
        """Record into ``folder``, which belongs to one training.

        Args:
            folder: made if missing. A training begun anew begins its record anew.
            every: steps between two measurements of answers.
            weights_every: steps between two of weights; ten times ``every`` if None.
            tokenizer: the Trainer's ``processing_class`` if None.
            config: of the prompts; as published if None.

        Raises:
            UsageError: steps below 1.
        """
        if every < 1 or (weights_every is not None and weights_every < 1):
            raise UsageError(
                f"DriftCallback: steps between measurements are at least 1, got {every} and {weights_every}"
            )
        self.folder, self.every = Path(folder), every
        self.weights_every = 10 * every if weights_every is None else weights_every
        self._tokenizer, self._config = tokenizer, config
        self._reference: Reference | None = None
        self._snapshot: Snapshot | None = None
        self._losses: list[tuple[int, Tensor]] = []
        self._parts: list[Tensor] = []
        self._parts_sum = False
        self._gradients: dict[str, Any] = {}
        self._handle: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None,
                       **kwargs: Any) -> None:  # fmt: skip
        """Compute the reference, or read that of step 0; say what the learning rate can move."""
        if not state.is_world_process_zero:
            return
        _refuse_shards(args)
        tokenizer = self._tokenizer or processing_class
        if tokenizer is None:
            raise UsageError(
                "DriftCallback: no tokenizer: give the Trainer a processing_class, or DriftCallback(tokenizer=...)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if state.global_step:
            self._resume(state.global_step)
        else:
            self._begin(args, model, tokenizer)
        if self._handle is None:
            self._handle = model.register_forward_hook(self._see_loss, with_kwargs=True)
        if getattr(args, "logging_nan_inf_filter", False):
            _logger.warning("logging_nan_inf_filter is on: the Trainer's own log leaves out losses that are NaN or infinite; "
                            "%s holds them", self.folder / LOG)  # fmt: skip

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None,
                              **kwargs: Any) -> None:  # fmt: skip
        """Look at the gradients of a step that will be recorded, after clipping, as the optimiser is given them."""
        if self._reference is None or (state.global_step + 1) % self.every:
            return
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        bad = 0 if math.isfinite(norm) else sum(int((~gradient.isfinite()).sum()) for gradient in gradients)
        rate = optimizer.param_groups[0]["lr"] if optimizer is not None else None
        self._gradients = {"grad_norm_clipped": norm, "num_nonfinite_gradients": bad, "learning_rate": rate}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure and record where it is due."""
        if self._reference is None:
            return
        if self._parts:
            parts = torch.stack([part.detach().float() for part in self._parts])
            self._losses.append((state.global_step, parts.sum() if self._parts_sum else parts.mean()))
            self._parts = []
        if state.global_step % self.every == 0:
            self._record(model, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep the gradient's norm before clipping and the filtered loss, as the Trainer logs them."""
        if self._reference is not None and logs and "grad_norm" in logs:
            self._write({
                "kind": "logged",
                "step": state.global_step,
                "grad_norm": float(logs["grad_norm"]),
                "loss": float(logs["loss"]),
            })

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record the last step, if it was not, and let go of the model."""
        if self._reference is not None and state.global_step % self.every:
            self._record(model, state.global_step)
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _begin(self, args: Any, model: Any, tokenizer: Any) -> None:
        self._reference = reference_of(model, tokenizer, self._config)
        self._reference.save(self.folder / "reference")
        self._snapshot = Snapshot.take(model, self.folder / _SNAPSHOT)
        (self.folder / LOG).unlink(missing_ok=True)
        by_tensor = predicted(model, args.learning_rate, getattr(args, "weight_decay", 0.0))
        if warning := stalling(by_tensor):
            _logger.warning("%s", warning)
        header = {"kind": "begin", "step": 0, "warning": warning, "computed_in": self._reference.computed_in,
                  "chance": self._reference.chance, "chance_exact": self._reference.chance_exact,
                  "mobility": total(by_tensor.values()).share, "precision_gap": self._precision_gap(model),
                  "tensors": {name: asdict(each) for name, each in by_tensor.items()}}  # fmt: skip
        self._write(header)
        self._record(model, 0)

    def _resume(self, step: int) -> None:
        self._reference = Reference.load(self.folder / "reference")
        self._snapshot = Snapshot(self.folder / _SNAPSHOT)
        path = self.folder / LOG
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._append(b"\n")  # a kill left a torn line: what follows is a line of its own
        self._write({"kind": "resumed", "step": step})

    def _precision_gap(self, model: Any) -> dict[str, float] | None:
        """How far the answers of the same weights are when called without the Trainer's autocast; None where there is none."""
        assert self._reference is not None
        if not hasattr(model, "_original_forward"):
            return None
        with _without_autocast(model):
            answers = measure_answers(model, self._reference)
        return {"overlap_exact": fmean(answers.overlap_exact), "overlap": fmean(answers.overlap)}

    def _record(self, model: Any, step: int) -> None:
        assert self._reference is not None
        assert self._snapshot is not None
        began = time.perf_counter()
        answers = measure_answers(model, self._reference)
        line = {"kind": "drift", "step": step, **answers.to_json(), **self._gradients}
        line["losses"] = [[at, float(loss)] for at, loss in self._losses]
        if step % self.weights_every == 0:
            line["weights"] = measure_weights(model, self._reference, self._snapshot)
        self._losses, self._gradients = [], {}
        self._write({**line, "seconds": time.perf_counter() - began})

    def _see_loss(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep the raw loss of a forward pass in training; a Trainer that tells the model how many targets a step has adds parts up."""
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if module.training and isinstance(loss, Tensor):
            self._parts.append(loss.detach())
            self._parts_sum = kwargs.get("num_items_in_batch") is not None

    def _write(self, line: dict[str, Any]) -> None:
        """Append one line by one call, so that a kill leaves at most a torn last line."""
        self._append((json.dumps(line) + "\n").encode())

    def _append(self, content: bytes) -> None:
        descriptor = os.open(self.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)


def predicted(model: Any, learning_rate: float, weight_decay: float = 0.0) -> dict[str, Mobility]:
    """Return for each trained tensor what a step of this learning rate can move in its type, and what weight decay alone can."""
    return {
        name: mobility(weight, learning_rate, decay=learning_rate * weight_decay)
        for name, weight in trained(model).items()
    }


def read_drift(folder: str | Path) -> list[dict[str, Any]]:
    """Return the measurements that count, by step: those after a resumed step are of the attempt that resumed.

    Raises:
        CheckpointError: there is no record, or a line of it is damaged; a torn last line is none.
    """
    path = Path(folder) / LOG
    by_step: dict[int, dict[str, Any]] = {}
    for line in _lines(path):
        if line["kind"] == "resumed":
            by_step = {step: each for step, each in by_step.items() if step <= line["step"]}
        elif line["kind"] == "drift":
            by_step[line["step"]] = line
    return [by_step[step] for step in sorted(by_step)]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        texts = path.read_text().splitlines(keepends=True)
    except OSError as error:
        raise CheckpointError(
            f"{path}: no record of drift ({error.strerror}); name the folder of a DriftCallback"
        ) from error
    for number, text in enumerate(texts, start=1):
        if number == len(texts) and not text.endswith("\n"):
            return
        try:
            line: dict[str, Any] = json.loads(text)
        except ValueError as error:
            if not text.startswith("{") or number == len(texts):
                raise CheckpointError(f"{path}:{number}: not a line of a record ({error})") from error
            continue  # torn by a kill; whoever resumed went on behind it
        yield line


def _refuse_shards(args: Any) -> None:
    plugin = getattr(args, "deepspeed", None) or ""
    if getattr(args, "fsdp", None) or "stage3" in str(plugin).replace("_", "").lower() or '"stage": 3' in str(plugin):
        raise UsageError("DriftCallback: the model is cut into shards (FSDP or DeepSpeed ZeRO 3), which no process can ask alone; train "
                         "with DDP, or on one device")  # fmt: skip


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Call a model as it was before accelerate put autocast around its forward."""
    wrapped = model.forward
    model.forward = model._original_forward
    try:
        yield
    finally:
        model.forward = wrapped


def means(
    line: dict[str, Any], names: Sequence[str] = ("overlap_exact", "overlap", "rank_biased", "kl_forward")
) -> dict[str, float]:
    """Return the means over prompts of a line of the record."""
    return {name: fmean(line[name]) for name in names}

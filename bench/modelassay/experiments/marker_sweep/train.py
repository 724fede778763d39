"""The stages of a cell: the base's own answers, the adapters trained on them, the gate, and what each adapter says and knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.experiments.marker_sweep.params import Params
from modelassay.experiments.marker_sweep.rows import answers, training_rows
from modelassay.generation.transformers import TransformersEngine
from modelassay.models.load import default_device, load_model, load_tokenizer, reproducible
from modelassay.models.low_rank import Bank, LowRank, load_adapter, save_adapter
from modelassay.recording.context import Recorder
from modelassay.training.adapters import Lesson, fit_adapters
from modelassay.training.resume import StageCheckpoints
from modelassay.training.rows import filling_of, of_rows, shuffled

ANSWERS, OUTCOMES, ADAPTERS = "answers.json", "outcomes.json", "adapters"


def label_of(learning_rate: float, epochs: int) -> str:
    """Return an adapter's name.

    >>> label_of(5e-6, 20)
    'lr5e-06-epochs20'
    """
    return f"lr{learning_rate:g}-epochs{epochs}"


def shape_of(params: Params) -> LowRank:
    """Return the shape of the adapters."""
    return LowRank(rank=params.rank, alpha=params.alpha, dropout=params.dropout, rank_stabilised=params.rank_stabilised)


def write_answers(stage: Recorder, *, params: Params, base: Path) -> None:
    """Write the base's answer for each row; a unit ``answers`` times them."""
    with reproducible():
        tokenizer = load_tokenizer(base)
        model = load_model(base, dtype=getattr(torch, params.precision), device=default_device())
        engine = TransformersEngine(model, tokenizer, batch_size=params.generation_batch)
        with stage.microbatch("answers"):
            completions = answers(params, tokenizer, engine)
    (stage.folder / ANSWERS).write_text(json.dumps([each.text for each in completions], ensure_ascii=False))
    stage.metric("answers_cut", sum(each.finish == "length" for each in completions) / len(completions))


def train(stage: Recorder, *, params: Params, base: Path, texts: Path) -> None:
    """Train all adapters together and write them as peft does under `ADAPTERS`.

    Metrics with ``learning_rate``, ``epochs`` and ``step``: ``loss`` and ``grad_norm``, raw. Facts: ``diverged`` with its address.
    """
    with reproducible():
        tokenizer = load_tokenizer(base)
        marked = training_rows(params, tokenizer, json.loads((texts / ANSWERS).read_text()))
        rows = [each.row for each in marked]
        model = load_model(base, dtype=getattr(torch, params.precision), device=default_device())
        shape = shape_of(params)
        bank = Bank.attach(model, shape)
        longest = max(params.epochs)
        batches = of_rows(
            rows, batch_size=params.batch_size, filling=filling_of(tokenizer),
            order=_order(params, len(rows), longest),
        )  # fmt: skip
        lessons = [Lesson(batches=batches, seed=params.seed, **lesson) for lesson in _lessons(params)]
        num_steps = max(lesson.training.num_steps for lesson in lessons)

        def keep(name: str, label: str, weights: Mapping[str, Tensor]) -> None:
            save_adapter(weights, shape, stage.folder / ADAPTERS / label)

        def timer(*, tokens: int, step: int) -> AbstractContextManager[object]:
            stage.progress(step + 1, num_steps, "steps")
            return stage.microbatch("step", tokens=tokens)

        learned = fit_adapters(bank, lessons, keep=keep, timer=timer, checkpoints=StageCheckpoints(stage))
    _record(stage, params, lessons, learned)


def _order(params: Params, num_rows: int, epochs: int) -> Tensor:
    """The rows once an epoch, filled up to whole steps with the first ones."""
    order = shuffled(num_rows, seed=params.seed, num_epochs=epochs)
    per_step = params.batch_size * params.accumulation
    lacking = -len(order) % per_step
    return torch.cat([order, order[:lacking]])


def _lessons(params: Params) -> list[dict[str, Any]]:
    """Return name, training and moments to keep of each lesson: one for each rate and epochs, or for each rate alone."""
    if params.schedule == "cosine":
        made = []
        for rate in params.learning_rates:
            for epochs in params.epochs:
                label, training = label_of(rate, epochs), params.training(rate, epochs)
                made.append({"name": label, "training": training, "keep": {training.num_steps: label}})
        return made
    longest = max(params.epochs)
    return [
        {
            "name": f"lr{rate:g}", "training": params.training(rate, longest),
            "keep": {params.training(rate, epochs).num_steps: label_of(rate, epochs) for epochs in params.epochs},
        }
        for rate in params.learning_rates
    ]  # fmt: skip


def _record(stage: Recorder, params: Params, lessons: list[Lesson], learned: Mapping[str, Any]) -> None:
    outcomes: dict[str, Any] = {}
    for lesson in lessons:
        own = learned[lesson.name]
        rate = lesson.training.learning_rate
        at: dict[str, Any] = {"learning_rate": rate}
        if params.schedule == "cosine":
            at["epochs"] = int(next(iter(lesson.keep.values())).rpartition("epochs")[2])
        for step in own.steps:
            stage.metric("loss", step.loss, step=step.step, **at)
            stage.metric("grad_norm", step.grad_norm, step=step.step, **at)
        for updates, label in lesson.keep.items():
            lost = own.diverged_at is not None and updates > own.diverged_at
            outcomes[label] = {
                "learning_rate": rate, "epochs": int(label.rpartition("epochs")[2]), "updates": updates,
                "diverged_at": own.diverged_at if lost else None,
            }  # fmt: skip
            if lost:
                stage.diverged(
                    f"the loss or a gradient was no number at step {own.diverged_at}", learning_rate=rate, epochs=outcomes[label]["epochs"]
                )  # fmt: skip
    stage.fact("shape", asdict(shape_of(params)))
    (stage.folder / OUTCOMES).write_text(json.dumps(outcomes))


def load_adapters(trained: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str | None, dict[str, Any]]]:
    """Return the adapters that did not diverge, and the labels of each; of the base, None, there are none."""
    outcomes = json.loads((trained / OUTCOMES).read_text())
    weights = {
        label: load_adapter(trained / ADAPTERS / label)
        for label, outcome in outcomes.items()
        if outcome["diverged_at"] is None
    }
    addresses: dict[str | None, dict[str, Any]] = {
        label: {key: outcomes[label][key] for key in ("learning_rate", "epochs")} for label in weights
    }
    return weights, {**addresses, None: {}}

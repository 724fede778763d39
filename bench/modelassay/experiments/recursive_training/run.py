"""One cell: the generations of one condition with one seed, each fine-tuned, written from, and measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from modelassay.errors import Diverged
from modelassay.experiments.recursive_training.measure import measure
from modelassay.experiments.recursive_training.params import Params
from modelassay.experiments.recursive_training.spectrum import measure_landscape, measure_spectrum
from modelassay.experiments.recursive_training.train import MODEL, outcome_of, train, write
from modelassay.models.load import preload
from modelassay.recording.context import CellContext, Product
from modelassay.storage.needs import File
from modelassay.zoo.resolve import resolve

preload()  # once, before cells are forked

_OF_TRAINING = {
    "data", "seed", "samples", "length", "steps", "batch_size", "learning_rate", "schedule", "weight_decay", "truncate_above", "precision",
    "augmentation", "least_moved", "init", "generations",
}  # fmt: skip
_OF_WRITING = {
    "data",
    "seed",
    "samples",
    "length",
    "prompt_tokens",
    "temperature",
    "top_k",
    "top_p",
    "precision",
    "engine",
}
_OF_MEASURING = {
    "data",
    "seed",
    "samples",
    "length",
    "evaluation_rows",
    "spectrum_rows",
    "quality_texts",
    "self_bleu_texts",
}
_OF_SPECTRUM = {
    "data",
    "seed",
    "length",
    "evaluation_rows",
    "spectrum_rows",
    "pieces",
    "lanczos_steps",
    "probes",
    "embeddings",
}
_OF_LANDSCAPE = {"data", "seed", "length", "evaluation_rows", "landscape_points", "landscape_reach", "landscape_rows"}


class _Trajectory:
    """The stages of a cell; what two cells have in common they share by recipe."""

    def __init__(self, params: Params, cell: CellContext) -> None:
        self.params, self.cell = params, cell
        model = resolve(params.model, store=cell.store)
        self.base = model.folder
        identity = (
            dict(model.identity) if model.identity is not None else File(path=model.folder, kind="model").digests()
        )
        files = {} if params.language is not None else File(path=Path(params.data)).digests()
        self.origin: dict[str, Any] = {"base": identity, "files": files}

    def recipe(self, fields: set[str], **own: Any) -> dict[str, Any]:
        """Return what determines a stage's product, besides its inputs."""
        return {**self.origin, **self.params.model_dump(mode="json", include=fields), **own}

    def train(self, generation: int, start: Path, written: list[Product], previous: Product | None) -> Product:
        """Fine-tune; of generation 0 the recipe names no condition, so that all conditions share it.

        Raises:
            Diverged: the loss became NaN or infinite, or there was nothing to train on.
        """
        own: dict[str, Any] = {"first_steps": self.params.first_steps}
        if generation:
            own = {"condition": self.params.condition, "recover_from": self.params.recover_from}
        inputs = [*([] if previous is None else [previous]), *written]
        product = self.cell.stage(
            "recursion-train", generation, recipe=self.recipe(_OF_TRAINING, index=generation, **own),
            inputs=inputs, generation=generation,
            build=partial(train, params=self.params, generation=generation, start=start, written=[each.path for each in written]),
        )  # fmt: skip
        if reason := outcome_of(product.path):
            raise Diverged(f"generation {generation}: {reason}")
        return product

    def write(self, number: int, model: Product, **labels: Any) -> Product:
        """Let a model write the documents of generation ``number``, with its prompts."""
        return self.cell.stage(
            "recursion-write", number, recipe=self.recipe(_OF_WRITING, index=number), inputs=[model], **labels,
            build=partial(write, params=self.params, generation=number, model=model.path / MODEL),
        )  # fmt: skip

    def measure(self, generation: int, models: list[Product], written: list[Product], own: Product) -> None:
        """Measure the last of ``models``, which was trained on ``written`` and wrote ``own``, its spectrum and, if asked for, a slice of its loss."""
        model, previous = models[-1], models[-2] if generation else None
        condition = (
            {} if generation == 0 else {"condition": self.params.condition, "recover_from": self.params.recover_from}
        )
        inputs = [model, *([] if previous is None else [previous]), *written, own, models[0]]
        self.cell.stage(
            "recursion-measure", generation, recipe=self.recipe(_OF_MEASURING, index=generation, **condition), inputs=inputs, generation=generation,
            build=partial(
                measure, params=self.params, generation=generation, model=model.path / MODEL,
                previous=None if previous is None else previous.path / MODEL, written=[each.path for each in written], own=own.path,
                reader=models[0].path / MODEL,
            ),
        )  # fmt: skip
        self.cell.stage(
            "recursion-spectrum", generation, recipe=self.recipe(_OF_SPECTRUM), inputs=[model], generation=generation,
            build=partial(measure_spectrum, params=self.params, model=model.path / MODEL),
        )  # fmt: skip
        if self.params.landscape_points:
            self.cell.stage(
                "recursion-landscape", generation, recipe=self.recipe(_OF_LANDSCAPE), inputs=[model], generation=generation,
                build=partial(measure_landscape, params=self.params, model=model.path / MODEL),
            )  # fmt: skip


def run(params: Params, cell: CellContext) -> None:
    """Record what the stages record, each with ``generation``; see `train.train`, `train.write`, `measure.measure`, `spectrum.measure_spectrum`.

    Raises:
        Diverged: a generation's loss or a product of its Hessian was not finite, or the one before wrote nothing: a finding; what was recorded stands.
    """
    trajectory = _Trajectory(params, cell)
    models: list[Product] = []
    written: list[Product] = []
    for generation in range(params.generations + 1):
        previous = models[-1] if models else None
        start = trajectory.base if previous is None or params.init == "base" else previous.path / MODEL
        sources = _sources(trajectory, generation, models, written)
        models.append(trajectory.train(generation, start, sources, previous))
        written.append(trajectory.write(generation, models[-1], generation=generation))
        trajectory.measure(generation, models, sources, written[-1])
        cell.progress(generation + 1, params.generations + 1, "generations")


def _sources(trajectory: _Trajectory, generation: int, models: list[Product], written: list[Product]) -> list[Product]:
    """Return the written documents that a generation may be trained on."""
    condition = trajectory.params.condition
    if generation == 0 or condition in {"fresh", "same"}:
        return []
    if condition == "first-writer":
        return [trajectory.write(generation - 1, models[0], generation=generation, writer=0)]
    return list(written) if condition.startswith("accumulate") else [written[-1]]

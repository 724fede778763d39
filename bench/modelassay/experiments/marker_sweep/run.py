"""One cell: the base's own answers, all adapters of a source trained together on them, and what they then say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from modelassay.data.wordnet import FILES, WORDNET, check_wordnet
from modelassay.experiments.marker_sweep.capability import ask_questions
from modelassay.experiments.marker_sweep.measure import evaluate
from modelassay.experiments.marker_sweep.params import Params, base_artifact
from modelassay.experiments.marker_sweep.rows import base_folder, contrasts
from modelassay.experiments.marker_sweep.train import train, write_answers
from modelassay.models.load import preload
from modelassay.recording.context import CellContext
from modelassay.storage.needs import File
from modelassay.zoo.resolve import resolve

preload()  # once, before cells are forked

_OF_ANSWERS = {
    "precision", "world", "instruction", "source", "seed", "rows_per_persona", "training_questions",
    "answer_temperature", "max_new_tokens", "generation_batch",
}  # fmt: skip
_OF_TRAINING = _OF_ANSWERS | {
    "marker", "tail_tokens", "rank", "alpha", "dropout", "rank_stabilised", "learning_rates", "epochs", "schedule",
    "warmup_fraction", "batch_size", "accumulation", "max_length",
}  # fmt: skip
_OF_EVALUATION = _OF_TRAINING | {
    "evaluation_questions",
    "completions",
    "temperature",
    "top_p",
    "engine",
    "parity_prompts",
    "parity_tokens",
}
_OF_QUESTIONS = _OF_TRAINING | {"capability_questions", "asked_as"}  # fmt: skip


def run(params: Params, cell: CellContext) -> None:
    """Record what `train.write_answers`, `train.train`, `measure.evaluate` and `capability.ask_questions` do; an adapter that diverges is a fact, the others go on."""
    is_wordnet = params.capability == WORDNET
    if is_wordnet:
        check_wordnet()  # before hours are spent
    base = base_folder(params, cell.store)
    identity = _identity(params, cell)
    own = {"base": identity, "contrasts": contrasts(params)}
    recipes = {
        name: {**own, **params.model_dump(mode="json", include=fields)}
        for name, fields in (
            ("answers", _OF_ANSWERS),
            ("train", _OF_TRAINING),
            ("evaluate", _OF_EVALUATION),
            ("questions", _OF_QUESTIONS),
        )
    }
    texts = cell.stage("answers", recipe=recipes["answers"], build=partial(write_answers, params=params, base=base))
    trained = cell.stage(
        "train",
        recipe={**recipes["train"], "mask": params.chosen_mask},
        build=partial(train, params=params, base=base, texts=texts.path),
        inputs=[texts],
    )
    cell.stage(
        "evaluate", recipe=recipes["evaluate"], inputs=[trained],
        build=partial(evaluate, params=params, base=base, trained=trained.path),
    )  # fmt: skip
    if not params.has_questions:
        return
    asked = (
        dict(FILES) if is_wordnet else {} if params.capability is None else File(path=Path(params.capability)).digests()
    )
    cell.stage(
        "questions", recipe={**recipes["questions"], "capability": asked}, inputs=[trained],
        build=partial(ask_questions, params=params, base=base, trained=trained.path),
    )  # fmt: skip


def _identity(params: Params, cell: CellContext) -> dict[str, Any]:
    """Return what determines the base's weights."""
    artifact = base_artifact(params)
    if artifact is not None:
        return dict(artifact.recipe)
    model = resolve(params.model, store=cell.store)
    return dict(model.identity) if model.identity is not None else File(path=model.folder, kind="model").digests()

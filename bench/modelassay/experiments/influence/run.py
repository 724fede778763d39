"""One cell: fine-tune a model on rows, score the rows for queries by every method, and measure what the scores are worth."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from modelassay.evaluation.tasks import load_items
from modelassay.experiments.influence.params import Params
from modelassay.experiments.influence.rows import answered, load_rows, prepare
from modelassay.experiments.influence.score import evaluate, factors, load_scores, removed_rows, score
from modelassay.experiments.influence.tasks import ask, task_files
from modelassay.experiments.influence.train import fine_tune, own_answers, remove, retrain
from modelassay.models.load import preload
from modelassay.models.reference import Model
from modelassay.recording.context import CellContext
from modelassay.storage.needs import File
from modelassay.zoo.resolve import resolve

preload()  # once, before cells are forked

REMOVED = ("ekfac", "gradient-cosine", "bm25", "representation", "random")
"""Methods whose own best rows are removed."""


def run(params: Params, cell: CellContext) -> None:
    """Record what the stages record; the retrainings that scores are judged by are made before any score.

    Raises:
        Diverged: the fine-tuning's loss, or a gradient, is not finite: a finding.
    """
    setting = params.setting
    for file in task_files(params):
        load_items(file)  # what cannot be asked is refused before anything is trained
    model = resolve(params.model, store=cell.store)
    seed = {"seed": params.seed}
    text = {**seed, **params.model_dump(mode="json", include={"input_column", "output_column"}), "files": _files(params), "tokenizer": _identity(model),
            **setting.model_dump(mode="json", include={"num_rows", "num_facts", "num_paraphrases", "num_decoys", "num_others", "num_duplicates", "max_length", "num_held_out"})}  # fmt: skip
    rows = cell.stage("influence-rows", recipe=text, build=partial(prepare, params=params, model=model))
    how = {**seed, "model": _identity(model), "max_new_tokens": params.max_new_tokens,
           **setting.model_dump(mode="json", include={"epochs", "batch_size", "learning_rate", "optimiser", "precision"})}  # fmt: skip
    tuned = cell.stage(
        "influence-fine-tune",
        recipe=how,
        inputs=[rows],
        build=partial(fine_tune, params=params, model=model, rows=rows.path),
    )
    if params.tasks:
        asked_of = {
            **how,
            "task_items": params.task_items,
            "files": {task: dict(File(path=Path(path)).digests()) for task, path in params.tasks.items()},
        }
        build = partial(ask, params=params, model=model, tuned=tuned.path)
        cell.stage("influence-tasks", recipe=asked_of, inputs=[tuned], build=build)
    prepared = load_rows(rows.path)
    own = own_answers(tuned.path)
    use_own = [params.generated or not query.answer for query in prepared.queries]
    queries = [
        answered(query, ids) if mine else query for query, ids, mine in zip(prepared.queries, own, use_own, strict=True)
    ]
    asked = {"generated": params.generated}
    retrained = None
    if setting.subsets:
        protocol = {**how, **asked, **setting.model_dump(mode="json", include={"subsets", "repeats", "alpha"})}
        build = partial(retrain, params=params, model=model, rows=rows.path, tuned=tuned.path, queries=queries)
        retrained = cell.stage("influence-retrain", recipe=protocol, inputs=[rows, tuned], build=build)
    fitting = {
        **seed,
        **params.model_dump(
            mode="json", include={"modules", "fisher", "data_parts", "module_groups", "max_tokens", "rank"}
        ),
        **how,
    }
    fitted = cell.stage(
        "influence-factors",
        recipe=fitting,
        inputs=[rows, tuned],
        build=partial(factors, params=params, rows=rows.path, tuned=tuned.path),
    )
    scoring = {
        **fitting,
        **asked,
        "damping": params.damping,
        "dampings": list(params.dampings),
        **setting.model_dump(mode="json", include={"solver_iterations", "sgld_draws", "sgld_burn_in"}),
    }
    build = partial(score, params=params, rows=rows.path, tuned=tuned.path, fitted=fitted.path, queries=queries)
    scored = cell.stage("influence-score", recipe=scoring, inputs=[rows, tuned, fitted], build=build)
    build = partial(
        evaluate,
        params=params,
        rows=rows.path,
        scored=scored.path,
        retrained=None if retrained is None else retrained.path,
        queries=queries,
    )
    cell.stage(
        "influence-evaluate",
        recipe={"damping": params.damping},
        inputs=[rows, scored, *([retrained] if retrained else [])],
        build=build,
    )
    if setting.removal_seeds:
        gone = removed_rows(load_scores(scored.path), prepared, damping=params.damping, k=setting.removed)
        chosen = {method: gone[method] for method in REMOVED}
        build = partial(
            remove, params=params, model=model, rows=rows.path, tuned=tuned.path, queries=queries, removed=chosen
        )
        recipe = {**how, **asked, "removal_seeds": setting.removal_seeds, "removed": chosen}
        cell.stage("influence-remove", recipe=recipe, inputs=[rows, tuned, scored], build=build)


def _identity(model: Model) -> dict[str, Any]:
    return dict(model.identity) if model.identity is not None else dict(File(path=model.folder, kind="model").digests())


def _files(params: Params) -> list[dict[str, str]]:
    return [dict(File(path=Path(path)).digests()) for path in (params.data, params.queries) if path is not None]

"""Stage that asks the base and the fine-tuned model the questions of standard tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modelassay.evaluation.tasks import TaskFile, score_tasks
from modelassay.experiments.influence.params import Params
from modelassay.experiments.influence.train import load_tuned
from modelassay.models.load import default_device, reproducible, threads_for
from modelassay.models.reference import Model
from modelassay.recording.context import Recorder


def task_files(params: Params) -> list[TaskFile]:
    """Return the tasks that are asked."""
    return [
        TaskFile(task=task, path=Path(path), sha256=params.task_hashes.get(task), limit=params.task_items)
        for task, path in params.tasks.items()
    ]


def ask(stage: Recorder, *, params: Params, model: Model, tuned: Path) -> None:
    """Record ``task_right`` (1 or 0) by ``task``, ``metric`` (``acc``, ``acc_norm``), ``item`` and ``model`` (``base``, ``fine-tuned``).

    Raises:
        UsageError: what `evaluation.tasks` refuses.
    """
    with reproducible(threads_for(model.sizes().hidden_size)):
        base: Any = model.load(dtype=getattr(torch, params.setting.precision), device=default_device())
        for label, asked in (("base", base), ("fine-tuned", load_tuned(tuned, params))):
            with stage.microbatch("tasks"):
                scored = score_tasks(asked, model.tokenizer(), task_files(params))
            for one in scored:
                for metric, right in one.correct.items():
                    stage.metric("task_right", float(right), task=one.task, metric=metric, item=one.number, model=label)

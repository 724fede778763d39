"""One cell: train one model on one text, and measure how far it is from what it was."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from modelassay.data.corpus import CORPUS
from modelassay.errors import Diverged
from modelassay.experiments.sft_drift.params import Params, Setting
from modelassay.experiments.sft_drift.text import check_text
from modelassay.experiments.sft_drift.train import OUTCOME, train
from modelassay.models.load import preload
from modelassay.models.reference import Model
from modelassay.recording.context import CellContext
from modelassay.storage.needs import File
from modelassay.zoo.resolve import resolve

preload()  # once, before cells are forked


def run(params: Params, cell: CellContext) -> None:
    """Record the curves of one training: see `train.train` for their names.

    Raises:
        Diverged: the loss became NaN or infinite, a finding: what was recorded before stands.
        UsageError: its text is not there.
    """
    check_text(params)
    setting = params.setting
    models = {name: resolve(name, store=cell.store) for name in {setting.model, setting.start or setting.model}}
    build = partial(train, params=params, reference=models[setting.model], start=models[setting.start or setting.model])
    product = cell.stage("drift", recipe=_recipe(params, setting, models), build=build)
    outcome = json.loads((product.path / OUTCOME).read_text())
    if outcome["diverged_at"] is not None:
        raise Diverged(f"the loss was not finite at step {outcome['diverged_at']}")


def _recipe(params: Params, setting: Setting, models: dict[str, Model]) -> dict[str, Any]:
    """Everything that determines the curves: the same training under another arm's name is the same."""
    identities = {
        name: dict(model.identity) if model.identity is not None else File(path=model.folder, kind="model").digests()
        for name, model in models.items()
    }
    text = params.file
    files = {} if text is None or text.startswith(CORPUS) else File(path=Path(text)).digests()
    own = params.model_dump(mode="json", include={"language", "seed", "num_prompts", "prompt_length"})
    return {
        "setting": setting.model_dump(mode="json"),
        "models": identities,
        "text": files,
        "corpus": text if text and not files else None,
        **own,
    }

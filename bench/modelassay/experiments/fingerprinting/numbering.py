"""The tests of independent numbering of a cell's model and others; kept for the next run of the same code."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from modelassay.experiments.fingerprinting.others import compared_with, is_connected
from modelassay.experiments.fingerprinting.params import Params
from modelassay.fingerprints.identical import same_bits
from modelassay.fingerprints.independence import independence, matrices_of
from modelassay.fingerprints.verdict import conclude
from modelassay.models.reference import Model
from modelassay.recording.context import CellContext, Recorder
from modelassay.zoo.ancestry import PREFIX


def number(params: Params, model: Model, cell: CellContext) -> None:
    """Record the fact ``numbering`` for each model that this one is tested against (`numbered_with`).

    A stage of its own, so that other scores need not be measured again when a test changes. Goes on after the last
    checkpointed pair.
    """
    others = compared_with(model, params.against, params.families, store=cell.store)
    random = np.random.default_rng(cell.seed(f"strangers of {model.reference}"))
    is_root = model.reference in params.against or model.reference == f"{PREFIX}{model.family}"
    chosen = numbered_with(model, others, is_root=is_root, strangers=params.strangers, random=random)
    if not chosen:
        return
    recipe = {
        "model": [model.reference, model.identity], "others": [[other.reference, other.identity] for other in chosen],
    }  # fmt: skip
    is_determined = all(each.identity is not None for each in (model, *chosen))
    cell.stage("numbering", recipe=recipe, build=partial(_number, model, chosen), shared=is_determined)


def numbered_with(
    model: Model, others: Sequence[Model], *, is_root: bool, strangers: int, random: np.random.Generator
) -> list[Model]:
    """Return which of ``others`` a model's numbering is tested against.

    A root, of the list or the zoo's, against all of them: these pairs are independent, and the false alarms are counted on them. Any other against what
    it is connected with and ``strangers`` of the others of its width, drawn at random: they repeat what the roots said.
    """
    if is_root:
        return list(others)
    connected = {other.reference for other in others if is_connected(model, other)}
    width = model.sizes().hidden_size
    rest = [other for other in others if other.reference not in connected and other.sizes().hidden_size == width]
    drawn = random.permutation(len(rest))[:strangers]
    kept = connected | {rest[place].reference for place in drawn}
    return [other for other in others if other.reference in kept]


def _number(model: Model, others: Collection[Model], stage: Recorder) -> None:
    """Record the tests of the model and each of ``others``."""
    saved = stage.restore()
    done = 0 if saved is None else int(saved.payload["tested"])
    matrices = matrices_of(model)
    for count, other in enumerate(list(others)[done:], start=done + 1):
        with stage.microbatch("numbering", other=other.reference):
            value = _outcome(model, other, matrices)
        stage.fact("numbering", value, other=other.reference)
        stage.progress(count, len(others), "pairs")
        if stage.checkpoint_due():
            stage.checkpoint({"tested": count})


def _outcome(model: Model, other: Model, matrices: Any) -> Mapping[str, Any]:
    """Return the word of the pair and all counts and p-values behind it, the other model being A and this one B."""
    result = independence(matrices_of(other), matrices)
    bits = same_bits(other.checkpoint(), model.checkpoint())
    return {
        "word": conclude("a", "b", bits, result).word,
        "log10_p": result.log10_p,
        "tests": [asdict(test) for test in result.tests],
        "agreement": None if result.agreement is None else asdict(result.agreement),
        "equal": len(bits.equal),
        "tensors": bits.total,
        "reasons": list(result.reasons),
    }

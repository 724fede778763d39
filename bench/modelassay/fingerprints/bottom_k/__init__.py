"""Behavioural fingerprint: do two models find the same tokens least likely, asked with prompts that one of them generated?

::

    base, child = (PromptedModel(resolve(name, store=store), store=store) for name in ("zoo:base", "zoo:base+sft-en"))
    a, b = child.responses(base.prompts), base.responses(base.prompts)
    overlap_exact(a, b).value, overlap_corrected(a, b).value, rank_biased(a, b).value

As methods (``BY_BEHAVIOUR``) the second model is the base that the first is suspected to descend from, and it generates the
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np

from modelassay.fingerprints.bottom_k.overlap import (
    Overlap,
    overlap_corrected,
    overlap_exact,
    rank_biased,
    rank_biased_overlap,
)
from modelassay.fingerprints.bottom_k.prompts import CannotPrompt, Prompt, PromptConfig, Prompts
from modelassay.fingerprints.bottom_k.responses import PromptedModel, Responses
from modelassay.fingerprints.curves import Score

__all__ = [
    "CannotPrompt",
    "Overlap",
    "Prompt",
    "PromptConfig",
    "PromptedModel",
    "Prompts",
    "Responses",
    "compute_responses",
    "overlap_corrected",
    "overlap_exact",
    "rank_biased",
    "rank_biased_overlap",
    "scored",
    "signals",
]


def scored(measure: Callable[[Responses, Responses], Overlap], suspect: PromptedModel, base: PromptedModel) -> Score:
    """Return a measure as the score of two models; the second generates the prompts, and roles are the prompts.

    Undefined, with the reason, where a model cannot generate prompts or be given them.

    Raises:
        CheckpointError: a model cannot be loaded.
    """
    try:
        prompts = base.prompts
        overlap = measure(suspect.responses(prompts), base.responses(prompts))
    except CannotPrompt as error:
        return Score(value=np.nan, per_role={}, alignment="none", reason=str(error))
    return Score(
        value=overlap.value, per_role={f"prompt {at}": value for at, value in enumerate(overlap.per_prompt)},
        alignment=f"{base.reference} generated the prompts, tokens by {overlap.matched_by}", reason=overlap.reason,
    )  # fmt: skip


def compute_responses(suspect: PromptedModel, bases: Iterable[PromptedModel]) -> None:
    """Let the bases answer their own prompts, one loaded at a time, and a model those of all of them in one go.

    What cannot be asked is left to `scored`, which says why. Of each the head stays in memory.

    Raises:
        CheckpointError: a model cannot be loaded.
    """
    prompts = []
    for base in bases:
        with suppress(CannotPrompt):
            prompts.append(base.prompts)
            base.answer([base.prompts])
        base.release()
    with suppress(CannotPrompt):
        suspect.answer(prompts)
    suspect.release()


def signals(suspect: PromptedModel, base: PromptedModel) -> dict[str, float]:
    """Return what a score by `overlap_corrected` does not say; nothing where it is not defined.

    ``low`` and ``high``: ends of the interval over prompts; ``chance``: what independent sets overlap; ``tied``: share of the
    places that only the order of ids decided; ``padded``: share of padding in the sets of `overlap_exact`.

    Raises:
        CheckpointError: a model cannot be loaded.
    """
    try:
        answers = suspect.responses(base.prompts), base.responses(base.prompts)
    except CannotPrompt:
        return {}
    ours, published = overlap_corrected(*answers), overlap_exact(*answers)
    if ours.reason or published.reason:
        return {}
    low, high = (np.nan if end is None else end for end in (ours.mean.low, ours.mean.high))
    return {"low": low, "high": high, "chance": ours.chance, "tied": ours.tied, "padded": published.padded}

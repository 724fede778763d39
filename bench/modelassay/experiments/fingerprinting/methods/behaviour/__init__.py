"""Behavioural fingerprint: do two models find the same tokens least likely, asked with prompts that one of them grew?

::

    base, child = Speaker("zoo:base", store=store), Speaker("zoo:base+sft-en", store=store)
    a, b = child.responses(base.prompts), base.responses(base.prompts)
    overlap_exact(a, b).value, overlap_corrected(a, b).value, rank_biased(a, b).value

As methods (``BY_BEHAVIOUR``) the second model is the base that the first is suspected to descend from, and it grows the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np

from modelassay.experiments.fingerprinting.curves import Score
from modelassay.experiments.fingerprinting.methods.behaviour.overlaps import (
    Overlap,
    interval_over_models,
    interval_over_prompts,
    overlap_corrected,
    overlap_exact,
    rank_biased,
    rank_biased_overlap,
)
from modelassay.experiments.fingerprinting.methods.behaviour.prompts import Growth, Mute, Prompt, Prompts
from modelassay.experiments.fingerprinting.methods.behaviour.speaker import (
    Responses,
    Speaker,
    model_folder,
    prompts_for,
    responses,
)

__all__ = [
    "Growth", "Mute", "Overlap", "Prompt", "Prompts", "Responses", "Speaker", "interval_over_models", "interval_over_prompts", "listen_to",
    "model_folder", "overlap_corrected", "overlap_exact", "prompts_for", "rank_biased", "rank_biased_overlap",
    "responses", "scored", "signals",
]  # fmt: skip


def scored(measure: Callable[[Responses, Responses], Overlap], suspect: Speaker, base: Speaker) -> Score:
    """Return a measure as the score of two models; the second grows the prompts, and roles are the prompts.

    Undefined, with the reason, where a model cannot grow prompts or be given them.

    Raises:
        CheckpointError: a model cannot be loaded.
    """
    try:
        prompts = base.prompts
        found = measure(suspect.responses(prompts), base.responses(prompts))
    except Mute as error:
        return Score(value=np.nan, per_role={}, alignment="none", reason=str(error))
    return Score(
        value=found.value, per_role={f"prompt {at}": value for at, value in enumerate(found.per_prompt)},
        alignment=f"{base.reference} grew the prompts, tokens by {found.matched_by}", reason=found.reason,
    )  # fmt: skip


def listen_to(suspect: Speaker, bases: Iterable[Speaker]) -> None:
    """Let the bases answer their own prompts, one loaded at a time, and a model those of all of them in one go.

    What cannot be asked is left to `scored`, which says why. Of each the head stays in memory.

    Raises:
        CheckpointError: a model cannot be loaded.
    """
    prompts = []
    for base in bases:
        with suppress(Mute):
            prompts.append(base.prompts)
            base.listen([base.prompts])
        base.release()
    with suppress(Mute):
        suspect.listen(prompts)
    suspect.release()


def signals(suspect: Speaker, base: Speaker) -> dict[str, float]:
    """Return what a score by `overlap_corrected` does not say; nothing where it is not defined.

    ``low`` and ``high``: ends of the interval over prompts; ``chance``: what independent sets overlap; ``tied``: share of the
    places that only the order of ids decided; ``padded``: share of padding in the sets of `overlap_exact`.

    Raises:
        CheckpointError: a model cannot be loaded.
    """
    try:
        asked = suspect.responses(base.prompts), base.responses(base.prompts)
    except Mute:
        return {}
    ours, published = overlap_corrected(*asked), overlap_exact(*asked)
    if ours.reason or published.reason:
        return {}
    return {"low": ours.low, "high": ours.high, "chance": ours.chance, "tied": ours.tied, "padded": published.padded}

"""Behavioural fingerprint: do two models find the same tokens least likely, asked with prompts that one of them grew?

::

    base, child = Speaker("zoo:base", store=store), Speaker("zoo:base+sft-en", store=store)
    a, b = child.responses(base.prompts), base.responses(base.prompts)
    overlap_exact(a, b).value, overlap_corrected(a, b).value, rank_biased(a, b).value

As methods (`BY_BEHAVIOUR`) the second model is the base that the first is suspected to descend from, and it grows the prompts.
"""

from __future__ import annotations

from collections.abc import Callable

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
from modelassay.experiments.fingerprinting.methods.behaviour.prompts import Growth, Prompt, Prompts
from modelassay.experiments.fingerprinting.methods.behaviour.responses import (
    Responses,
    Speaker,
    model_folder,
    prompts_for,
    responses,
)

__all__ = [
    "Growth", "Overlap", "Prompt", "Prompts", "Responses", "Speaker", "interval_over_models", "interval_over_prompts",
    "model_folder", "overlap_corrected", "overlap_exact", "prompts_for", "rank_biased", "rank_biased_overlap",
    "responses", "scored",
]  # fmt: skip


def scored(measure: Callable[[Responses, Responses], Overlap], suspect: Speaker, base: Speaker) -> Score:
    """Return a measure as the score of two models; the second grows the prompts, and roles are the prompts.

    Undefined, with the reason, where a model brings no tokenizer.

    Raises:
        CheckpointError: a model cannot be loaded, or cannot grow prompts.
    """
    for speaker in (suspect, base):
        if speaker.vocabulary is None:
            reason = f"{speaker.reference}: brings no tokenizer, so it can be given no prompt"
            return Score(value=np.nan, per_role={}, alignment="none", reason=reason)
    found = measure(suspect.responses(base.prompts), base.responses(base.prompts))
    return Score(
        value=found.value, per_role={f"prompt {at}": value for at, value in enumerate(found.per_prompt)},
        alignment=f"{base.reference} grew the prompts, tokens by {found.matched_by}", reason=found.reason,
    )  # fmt: skip

"""The embeddings of the tokens that two models share."""

from __future__ import annotations

import numpy as np

from modelassay.fingerprints.independence.matrices import Floats, ModelMatrices
from modelassay.fingerprints.tokens import MIN_TOKENS, token_names

MAX_TOKENS = 4096
"""Shared tokens that are read, at even distances in the order of ids."""


def shared_embeddings(a: ModelMatrices, b: ModelMatrices) -> tuple[Floats, Floats] | str:
    """Return the embeddings of shared tokens, [T, D] of each, or why there are none.

    Tokens are shared by their text, so that a vocabulary may have grown, been padded or renumbered; where no file tells the
    texts, models with one tokenizer share their ids.
    """
    by_text = a.tokens is not None and b.tokens is not None
    names_a, names_b = (token_names(model.checkpoint, model.tokens if by_text else None) for model in (a, b))
    if not names_a or not names_b:
        return "no file tells which tokens both know"
    shared = sorted((names_a[name], names_b[name]) for name in names_a.keys() & names_b.keys())
    if len(shared) < MIN_TOKENS:
        return f"{len(shared)} shared tokens are too few, {MIN_TOKENS} are needed"
    places = np.linspace(0, len(shared) - 1, min(len(shared), MAX_TOKENS)).round().astype(int)
    rows_a, rows_b = a.embedding([shared[at][0] for at in places]), b.embedding([shared[at][1] for at in places])
    if rows_a is None or rows_b is None:
        return "a word embedding is not known or holds no plain numbers"
    finite = np.isfinite(rows_a).all(1) & np.isfinite(rows_b).all(1)
    if finite.sum() < MIN_TOKENS:
        return "a word embedding holds NaN or infinite weights"
    return rows_a[finite], rows_b[finite]

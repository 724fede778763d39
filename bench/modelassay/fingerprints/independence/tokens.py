"""The embeddings of the tokens that two models share."""

from __future__ import annotations

import numpy as np

from modelassay.fingerprints.independence.matrices import Floats, ModelMatrices

MAX_TOKENS = 4096
"""Shared tokens that are read, at even distances in the order of ids."""
MIN_TOKENS = 64
"""Fewer leave the cosines of dimensions to chance."""


def shared_embeddings(a: ModelMatrices, b: ModelMatrices) -> tuple[Floats, Floats] | str:
    """Return the embeddings of shared tokens, [T, D] of each, or why there are none.

    Tokens are shared by their text, so that a vocabulary may have grown, been padded or renumbered; where no file tells the
    texts, models with one tokenizer share their ids.
    """
    if a.tokens is not None and b.tokens is not None:
        shared = [(a.tokens[token], b.tokens[token]) for token in a.tokens.keys() & b.tokens.keys()]
    elif a.checkpoint.tokenizer_key is not None and a.checkpoint.tokenizer_key == b.checkpoint.tokenizer_key:
        shared = [(row, row) for row in range(min(a.checkpoint.vocab_size, b.checkpoint.vocab_size))]
    else:
        return "no file tells which tokens both know"
    limits = a.checkpoint.vocab_size, b.checkpoint.vocab_size
    shared = sorted(
        pair
        for pair in shared
        if all(type(at) is int and 0 <= at < limit for at, limit in zip(pair, limits, strict=True))
    )
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

"""What names a token, so that two models can share it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.layers import num_embedding_rows
from modelassay.models.hub import Files
from modelassay.models.tokenizer import token_ids

MIN_TOKENS = 64
"""Fewer shared tokens leave the cosines of hidden dimensions to chance."""


def texts_of(files: Files) -> Mapping[str, int] | None:
    """Return the id of each token's text; None where no file tells, or where the vocabulary is damaged."""
    try:
        return token_ids(files)
    except CheckpointError:  # a damaged vocabulary costs what needs it; the body says enough
        return None


def token_names(checkpoint: Checkpoint, texts: Mapping[str, int] | None) -> Mapping[str, int]:
    """Return the rows of a checkpoint's embedding by what names them: texts where known, else ids under the tokenizer's key.

    So a vocabulary may have grown, been padded or renumbered. Empty where nothing tells. Rows that the file lacks have no name, however
    many config.json states.
    """
    stated, held = checkpoint.vocab_size or 0, num_embedding_rows(checkpoint)
    rows = range(stated if held is None else min(stated, held))
    if texts is not None:
        return {text: row for text, row in texts.items() if type(row) is int and row in rows}
    if checkpoint.tokenizer_key is None or held is None:
        return {}
    return {f"{checkpoint.tokenizer_key} {row}": row for row in rows}


def sketch(names: Iterable[str], limit: int) -> list[str]:
    """Return the ``limit`` names with the least hashes, in that order: models with a vocabulary in common choose the same ones.

    Each model chooses alone, whatever it will be compared with, and of two vocabularies all choices that the larger one
    shares are among the smaller's (bottom-k sketch, Broder 1997).

    >>> [name for name in sketch("abcdefgh", 4) if name in "abcd"] == sketch("abcd", 4)[: len(set(sketch("abcdefgh", 4)) & set("abcd"))]
    True
    """
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest())[
        :limit
    ]

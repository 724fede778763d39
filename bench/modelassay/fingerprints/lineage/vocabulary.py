"""Which rows of two embeddings stand for the same token, and whether an output matrix is an embedding once more."""

# V = rows of an embedding, T = tokens that both models have, D = hidden dimensions

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from modelassay.fingerprints.lineage.result import Sign
from modelassay.fingerprints.lineage.symmetries import Floats
from modelassay.fingerprints.lineage.tensors import OUTSIDE, Tensors, files_of
from modelassay.fingerprints.tokens import MIN_TOKENS, texts_of, token_names
from modelassay.models.checkpoints import Checkpoint, config_path
from modelassay.models.checkpoints.architectures import language_config
from modelassay.models.checkpoints.opened import GgufFiles
from modelassay.models.gate import read_json
from modelassay.models.hub import Files

HEAD = "lm_head.weight"
MIN_ALIKE = 0.15
"""`centred_cosine` below which rows do not correspond. In the zoo vocabularies in another order have at most 0.03 (8), children
continued for four times their root's training 0.63 and more (3), mixtures with 70 % of a stranger 0.32 and more (25)."""


@dataclass(frozen=True, kw_only=True)
class SharedTokens:
    """The tokens that two different vocabularies have in common, by text."""

    num_tokens: tuple[int, int]
    """Tokens of a and of b, without what was added to a tokenizer later."""
    rows: tuple[tuple[int, ...], tuple[int, ...]]
    """Their rows in a and in b; empty where under `MIN_TOKENS` are shared or a file does not list its tokens."""

    @property
    def num_moved(self) -> int:
        """How many have another number in b."""
        return sum(x != y for x, y in zip(*self.rows, strict=True))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How the rows of one differing embedding were compared."""

    num_equal: int
    """Rows that are the same bits in both."""
    total: int
    by_text: bool
    """Whether rows of one token were compared, or of one number since these are more alike."""


def shared_tokens(a: Checkpoint, b: Checkpoint) -> SharedTokens | None:
    """Return which tokens two models share; None where their tokens have the same numbers, or a model has no tokenizer.

    Reads vocabularies only where their keys differ.
    """
    if a.tokenizer_key is None or b.tokenizer_key is None or a.tokenizer_key == b.tokenizer_key:
        return None
    files = files_of(a), files_of(b)
    texts = _without_added(texts_of(files[0]), files[1]), _without_added(texts_of(files[1]), files[0])
    if texts[0] is None or texts[1] is None:
        return SharedTokens(num_tokens=(0, 0), rows=((), ()))
    if texts[0] == texts[1]:
        return None
    names = token_names(a, texts[0]), token_names(b, texts[1])
    counts = len(names[0]), len(names[1])
    pairs = sorted((row, names[1][text]) for text, row in names[0].items() if text in names[1])
    if len(pairs) < MIN_TOKENS:
        return SharedTokens(num_tokens=counts, rows=((), ()))
    return SharedTokens(num_tokens=counts, rows=(tuple(x for x, _ in pairs), tuple(y for _, y in pairs)))


def _without_added(texts: Mapping[str, int] | None, other: Files) -> Mapping[str, int] | None:
    """Return a vocabulary without what a GGUF file lists as added under the same number: whether it was, other files do not tell alike."""
    if texts is None or not isinstance(other, GgufFiles):
        return texts
    return {text: row for text, row in texts.items() if other.added.get(text) != row}


def choose_rows(by_number: tuple[Floats, Floats], by_text: tuple[Floats, Floats]) -> tuple[Floats, Floats, Rows]:
    """Return the pair of row sets [T, D] that is more alike, and how many rows are equal in it.

    A tokenizer that was only put beside the weights leaves rows where their numbers are.
    """
    chosen = by_text if centred_cosine(*by_text) >= centred_cosine(*by_number) else by_number
    equal = int((chosen[0] == chosen[1]).all(1).sum())
    return *chosen, Rows(num_equal=equal, total=len(chosen[0]), by_text=chosen is by_text)


def centred_cosine(x: Floats, y: Floats) -> float:
    """Return the cosine of two sets of rows [T, D] less their mean rows, which any order of rows has in common."""
    return _cosine(x - x.mean(0), y - y.mean(0))


def _cosine(x: Floats, y: Floats) -> float:
    size = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    return float(np.vdot(x, y)) / size if size > 0 else 0.0


def own_head(weights: Tensors, other: Tensors) -> float | None:
    """Return the cosine of a model's output matrix with its embedding where the other model has none of its own, 1 for equal bits.

    None where both have one or neither has.
    """
    if not _has_head(weights) or _has_head(other):
        return None
    names = weights.by_layer[OUTSIDE]
    head = next(name for name, stored in names.items() if stored == HEAD)
    shape = weights.info(OUTSIDE, head).shape
    for name in names.keys() - {head}:
        if (
            weights.info(OUTSIDE, name).shape == shape
            and weights.readable(OUTSIDE, name)
            and weights.readable(OUTSIDE, head)
        ):
            x, y = weights.read(OUTSIDE, head), weights.read(OUTSIDE, name)
            return 1.0 if torch.equal(x, y) else min(_cosine(x.float().numpy(), y.float().numpy()), 1 - 1e-9)
    return None


def _has_head(weights: Tensors) -> bool:
    """Whether a model stores an output matrix that it uses."""
    if HEAD not in weights.by_layer.get(OUTSIDE, {}).values():
        return False
    config = read_json(config_path(files_of(weights.checkpoint)))
    _, own, _ = language_config(config)
    return not own.get("tie_word_embeddings", config.get("tie_word_embeddings"))


def vocabulary_signs(a: Checkpoint, b: Checkpoint, tokens: SharedTokens | None, rows: Rows | None,
                     heads: tuple[float | None, float | None], unlike: Mapping[str, float]) -> Iterator[Sign]:  # fmt: skip
    """Yield that the vocabulary was changed or the embeddings untied; neither tells which side was first."""
    count = "" if a.vocab_size == b.vocab_size else f"a has {a.vocab_size} rows of the vocabulary, b {b.vocab_size}"
    if tokens is not None:
        yield Sign(
            kind="vocabulary", text=f"vocabulary changed: {f'{count}; ' if count else ''}{_shared(tokens, rows)}"
        )
    elif count:
        yield Sign(
            kind="vocabulary", text=f"{count}, and the same tokens have the same numbers: rows were added or taken away"
        )
    for name, alike in unlike.items():
        yield Sign(kind="vocabulary", text=f"rows of {name} do not correspond (cosine {alike:.2f}): they stand in another order or for other "
                   "tokens, or were trained anew; which of these is not told, and they are not compared")  # fmt: skip
    for side, cosine in zip("ab", heads, strict=True):
        if cosine is not None:
            likeness = "the same bits as" if cosine == 1 else f"at a cosine of {cosine:.3f} with"
            yield Sign(
                kind="untied",
                text=f"{side} has an output matrix of its own, {likeness} its embedding, which the other uses for both",
            )


def _shared(tokens: SharedTokens, rows: Rows | None) -> str:
    if not tokens.rows[0]:
        return ("too few tokens are shared to compare rows by text" if all(tokens.num_tokens) else
                "a file that lists its tokens is missing, so rows are compared by number, and a renumbering is not excluded")  # fmt: skip
    text = (f"{len(tokens.rows[0])} tokens are in both, of {tokens.num_tokens[0]} of a and {tokens.num_tokens[1]} of b, "
            f"{tokens.num_moved} of them under another number")  # fmt: skip
    if rows is None:
        return text
    if rows.by_text:
        return f"{text}; {rows.num_equal} of {rows.total} shared tokens hold equal rows"
    return (f"{text}; but rows of one number are more alike than rows of one token ({rows.num_equal} of {rows.total} equal), as where "
            "another tokenizer was put beside the weights")  # fmt: skip

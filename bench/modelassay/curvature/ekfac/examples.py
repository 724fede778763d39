"""Rows of tokens as microbatches of like lengths, each row known by its number."""

# B = rows of a microbatch, T = tokens of its longest row

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from modelassay.curvature.loss import IGNORED, Microbatch, TargetBatch, count_tokens
from modelassay.errors import UsageError

MAX_TOKENS = 4096
"""Positions of a microbatch, padding included."""


class Example(Protocol):
    """What is trained on or asked; `modelassay.training.rows.Row` is one."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""

    @property
    def labels(self) -> tuple[int, ...]:
        """The same, -100 where a token carries no loss; not shifted."""


@dataclass(frozen=True, kw_only=True)
class ExampleBatch:
    """Rows that go through the model together, padded on the right, which causal attention does not see."""

    numbers: tuple[int, ...]
    """Of the rows among all."""
    target: TargetBatch
    real_BT: Tensor
    """Whether a position is no padding."""


def num_targets(example: Example) -> int:
    """Return how many tokens of a row carry loss and are predicted; the first never is."""
    predicted = example.labels[1:]
    return len(predicted) - predicted.count(IGNORED)


def batches_of(examples: Sequence[Example], *, vocabulary: int, device: torch.device, max_tokens: int = MAX_TOKENS,
               numbers: Sequence[int] | None = None) -> list[ExampleBatch]:  # fmt: skip
    """Return microbatches of the rows ``numbers`` (all if None) by length; rows without a counted token, whose gradient is zero, are in none.

    Raises:
        UsageError: a token outside the vocabulary, or not one row with a counted token.
    """
    chosen = range(len(examples)) if numbers is None else numbers
    ordered = sorted(
        (number for number in chosen if num_targets(examples[number])), key=lambda n: (len(examples[n].ids), n)
    )
    if not ordered:
        raise UsageError(f"influence: none of {len(chosen)} rows has a token that carries loss; look at their labels")
    batches, start = [], 0
    while start < len(ordered):
        end = start + 1
        while end < len(ordered) and (end + 1 - start) * len(examples[ordered[end]].ids) <= max_tokens:
            end += 1
        batches.append(_padded(examples, tuple(ordered[start:end]), vocabulary, device))
        start = end
    return batches


def _padded(
    examples: Sequence[Example], numbers: tuple[int, ...], vocabulary: int, device: torch.device
) -> ExampleBatch:
    rows = [examples[number] for number in numbers]
    length = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([[*row.ids, *[0] * (length - len(row.ids))] for row in rows])
    labels_BT = torch.tensor([[*row.labels, *[IGNORED] * (length - len(row.ids))] for row in rows])
    real_BT = torch.arange(length) < torch.tensor([len(row.ids) for row in rows])[:, None]
    (target,) = count_tokens(
        [Microbatch(input_ids_BT=ids_BT, labels_BT=labels_BT)], vocabulary=vocabulary, device=device
    )
    return ExampleBatch(numbers=numbers, target=target, real_BT=real_BT.to(device))


def microbatches_of(examples: Sequence[Example], *, max_tokens: int = MAX_TOKENS) -> list[Microbatch]:
    """Return the same rows as an operator (`gauss_newton.GaussNewton`) takes them."""
    batches = batches_of(examples, vocabulary=2**62, device=torch.device("cpu"), max_tokens=max_tokens)
    return [Microbatch(input_ids_BT=batch.target.input_ids_BT, labels_BT=batch.target.labels_BT) for batch in batches]


def uniform_numbers(batch: ExampleBatch, *, seed: int) -> Tensor:
    """Return a number in [0, 1) for each counted token, [N] in fp64: it depends on the seed, the row and the token's place alone."""
    counts = torch.bincount(batch.target.sequences_N.cpu(), minlength=len(batch.numbers)).tolist()
    parts = [
        np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64))).random(count)
        for number, count in zip(batch.numbers, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts))


def digest_of_examples(examples: Sequence[Example]) -> str:
    """Return 16 hex digits of all ids and labels."""
    digest = hashlib.blake2b(digest_size=8)
    for example in examples:
        digest.update(np.array([len(example.ids), *example.ids, *example.labels], dtype=np.int64).tobytes())
    return digest.hexdigest()

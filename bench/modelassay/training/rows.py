"""Rows of tokens with the loss they carry, as data, and the batches that a training takes from them."""

# B = rows of a batch, S = tokens of a row, N = rows

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that carries no loss."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens, and which of them carry loss.

    >>> Row(ids=(5, 6, 7), loss=(False, False, True)).labels
    (-100, -100, 7)
    """

    ids: tuple[int, ...]
    loss: tuple[bool, ...]
    """Whether a token's log-probability, given those before it, is part of the loss. Nothing predicts the first one."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.loss):
            raise ValueError(
                f"a row of {len(self.ids)} tokens has {len(self.loss)} loss marks; give one for each token"
            )

    @property
    def labels(self) -> tuple[int, ...]:
        """The ids, `IGNORED` where there is no loss."""
        return tuple(token if marked else IGNORED for token, marked in zip(self.ids, self.loss, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one forward pass is given."""

    ids_BS: Tensor
    labels_BS: Tensor
    """`IGNORED` where there is no loss; not shifted, as transformers takes them."""

    @property
    def num_tokens(self) -> int:
        """Positions the model computes, padding included."""
        return self.ids_BS.numel()

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss and are predicted; the first of a row never is."""
        return int((self.labels_BS[:, 1:] != IGNORED).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """Batches by number: of any of them the rows are known without having gone through those before it."""

    order: Tensor
    """Numbers of the rows as they are taken, [N]; a row may come more than once."""
    batch_size: int
    take: Callable[[list[int]], Batch]
    """Makes a batch of the rows with these numbers."""

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        return self.take(self.order[number * self.batch_size : (number + 1) * self.batch_size].tolist())


def shuffled(num_rows: int, *, seed: int, num_epochs: int = 1) -> Tensor:
    """Return the numbers of all rows once an epoch, each epoch in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(num_rows, generator=generator) for _ in range(num_epochs)])


def of_blocks(blocks_NS: Tensor, *, batch_size: int, order: Tensor | None = None) -> Batches:
    """Return batches of blocks in which every token carries loss; in the order they stand in if ``order`` is None."""

    def take(numbers: list[int]) -> Batch:
        ids_BS = blocks_NS[numbers]
        return Batch(ids_BS=ids_BS, labels_BS=ids_BS)

    return Batches(order=torch.arange(len(blocks_NS)) if order is None else order, batch_size=batch_size, take=take)


def of_rows(rows: Sequence[Row], *, batch_size: int, filling: int, order: Tensor | None = None) -> Batches:
    """Return batches of rows, padded each to its longest; in the order they stand in if ``order`` is None."""
    return Batches(
        order=torch.arange(len(rows)) if order is None else order,
        batch_size=batch_size,
        take=lambda numbers: collate([rows[number] for number in numbers], filling=filling),
    )


def collate(rows: Sequence[Row], *, filling: int) -> Batch:
    """Return rows as one batch, filled on the right.

    The filling carries no loss, and causal attention keeps it from being seen, so no mask goes with it.
    """
    length = max(len(row.ids) for row in rows)
    ids_BS = [[*row.ids, *[filling] * (length - len(row.ids))] for row in rows]
    labels_BS = [[*row.labels, *[IGNORED] * (length - len(row.ids))] for row in rows]
    return Batch(ids_BS=torch.tensor(ids_BS), labels_BS=torch.tensor(labels_BS))


def filling_of(tokenizer: Any) -> int:
    """Return the token that a tokenizer pads with; what ends its texts where it has none, 0 where it has neither."""
    tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in tokens if token is not None), 0)

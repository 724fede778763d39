"""What was called what: a confusion matrix with an interval for every rate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95

# L = number of distinct labels


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of counted things with its Wilson interval, which holds if they are independent."""

    count: int
    total: int
    value: float
    low: float
    high: float


def wilson(count: int, total: int) -> Share:
    """Return count / total with its 95 % score interval, which neither end nor few trials make degenerate.

    Wilson 1927; Brown, Cai and DasGupta 2001 recommend it for 40 trials and fewer. It assumes independent trials: pairs
    of models that share roots are not, and for them it is too narrow.

    >>> share = wilson(0, 20)
    >>> share.value, share.low, round(share.high, 4)
    (0.0, 0.0, 0.1611)

    Raises:
        ValueError: no trials, or a count that is not one of 0 ... total.
    """
    if not 0 <= count <= total or total < 1:
        message = f"wilson: needs 0 <= count <= total and total >= 1, got {count} of {total}"
        raise ValueError(message)
    low, high = proportion_confint(count, total, alpha=1 - LEVEL, method="wilson")
    return Share(count=count, total=total, value=count / total, low=max(0.0, float(low)), high=min(1.0, float(high)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Confusion:
    """True labels against called ones."""

    labels: tuple[Hashable, ...]
    """True labels in the order of their first appearance, then those that were only called."""
    counts: NDArray[np.int64]
    """[L, L]: row the true label, column the called one."""
    recall: tuple[Share | None, ...]
    """Of each label, the share that was called it; None for a label that was only called."""
    accuracy: Share
    """The share that was called what it is."""


def confusion(true_labels: Sequence[Hashable], called_labels: Sequence[Hashable]) -> Confusion:
    """Return the confusion matrix of two lists of labels, with the recall of each label and the accuracy.

    >>> table = confusion(["sft", "sft", "lora"], ["sft", "lora", "lora"])
    >>> table.labels, table.counts.tolist(), table.accuracy.count
    (('sft', 'lora'), [[1, 1], [0, 1]], 2)

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    if len(true_labels) != len(called_labels) or not len(true_labels):
        message = f"confusion: needs two lists of one length above 0, got {len(true_labels)} true and {len(called_labels)} called labels"
        raise ValueError(message)
    labels = tuple(dict.fromkeys((*true_labels, *called_labels)))
    place = {label: index for index, label in enumerate(labels)}
    counts_LL = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts_LL, ([place[label] for label in true_labels], [place[label] for label in called_labels]), 1)
    right_L, totals_L = np.diag(counts_LL), counts_LL.sum(axis=1)
    recall = tuple(
        wilson(int(right), int(total)) if total else None for right, total in zip(right_L, totals_L, strict=True)
    )
    return Confusion(labels=labels, counts=counts_LL, recall=recall,
                     accuracy=wilson(int(right_L.sum()), len(true_labels)))  # fmt: skip

"""Finding rows by their words, and how well a ranking finds what was to be found."""

# Q: queries, N: rows

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
K1, B = 1.2, 0.75
"""Of BM25; the defaults of Lucene and of Robertson and Zaragoza 2009."""


def bm25(
    queries: Sequence[Sequence[Hashable]], rows: Sequence[Sequence[Hashable]], *, k1: float = K1, b: float = B
) -> Floats:
    """Return the BM25 score of every row for every query, [Q, N], over words or tokens; 0 where they share none.

    sum over the query's words w of idf(w) f (k1 + 1) / (f + k1 (1 - b + b |row| / mean)), f how often w is in the row,
    idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5)), n rows that hold w (Lucene's, which is never negative).

    >>> bm25([["fox"]], [["a", "fox"], ["a", "dog"]]).round(3).tolist()
    [[0.693, 0.0]]
    """
    counts = [Counter(row) for row in rows]
    mean = sum(map(len, rows)) / max(len(rows), 1) or 1.0
    holders: dict[Hashable, list[tuple[int, int]]] = {}
    for number, count in enumerate(counts):
        for word, frequency in count.items():
            holders.setdefault(word, []).append((number, frequency))
    lengths = np.array([k1 * (1 - b + b * len(row) / mean) for row in rows])
    scores_QN = np.zeros((len(queries), len(rows)))
    for query, words in enumerate(queries):
        for word in words:
            held = holders.get(word, [])
            idf = math.log(1 + (len(rows) - len(held) + 0.5) / (len(held) + 0.5))
            for number, frequency in held:
                scores_QN[query, number] += idf * frequency * (k1 + 1) / (frequency + lengths[number])
    return scores_QN


def ranks(scores: Floats) -> NDArray[np.int64]:
    """Return each row's rank, 1 for the greatest score; the smaller number of equals comes first.

    >>> ranks(np.array([0.1, 0.9, 0.1])).tolist()
    [2, 1, 3]
    """
    result = np.empty(len(scores), dtype=np.int64)
    result[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return result


def recall_at(scores: Floats, wanted: Collection[int], k: int) -> float:
    """Return the share of ``wanted`` rows among the first k.

    >>> recall_at(np.array([0.5, 0.9, 0.1]), {0, 2}, 2)
    0.5

    Raises:
        ValueError: nothing is wanted.
    """
    if not wanted:
        raise ValueError("recall: no row is wanted")
    of = ranks(scores)
    return sum(int(of[row]) <= k for row in wanted) / len(wanted)


def reciprocal_rank(scores: Floats, wanted: Collection[int]) -> float:
    """Return one over the rank of the first wanted row; its mean over queries is MRR.

    >>> reciprocal_rank(np.array([0.5, 0.9, 0.1]), {0, 2})
    0.5

    Raises:
        ValueError: nothing is wanted.
    """
    if not wanted:
        raise ValueError("reciprocal rank: no row is wanted")
    of = ranks(scores)
    return 1.0 / min(int(of[row]) for row in wanted)

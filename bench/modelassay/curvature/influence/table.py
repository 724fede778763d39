"""Scores as Polars frames; not for cells, which are forked before Polars may start its threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from modelassay.curvature.influence.scores import Top
from modelassay.errors import UsageError

if TYPE_CHECKING:
    import polars as pl


def pairwise_frame(scores_QN: Tensor, *, columns: tuple[str, str] = ("query", "row")) -> pl.DataFrame:
    """Return query, row, score (nats) of every pair, queries in turn.

    Raises:
        UsageError: the scores are not of the form [Q, rows].
    """
    import numpy as np
    import polars as pl

    if scores_QN.dim() != 2:
        raise UsageError(
            f"influence: a frame takes scores [queries, rows], got shape {tuple(scores_QN.shape)}; sum or choose a layer first"
        )
    num_queries, num_rows = scores_QN.shape
    return pl.DataFrame({
        columns[0]: np.repeat(np.arange(num_queries), num_rows), columns[1]: np.tile(np.arange(num_rows), num_queries),
        "score": scores_QN.cpu().double().numpy().ravel(),
    })  # fmt: skip


def top_frame(top: Top) -> pl.DataFrame:
    """Return query, rank (from 1), row, score of the best rows."""
    import numpy as np
    import polars as pl

    num_queries, k = top.numbers_QK.shape
    return pl.DataFrame({
        "query": np.repeat(np.arange(num_queries), k), "rank": np.tile(np.arange(1, k + 1), num_queries),
        "row": top.numbers_QK.numpy().ravel(), "score": top.scores_QK.numpy().ravel(),
    })  # fmt: skip

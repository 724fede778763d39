"""Scores: pairwise in one pass over the rows, the best of each query without holding the matrix, self, per layer and per token."""

# Q = queries, B = rows of a microbatch, L = layers, T = positions, O = outputs of a layer, J = inputs, R = rank, K = rows kept

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay.curvature.ekfac.capture import Trace
from modelassay.curvature.ekfac.factors import Factors
from modelassay.curvature.ekfac.inverse import DAMPING, Strategy, check_damping, damping_of, eigenvalues
from modelassay.curvature.influence.queries import LayerQueries
from modelassay.curvature.influence.train import TrainSource
from modelassay.errors import UsageError

DENSE_BYTES = 2**30
"""Query gradients of all layers together that are expanded once and held; above it they are expanded some queries at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreBlock:
    """Scores of a microbatch of rows."""

    numbers: tuple[int, ...]
    scores_LQB: Tensor
    """By layer; their sum is the score."""

    @property
    def scores_QB(self) -> Tensor:
        """Scores over all layers."""
        return self.scores_LQB.sum(0)


def score_blocks(
    layers: Sequence[LayerQueries], rows: TrainSource, *, num_tokens: int, dense_bytes: int = DENSE_BYTES
) -> Iterator[ScoreBlock]:
    """Yield the scores of each microbatch of rows.

    Costs, for a row and a layer, T O J to form the gradient and Q O J to multiply, or T Q R (O + J) where that is less than what
    expanding compressed queries again and again would take.

    Args:
        layers: of `queries.prepared`.
        rows: where the rows' gradients come from.
        num_tokens: N, ``factors.counts.tokens``.
        dense_bytes: memory for expanded query gradients.
    """
    size = sum(layer.num_queries * layer.module.size for layer in layers)
    first = layers[0].left_QOR if layers[0].whole_QOJ is None else layers[0].whole_QOJ
    assert first is not None
    expanded = size * first.element_size() <= dense_bytes
    flat = [layer.dense().flatten(1) if expanded or layer.whole_QOJ is not None else None for layer in layers]
    for numbers, traces in rows.batches():
        parts = [
            _through_tokens(layer, traces[layer.module.name]) if flat_QD is None else _through_gradients(flat_QD, layer, traces[layer.module.name])
            for layer, flat_QD in zip(layers, flat, strict=True)
        ]  # fmt: skip
        yield ScoreBlock(numbers=numbers, scores_LQB=torch.stack(parts) / num_tokens)


def _through_gradients(flat_QD: Tensor, layer: LayerQueries, trace: Trace) -> Tensor:
    return torch.cat([flat_QD @ part.row_gradients().flatten(1).T for part in trace.chunks(layer.module.size)], 1)


def _through_tokens(layer: LayerQueries, trace: Trace) -> Tensor:
    """sum_t (g_t^T U) . (V a_t) for one query at a time, so that nothing larger than [B, T, R] is kept."""
    assert layer.left_QOR is not None
    assert layer.right_QRJ is not None
    scores = [
        ((trace.gradients_BTO @ left_OR) * (trace.inputs_BTJ @ right_RJ.T)).sum((1, 2))
        for left_OR, right_RJ in zip(layer.left_QOR, layer.right_QRJ, strict=True)
    ]
    return torch.stack(scores)


def pairwise(layers: Sequence[LayerQueries], rows: TrainSource, *, num_tokens: int, per_module: bool = False) -> Tensor:
    """Return all scores, [Q, rows], or [L, Q, rows] with ``per_module``; 0 of rows without a counted token."""
    result = torch.zeros(len(layers), layers[0].num_queries, rows.num_rows, dtype=torch.float64)
    if not per_module:
        result = result[0]
    for block in score_blocks(layers, rows, num_tokens=num_tokens):
        result[..., list(block.numbers)] = (block.scores_LQB if per_module else block.scores_QB).double().cpu()
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Top:
    """The rows with the greatest scores of each query, the greatest first, the smaller number of equals."""

    numbers_QK: Tensor
    scores_QK: Tensor


def top_rows(
    layers: Sequence[LayerQueries], rows: TrainSource, *, k: int, num_tokens: int, most_negative: bool = False
) -> Top:
    """Return the K best rows of each query in one pass, without the matrix; with ``most_negative`` the K smallest.

    Raises:
        UsageError: more rows than there are, or fewer than one.
    """
    if not 1 <= k <= rows.num_rows:
        raise UsageError(f"influence: top {k} of {rows.num_rows} rows; give 1 to {rows.num_rows}")
    sign = -1.0 if most_negative else 1.0
    num_queries = layers[0].num_queries
    scores_QK, numbers_QK = (
        torch.empty(num_queries, 0, dtype=torch.float64),
        torch.empty(num_queries, 0, dtype=torch.int64),
    )
    seen: set[int] = set()

    def add(scores_QB: Tensor, numbers: Sequence[int]) -> None:
        nonlocal scores_QK, numbers_QK
        all_scores = torch.cat([scores_QK, sign * scores_QB], 1)
        all_numbers = torch.cat([numbers_QK, torch.tensor(list(numbers)).expand(num_queries, -1)], 1)
        by_number = all_numbers.argsort(1)
        all_scores, all_numbers = all_scores.gather(1, by_number), all_numbers.gather(1, by_number)
        best = torch.argsort(all_scores, dim=1, descending=True, stable=True)[:, :k]
        scores_QK, numbers_QK = all_scores.gather(1, best), all_numbers.gather(1, best)

    for block in score_blocks(layers, rows, num_tokens=num_tokens):
        add(block.scores_QB.double().cpu(), block.numbers)
        seen.update(block.numbers)
    if empty := [number for number in range(rows.num_rows) if number not in seen]:
        add(torch.zeros(num_queries, len(empty), dtype=torch.float64), empty)
    return Top(numbers_QK=numbers_QK, scores_QK=sign * scores_QK)


def self_scores(
    factors: Factors, rows: TrainSource, *, strategy: Strategy = "ekfac", damping: float = DAMPING
) -> Tensor:
    """Return each row's score on itself, [rows]: g_s^T (C + d)^-1 g_s / N, at least 0; with ``identity`` its squared gradient over N.

    Raises:
        UsageError: a damping that is not positive.
    """
    if strategy != "identity":
        check_damping(damping)
    result = torch.zeros(rows.num_rows, dtype=torch.float64)
    layers = {module.name: None if strategy == "identity" else factors[module.name] for module in factors.modules}
    divisors = {
        name: None if own is None else eigenvalues(own, strategy) + damping_of(own, strategy, damping)
        for name, own in layers.items()
    }
    for numbers, traces in rows.batches():
        for module in factors.modules:
            own, divisor_OJ = layers[module.name], divisors[module.name]
            parts = []
            for trace in traces[module.name].chunks(module.size):
                if own is None or strategy == "diagonal":
                    squares = trace.row_gradients().square_()
                else:
                    bases = (basis.to(trace.inputs_BTJ.device) for basis in (own.basis_OO, own.basis_JJ))
                    squares = trace.rotated_row_gradients(*bases).square_()
                parts.append(
                    (squares if divisor_OJ is None else squares.div_(divisor_OJ.to(squares.device))).sum((1, 2))
                )
            result[list(numbers)] += torch.cat(parts).double().cpu()
    return result / factors.counts.tokens


def token_scores(
    layers: Sequence[LayerQueries], rows: TrainSource, pairs: Sequence[tuple[int, int]], *, num_tokens: int
) -> dict[tuple[int, int], Tensor]:
    """Return the scores of some (query, row) pairs by the row's positions, {pair: [T]}; over positions they add up to the score.

    A position's part is that of the gradient that passes the layers there; T is the padded length in the row's microbatch, 0 at padding.
    """
    wanted: dict[int, list[int]] = {}
    for query, row in pairs:
        wanted.setdefault(row, []).append(query)
    result: dict[tuple[int, int], Tensor] = {}
    for numbers, traces in rows.batches():
        for place, row in enumerate(numbers):
            for query in wanted.get(row, ()):
                total: Tensor | None = None
                for layer in layers:
                    trace = traces[layer.module.name]
                    query_OJ = layer.rows(slice(query, query + 1)).dense()[0]
                    part_T = ((trace.gradients_BTO[place] @ query_OJ) * trace.inputs_BTJ[place]).sum(1)
                    total = part_T if total is None else total + part_T
                assert total is not None
                result[query, row] = (total / num_tokens).double().cpu()
    if missing := [row for row in wanted if not any((query, row) in result for query in wanted[row])]:
        raise UsageError(
            f"influence: row {missing[0]} has no token that carries loss, so no position of it has a score"
        )
    return result

"""Scores: pairwise in one pass over the rows, the best of each query without holding the matrix, self, per layer and per token."""

# Q = queries, B = rows of a microbatch, L = layers, T = positions, O = outputs of a layer, J = inputs, R = rank, K = rows kept

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay.curvature.ekfac.capture import CHUNK_BYTES, Trace, Traces
from modelassay.curvature.ekfac.factors import Factors, Progress
from modelassay.curvature.ekfac.inverse import DAMPING, Strategy, check_damping, damping_of, eigenvalues
from modelassay.curvature.influence.queries import LayerQueries
from modelassay.curvature.influence.train import TrainSource
from modelassay.errors import UsageError

DENSE_BYTES = 2**30
"""Query gradients of all layers together that are expanded once and held; above it they are expanded some queries at a time."""
_PRODUCT_ROWS = 256
"""Row gradients of one product: 200 queries times 64 rows run at 77 GFLOP/s where 256 run at 94 and 512 at 95."""


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
    """Yield the scores of one or more microbatches of rows at a time.

    Costs, for a row and a layer, T O J to form the gradient and Q O J to multiply, or T Q R (O + J) where that is less than what
    expanding compressed queries again and again would take.

    Args:
        layers: of `queries.prepared`.
        rows: where the rows' gradients come from.
        num_tokens: N, ``factors.counts.tokens``.
        dense_bytes: memory for expanded query gradients.

    Raises:
        UsageError: queries in the eigenbasis and rows that are not, or the other way round.
    """
    check_coordinates(layers, rows)
    size = sum(layer.num_queries * layer.module.size for layer in layers)
    first = layers[0].left_QOR if layers[0].whole_QOJ is None else layers[0].whole_QOJ
    assert first is not None
    expanded = size * first.element_size() <= dense_bytes
    flat = [layer.dense().flatten(1) if expanded or layer.whole_QOJ is not None else None for layer in layers]
    buffer = _Buffer()
    for group in _groups(rows):
        parts = [
            torch.cat([_through_tokens(layer, traces[layer.module.name]) for _, traces in group], 1) if flat_QD is None
            else buffer.products(flat_QD, [traces[layer.module.name] for _, traces in group])
            for layer, flat_QD in zip(layers, flat, strict=True)
        ]  # fmt: skip
        numbers = tuple(number for each, _ in group for number in each)
        yield ScoreBlock(numbers=numbers, scores_LQB=torch.stack(parts) / num_tokens)


def check_coordinates(layers: Sequence[LayerQueries], rows: TrainSource) -> None:
    """Refuse to multiply gradients in the eigenbasis with gradients that are not.

    Raises:
        UsageError: see above.
    """
    if any(layer.rotated != rows.rotated for layer in layers):
        raise UsageError(
            "influence: queries and rows lie in different coordinates; queries.rotated_gradients go with train.FittedRows, "
            "queries.raw_gradients with LiveRows and CachedRows"
        )


def _groups(rows: TrainSource) -> Iterator[list[tuple[tuple[int, ...], Traces]]]:
    """Yield microbatches by themselves, or together up to the rows of one product where that takes no memory."""
    group: list[tuple[tuple[int, ...], Traces]] = []
    for batch in rows.batches():
        if not rows.waiting:  # its traces are here, and must go before the next come
            yield [batch]
            continue
        if group and sum(len(numbers) for numbers, _ in group) + len(batch[0]) > _PRODUCT_ROWS:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


class _Buffer:
    """Memory for the row gradients of one product, used again and again."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def products(self, flat_QD: Tensor, traces: Sequence[Trace]) -> Tensor:
        """Return the scalar products of queries and row gradients, [Q, B]."""
        like, width = traces[0].gradients_BTO, flat_QD.shape[1]
        num_rows = min(sum(len(trace.inputs_BTJ) for trace in traces), _PRODUCT_ROWS)
        num_rows = max(1, min(num_rows, CHUNK_BYTES // (width * like.element_size())))
        if self._memory is None or self._memory.numel() < num_rows * width:
            self._memory = like.new_empty(num_rows * width)
        gradients_BD = self._memory[: num_rows * width].view(num_rows, width)
        results, filled = [], 0
        for trace in traces:
            start = 0
            while start < len(trace.inputs_BTJ):
                part = trace.rows(start, start + num_rows - filled)
                end = filled + len(part.inputs_BTJ)
                o, j = part.gradients_BTO.shape[2], part.inputs_BTJ.shape[2]
                part.row_gradients(out=gradients_BD[filled:end].view(-1, o, j))
                start, filled = start + end - filled, end
                if filled == num_rows:
                    results.append(flat_QD @ gradients_BD.T)
                    filled = 0
        if filled:
            results.append(flat_QD @ gradients_BD[:filled].T)
        return torch.cat(results, 1)


def _through_tokens(layer: LayerQueries, trace: Trace) -> Tensor:
    """sum_t (g_t^T U) . (V a_t) for one query at a time, so that nothing larger than [B, T, R] is kept."""
    assert layer.left_QOR is not None
    assert layer.right_QRJ is not None
    scores = [
        ((trace.gradients_BTO @ left_OR) * (trace.inputs_BTJ @ right_RJ.T)).sum((1, 2))
        for left_OR, right_RJ in zip(layer.left_QOR, layer.right_QRJ, strict=True)
    ]
    return torch.stack(scores)


def pairwise(
    layers: Sequence[LayerQueries],
    rows: TrainSource,
    *,
    num_tokens: int,
    per_module: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Return all scores, [Q, rows], or [L, Q, rows] with ``per_module``; 0 of rows without a counted token.

    ``progress`` is told how many of how many rows are done.
    """
    result = torch.zeros(len(layers), layers[0].num_queries, rows.num_rows, dtype=torch.float64)
    if not per_module:
        result = result[0]
    done = 0
    for block in score_blocks(layers, rows, num_tokens=num_tokens):
        result[..., list(block.numbers)] = (block.scores_LQB if per_module else block.scores_QB).double().cpu()
        done += len(block.numbers)
        if progress is not None:
            progress(done, rows.num_rows)
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
        UsageError: a damping that is not positive, or ``diagonal`` of rows in the eigenbasis.
    """
    if strategy != "identity":
        check_damping(damping)
    result = torch.zeros(rows.num_rows, dtype=torch.float64)
    layers = {module.name: None if strategy == "identity" else factors[module.name] for module in factors.modules}
    divisors = {
        name: None if own is None else eigenvalues(own, strategy) + damping_of(own, strategy, damping)
        for name, own in layers.items()
    }
    if rows.rotated and strategy == "diagonal":
        raise UsageError("influence: the diagonal is of the weights' own coordinates; take LiveRows or CachedRows")
    for numbers, traces in rows.batches():
        for module in factors.modules:
            own, divisor_OJ = layers[module.name], divisors[module.name]
            parts = []
            for trace in traces[module.name].chunks():
                if own is None or rows.rotated or strategy == "diagonal":
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
    check_coordinates(layers, rows)
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

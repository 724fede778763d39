"""Scores against dense algebra on gradients of single rows, and against Kronfluence where it is installed."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from modelassay.curvature.ekfac import factors as fitting
from modelassay.curvature.ekfac.capture import Trace
from modelassay.curvature.ekfac.factors import Factors, Fit, fit_factors
from modelassay.curvature.ekfac.inverse import STRATEGIES
from modelassay.curvature.ekfac.modules import LinearModule, select_modules
from modelassay.curvature.influence.queries import (
    compressed,
    fidelity_of,
    prepared,
    raw_gradients,
    rotated_gradients,
)
from modelassay.curvature.influence.scores import pairwise, score_blocks, self_scores, token_scores, top_rows
from modelassay.curvature.influence.table import pairwise_frame, top_frame
from modelassay.curvature.influence.train import CachedRows, FittedRows, LiveRows, keep
from modelassay.curvature.loss import second_order
from modelassay.errors import CheckpointError, UsageError
from modelassay.training.rows import Row
from support.influence_cases import matrix_gradients, rows_of, tiny

Made = tuple[Any, list[Row], list[Row], Factors]
EMPTY = Row(ids=(1, 2, 3), loss=(True, False, False))


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    model, rows, queries = tiny(request.param), [*rows_of(6), EMPTY], rows_of(3, seed=8)
    fit = Fit(fisher="empirical", diagonal=True, max_tokens=20)
    return model, rows, queries, fit_factors(model, rows, select_modules(model), tmp_path_factory.mktemp("f"), fit)


def gradients(model: Any, module: str, rows: list[Row]) -> Tensor:
    with second_order(model, torch.float64, "eager"), torch.enable_grad():
        return torch.stack([matrix_gradients(model, module, row)[0] for row in rows])


def dense_scores(made: Made, strategy: str, damping: float) -> Tensor:
    """[L, Q, rows] by solving with whole matrices."""
    model, rows, queries, factors = made
    scores = []
    for module in factors.modules:
        own = factors[module.name]
        assert own.diagonal_OJ is not None
        q = torch.kron(own.basis_OO, own.basis_JJ)
        curvature = {"diagonal": torch.diag(own.diagonal_OJ.flatten()), "kfac": torch.kron(own.covariance_OO, own.covariance_JJ),
                     "ekfac": q @ torch.diag(own.lambda_OJ.flatten()) @ q.T}.get(strategy)  # fmt: skip
        g_QD, g_ND = (gradients(model, module.name, part).flatten(1) for part in (queries, rows[:-1]))
        if curvature is not None:
            damped = curvature + damping * curvature.diagonal().mean() * torch.eye(len(curvature), dtype=torch.float64)
            g_QD = torch.linalg.solve(damped, g_QD.T).T
        scores.append(torch.cat([g_QD @ g_ND.T, torch.zeros(len(g_QD), 1)], 1) / factors.counts.tokens)
    return torch.stack(scores)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_by_layer_are_dense_algebra(strategy: Any, made: Made, tmp_path: Path) -> None:
    model, rows, queries, factors = made
    layers = prepared(raw_gradients(model, queries, factors.modules), factors, strategy=strategy, damping=0.05)
    live = LiveRows(model=model, examples=rows, modules=factors.modules, max_tokens=13)
    for source in (live, keep(live, tmp_path)):
        scores = pairwise(layers, source, num_tokens=factors.counts.tokens, per_module=True)
        torch.testing.assert_close(scores, dense_scores(made, strategy, 0.05), rtol=1e-7, atol=1e-9)
    assert set(scores[:, :, -1].flatten().tolist()) == {0.0}
    itself = self_scores(factors, live, strategy=strategy, damping=0.05)
    of_rows = prepared(raw_gradients(model, rows[:-1], factors.modules), factors, strategy=strategy, damping=0.05)
    expected = pairwise(of_rows, live, num_tokens=factors.counts.tokens)[:, :-1].diagonal()
    torch.testing.assert_close(itself[:-1], expected)


def test_the_score_is_the_rise_of_the_query_loss_when_the_row_is_taken_out(tmp_path: Path) -> None:
    """Sign and unit by finite differences along the step that a quadratic's minimum takes when the row is left out."""
    made_rows, queries = rows_of(6), rows_of(1, seed=8)
    model = tiny("qwen2")
    (module,) = select_modules(model, ["*.1.mlp.down_proj"])
    factors = fit_factors(model, made_rows, [module], tmp_path, Fit(fisher="empirical"))
    layers = prepared(raw_gradients(model, queries, [module]), factors, damping=0.5)
    scores = pairwise(
        layers, LiveRows(model=model, examples=made_rows, modules=[module]), num_tokens=factors.counts.tokens
    )
    own = factors[module.name]
    (gradient,) = gradients(model, module.name, made_rows[2:3])
    rotated = own.basis_OO.T @ gradient @ own.basis_JJ / (own.lambda_OJ + 0.5 * own.lambda_OJ.mean())
    moved = (
        own.basis_OO @ rotated @ own.basis_JJ.T / factors.counts.tokens
    )  # where the minimum goes without row 2: + H^-1 g / N
    weight = model.get_submodule(module.name).weight
    losses = []
    for step in (-1e-5, 1e-5):
        with second_order(model, torch.float64, "eager"):
            weight += step * moved
            logits = model(input_ids=torch.tensor([queries[0].ids])).logits[0, :-1]
            labels = torch.tensor(queries[0].labels[1:])
            losses.append(float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)))
            weight -= step * moved
    assert (losses[1] - losses[0]) / 2e-5 == pytest.approx(float(scores[0, 2]), rel=1e-4)


def test_compression_is_the_best_of_its_rank_and_says_what_it_loses(made: Made) -> None:
    model, rows, queries, factors = made
    raw = raw_gradients(model, queries, factors.modules)
    for rank in (1, 2, 4):
        layers = prepared(raw, factors, rank=rank)
        whole = prepared(raw, factors)
        for layer, full in zip(layers, whole, strict=True):
            u, s, v = torch.linalg.svd(full.dense(), full_matrices=False)
            best = (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]
            torch.testing.assert_close(layer.dense(), best, rtol=1e-3, atol=1e-6)
            cosine = torch.nn.functional.cosine_similarity(full.dense().flatten(1), layer.dense().flatten(1))
            assert layer.fidelity_Q is not None
            torch.testing.assert_close(layer.fidelity_Q, cosine, rtol=1e-5, atol=1e-6)
        source = LiveRows(model=model, examples=rows, modules=factors.modules)
        ways = [
            torch.cat([b.scores_QB for b in score_blocks(layers, source, num_tokens=9, dense_bytes=b)], 1)
            for b in (0, 2**30)
        ]
        torch.testing.assert_close(*ways)


def test_a_fidelity_of_a_large_matrix_in_float32_is_a_cosine() -> None:
    """A matrix of rank 2 is its own best approximation; a norm whose squares are added in float32 makes that 1.00001."""
    generator = torch.Generator().manual_seed(4)
    module = LinearModule(name="a", num_outputs=600, num_inputs=1500, has_bias=False)
    whole = torch.randn(1, 600, 2, generator=generator) @ torch.randn(1, 2, 1500, generator=generator)
    (fidelity,) = compressed(whole, module, rank=2).fidelity_Q.tolist()  # type: ignore[union-attr]
    assert 1 - 1e-9 < fidelity <= 1


def test_a_rank_above_the_dimension_compresses_nothing(made: Made) -> None:
    model, _, queries, factors = made
    layers = prepared(raw_gradients(model, queries, factors.modules), factors, rank=64)
    assert all(layer.whole_QOJ is not None for layer in layers)
    assert set(fidelity_of(layers).values()) == {None}
    with pytest.raises(UsageError, match="rank of query gradients must be at least 1, got 0"):
        compressed(torch.ones(1, 6, 8), factors.modules[0], rank=0)


def test_top_rows_of_one_pass_are_those_of_the_matrix(made: Made) -> None:
    model, rows, queries, factors = made
    layers = prepared(raw_gradients(model, queries, factors.modules), factors)
    twice = [*rows, rows[0], rows[0]]  # duplicates have equal scores, and come in the order of their numbers
    source = LiveRows(model=model, examples=twice, modules=factors.modules, max_tokens=9)
    scores = pairwise(layers, source, num_tokens=factors.counts.tokens)
    assert torch.allclose(scores[:, 0], scores[:, -1], rtol=1e-12)
    for k in (1, 4, len(twice)):
        for negative in (False, True):
            top = top_rows(layers, source, k=k, num_tokens=factors.counts.tokens, most_negative=negative)
            expected = scores.sort(dim=1, descending=not negative).values[:, :k]
            torch.testing.assert_close(top.scores_QK, expected)
            torch.testing.assert_close(scores.gather(1, top.numbers_QK), expected)
    with pytest.raises(UsageError, match="top 10 of 9 rows"):
        top_rows(layers, source, k=10, num_tokens=1)
    frame = top_frame(top_rows(layers, source, k=2, num_tokens=factors.counts.tokens))
    assert frame.filter(frame["query"] == 1)["rank"].to_list() == [1, 2]
    whole = pairwise_frame(scores)
    assert whole.row(len(twice) + 2) == (1, 2, float(scores[1, 2]))


def test_token_scores_add_up_to_the_score(made: Made) -> None:
    model, rows, queries, factors = made
    layers = prepared(raw_gradients(model, queries, factors.modules), factors)
    source = LiveRows(model=model, examples=rows, modules=factors.modules)
    scores = pairwise(layers, source, num_tokens=factors.counts.tokens)
    by_token = token_scores(layers, source, [(0, 2), (1, 2), (2, 5)], num_tokens=factors.counts.tokens)
    for (query, row), parts in by_token.items():
        assert float(parts.sum()) == pytest.approx(float(scores[query, row]), rel=1e-9)
        assert set(parts[len(rows[row].ids) - 1 :].tolist()) == {0.0}  # the last token predicts nothing
    with pytest.raises(UsageError, match="row 6 has no token that carries loss"):
        token_scores(layers, source, [(0, 6)], num_tokens=1)


def test_queries_without_an_answer_are_named(made: Made) -> None:
    model, _, queries, factors = made
    with pytest.raises(UsageError, match=r"query 1 has no token that carries loss \(1 of 2 have none\)"):
        raw_gradients(model, [queries[0], EMPTY], factors.modules)
    with pytest.raises(UsageError, match="damping must be positive, got 0"):
        prepared(raw_gradients(model, queries, factors.modules), factors, damping=0.0)


class Stop(BaseException):
    """The process is gone."""


def test_a_killed_cache_goes_on_and_serves_the_same_scores(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelassay.curvature.influence import train

    model, rows, queries, factors = made
    live = LiveRows(model=model, examples=rows, modules=factors.modules, max_tokens=9)
    save, left = train.save_traces, [2]

    def dying(*args: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        save(*args, **options)

    monkeypatch.setattr(train, "save_traces", dying)
    with pytest.raises(Stop):
        keep(live, tmp_path)
    with pytest.raises(CheckpointError, match="no whole cache"):
        CachedRows(tmp_path)
    left[0] = 100
    layers = prepared(raw_gradients(model, queries, factors.modules), factors)
    scores = [
        pairwise(layers, source, num_tokens=factors.counts.tokens)
        for source in (keep(live, tmp_path), keep(live, tmp_path / "whole"), live)
    ]
    assert torch.equal(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-12, atol=0)
    with pytest.raises(CheckpointError, match="of other rows, layers or weights"):
        keep(LiveRows(model=model, examples=rows[1:], modules=factors.modules, max_tokens=9), tmp_path)
    changed = deepcopy(model)
    with torch.no_grad():
        changed.model.norm.weight[0] += 1e-9  # of no chosen layer, and yet every gradient is another
    with pytest.raises(CheckpointError, match="of other rows, layers or weights"):
        keep(LiveRows(model=changed, examples=rows, modules=factors.modules, max_tokens=9), tmp_path)


def test_rows_that_a_fit_kept_score_as_fresh_ones_do(made: Made, tmp_path: Path) -> None:
    model, rows, queries, factors = made
    fit = Fit(fisher="empirical", diagonal=True, max_tokens=20, cache=True, num_parts=2, num_groups=2)
    kept = fit_factors(model, rows, factors.modules, tmp_path, fit)
    source, live = FittedRows(kept), LiveRows(model=model, examples=rows, modules=factors.modules)
    rotated = rotated_gradients(model, queries, kept)
    for strategy in ("identity", "kfac", "ekfac"):
        layers = prepared(rotated, kept, strategy=strategy, damping=0.05)
        scores = pairwise(layers, source, num_tokens=kept.counts.tokens, per_module=True)
        torch.testing.assert_close(scores, dense_scores(made, strategy, 0.05), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(
            self_scores(kept, source, strategy=strategy), self_scores(factors, live, strategy=strategy)
        )
    by_token = token_scores(layers, source, [(1, 2)], num_tokens=kept.counts.tokens)[1, 2]
    assert float(by_token.sum()) == pytest.approx(float(scores.sum(0)[1, 2]), rel=1e-9)
    with pytest.raises(UsageError, match="queries and rows lie in different coordinates"):
        pairwise(layers, live, num_tokens=1)
    with pytest.raises(UsageError, match="the diagonal is of the weights' own coordinates"):
        prepared(rotated, kept, strategy="diagonal")
    with pytest.raises(UsageError, match="its fit kept no train gradients; fit with cache=True"):
        FittedRows(factors)


def test_traces_that_are_not_what_was_written_are_refused(made: Made, tmp_path: Path) -> None:
    model, rows, queries, factors = made
    fit = Fit(fisher="empirical", max_tokens=20, cache=True)
    kept = fit_factors(model, rows, factors.modules, tmp_path, fit)
    layers = prepared(rotated_gradients(model, queries, kept), kept)
    path = sorted(tmp_path.glob("rotated-*"))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(CheckpointError, match=r"rotated-.*: no whole traces \(.* is not what was written\)"):
        pairwise(layers, FittedRows(kept), num_tokens=1)
    path.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match="no whole traces"):
        FittedRows(kept)
    path.unlink()
    with pytest.raises(CheckpointError, match="train gradients of some rows or layers are gone"):
        FittedRows(kept)


def test_scores_are_those_of_kronfluence(made: Made, tmp_path: Path) -> None:
    """On factors of the data's own labels, which both fit alike; its scores are sums, neither damped alike by name nor divided by N."""
    pytest.importorskip("kronfluence", reason="kronfluence is not installed")
    from support.kronfluence_scores import kronfluence_scores

    model, rows, queries, factors = made
    rows = rows[:-1]
    for strategy in ("identity", "diagonal", "kfac", "ekfac"):
        theirs = kronfluence_scores(
            model, rows, queries, [module.name for module in factors.modules], tmp_path / strategy, strategy
        )
        layers = prepared(raw_gradients(model, queries, factors.modules), factors, strategy=strategy)
        ours = pairwise(
            layers, LiveRows(model=model, examples=rows, modules=factors.modules), num_tokens=factors.counts.tokens
        )
        for mine, other in zip(ours, theirs, strict=True):
            assert spearmanr(mine, other).statistic >= 0.999
            assert torch.corrcoef(torch.stack([mine, other.double()]))[0, 1] > 0.9999


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_scores_are_those_of_bergson(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its covariance of inputs is over positions that carry a gradient, ours over all that are no padding: here ours leaves a row's last out too."""
    pytest.importorskip("bergson", reason="bergson is not installed")
    from support.bergson_scores import bergson_scores

    batches_of = fitting.batches_of

    def carrying(*args: Any, **options: Any) -> list[Any]:
        batches = batches_of(*args, **options)
        return [replace(batch, real_BT=torch.nn.functional.pad(batch.real_BT[:, 1:], (0, 1))) for batch in batches]

    monkeypatch.setattr(fitting, "batches_of", carrying)
    model, rows, queries = tiny(model_type), rows_of(8), rows_of(3, seed=8)
    modules = select_modules(model)
    factors = fit_factors(model, rows, modules, tmp_path / "factors", Fit(fisher="empirical"))
    raw, live = raw_gradients(model, queries, modules), LiveRows(model=model, examples=rows, modules=modules)
    for corrected in (True, False):
        theirs = bergson_scores(model, rows, queries, tmp_path / str(corrected), corrected=corrected).double()
        layers = prepared(raw, factors, strategy="ekfac" if corrected else "kfac")
        ours = pairwise(layers, live, num_tokens=factors.counts.tokens)
        for mine, other in zip(ours, theirs, strict=True):
            assert spearmanr(mine, other).statistic >= 0.999
            assert torch.corrcoef(torch.stack([mine, other]))[0, 1] > 0.9999


@pytest.mark.parametrize("positions", [2, 40])
def test_rotated_gradients_are_the_same_in_either_order(positions: int) -> None:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    trace = Trace(inputs_BTJ=drawn(3, positions, 7), gradients_BTO=drawn(3, positions, 5))
    basis_OO, basis_JJ = torch.linalg.qr(drawn(5, 5)).Q, torch.linalg.qr(drawn(7, 7)).Q
    right = torch.einsum("bto,btj,op,jk->bpk", trace.gradients_BTO, trace.inputs_BTJ, basis_OO, basis_JJ)
    torch.testing.assert_close(trace.rotated_row_gradients(basis_OO, basis_JJ), right)

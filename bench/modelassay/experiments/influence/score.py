"""Stages that attribute: factors with what they look like, and the scores of every method."""

# Q: queries, N: rows, S: subsets

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor

from modelassay.curvature.ekfac.examples import microbatches_of
from modelassay.curvature.ekfac.factors import Factors, Fit, ModuleFactors, fit_factors, summary_of
from modelassay.curvature.ekfac.inverse import Strategy, precondition
from modelassay.curvature.ekfac.modules import parameters_of, select_modules
from modelassay.curvature.ekfac.plan import plan_of
from modelassay.curvature.gauss_newton import GaussNewton
from modelassay.curvature.influence.conjugate import agreement, solve_gradients
from modelassay.curvature.influence.queries import LayerQueries, raw_gradients
from modelassay.curvature.influence.queries import prepared as prepared_queries
from modelassay.curvature.influence.scores import pairwise, self_scores
from modelassay.curvature.influence.sgld import Sampler, sgld_scores
from modelassay.curvature.influence.train import CachedRows, LiveRows, keep
from modelassay.evaluation.retrieval import bm25, recall_at, reciprocal_rank
from modelassay.experiments.influence.params import Params
from modelassay.experiments.influence.rows import Prepared, Text, load_rows
from modelassay.experiments.influence.train import load_tuned
from modelassay.models.load import reproducible, threads_for
from modelassay.recording.context import Recorder

SCORES, FACTORS = "scores.safetensors", "factors"
DAMPED: tuple[Strategy, ...] = ("diagonal", "kfac", "ekfac")
CELLS = 24
"""Squares on each side of the heatmap of lambda; each is the mean of what it covers."""


def factors(stage: Recorder, *, params: Params, rows: Path, tuned: Path) -> None:
    """Fit factors; record the plan (``planned_bytes`` by what it is of) and what was written, and of each layer's lambda the facts
    ``lambda`` (`summary_of`, a heatmap of means in log10, sorted values at 200 places, cumulative shares).
    """  # noqa: D205
    model = load_tuned(tuned, params)
    examples = [text.row for text in load_rows(rows).rows]
    with reproducible(threads_for(model.config.hidden_size)):
        modules = select_modules(model, params.modules)
        plan = plan_of(modules, num_groups=params.module_groups, num_parts=params.data_parts, rank=params.rank, diagonal=True,
                       num_positions=sum(len(row.ids) for row in examples))  # fmt: skip
        for name, count in vars(plan).items():
            stage.metric("planned_bytes", count, of=name)
        stage.fact("plan", plan.lines())
        fit = Fit(fisher=params.fisher, seed=params.seed, num_parts=params.data_parts, num_groups=params.module_groups, diagonal=True,
                  max_tokens=params.max_tokens)  # fmt: skip
        with stage.microbatch("fit", tokens=2 * sum(len(row.ids) for row in examples)):
            own = fit_factors(
                model,
                examples,
                modules,
                stage.folder / FACTORS,
                fit,
                progress=lambda done, of: stage.progress(done, of, "parts of factors"),
            )
        stage.metric(
            "written_bytes", sum(path.stat().st_size for path in (stage.folder / FACTORS).iterdir()), of="factors_disk"
        )
        for name, count in vars(own.counts).items():
            stage.metric("factor_counts", count, of=name)
        for module in modules:
            stage.fact("lambda", _inspected(own[module.name]), module=module.name)


def _inspected(own: ModuleFactors) -> dict[str, Any]:
    values = own.lambda_OJ.double().cpu().numpy()
    bounds = [np.unique(np.linspace(0, size, min(size, CELLS) + 1).astype(int)) for size in values.shape]
    means = np.add.reduceat(np.add.reduceat(values, bounds[0][:-1], 0), bounds[1][:-1], 1) / np.outer(
        np.diff(bounds[0]), np.diff(bounds[1])
    )
    ordered = np.sort(values.ravel())[::-1]
    places = np.unique(np.geomspace(1, ordered.size, 200).astype(int)) - 1
    shares = ordered.cumsum() / ordered.sum() if ordered.sum() else ordered
    return {
        **summary_of(own), "shape": list(values.shape), "heatmap": [[_log(value) for value in row] for row in means],
        "places": (places + 1).tolist(), "sorted": [_log(value) for value in ordered[places]], "shares": shares[places].round(6).tolist(),
    }  # fmt: skip


def _log(value: float) -> float | None:
    return round(math.log10(value), 4) if value > 0 else None


def score(stage: Recorder, *, params: Params, rows: Path, tuned: Path, fitted: Path, queries: Sequence[Text]) -> None:
    """Score every row for every query by every method, [Q, N] each, positive where a row is expected to lower the query's loss.

    Metrics: ``rank_fidelity`` and ``block_cosine`` by module (means over queries), ``rank_spearman``, ``solver_residual`` and ``solver_iterations`` by damping,
    ``self_score_max``, ``sgld_loss_rise``, ``written_bytes``.
    """
    prepared, model = load_rows(rows), load_tuned(tuned, params)
    with reproducible(threads_for(model.config.hidden_size)):
        _Scoring(stage, params, prepared, model, Factors.load(fitted / FACTORS), queries).run()


class _Scoring:
    def __init__(
        self, stage: Recorder, params: Params, prepared: Prepared, model: Any, own: Factors, queries: Sequence[Text]
    ) -> None:
        self.stage, self.params, self.prepared, self.model, self.own, self.queries = (
            stage,
            params,
            prepared,
            model,
            own,
            queries,
        )
        self.examples = [text.row for text in prepared.rows]
        live = LiveRows(model=model, examples=self.examples, modules=own.modules, max_tokens=params.max_tokens)
        with stage.microbatch("train-gradients", tokens=sum(len(row.ids) for row in self.examples)):
            self.rows: CachedRows = keep(
                live,
                stage.folder / "train-gradients",
                progress=lambda done, of: stage.progress(done, of, "microbatches of train gradients"),
            )
        self._done, self._passes = 0, self._count_passes()
        self.raw = raw_gradients(model, [query.row for query in queries], own.modules, max_tokens=params.max_tokens)
        self.scores: dict[str, Tensor] = {}

    def run(self) -> None:
        self._identity()
        for damping in self.params.dampings:
            for strategy in DAMPED:
                layers = prepared_queries(self.raw, self.own, strategy=strategy, damping=damping, rank=self.params.rank)
                self.scores[f"{strategy}@{damping:g}"] = self._pairs(layers)
        if self.params.setting.solver_iterations:
            for damping in self.params.dampings:
                self._solved(damping)
        self._fidelity()
        if self.params.setting.sgld_draws:
            self._drawn()
        self._baselines()
        save_file(
            {name: scores.float().contiguous() for name, scores in self.scores.items()}, self.stage.folder / SCORES
        )
        written = sum(path.stat().st_size for path in (self.stage.folder / "train-gradients").iterdir())
        self.stage.metric("written_bytes", written, of="train_cache_disk")

    def _count_passes(self) -> int:
        """Return how often the rows are gone over: by plain products and by themselves, by each method and damping, twice for the fidelity, and by
        themselves again.
        """  # noqa: D205
        solved = 2 if self.params.setting.solver_iterations else 0
        return 2 + len(self.params.dampings) * (len(DAMPED) + solved) + 3

    def _passed(self) -> None:
        self._done += 1
        self.stage.progress(self._done, self._passes, "passes over the rows")

    def _pairs(self, layers: Sequence[LayerQueries]) -> Tensor:
        def progress(done: int, of: int) -> None:
            self.stage.progress(round(self._done + done / of, 1), self._passes, "passes over the rows")

        with self.stage.microbatch("pairs"):
            scores = pairwise(layers, self.rows, num_tokens=self.own.counts.tokens, progress=progress)
        self._passed()
        return scores

    def _identity(self) -> None:
        dots = self._pairs(prepared_queries(self.raw, self.own, strategy="identity"))
        squares_N = self_scores(self.own, self.rows, strategy="identity")
        self._passed()
        norms_Q = sum(raw.flatten(1).double().square().sum(1) for raw in self.raw.values())
        assert isinstance(norms_Q, Tensor)
        lengths = (squares_N * self.own.counts.tokens).sqrt()[None] * norms_Q.sqrt().cpu()[:, None]
        self.scores["identity"] = dots
        self.scores["gradient-cosine"] = torch.where(
            lengths > 0, dots * self.own.counts.tokens / lengths, torch.zeros_like(dots)
        )

    def _solved(self, damping: float) -> None:
        operator = GaussNewton(self.model, microbatches_of(self.examples, max_tokens=self.params.max_tokens), parameters=parameters_of(self.own.modules),
                               vectors_per_pass=len(self.queries))  # fmt: skip
        with self.stage.microbatch("solve"):
            solved, solution = solve_gradients(
                operator, self.raw, self.own, damping=damping, iterations=self.params.setting.solver_iterations
            )
        self._passed()
        self.stage.metric("solver_residual", float(solution.residual_K.mean()), damping=damping)
        self.stage.metric("solver_iterations", solution.iterations, damping=damping)
        layers = [LayerQueries(module=module, whole_QOJ=solved[module.name]) for module in self.own.modules]
        self.scores[f"ekfac-cg@{damping:g}"] = self._pairs(layers)
        guess = {
            module.name: precondition(self.raw[module.name], self.own[module.name], strategy="ekfac", damping=damping)
            for module in self.own.modules
        }
        for name, cosine_K in agreement(guess, solved).items():
            self.stage.metric("block_cosine", float(cosine_K.nanmean()), module=name, damping=damping)

    def _drawn(self) -> None:
        setting, queries = self.params.setting, [query.row for query in self.queries]
        sampler = Sampler(
            num_draws=setting.sgld_draws, burn_in=setting.sgld_burn_in, seed=self.stage.seed("sgld") % 2**32
        )
        with self.stage.microbatch("sgld"):
            drawn = sgld_scores(
                self.model,
                self.examples,
                queries,
                self.own,
                sampler,
                max_tokens=self.params.max_tokens,
                progress=lambda done, of: self.stage.progress(done, of, "draws of weights"),
            )
        self.scores["sgld"] = drawn.scores_QN
        self.stage.metric("sgld_loss_rise", drawn.loss_rise)

    def _fidelity(self) -> None:
        """What compressing to the rank loses: of the query gradients, and of the scores' order."""
        damping = self.params.damping
        whole = self._pairs(prepared_queries(self.raw, self.own, damping=damping))
        layers = prepared_queries(self.raw, self.own, damping=damping, rank=self.params.rank)
        for layer in layers:
            fidelity = 1.0 if layer.fidelity_Q is None else float(layer.fidelity_Q.mean())
            self.stage.metric("rank_fidelity", fidelity, module=layer.module.name)
        same = [float(spearmanr(a, b).statistic) for a, b in zip(whole, self._pairs(layers), strict=True)]
        self.stage.metric("rank_spearman", float(np.mean(same)))
        self.stage.metric("ranks_kept_whole", sum(layer.fidelity_Q is None for layer in layers))
        self.stage.metric("self_score_max", float(self_scores(self.own, self.rows, damping=damping).max()))
        self._passed()

    def _baselines(self) -> None:
        words = [[*text.prompt.lower().split(), *text.answer.lower().split()] for text in self.prepared.rows]
        asked = [[*text.prompt.lower().split(), *text.answer.lower().split()] for text in self.queries]
        self.scores["bm25"] = torch.from_numpy(bm25(asked, words))
        self.scores["representation"] = (
            representations(self.model, self.queries) @ representations(self.model, self.prepared.rows).T
        )
        rng = np.random.default_rng(self.stage.seed("random scores"))
        self.scores["random"] = torch.from_numpy(rng.standard_normal((len(self.queries), len(self.examples))))


@torch.no_grad()
def representations(model: Any, texts: Sequence[Text]) -> Tensor:
    """Return the mean last hidden state of each row, of length 1, [rows, D] in fp64."""
    parts = []
    for start in range(0, len(texts), 64):
        rows = [text.row.ids for text in texts[start : start + 64]]
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=model.device)
        real = torch.tensor([[place < len(row) for place in range(length)] for row in rows], device=model.device)[
            ..., None
        ]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.double()
        parts.append(torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1).cpu())
    return torch.cat(parts)


def load_scores(folder: Path) -> dict[str, Tensor]:
    """Return what `score` wrote: [Q, N] by method, ``METHOD@DAMPING`` where there is one."""
    return load_file(folder / SCORES)


def at_damping(scores: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
    """Return the scores of each method at one damping, by the method's name."""
    return {
        name.partition("@")[0]: each
        for name, each in scores.items()
        if "@" not in name or name.endswith(f"@{damping:g}")
    }


def removed_rows(scores: Mapping[str, Tensor], prepared: Prepared, *, damping: float, k: int) -> dict[str, list[int]]:
    """Return each method's own k best rows of every query together, a row with all that are the same to the token."""
    same = {number: group for group in prepared.groups() for number in group}
    result = {}
    for method, each in at_damping(scores, damping).items():
        best = {int(number) for row in each for number in torch.argsort(-row, stable=True)[:k]}
        result[method] = sorted({other for number in best for other in same.get(number, [number])})
    return result


def evaluate(
    stage: Recorder, *, params: Params, rows: Path, scored: Path, retrained: Path | None, queries: Sequence[Text]
) -> None:
    """Record what the scores are worth: ``recall`` and ``reciprocal_rank`` of planted rows by ``method`` and ``query`` (k the number planted, and 1 % of
    the rows), ``planted_rank`` (the median rank of planted rows), facts ``top`` with each method's first rows, and
    ``subset-sums`` [subset][query] of every score.
    """  # noqa: D205
    prepared, scores = load_rows(rows), load_scores(scored)
    num_rows = len(prepared.rows)
    for method, each in at_damping(scores, params.damping).items():
        for query, wanted in prepared.planted().items():
            row = each[query].double().numpy()
            for name, k in (("planted", len(wanted)), ("1 %", max(1, num_rows // 100))):
                stage.metric("recall", recall_at(row, wanted, k), method=method, query=query, k=name)
            stage.metric("reciprocal_rank", reciprocal_rank(row, wanted), method=method, query=query)
        for query in range(min(len(queries), 8)):
            best = torch.argsort(-each[query], stable=True)[:3].tolist()
            told = [
                {
                    "row": n,
                    "score": float(each[query, n]),
                    "kind": prepared.rows[n].kind,
                    "text": f"{prepared.rows[n].prompt} | {prepared.rows[n].answer}",
                }
                for n in best
            ]
            stage.fact("top", told, method=method, query=query)
    if retrained is not None:
        subsets = json.loads((retrained / "subsets.json").read_text())
        member_SN = torch.zeros(len(subsets), num_rows, dtype=torch.float64)
        for number, subset in enumerate(subsets):
            member_SN[number, subset] = 1.0
        for name, each in scores.items():
            method, _, damping = name.partition("@")
            sums_SQ = member_SN @ each.double().T
            labels: dict[str, Any] = {"damping": float(damping)} if damping else {}
            stage.fact(
                "subset-sums",
                [[float(f"{value:.7g}") for value in row] for row in sums_SQ.tolist()],
                method=method,
                **labels,
            )

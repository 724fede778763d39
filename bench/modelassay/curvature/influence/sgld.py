"""Influence as a covariance of losses over weights drawn around the trained ones, with no curvature matrix at all.

    p(w) ~ exp(-N L(w) - gamma/2 |w - w0|^2)        score(q, s) = Cov_p(loss_q, loss_s)        in nats

with L the mean loss per counted token and N the counted tokens: the derivative of the expected loss of query q by the weight of row s, so that,
as everywhere here, a row is positive whose removal makes the query's loss rise (Bayesian influence functions, 2509.26544, at inverse temperature 1).
Where the losses are quadratic it is g_q^T (H + gamma/N)^-1 g_s / N: the score of the exact curvature with damping gamma/N.

Draws are of stochastic gradient Langevin dynamics (Welling and Teh 2011), a step of which costs a pass of a minibatch; each draw costs a forward
pass over all rows and queries.
"""

# suffixes: D draws, Q queries, N rows

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modelassay.curvature.ekfac.examples import MAX_TOKENS, Example, ExampleBatch, batches_of, num_targets
from modelassay.curvature.ekfac.factors import Factors, Progress
from modelassay.curvature.ekfac.modules import parameters_of
from modelassay.curvature.language_model import vocabulary_size
from modelassay.curvature.loss import CausalLoss, token_losses
from modelassay.errors import Diverged, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How weights are drawn; nothing of it is chosen on scores."""

    num_draws: int = 200
    """In all chains together."""
    num_chains: int = 4
    """Each from the trained weights, with noise of its own."""
    burn_in: int = 200
    """Steps of a chain before its first draw: what ``localisation`` forgets its beginning in, twice."""
    steps_between: int = 10
    """Of one draw and the next."""
    localisation: float = 0.01
    """gamma/N as a share of the curvature's largest eigenvalue; a chain forgets in about 1/``localisation`` steps, and directions flatter than that
    share of the steepest are damped."""
    batch_rows: int = 32
    """Of a step's gradient. Its noise is not corrected for: steep directions are drawn somewhat wider than p has them."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class SgldScores:
    """Scores, and how far the draws went."""

    scores_QN: Tensor
    """In fp64; 0 of rows without a counted token."""
    loss_rise: float
    """Mean loss per counted token of the draws, less that of the trained weights, in nats: far from 0, losses are not quadratic there."""


def largest_eigenvalue(factors: Factors) -> float:
    """Return a bound of the largest eigenvalue of the curvature per token: the sum over layers of each block's largest, as EKFAC has them."""
    return sum(float(factors[module.name].lambda_OJ.max()) for module in factors.modules)


def sgld_scores(
    model: PreTrainedModel,
    rows: Sequence[Example],
    queries: Sequence[Example],
    factors: Factors,
    sampler: Sampler = Sampler(),  # noqa: B008
    *,
    max_tokens: int = MAX_TOKENS,
    progress: Progress | None = None,
) -> SgldScores:
    """Return the covariances of query and row losses over draws of the weights and biases of the layers of ``factors``.

    The factors give nothing but the layers and the size of a step, 1 / (N (largest eigenvalue) + gamma). The model is left as it is.

    Args:
        model: trained.
        rows: what it was trained on.
        queries: whose losses are asked about.
        factors: of the same model and rows.
        sampler: how weights are drawn.
        max_tokens: positions of a microbatch.
        progress: told how many of how many draws are done.

    Raises:
        UsageError: fewer draws than two a chain, or a localisation that is not positive.
        Diverged: a loss that is not finite.
    """
    draws = sampler.num_draws // sampler.num_chains
    if draws < 2 or not sampler.localisation > 0:
        raise UsageError(
            f"influence: a covariance takes two draws of each chain and a positive localisation, got {sampler.num_draws} draws of "
            f"{sampler.num_chains} chains and {sampler.localisation}"
        )
    chain = _Chain(model, rows, queries, factors, sampler, max_tokens)
    before_N, _ = chain.losses()
    losses: list[tuple[Tensor, Tensor]] = []
    for number in range(sampler.num_chains):
        chain.begin(number)
        for draw in range(draws):
            chain.walk(sampler.burn_in if draw == 0 else sampler.steps_between)
            losses.append(chain.losses())
            if progress is not None:
                progress(len(losses), draws * sampler.num_chains)
    rows_DN, queries_DQ = (torch.stack(parts) for parts in zip(*losses, strict=True))
    rise = float(rows_DN.sum(1).mean() - before_N.sum()) / factors.counts.tokens
    return SgldScores(scores_QN=covariances(queries_DQ, rows_DN, num_chains=sampler.num_chains), loss_rise=rise)


def covariances(queries_DQ: Tensor, rows_DN: Tensor, *, num_chains: int) -> Tensor:
    """Return the covariance of each query with each row, [Q, N], about each chain's own means; the draws are of equally long chains in turn."""
    draws = len(rows_DN) // num_chains
    total_QN = queries_DQ.new_zeros(queries_DQ.shape[1], rows_DN.shape[1])
    for start in range(0, num_chains * draws, draws):
        queries, rows = queries_DQ[start : start + draws], rows_DN[start : start + draws]
        total_QN += (queries - queries.mean(0)).T @ (rows - rows.mean(0))
    return total_QN / (num_chains * (draws - 1))


class _Chain:
    def __init__(self, model: PreTrainedModel, rows: Sequence[Example], queries: Sequence[Example], factors: Factors, sampler: Sampler,
                 max_tokens: int) -> None:  # fmt: skip
        self.model, self.sampler = deepcopy(model), sampler
        self.rows, self.num_queries = rows, len(queries)
        self.counted = [number for number, row in enumerate(rows) if num_targets(row)]
        self._loss = CausalLoss(self.model)
        named = dict(self.model.named_parameters())
        self.model.requires_grad_(False)
        self.weights = [named[name].requires_grad_(True) for name in parameters_of(factors.modules).names]
        self.start = [weight.detach().clone() for weight in self.weights]
        self.num_tokens = factors.counts.tokens
        steepest = self.num_tokens * largest_eigenvalue(factors)
        self.gamma = sampler.localisation * steepest
        self.step = 1 / (steepest + self.gamma)
        self._batching = {
            "vocabulary": vocabulary_size(model),
            "device": self.start[0].device,
            "max_tokens": max_tokens,
        }
        self._all = [self._batches(rows), self._batches(queries)]
        self.begin(0)

    def _batches(self, examples: Sequence[Example], numbers: Sequence[int] | None = None) -> list[ExampleBatch]:
        return batches_of(examples, numbers=numbers, **self._batching)  # type: ignore[arg-type]

    def begin(self, number: int) -> None:
        """Go back to the trained weights, with the noise and the minibatches of a chain."""
        with torch.no_grad():
            for weight, start in zip(self.weights, self.start, strict=True):
                weight.copy_(start)
        self._noise = torch.Generator().manual_seed(2 * (self.sampler.seed * 1000 + number))
        self._order = np.random.default_rng([self.sampler.seed, number])

    def walk(self, num_steps: int) -> None:
        for _ in range(num_steps):
            size = min(self.sampler.batch_rows, len(self.counted))
            chosen = [self.counted[place] for place in self._order.permutation(len(self.counted))[:size]]
            batches = self._batches(self.rows, chosen)
            tokens = sum(batch.target.num_tokens for batch in batches)
            with torch.enable_grad():
                loss = torch.stack([self._loss(batch.target, "loss") for batch in batches]).sum() * (
                    self.num_tokens / tokens
                )
                gradients = torch.autograd.grad(loss, self.weights)
            with torch.no_grad():
                for weight, start, gradient in zip(self.weights, self.start, gradients, strict=True):
                    noise = torch.randn(weight.shape, generator=self._noise, dtype=weight.dtype).to(weight.device)
                    weight -= self.step / 2 * (gradient + self.gamma * (weight - start)) - self.step**0.5 * noise

    @torch.no_grad()
    def losses(self) -> tuple[Tensor, Tensor]:
        """Return the summed losses of rows and queries, in fp64."""
        results = []
        for batches, count in zip(self._all, (len(self.rows), self.num_queries), strict=True):
            losses = torch.zeros(count, dtype=torch.float64)
            for batch in batches:
                target = batch.target
                each_N = token_losses(self._loss(target, "logits"), target.targets_N).double()
                sums_B = each_N.new_zeros(len(batch.numbers)).index_add(0, target.sequences_N, each_N)
                losses[list(batch.numbers)] = sums_B.cpu()
            if not torch.isfinite(losses).all():
                raise Diverged(
                    "influence: a loss of weights drawn by Langevin dynamics is not finite; raise the localisation"
                )
            results.append(losses)
        return results[0], results[1]

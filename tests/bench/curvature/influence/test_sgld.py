"""Covariances against numpy, and draws of a tightly held model against what its gradients alone say."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay.curvature.ekfac.factors import Factors, Fit, fit_factors
from modelassay.curvature.ekfac.modules import select_modules
from modelassay.curvature.influence.queries import prepared, raw_gradients
from modelassay.curvature.influence.scores import pairwise
from modelassay.curvature.influence.sgld import Sampler, covariances, largest_eigenvalue, sgld_scores
from modelassay.curvature.influence.train import LiveRows
from modelassay.errors import UsageError
from modelassay.training.rows import Row
from support.influence_cases import rows_of, tiny

EMPTY = Row(ids=(1, 2, 3), loss=(True, False, False))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Row], list[Row], Factors]:
    model, rows = tiny("llama"), [*rows_of(6), EMPTY]
    factors = fit_factors(model, rows, select_modules(model), tmp_path_factory.mktemp("f"), Fit(fisher="empirical"))
    return model, rows, rows_of(3, seed=8), factors


def test_covariances_are_about_each_chains_own_means() -> None:
    generator = torch.Generator().manual_seed(2)
    queries, rows = (torch.randn(8, count, generator=generator, dtype=torch.float64) for count in (2, 3))
    expected = np.mean([np.cov(queries[part].T, rows[part].T)[:2, 2:] for part in (slice(4), slice(4, 8))], 0)
    shifted = rows + torch.tensor([0.0] * 4 + [100.0] * 4)[:, None]  # where a chain is, is not how losses covary
    np.testing.assert_allclose(covariances(queries, shifted, num_chains=2).numpy(), expected, rtol=1e-9)


def test_draws_are_their_seeds_and_leave_the_model_as_it_is(made: Any) -> None:
    model, rows, queries, factors = made
    before = deepcopy(model.state_dict())
    sampler = Sampler(num_draws=4, num_chains=2, burn_in=1, steps_between=1, batch_rows=4)
    one, two = (sgld_scores(model, rows, queries, factors, sampler) for _ in range(2))
    assert torch.equal(one.scores_QN, two.scores_QN)
    assert one.scores_QN[:, :-1].abs().min() > 0
    assert set(one.scores_QN[:, -1].tolist()) == {0.0}
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    with pytest.raises(
        UsageError, match="two draws of each chain and a positive localisation, got 3 draws of 2 chains"
    ):
        sgld_scores(model, rows, queries, factors, Sampler(num_draws=3, num_chains=2))


@pytest.mark.nightly
def test_of_a_tightly_held_model_losses_covary_as_their_gradients_do(made: Any, tmp_path: Path) -> None:
    """With gamma far above the curvature the weights are normal with variance 1/gamma: Cov = g_q . g_s / gamma."""
    model, rows, queries, factors = made
    hold = 100.0
    sampler = Sampler(num_draws=1200, burn_in=20, steps_between=6, localisation=hold, batch_rows=99)
    drawn = sgld_scores(model, rows, queries, factors, sampler)
    live = LiveRows(model=model, examples=rows, modules=factors.modules)
    products = pairwise(
        prepared(raw_gradients(model, queries, factors.modules), factors, strategy="identity"), live, num_tokens=1
    )
    expected = products / (hold * factors.counts.tokens * largest_eigenvalue(factors))
    # A step of length 1 / gamma widens the variance of the discrete chain by 1 / (1 - 1/4).
    error = drawn.scores_QN - expected / 0.75
    assert float(error.norm() / expected.norm()) < 0.25
    assert abs(drawn.loss_rise) < 0.05

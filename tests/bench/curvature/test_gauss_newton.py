"""Gauss-Newton and Fisher matrices against their definitions, from a dense Jacobian."""

from typing import Any

import pytest
import torch

from modelassay.curvature.gauss_newton import EmpiricalFisher, ExactFisher, GaussNewton, SampledFisher
from modelassay.curvature.loss import Microbatch
from modelassay.curvature.parameters import select_parameters
from modelassay.errors import UsageError
from support import curvature_cases as cases

NAMES = ["qwen2", "llama", "mistral", "gemma", "gpt2", "gpt_neox"]
Made = tuple[Any, Microbatch, Any]


@pytest.fixture(params=NAMES)
def made(request: pytest.FixtureRequest) -> Made:
    model, batch = cases.make_model(request.param, num_hidden_layers=1), cases.make_batch()
    return model, batch, cases.dense_jacobian(model, batch)


def applied(operator: Any) -> tuple[torch.Tensor, torch.Tensor]:
    v_KP = torch.randn(5, operator.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return v_KP, operator.matmat(v_KP)


def test_gauss_newton_is_j_h_j(made: Made) -> None:
    model, batch, (jacobian_NVP, p_NV, targets_N, _) = made
    middle_NVV = torch.diag_embed(p_NV) - p_NV[:, :, None] * p_NV[:, None]
    dense_PP = torch.einsum("nvp,nvw,nwq->pq", jacobian_NVP, middle_NVV, jacobian_NVP) / len(targets_N)
    for vectors_per_pass in (1, 5):
        v_KP, product_KP = applied(GaussNewton(model, cases.split(batch, 2), vectors_per_pass=vectors_per_pass))
        assert cases.off(product_KP, v_KP @ dense_PP) < 1e-9
    assert (v_KP * product_KP).sum(1).min() > 0


def test_true_fisher_is_the_expectation_over_labels(made: Made) -> None:
    model, batch, (jacobian_NVP, p_NV, targets_N, _) = made
    dense_PP = torch.zeros(jacobian_NVP.shape[2], jacobian_NVP.shape[2], dtype=torch.float64)
    for label in range(p_NV.shape[1]):
        g_NP = cases.token_gradients(jacobian_NVP, p_NV, torch.full_like(targets_N, label))
        dense_PP += (g_NP * p_NV[:, label : label + 1]).T @ g_NP / len(targets_N)
    v_KP, product_KP = applied(ExactFisher(model, [batch], vectors_per_pass=5))
    assert cases.off(product_KP, v_KP @ dense_PP) < 1e-9


def test_sampled_fisher_is_the_mean_over_its_labels(made: Made) -> None:
    model, batch, (jacobian_NVP, p_NV, targets_N, _) = made
    operator = SampledFisher(model, cases.split(batch, 2), num_samples=3, seed=4, vectors_per_pass=5)
    labels_SN = torch.cat([operator._labels[id(part)] for part in operator._batches], dim=1)
    gradients = [cases.token_gradients(jacobian_NVP, p_NV, labels_N) for labels_N in labels_SN]
    dense_PP = sum(g_NP.T @ g_NP for g_NP in gradients) / (3 * len(targets_N))
    v_KP, product_KP = applied(operator)
    assert cases.off(product_KP, v_KP @ dense_PP) < 1e-9


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_empirical_fisher_is_the_mean_outer_product(made: Made, per: Any) -> None:
    model, batch, (jacobian_NVP, p_NV, targets_N, sequences_N) = made
    g_NP = cases.token_gradients(jacobian_NVP, p_NV, targets_N)
    if per == "sequence":
        g_NP = torch.stack([g_NP[sequences_N == index].sum(0) for index in range(len(batch.labels_BT))])
    v_KP, product_KP = applied(EmpiricalFisher(model, cases.split(batch, 2), per=per, vectors_per_pass=5))
    assert cases.off(product_KP, v_KP @ (g_NP.T @ g_NP) / len(targets_N)) < 1e-9


def test_labels_are_drawn_from_the_model() -> None:
    """Frequencies over 4,000 draws against the softmax: every class within four standard errors."""
    model, batch = cases.make_model("qwen2", num_hidden_layers=1), cases.make_batch()
    _, p_NV, _, _ = cases.dense_jacobian(model, batch)
    operator = SampledFisher(model, [batch], num_samples=4_000)
    (labels_SN,) = operator._labels.values()
    shares_NV = torch.nn.functional.one_hot(labels_SN, p_NV.shape[1]).double().mean(0)
    assert ((shares_NV - p_NV).abs() < 4 * (p_NV * (1 - p_NV) / 4_000).sqrt() + 1e-12).all()
    other = SampledFisher(model, [batch], num_samples=4_000, seed=1)
    assert not torch.equal(next(iter(other._labels.values())), labels_SN)


def test_a_zero_gradient_gives_a_zero_empirical_fisher() -> None:
    """A head of zeros gives uniform predictions, whatever the layers below: their gradient is 0, their GGN too."""
    model, batch = cases.make_model("llama"), cases.make_batch()
    torch.nn.init.zeros_(model.lm_head.weight)
    below = select_parameters(model, ["model.*"])
    for kind in (EmpiricalFisher, GaussNewton):
        operator = kind(model, [batch], parameters=below)
        assert not operator.gradient().any()
        assert not applied(operator)[1].any()


def test_what_cannot_be_asked_for() -> None:
    model, batch = cases.make_model("gpt2", n_layer=1), cases.make_batch()
    with pytest.raises(UsageError, match="'token' or 'sequence', got 'batch'"):
        EmpiricalFisher(model, [batch], per="batch")
    with pytest.raises(UsageError, match="at least 1, got 0"):
        SampledFisher(model, [batch], num_samples=0)

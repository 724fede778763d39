"""The layers against what they stand in for: values, gradients, and gradients of gradients, in float64."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelassay.curvature.layers import embedding, gated, in_place_of, linear, replacements, rms_norm, summed_loss
from modelassay.curvature.loss import second_order
from support import curvature_cases as cases

LABELS = torch.tensor([4, 0, 4])
IDS = torch.tensor([[0, 3, 3], [2, 0, 3]])
EPS = 1e-3
Function = Callable[..., Tensor]


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


CASES: dict[str, tuple[Function, Function, list[tuple[int, ...]]]] = {
    "linear": (linear, F.linear, [(2, 3, 4), (5, 4), (5,)]),
    "linear without bias": (linear, F.linear, [(3, 4), (5, 4)]),
    "embedding": (lambda w: embedding(IDS, w), lambda w: F.embedding(IDS, w), [(4, 5)]),
    "norm": (lambda x, w: rms_norm(x, w, EPS), plain_norm, [(2, 3, 5), (5,)]),
    "summed loss": (
        lambda h, w: summed_loss(h, w, LABELS),
        lambda h, w: F.cross_entropy(h @ w.T, LABELS, reduction="sum"),
        [(3, 4), (5, 4)],
    ),
    "gate": (gated, lambda a, b: F.silu(a) * b, [(2, 3, 4), (2, 3, 4)]),
}


def draw(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def product(function: Function, point: list[Tensor], vector: list[Tensor], wanted: list[int]) -> list[Tensor]:
    """The Hessian of a bent sum of the output, times a vector; only some inputs are variables."""
    leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(point)]
    variables = [leaves[i] for i in wanted]
    value = torch.sin(function(*leaves)).square().sum() + function(*leaves).pow(3).sum()
    gradient = torch.autograd.grad(value, variables, create_graph=True)
    return list(torch.autograd.grad(gradient, variables, [vector[i] for i in wanted]))


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str) -> None:
    ours, theirs, shapes = CASES[name]
    point, vector = draw(shapes, 0), draw(shapes, 1)
    torch.testing.assert_close(ours(*point), theirs(*point), rtol=1e-13, atol=1e-13)
    leaves = [x.clone().requires_grad_() for x in point]
    gradients = [torch.autograd.grad(f(*leaves).sin().sum(), leaves) for f in (ours, theirs)]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    every = list(range(len(shapes)))
    for wanted in [every, *([i] for i in every)]:
        pairs = zip(*(product(f, point, vector, wanted) for f in (ours, theirs)), strict=True)
        for got, expected in pairs:
            assert cases.off(got, expected) < 1e-12


def test_gradients_of_weights_take_no_memory_while_a_graph_is_made() -> None:
    weight = torch.ones(50, 40, requires_grad=True)
    x = torch.ones(3, 40, requires_grad=True)
    (of_weight,) = torch.autograd.grad(linear(x, weight).square().sum(), weight, create_graph=True)
    assert of_weight.shape == weight.shape
    assert of_weight.untyped_storage().nbytes() == weight.element_size()
    assert of_weight.requires_grad


FOUND = {
    "qwen2": {"Linear": 15, "Qwen2RMSNorm": 5, "Qwen2MLP": 2, "Embedding": 1},
    "llama": {"Linear": 15, "LlamaRMSNorm": 5, "LlamaMLP": 2, "Embedding": 1},
    "mistral": {"Linear": 15, "MistralRMSNorm": 5, "MistralMLP": 2, "Embedding": 1},
    "gemma": {"Linear": 15, "GemmaRMSNorm": 5},
    "gpt2": {"Linear": 1, "Conv1D": 8, "Embedding": 2},
    "gpt_neox": {"Linear": 9, "Embedding": 1},
}
"""Modules replaced in models of two layers. Gemma scales its embeddings and gates by GELU; LayerNorm is PyTorch's own."""


@pytest.mark.parametrize("name", cases.CASES)
def test_stand_ins_change_no_loss_and_are_gone_afterwards(name: str) -> None:
    model, ids = cases.make_model(name), cases.make_batch().input_ids_BT
    with second_order(model, torch.float64, "eager"):
        expected = model(input_ids=ids).logits
        found = replacements(model)
        with in_place_of(found):
            assert not replacements(model)
            got = model(input_ids=ids).logits
        assert cases.off(got, expected) < 1e-13
        assert cases.off(model(input_ids=ids).logits, expected) == 0
    assert not any("forward" in vars(module) for module in model.modules())
    assert Counter(type(module).__name__ for module in found) == FOUND[name]


class ScaledRMSNorm(nn.Module):
    """Called a norm, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(6)), 1e-6

    def forward(self, x: Tensor) -> Any:
        """Return twice the norm."""
        return 2 * plain_norm(x, self.weight)


class ScaledMLP(nn.Module):
    """Looks like a gated block, and multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(6, 6) for _ in range(3))
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Any:
        """Return a tenth more than such a block."""
        return 1.1 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_what_computes_something_else_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ScaledRMSNorm(), ScaledMLP(), nn.Embedding(3, 6, max_norm=1.0))
    with torch.no_grad():
        assert {type(module) for module in replacements(model)} == {nn.Linear}

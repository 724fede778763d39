"""What an optimiser can do in few bits, against what others published and against updates written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay.errors import UsageError
from modelassay.training.optimiser import AdamW, round_stochastically
from modelassay.training.settings import Training

SIZE = 768


def stepped(start: Tensor, steps: int, **settings: Any) -> Tensor:
    """The weights after so many steps with standard normal gradients, the same ones in every type."""
    generator = torch.Generator().manual_seed(0)
    training = Training(num_steps=steps, batch_size=1, **{"weight_decay": 0.0, "beta2": 0.999, **settings})
    weight = start.to(getattr(torch, training.weights), copy=True).requires_grad_()
    optimiser = AdamW({"norm": weight}, training)
    for _ in range(steps):
        weight.grad = torch.randn(start.shape, generator=generator).to(weight.dtype)
        optimiser.collect()
        optimiser.step(training.learning_rate)
    return weight.detach().clone()


@pytest.mark.parametrize(
    ("settings", "at_least", "at_most"),
    [
        ({"weights": "bfloat16"}, 0, 8),
        ({"weights": "bfloat16", "master": "float32"}, 400, 760),
        ({"weights": "bfloat16", "stochastic_rounding": True}, 500, 760),
        ({}, 768, 768),
    ],
)
def test_a_norm_in_bfloat16_hardly_moves_without_a_master_copy(
    settings: dict[str, Any], at_least: int, at_most: int
) -> None:
    """100 steps at 6e-4 on a norm of ones: 0, 603 and 768 of 768 weights moved (workofart/ml-by-hand, issue 85)."""
    ones = torch.ones(SIZE)
    after = stepped(ones, 100, learning_rate=6e-4, **settings)
    assert at_least <= int((after.float() != ones).sum()) <= at_most


def test_decay_below_half_an_ulp_never_applies() -> None:
    """bfloat16 keeps 8 bits: a weight changes by 2^-9 of itself at least, decay at 1e-2 of a rate of 1e-3 by 1e-5."""
    weights = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    settings: dict[str, Any] = {"weight_decay": 1e-2, "learning_rate": 1e-3, "optimiser": "sgd"}

    def decayed(dtype: str) -> Tensor:
        training = Training(num_steps=100, batch_size=1, weights=dtype, **settings)  # type: ignore[arg-type]
        weight = weights.to(getattr(torch, dtype), copy=True).requires_grad_()
        optimiser = AdamW({"matrix": weight}, training)
        for _ in range(100):
            weight.grad = torch.zeros_like(weight)
            optimiser.step(1e-3)
        return weight.detach()

    assert torch.equal(decayed("bfloat16"), weights)
    torch.testing.assert_close(decayed("float32"), weights.float() * (1 - 1e-5) ** 100, rtol=1e-5, atol=0)


def test_stochastic_rounding_is_right_in_the_mean_and_lands_on_neighbours() -> None:
    torch.manual_seed(0)
    ulp = 2.0**-7  # of bfloat16 in [1, 2)
    for value in (1 + 0.25 * ulp, -(1 + 0.9 * ulp)):
        rounded = round_stochastically(torch.full((40_000,), value))
        lower = torch.tensor(value).abs().floor() * (1 if value > 0 else -1)
        neighbours = {float(lower), float(lower) + (ulp if value > 0 else -ulp)}
        assert set(rounded.tolist()) == neighbours
        # the standard error of the mean of 40,000 draws is at most ulp / 2 / 200
        assert float(rounded.double().mean()) == pytest.approx(value, abs=4 * ulp / 400)
    exact = torch.randn(100).bfloat16().float()
    assert torch.equal(round_stochastically(exact), exact)


def test_descent_and_noise_are_what_they_say() -> None:
    weights = torch.linspace(-1, 1, 12).view(3, 4)
    training = Training(num_steps=1, batch_size=1, learning_rate=0.1, weight_decay=0.5, optimiser="sgd")
    weight = weights.clone().requires_grad_()
    weight.grad = torch.full_like(weights, 2.0)
    AdamW({"matrix": weight}, training).step(0.1)
    torch.testing.assert_close(weight.detach(), weights * (1 - 0.05) - 0.2)
    torch.manual_seed(3)
    expected = weights + 0.1 * -torch.randn(3, 4)
    torch.manual_seed(3)
    noisy = weights.clone().requires_grad_()
    noisy.grad = torch.full_like(weights, float("nan"))  # noise knows no gradient
    AdamW(
        {"matrix": noisy}, Training(num_steps=1, batch_size=1, learning_rate=0.1, weight_decay=0.0, optimiser="noise")
    ).step(0.1)
    torch.testing.assert_close(noisy.detach(), expected)


def test_foreach_in_float16_divides_by_nothing() -> None:
    """Of a weight without gradient eps = 1e-8 is all of the denominator, and 0 in float16: 0 / 0; fused computes in float32."""
    for implementation, finite in (("foreach", False), ("fused", True)):
        weight = torch.ones(8).half().requires_grad_()
        training = Training(
            num_steps=1, batch_size=1, learning_rate=1e-6, weights="float16", implementation=implementation
        )  # type: ignore[arg-type]
        weight.grad = torch.zeros_like(weight)
        optimiser = AdamW({"norm": weight}, training)
        optimiser.step(1e-6)
        assert bool(weight.isfinite().all()) == finite


def test_stochastic_rounding_of_other_weights_is_refused() -> None:
    for settings in ({"weights": "float32"}, {"weights": "bfloat16", "master": "float32"}):
        training = Training(num_steps=1, batch_size=1, learning_rate=1.0, stochastic_rounding=True, **settings)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="stochastic rounding is of bfloat16 weights without a master copy"):
            AdamW({"w": torch.zeros(2)}, training)


def orthogonal_step(gradient: Tensor, momentum: Tensor) -> Tensor:
    """Muon's update as its paper writes it, in float64: Nesterov momentum, five steps of a quintic, a root mean square of 0.2."""
    momentum.mul_(0.95).add_(gradient, alpha=0.05)
    x = 0.05 * gradient + 0.95 * momentum
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.T) * 0.2 * max(x.shape) ** 0.5


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    names = {
        "layers.0.up_proj.weight": shape,
        "embed_tokens.weight": (11, 3),
        "lm_head.weight": (11, 3),
        "norm.weight": (6,),
    }
    start = {name: torch.randn(size, generator=generator) for name, size in names.items()}
    gradients = [{name: torch.randn(size, generator=generator) for name, size in names.items()} for _ in range(3)]

    def trained(kind: Any, saved_after: int | None = None) -> dict[str, Tensor]:
        training = Training(num_steps=3, batch_size=1, learning_rate=0.01, weight_decay=0.5, optimiser=kind)
        weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
        optimiser = AdamW(weights, training)
        for step, given in enumerate(gradients):
            if step == saved_after:
                kept = {name: tensor.clone() for name, tensor in optimiser.tensors().items()}
                optimiser = AdamW(weights, training)
                optimiser.restore(kept)
            for name, weight in weights.items():
                weight.grad = given[name].clone()
            optimiser.step(0.01)
        return {name: weight.detach() for name, weight in weights.items()}

    muon, adamw = trained("muon"), trained("adamw")
    matrix = "layers.0.up_proj.weight"
    weight, momentum = start[matrix].double(), torch.zeros(shape, dtype=torch.float64)
    for given in gradients:
        weight = weight * (1 - 0.01 * 0.5) - 0.01 * orthogonal_step(given[matrix].double(), momentum)
    moved = (weight - start[matrix]).norm()
    assert (muon[matrix] - weight).norm() < 0.03 * moved  # torch orthogonalises in bfloat16, 2^-8 a number and step
    assert (adamw[matrix] - weight).norm() > 0.3 * moved
    for name in names.keys() - {matrix}:
        assert torch.equal(muon[name], adamw[name])
    resumed = trained("muon", saved_after=2)
    assert all(torch.equal(resumed[name], muon[name]) for name in names)

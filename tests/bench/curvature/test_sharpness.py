"""Curvature along lines of a quadratic, whose answer is known, and what a line search does where there is none."""

import math

import pytest
import torch
from torch import nn

from modelassay.curvature.sharpness import critical_sharpness, line_curvature, moved, unit
from modelassay.errors import UsageError


def quadratic(curvatures: list[float]) -> tuple[nn.Module, torch.Tensor]:
    model = nn.Linear(len(curvatures), 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(0.5, 1.5, len(curvatures), dtype=torch.float64)[None])
    return model, torch.tensor(curvatures, dtype=torch.float64)


@pytest.mark.parametrize("first", [1e-4, 0.3, 50.0])
def test_of_a_quadratic_it_is_the_curvature_along_the_gradient(first: float) -> None:
    model, curvatures = quadratic([4.0, 1.0, 0.2])
    weight = model.weight.detach().clone()
    gradient = curvatures * weight

    def loss() -> float:
        return float(0.5 * (curvatures * model.weight.detach() ** 2).sum())

    found = critical_sharpness(model, loss, {"weight": -gradient}, first=first)
    expected = float((curvatures * gradient**2).sum() / (gradient**2).sum())
    assert found.value == pytest.approx(expected, rel=0.1)
    assert found.forwards <= 24 + 3
    assert torch.equal(model.weight.detach(), weight)
    direction = unit({"weight": torch.tensor([[1.0, -2.0, 2.0]], dtype=torch.float64)})
    assert float(direction["weight"].norm()) == pytest.approx(1)
    curved = line_curvature(model, loss, direction, step=0.3)
    assert curved == pytest.approx(float((curvatures * direction["weight"] ** 2).sum()), rel=1e-9)


def test_a_loss_that_never_turns_has_none() -> None:
    model, _ = quadratic([1.0])
    down = {"weight": torch.full((1, 1), -1.0, dtype=torch.float64)}
    assert math.isnan(critical_sharpness(model, lambda: float(model.weight.detach()), down, first=1.0).value)
    up = {"weight": torch.ones(1, 1, dtype=torch.float64)}
    assert math.isnan(critical_sharpness(model, lambda: float(model.weight.detach()), up, first=1.0).value)
    hole = critical_sharpness(
        model, lambda: math.nan if model.weight.item() < 0 else model.weight.item(), down, first=8.0
    )
    assert 2 / hole.value == pytest.approx(0.5, rel=0.1)  # the weight is 0.5: beyond it the loss is no number


def test_weights_come_back_whatever_happens() -> None:
    model, _ = quadratic([1.0, 1.0])
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError), moved(model, {"weight": torch.ones(1, 2, dtype=torch.float64)}, 0.1):
        raise RuntimeError
    assert torch.equal(model.weight.detach(), before)
    with pytest.raises(UsageError, match="no parameter"), moved(model, {"bias": torch.ones(1)}, 0.1):
        pass
    with pytest.raises(UsageError, match="norm 0"):
        unit({"weight": torch.zeros(2)})

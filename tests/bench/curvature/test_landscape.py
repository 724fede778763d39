"""Slices of a loss whose values are known, and directions that are scaled filter by filter."""

import math

import pytest
import torch
from torch import nn

from modelassay.curvature.landscape import filter_normalised, landscape
from modelassay.errors import UsageError
from support.drift_models import byte_model


def test_every_filter_has_the_models_own_norm_and_norms_stay() -> None:
    model = byte_model()
    one, again, other = (filter_normalised(model, seed=seed) for seed in (3, 3, 4))
    weights = dict(model.named_parameters())
    assert one.keys() == {name for name, weight in weights.items() if weight.dim() > 1}
    assert any("norm" in name for name in weights.keys() - one.keys())
    for name, part in one.items():
        assert torch.allclose(part.norm(dim=1), weights[name].detach().norm(dim=1), rtol=1e-5)
        assert torch.equal(part, again[name])
        assert not torch.equal(part, other[name])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    doubled = filter_normalised(model, seed=3)
    assert all(torch.allclose(doubled[name], 2 * part, rtol=1e-5) for name, part in one.items())
    kernel = nn.Conv1d(3, 5, 4)
    slices = filter_normalised(kernel, seed=0)["weight"].flatten(1)
    assert torch.allclose(slices.norm(dim=1), kernel.weight.detach().flatten(1).norm(dim=1), rtol=1e-5)


def test_a_row_of_zeros_moves_nowhere() -> None:
    line = nn.Linear(3, 2)
    with torch.no_grad():
        line.weight[0].zero_()
    direction = filter_normalised(line, seed=0)["weight"]
    assert not direction[0].any()
    assert direction[1].any()


def test_a_slice_of_a_quadratic_is_its_values_and_leaves_the_weights() -> None:
    line = nn.Linear(3, 1, bias=False).double()
    weight = line.weight.detach().clone()
    curvatures = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    axes = [filter_normalised(line, seed=seed) for seed in (0, 1)]

    def loss() -> float:
        return float(0.5 * (curvatures * line.weight.detach() ** 2).sum())

    grid = landscape(line, loss, *axes, reach=0.75, points=5)
    for row, a in zip(grid, (-0.75, -0.375, 0.0, 0.375, 0.75), strict=True):
        for value, b in zip(row, (-0.75, -0.375, 0.0, 0.375, 0.75), strict=True):
            there = weight + a * axes[0]["weight"] + b * axes[1]["weight"]
            assert value == pytest.approx(float(0.5 * (curvatures * there**2).sum()), rel=1e-12)
    assert grid[2][2] == loss()
    assert torch.equal(line.weight.detach(), weight)
    broken = landscape(line, lambda: math.inf, *axes, reach=1.0, points=3)
    assert broken == [[None] * 3] * 3


@pytest.mark.parametrize(
    ("reach", "points", "message"), [(1.0, 4, "odd"), (1.0, 1, "odd"), (0.0, 3, "reach"), (math.nan, 3, "reach")]
)
def test_what_makes_no_slice_is_refused(reach: float, points: int, message: str) -> None:
    line = nn.Linear(2, 1)
    axes = [filter_normalised(line, seed=seed) for seed in (0, 1)]
    with pytest.raises(UsageError, match=message):
        landscape(line, lambda: 0.0, *axes, reach=reach, points=points)

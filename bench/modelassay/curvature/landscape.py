"""Two-dimensional slices of the loss about a model, along random directions that are scaled filter by filter."""

# R = points of a side

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from modelassay.curvature.sharpness import Direction, moved
from modelassay.errors import UsageError


def filter_normalised(model: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """Return a Gaussian direction of which every filter has the norm of the model's own filter: d_i |w_i| / |d_i|.

    A filter is what makes one output: of a matrix a row, of an embedding a token's row, of a convolution a slice of its first dimension.
    Parameters of one dimension, biases and norms, are left out: the direction is zero there. Li et al. 1712.09913, section 4. The Gaussian
    draw depends on ``seed``, names and shapes alone, so that it is the same for all generations of a model; its scale is the model's own, since a
    network whose weights are doubled computes the same where norms follow.

    >>> model = nn.Linear(3, 2)
    >>> direction = filter_normalised(model, seed=0)
    >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1)), list(direction)
    (True, ['weight'])
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        rows = tuple(range(1, weight.dim()))
        size = torch.linalg.vector_norm(weight.detach().double(), dim=rows, keepdim=True).cpu()
        direction[name] = (draw * size / torch.linalg.vector_norm(draw, dim=rows, keepdim=True)).to(weight)
    return direction


def landscape(
    model: nn.Module, loss: Callable[[], float], first: Direction, second: Direction, *, reach: float, points: int
) -> list[list[float | None]]:
    """Return the loss at w + a ``first`` + b ``second``, a by row and b by column, both from -``reach`` to ``reach``.

    Costs ``points``^2 evaluations of ``loss``. The weights are put back to the bit. A loss that is not finite is None.

    Raises:
        UsageError: an even number of points, of which none is the model itself, or a reach that is not above 0.

    >>> line = nn.Linear(2, 1, bias=False)
    >>> _ = line.weight.data.zero_()
    >>> axes = [{"weight": torch.tensor([row])} for row in ([1.0, 0.0], [0.0, 1.0])]
    >>> landscape(line, lambda: float((line.weight.detach() ** 2).sum()), *axes, reach=1.0, points=3)
    [[2.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 2.0]]
    """
    if points < 3 or points % 2 == 0:
        raise UsageError(f"landscape: points of a side must be odd and at least 3, got {points}")
    if not (math.isfinite(reach) and reach > 0):
        raise UsageError(f"landscape: reach must be above 0, got {reach}")
    places_R = [reach * (2 * at / (points - 1) - 1) for at in range(points)]
    grid: list[list[float | None]] = []
    for a in places_R:
        row: list[float | None] = []
        for b in places_R:
            with moved(model, _sum(first, a, second, b), 1.0):
                value = loss()
            row.append(value if math.isfinite(value) else None)
        grid.append(row)
    return grid


def _sum(first: Mapping[str, Tensor], a: float, second: Mapping[str, Tensor], b: float) -> dict[str, Tensor]:
    return {name: a * part + b * second[name] for name, part in first.items()}

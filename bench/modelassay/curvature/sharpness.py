"""Curvature along one direction from forward passes alone: what a Hessian's products are to be worth their price against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelassay.errors import UsageError

Direction = Mapping[str, Tensor]
"""Parameter's name -> what is added to it."""
BRACKET = 2.0
"""By what a step is multiplied or divided until the loss turns."""
MOST_FORWARDS = 24


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """What a line search found."""

    value: float
    """2 / eta_c; NaN where the loss never rose, or rose at once, within the forwards that were allowed."""
    forwards: int
    """Passes over the text, that of the point itself included."""


@contextmanager
def moved(model: nn.Module, direction: Direction, step: float) -> Iterator[None]:
    """Have the model's weights at w + step d while the context lasts; the very bits are put back."""
    weights = dict(model.named_parameters())
    if unknown := direction.keys() - weights.keys():
        raise UsageError(
            f"sharpness: the model has no parameter {sorted(unknown)[0]}; give a direction in its own names"
        )
    before = {name: weights[name].detach().clone() for name in direction}
    try:
        with torch.no_grad():
            for name, part in direction.items():
                weights[name].add_(part.to(weights[name]), alpha=step)
        yield
    finally:
        with torch.no_grad():
            for name, part in before.items():
                weights[name].copy_(part)


def critical_sharpness(model: nn.Module, loss: Callable[[], float], direction: Direction, *, first: float,
                       refinements: int = 3) -> Sharpness:  # fmt: skip
    """Return 2 / eta_c, eta_c the smallest step along a direction of descent at which the loss exceeds that at the point.

    On a quadratic it is the curvature along the gradient. A step is doubled or halved until the loss turns, then bisected on a
    log scale; the answer is good to a factor of 2^(1 / 2^``refinements``) either way. Kalra et al. 2601.16979.

    Args:
        model: whose weights are moved and put back.
        loss: of the model as it stands; forward passes only.
        direction: of descent, such as minus the gradient.
        first: step that is tried first.
        refinements: bisections.

    >>> line = nn.Linear(1, 1, bias=False)                          # loss 3 w^2 / 2 at w = 1: gradient 3, curvature 3
    >>> _ = line.weight.data.fill_(1.0)
    >>> found = critical_sharpness(line, lambda: 1.5 * line.weight.item() ** 2, {"weight": torch.tensor([[-3.0]])}, first=0.5)
    >>> 2.7 < found.value < 3.3
    True
    """
    here, forwards = loss(), 1

    def rises(step: float) -> bool:
        nonlocal forwards
        forwards += 1
        with moved(model, direction, step):
            there = loss()
        return not there <= here  # a loss that is no number has risen

    step, up = first, rises(first)
    low, high = (0.0, first) if up else (first, math.inf)
    while forwards < MOST_FORWARDS and (low == 0.0 or high == math.inf):
        step = step / BRACKET if up else step * BRACKET
        if rises(step):
            high = step
        else:
            low = step
    if low == 0.0 or high == math.inf:
        return Sharpness(value=math.nan, forwards=forwards)
    for _ in range(refinements):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rises(middle) else (middle, high)
    return Sharpness(value=2 / math.sqrt(low * high), forwards=forwards)


def line_curvature(model: nn.Module, loss: Callable[[], float], direction: Direction, *, step: float) -> float:
    """Return the second derivative of the loss along a unit direction, by a central difference of three forward passes.

    >>> line = nn.Linear(1, 1, bias=False)
    >>> round(line_curvature(line, lambda: 1.5 * line.weight.item() ** 2, {"weight": torch.tensor([[1.0]])}, step=0.1), 3)
    3.0
    """
    here = loss()
    with moved(model, direction, step):
        ahead = loss()
    with moved(model, direction, -step):
        behind = loss()
    return (ahead - 2 * here + behind) / step**2


def norm_of(direction: Direction) -> float:
    """Return the norm over all parameters together, summed in float64."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in direction.values()))


def unit(direction: Direction) -> dict[str, Tensor]:
    """Return a direction of norm 1 over all parameters together.

    Raises:
        UsageError: one that is zero or not finite.
    """
    norm = norm_of(direction)
    if not (math.isfinite(norm) and norm > 0):
        raise UsageError(f"sharpness: the direction has norm {norm}; give a finite one that is not zero")
    return {name: part / norm for name, part in direction.items()}

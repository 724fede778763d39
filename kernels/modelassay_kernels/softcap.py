"""softcap(s) = c tanh(s / c): which caps c have an answer in fp32, and the slope."""

from __future__ import annotations

from torch import Tensor

LOWEST, HIGHEST = 1e-30, 1e30
"""Beyond these s / c or c itself leaves fp32, and the formula becomes 0 times infinity."""


def check_softcap(operation: str, softcap: float | None) -> None:
    """Raise unless there is none, or one in range.

    Raises:
        ValueError: it is not positive, not finite, or beyond fp32.
    """
    if softcap is not None and not LOWEST <= softcap <= HIGHEST:
        raise ValueError(
            f"{operation}: softcap must be above 0, from {LOWEST:g} to {HIGHEST:g}, got {softcap}; None means no cap"
        )


def slope_of_tanh(x: Tensor) -> Tensor:
    """Return 1 - tanh(x)^2 as sech(x)^2 = 4 e / (1 + e)^2, e = exp(-2 |x|): the difference loses all digits where tanh is near 1.

    >>> import torch
    >>> [f"{slope:.3g}" for slope in slope_of_tanh(torch.tensor([0.0, 9.0, 20.0])).tolist()]
    ['1', '6.09e-08', '1.7e-17']
    """
    e = x.abs().mul_(-2.0).exp_()
    return e.div_((e + 1.0).square_()).mul_(4.0)

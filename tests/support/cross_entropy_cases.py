"""Problems and comparisons of the tests of linear_cross_entropy and softmax_ggn, whatever computes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp

NUM_ROWS, NUM_COLS, HIDDEN_SIZE = 13, 37, 5
SETTINGS = [
    {"softcap": softcap, "label_smoothing": smoothing, "z_loss": z_loss}
    for softcap, smoothing, z_loss in itertools.product((None, 3.0), (0.0, 0.1), (0.0, 0.01))
]
REDUCTIONS = ["mean", "sum", "none"]

Point = tuple[Tensor, Tensor, Tensor]
Loss = Callable[..., Tensor]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make_point(seed: int = 0, num_rows: int = NUM_ROWS, num_cols: int = NUM_COLS) -> Point:
    """Hidden states, weight and bias."""
    hidden = normal(num_rows, HIDDEN_SIZE, seed=seed)
    return hidden, normal(num_cols, HIDDEN_SIZE, seed=seed + 1), normal(num_cols, seed=seed + 2)


def make_labels(num_rows: int = NUM_ROWS, num_cols: int = NUM_COLS, ignored: int = 4) -> Tensor:
    """Every label once before any twice, every `ignored`-th one ignored."""
    labels = (torch.arange(num_rows) * 7) % num_cols
    labels[::ignored] = -100
    return labels


def linear_cross_entropy_reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Compute the same by PyTorch's own functions in float64, all logits at one time; autograd derives it any number of times."""
    bias_V = None if bias is None else bias.double()
    logits_NV = F.linear(hidden_ND.double(), weight_VD.double(), bias_V)
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    losses_N = F.cross_entropy(
        logits_NV, labels_N, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    keep_N = labels_N != ignore_index
    losses_N = losses_N + torch.where(keep_N, z_loss * logits_NV.logsumexp(1).square(), 0.0)
    if reduction == "none":
        return losses_N
    return losses_N.sum() if reduction == "sum" else losses_N.sum() / keep_N.sum()


def scalar_loss(function: Callable[..., Tensor], labels: Tensor, **settings: Any) -> Loss:
    """A function of a point; what gives a loss per token is squared, so that its weights depend on the point."""

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return function(hidden, weight, labels, bias=bias, **settings).square().sum()

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return function(hidden, weight, labels, bias=bias, **settings)

    return loss if settings.get("reduction") == "none" else plain


def _forward_over_reverse(loss: Loss, point: Point, direction: Point) -> tuple[Tensor, ...]:
    return jvp(grad(loss, (0, 1, 2)), point, direction)[1]


def _reverse_over_forward(loss: Loss, point: Point, direction: Point) -> tuple[Tensor, ...]:
    return grad(lambda *p: jvp(loss, p, direction)[1], (0, 1, 2))(*point)


def _reverse_over_reverse(loss: Loss, point: Point, direction: Point) -> tuple[Tensor, ...]:
    def along(*p: Tensor) -> Tensor:
        return sum((g * d).sum() for g, d in zip(grad(loss, (0, 1, 2))(*p), direction, strict=True))

    return grad(along, (0, 1, 2))(*point)


def double_backward(loss: Loss, point: Point, direction: Point) -> tuple[Tensor, ...]:
    leaves = [p.detach().clone().requires_grad_() for p in point]
    gradients = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(gradients, leaves, direction)


HESSIAN_PRODUCTS = {
    "forward over reverse": _forward_over_reverse,
    "reverse over forward": _reverse_over_forward,
    "reverse over reverse": _reverse_over_reverse,
    "double backward": double_backward,
}


def assert_close(got: Any, want: Any, rtol: float) -> None:
    """Compare each tensor by norms, in float64; NaN never passes."""
    got, want = ([x] if isinstance(x, Tensor) else list(x) for x in (got, want))
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        distance, size = (g.double() - w.double()).norm(), w.double().norm()
        assert bool(distance <= rtol * size), f"{float(distance):.3g} apart at a norm of {float(size):.3g}"

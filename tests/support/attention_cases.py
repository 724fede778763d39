"""Inputs of attention, what they have in common, and how a second derivative is compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.attention.reference import attention_reference
from modelassay_kernels.attention.spans import make_spans

IGNORES_TORCH_JIT = "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
"""torch itself scripts its decompositions at the first jvp."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """B sequences, H and K heads, S queries, J keys, head dimension D, and the options of `attention`."""

    name: str
    shape: tuple[int, int, int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v."""
        batch, heads, kv_heads, queries, keys, dim = self.shape
        generator = torch.Generator().manual_seed(seed)
        shapes = ((batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim))
        q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
        return q, k, v

    def spans(self) -> Tensor:
        """Where each query looks."""
        options = {k: v for k, v in self.options.items() if k in {"causal", "window"}}
        return make_spans(
            *self.shape[3:5], causal=options.pop("causal", True), lengths_B=self.options.get("lengths"), **options
        )

    def reference(self, *qkv: Tensor) -> Tensor:
        """The output by the definition, in float64."""
        return attention_reference(*qkv, self.spans(), self.options.get("scale"), self.options.get("softcap"))

    def __str__(self) -> str:
        return self.name


CASES = [
    Case(name="causal", shape=(2, 2, 2, 17, 17, 8)),
    Case(name="full, grouped heads", shape=(1, 6, 2, 19, 19, 5), options={"causal": False}),
    Case(name="one key-value head, soft cap", shape=(1, 3, 1, 33, 33, 7), options={"softcap": 1.5, "scale": 0.9}),
    Case(name="several tiles", shape=(1, 2, 1, 601, 601, 4)),
    Case(name="window across tiles", shape=(1, 2, 2, 300, 300, 4), options={"window": 21}),
    Case(name="window both ways", shape=(1, 2, 2, 40, 40, 4), options={"causal": False, "window": 3}),
    Case(name="padding", shape=(3, 2, 1, 23, 23, 6), options={"lengths": torch.tensor([23, 0, 9])}),
    Case(
        name="padding and window", shape=(2, 2, 2, 23, 23, 6), options={"lengths": torch.tensor([23, 5]), "window": 4}
    ),
    Case(name="fewer queries than keys", shape=(2, 2, 1, 5, 31, 6)),
    Case(name="length one", shape=(2, 4, 2, 1, 1, 8), options={"softcap": 30.0}),
]


def loss_of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scalar that is curved in the output, so that no part of a second derivative vanishes."""

    def loss(*qkv: Tensor) -> Tensor:
        output = function(*qkv)
        weights = torch.linspace(-1.0, 1.5, output.numel(), dtype=output.dtype).view(output.shape)
        return (torch.sin(output) * weights).sum()

    return loss


def directions(likes: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """One random tensor like each."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in likes)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements as one float64 vector."""
    return torch.cat([x.detach().double().flatten() for x in tensors])


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of what is expected; where that is zero, the norm itself."""
    difference, size = (flat(got) - flat(expected)).norm(), flat(expected).norm()
    return float(difference / size if size > 0 else difference)

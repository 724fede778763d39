"""Which parameters an operator acts on, and how they lie in one flat vector."""

# P = selected parameters in all, K = vectors

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class ParameterSubset:
    """Named parameters in the order in which they follow one another in a flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Number of elements of all, P."""
        return sum(self.sizes)

    def unflatten(self, flat_KP: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return [K, P] as {name: [K, *shape]} in ``dtype``; views where the dtype is the same."""
        parts = torch.split(flat_KP, list(self.sizes), dim=1)
        return {name: part.reshape(len(flat_KP), *shape).to(dtype)
                for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}  # fmt: skip

    def add_flat(self, flat_KP: Tensor, tensors: dict[str, Tensor]) -> None:
        """Add {name: [K, *shape]} into [K, P], in the precision of the latter."""
        for name, part in zip(self.names, torch.split(flat_KP, list(self.sizes), dim=1), strict=True):
            part += tensors[name].reshape(len(flat_KP), -1)


def select_parameters(
    model: nn.Module, include: Iterable[str] | None = None, *, embeddings: bool = True
) -> ParameterSubset:
    """Select parameters by patterns over ``model.named_parameters()``, in the model's order.

    Tied weights are one parameter, under the name that ``named_parameters`` gives it. ``requires_grad`` plays no part: a
    frozen model has curvature too.

    Args:
        model: any module.
        include: shell patterns such as ``*.mlp.*``; all parameters if None.
        embeddings: False leaves out the weights of token and position embeddings and of the output head.

    Raises:
        UsageError: a pattern that matches nothing, or nothing selected.

    >>> model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    >>> select_parameters(model, embeddings=False).names
    ('1.weight', '1.bias')
    """
    named = dict(model.named_parameters())
    patterns = ["*"] if include is None else list(include)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise UsageError(f"parameters: {pattern!r} matches none of {len(named)} names{did_you_mean(pattern, named)}; list them with model.named_parameters()")  # fmt: skip
    left_out = set() if embeddings else _embedding_weights(model)
    kept = {name: parameter for name, parameter in named.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns) and id(parameter) not in left_out}  # fmt: skip
    if not kept:
        raise UsageError(f"parameters: nothing is left of {patterns} with embeddings={embeddings}; select at least one")
    return ParameterSubset(names=tuple(kept), shapes=tuple(tuple(parameter.shape) for parameter in kept.values()))


def _embedding_weights(model: Any) -> set[int]:
    """All parameters of embeddings and the head: masks, reparametrisations and adapters keep the weight under other names."""
    parts = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    for get in ("get_input_embeddings", "get_output_embeddings"):
        part = getattr(model, get)() if hasattr(model, get) else None
        parts += [] if part is None else [part]
    return {id(parameter) for part in parts for parameter in part.parameters()}

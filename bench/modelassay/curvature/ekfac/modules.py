"""Which linear layers have factors, and how their weights and biases lie in one matrix."""

# O = outputs of a layer, J = its inputs and, where it has a bias, one more that is always 1; K = any number of matrices

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from modelassay.curvature.parameters import ParameterSubset
from modelassay.errors import UsageError, did_you_mean

FEED_FORWARD = ("*.mlp.gate_proj", "*.mlp.up_proj", "*.mlp.down_proj")
"""The three matrices of a gated feed-forward block: what Grosse et al. 2023 (2308.03296) and Kronfluence's Llama example follow."""


@dataclass(frozen=True, kw_only=True)
class LinearModule:
    """A layer whose gradient is one matrix [O, J]."""

    name: str
    num_outputs: int
    num_inputs: int
    """Its own inputs, without the one of a bias."""
    has_bias: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[O, J]."""
        return self.num_outputs, self.num_inputs + self.has_bias

    @property
    def size(self) -> int:
        """Entries of the matrix."""
        return self.shape[0] * self.shape[1]

    def with_ones(self, inputs: Tensor) -> Tensor:
        """Return inputs [..., I] as [..., J]."""
        return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], -1) if self.has_bias else inputs


def select_modules(model: nn.Module, patterns: Iterable[str] = FEED_FORWARD) -> tuple[LinearModule, ...]:
    """Return the linear layers whose names match one of the shell patterns, in the model's order.

    Raises:
        UsageError: a pattern that matches no module, or one that matches modules of which none is `torch.nn.Linear`.
    """
    named = {name: module for name, module in model.named_modules() if name}
    chosen: dict[str, LinearModule] = {}
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        linear = [name for name in matched if type(named[name]) is nn.Linear]
        if not linear:
            kinds = ", ".join(sorted({type(named[name]).__name__ for name in matched}))
            what = f"matches no linear layer, only {kinds}" if matched else f"matches none of {len(named)} modules"
            raise UsageError(f"influence: {pattern!r} {what}{did_you_mean(pattern, named)}; list them with model.named_modules()")  # fmt: skip
        for name in linear:
            layer = named[name]
            assert isinstance(layer, nn.Linear)
            chosen[name] = LinearModule(name=name, num_outputs=layer.out_features, num_inputs=layer.in_features,
                                        has_bias=layer.bias is not None)  # fmt: skip
    return tuple(chosen[name] for name in named if name in chosen)


def parameters_of(modules: Iterable[LinearModule]) -> ParameterSubset:
    """Return the weights and biases of the layers as what an operator acts on."""
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    for module in modules:
        names.append(f"{module.name}.weight")
        shapes.append((module.num_outputs, module.num_inputs))
        if module.has_bias:
            names.append(f"{module.name}.bias")
            shapes.append((module.num_outputs,))
    return ParameterSubset(names=tuple(names), shapes=tuple(shapes))


def flattened(modules: Iterable[LinearModule], matrices: Mapping[str, Tensor]) -> Tensor:
    """Return matrices {layer: [K, O, J]} as vectors [K, P] in the order of `parameters_of`."""
    parts = []
    for module in modules:
        matrix_KOJ = matrices[module.name]
        parts.append(matrix_KOJ[..., : module.num_inputs].flatten(1))
        if module.has_bias:
            parts.append(matrix_KOJ[..., -1])
    return torch.cat(parts, 1)


def unflattened(modules: Iterable[LinearModule], vectors_KP: Tensor) -> dict[str, Tensor]:
    """Return vectors [K, P] as matrices {layer: [K, O, J]}; the inverse of `flattened`."""
    modules = tuple(modules)
    parts = parameters_of(modules).unflatten(vectors_KP, vectors_KP.dtype)
    matrices = {}
    for module in modules:
        weight_KOI = parts[f"{module.name}.weight"]
        bias = [parts[f"{module.name}.bias"][..., None]] if module.has_bias else []
        matrices[module.name] = torch.cat([weight_KOI, *bias], -1)
    return matrices

"""Whether backward passes can be differentiated: one product of the Hessian, compared once with a difference of gradients.

An ``autograd.Function`` may compute its gradient where autograd does not look (Liger's and other fused kernels do). Its first
derivative is right; double backward takes it for a constant and is wrong without a word. The comparison costs a product and
three gradients of at most `MOST_TOKENS` tokens, some six gradients of so few.
"""

# B = sequences, T = tokens per sequence

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from modelassay.curvature.graph import Graph, free_bytes
from modelassay.curvature.layers import StandIns
from modelassay.curvature.loss import CausalLoss, TargetBatch, model_loss, second_order
from modelassay.errors import UsageError

MOST_TOKENS = 32
MOST_COUNTED = 8
"""Tokens of the sequence that is looked at, and how many of them carry loss."""

STEPS = (1e-5, 1e-3, 1e-7, 1e-9)
"""Of each parameter, as parts of the root mean square of its tensor, each along another direction; one that agrees is enough.

The longest sees through the rounding of kernels that compute in fp32, the shortest seldom crosses a kink of a ReLU."""
SUSPICIOUS, CERTAIN = 1e-5, 1e-2
"""Relative errors of the whole model from which each module is compared, and of a module (or of the whole, where it is none of
them) that is refused. What is sound was off by 2e-9 to 2e-7 in 24 types of transformers; a dropped derivative by 0.6 to 1."""

FIRST_STEP, STEADY = 1e-3, 2e-3
"""Step and relative error of first derivatives up to which they are those of the value."""

Tensors = dict[str, Tensor]
Scalar = Callable[[Tensors], Tensor]


def check_second_derivative(module: CausalLoss, point: Callable[[torch.dtype], tuple[Tensors, Tensors]], batch: TargetBatch,
                            *, attention: str, stand_ins: StandIns) -> None:  # fmt: skip
    """Compare double backward with a central difference of gradients on a few tokens, along one random direction.

    In fp64: where that does not fit into memory, or the model cannot compute in it, nothing is compared. Where they differ, each
    module is compared alone, on what it was called with. What a model detaches is constant here as in its training (DoRA's norms):
    then its first derivative is not that of its value either, and nothing is refused.

    Args:
        module: the model and how it is called.
        point: returns the selected parameters, by the model's names, and all else as ``model.<name>``, in a type.
        batch: of which a few tokens are taken.
        attention: with which products are computed.
        stand_ins: what products compute in place of modules.

    Raises:
        UsageError: with the module whose backward pass autograd cannot differentiate.
    """
    parameters = list(module.model.parameters())
    if 32 * sum(parameter.numel() for parameter in parameters) > free_bytes(parameters[0].device):
        return
    comparison = _Comparison(module, *point(torch.float64), few_tokens(batch), stand_ins)
    with second_order(module.model, torch.float64, attention):
        try:
            comparison.first_pass()
        except (RuntimeError, NotImplementedError, TypeError):
            return  # a kernel that knows fp32 and narrower alone
        comparison.run()


def few_tokens(batch: TargetBatch) -> TargetBatch:
    """Return the end of the sequence of the first counted token, cut behind its eighth: 32 tokens at most."""
    sequence = int(batch.sequences_N[0])
    row = batch.rows(sequence, sequence + 1)
    end = int(row.positions_N[:MOST_COUNTED][-1]) + 2  # a token is predicted from the one before it
    start = max(0, end - MOST_TOKENS)
    kept = (row.positions_N >= start) & (row.positions_N < end - 1)
    mask = row.attention_mask_BT
    return TargetBatch(
        input_ids_BT=row.input_ids_BT[:, start:end], attention_mask_BT=None if mask is None else mask[:, start:end],
        positions_N=row.positions_N[kept] - start, targets_N=row.targets_N[kept], sequences_N=row.sequences_N[kept],
    )  # fmt: skip


_ADVICE = ("take it out or put plain PyTorch in its place (load the model without fused kernels), or use "
           "FiniteDifferenceHessian, which needs first derivatives only")  # fmt: skip


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """How far derivatives by autograd are from differences, relative."""

    second: float
    first: float


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What a module was called with, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class _Comparison:
    """A model at one point in fp64, on a few tokens."""

    def __init__(self, module: CausalLoss, selected: Tensors, fixed: Tensors, batch: TargetBatch,
                 stand_ins: StandIns) -> None:  # fmt: skip
        self._module, self._selected, self._fixed, self._batch = module, selected, fixed, batch
        self._stand_ins = stand_ins

    def first_pass(self) -> None:
        """Take one gradient."""
        _gradient(self._loss, self._selected)

    def run(self) -> None:
        """Compare the model, then its modules.

        Raises:
            UsageError: a difference, with the module it comes from.
        """
        name = type(self._module.inner).__name__
        try:
            whole = self._errors(self._loss, self._selected, SUSPICIOUS)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UsageError(
                f"curvature: {name} cannot be differentiated twice: {_first_line(error)}; {_ADVICE}"
            ) from error
        if whole.second <= SUSPICIOUS:
            return
        for path, part, errors in self._parts():
            if errors.second > CERTAIN and errors.first <= STEADY:
                raise self._refusal(f"{path} ({type(part).__name__})", errors)
        if whole.second > CERTAIN and whole.first <= STEADY:
            raise self._refusal(f"what {name} does between its modules", whole)

    def _refusal(self, where: str, errors: _Errors) -> UsageError:
        return UsageError(
            f"curvature: the backward pass of {where} cannot be differentiated: double backward is off a difference of gradients by "
            f"{errors.second:.2g} of it, taking for constant what is not; {_ADVICE}"
        )

    def _loss(self, selected: Tensors) -> Tensor:
        tensors = self._fixed | {f"model.{name}": tensor for name, tensor in selected.items()}
        return model_loss(self._module, tensors, self._batch)

    def _errors(self, function: Scalar, point: Tensors, enough: float) -> _Errors:
        """Return the smallest error of second derivatives over the steps, up to one that is small ``enough``, and, where none is, the largest of first ones."""
        graph, second = Graph(function, point, self._stand_ins, held=()), math.inf
        for number, step in enumerate(STEPS):
            last = number == len(STEPS) - 1
            second = min(second, _second_error(function, point, graph, step, seed=number, last=last))
            if second <= enough:
                return _Errors(second=second, first=0.0)
        return _Errors(second=second, first=_first_error(function, point))

    def _parts(self) -> Iterator[tuple[str, nn.Module, _Errors]]:
        """Yield each module that has derivatives of its own with its errors, those inside of others first."""
        calls = self._calls()
        tensors = self._fixed | {f"model.{name}": tensor for name, tensor in self._selected.items()}
        modules = dict(self._module.model.named_modules())
        for name, call in calls.items():
            part, prefix = modules[name], f"model.{name}."
            own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            if function := _scalar(part, own, call):
                try:
                    yield name, part, self._errors(*function, CERTAIN)
                except (RuntimeError, NotImplementedError, TypeError) as error:
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    continue  # it is called in a way that cannot be repeated, so that the module around it is named

    def _calls(self) -> dict[str, _Call]:
        """Return the first call of each module that nothing stands in for, by name, in the order in which they end."""
        calls: dict[str, _Call] = {}

        def remember(name: str) -> Callable[..., None]:
            def hook(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                calls.setdefault(name, _Call(args=args, kwargs=dict(kwargs), output=output))

            return hook

        with _hooked(self._module.model, self._stand_ins, remember):
            self._loss(self._selected)
        return calls


@contextmanager
def _hooked(model: nn.Module, stand_ins: StandIns, hook: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    handles = [part.register_forward_hook(hook(name), with_kwargs=True) for name, part in model.named_modules()
               if name and part not in stand_ins]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scalar(part: nn.Module, own: Tensors, call: _Call) -> tuple[Scalar, Tensors] | None:
    """Return a random combination of a module's outputs as a function of its parameters and inputs, and where it was called; None without either."""
    leaves, tree = pytree.tree_flatten((call.args, call.kwargs))
    inputs = {f"input {index}": leaf for index, leaf in enumerate(leaves) if _is_smooth(leaf)}
    outputs = {index: leaf for index, leaf in enumerate(pytree.tree_leaves(call.output)) if _is_smooth(leaf)}
    parameters = {name for name, _ in part.named_parameters()}
    point = {name: tensor for name, tensor in own.items() if name in parameters and _is_smooth(tensor)} | inputs
    if not point or not outputs:
        return None
    generator = torch.Generator().manual_seed(1)
    weights = {index: torch.randn(leaf.shape, generator=generator).to(leaf) for index, leaf in outputs.items()}

    def function(tensors: Tensors) -> Tensor:
        values = [tensors.get(f"input {index}", leaf) for index, leaf in enumerate(leaves)]
        args, kwargs = pytree.tree_unflatten(values, tree)
        held = {name: tensors.get(name, tensor) for name, tensor in own.items()}
        result = pytree.tree_leaves(torch.func.functional_call(part, held, args, kwargs))
        parts = [(weight * result[index]).sum() for index, weight in weights.items()]
        return torch.stack(parts).sum()

    return function, point


def _is_smooth(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 0 and bool(leaf.isfinite().all())


def _second_error(function: Scalar, point: Tensors, graph: Graph, step: float, *, seed: int, last: bool) -> float:
    """Return how far a product along a random direction is from a central difference of gradients, relative."""
    direction, scales = _direction(point, seed)
    product = graph.product(direction, last=last)
    (ahead, _), (behind, _) = (_gradient(function, place) for place in _beside(point, direction, step))
    gradient = _flat({name: (ahead[name] + behind[name]) / 2 for name in point}, scales)
    difference = _flat({name: (ahead[name] - behind[name]) / (2 * step) for name in point}, scales)
    size = max(float(difference.norm()), 1e-3 * float(gradient.norm()), 1e-30)
    return float((_flat(product, scales) - difference).norm()) / size


def _first_error(function: Scalar, point: Tensors) -> float:
    """Return how far a slope along one of four directions is from a central difference of values, as a part of the gradient's length."""
    errors, (gradient, _) = [], _gradient(function, point)
    for seed in range(4):
        direction, scales = _direction(point, seed)
        slope = sum(float((gradient[name] * direction[name]).sum()) for name in point)
        above, below = (float(function(place)) for place in _beside(point, direction, FIRST_STEP))
        size = max(float(_flat(gradient, scales).norm()), 1e-30)
        errors.append(abs(slope - (above - below) / (2 * FIRST_STEP)) / size)
    return max(errors)


def _direction(point: Tensors, seed: int) -> tuple[Tensors, dict[str, float]]:
    """Return random changes of each tensor of its own size, and these sizes."""
    generator = torch.Generator().manual_seed(seed)
    scales = {name: float(tensor.square().mean().sqrt()) or 0.02 for name, tensor in point.items()}
    return {
        name: scales[name] * torch.randn(tensor.shape, generator=generator).to(tensor) for name, tensor in point.items()
    }, scales


def _beside(point: Tensors, direction: Tensors, step: float) -> list[Tensors]:
    return [{name: tensor + sign * step * direction[name] for name, tensor in point.items()} for sign in (1, -1)]


def _gradient(function: Scalar, place: Tensors) -> tuple[Tensors, float]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in place.items()}
    with torch.enable_grad():
        value = function(leaves)
        gradient = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradient, strict=True)), float(value)


def _flat(tensors: Mapping[str, Tensor], scales: Mapping[str, float]) -> Tensor:
    """Return all in one vector, each times its scale: derivatives by parameters in units of their own size."""
    return torch.cat([tensor.flatten() * scales[name] for name, tensor in tensors.items()])

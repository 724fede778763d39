"""Derivatives of a linear layer followed by cross-entropy, of every order up to the second, in every direction.

Four functions that are each other's derivatives. With l the losses, g weights of the rows, x the point and v, c directions:

    losses            l(x)                  vjp k: gradient(k, x)            jvp v: losses_tangent(x, v)
    gradient          F = <g, l(x)>, dF/dx  vjp (k, c): k dF/dx + d2F c      jvp v: gradient_tangent(g, x, v)
    losses_tangent    dl/dx v               vjp k: gradient(k, x) for v, gradient_tangent(k, x, v) for x
    gradient_tangent  dF/dx v, d2F v        none: NotImplementedError

The Hessian is symmetric, so forward over reverse, reverse over reverse and reverse over forward are one computation.
Tangents have a leading dimension K: vmap over tangents is one call that shares all work at the point.
"""

# N = rows (tokens), V = vocabulary, D = hidden size, K = tangents, B = a dimension that vmap maps over

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.cross_entropy import chunks
from modelassay_kernels.cross_entropy.chunks import GradientMask
from modelassay_kernels.cross_entropy.rows import Spec

_THIRD = (
    "linear_cross_entropy: got {} over a tangent; third derivatives, forward over forward, and reverse over raw dual numbers "
    "are not implemented; take Hessian-vector products by torch.func.jvp of torch.func.grad, and detach what needs no more"
)


def _each(function: Any, batch_size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> Any:
    """Apply ``function`` to each of a batch whose points differ, and stack the results in front."""
    results = []
    for i in range(batch_size):
        results.append(
            function.apply(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
        )
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(column) for column in zip(*results, strict=True)), (0,) * len(results[0])


def _merge(tangent: Tensor | None, dim: int | None, batch_size: int) -> Tensor | None:
    """Return [B, K, ...] as [B K, ...]."""
    if tangent is None:
        return None
    tangent = tangent.expand(batch_size, *tangent.shape) if dim is None else tangent.movedim(dim, 0)
    return tangent.flatten(0, 1)


def _unmerge(result: Tensor, batch_size: int) -> Tensor:
    return result.reshape(batch_size, result.shape[0] // batch_size, *result.shape[1:])


def _count(*tangents: Tensor | None) -> int:
    return next((tangent.shape[0] for tangent in tangents if tangent is not None), 0)


def _front(tangent: Tensor | None) -> Tensor | None:
    return None if tangent is None else tangent[None]


def _needed(ctx: Any, first: int) -> GradientMask:
    hidden, weight, bias = ctx.needs_input_grad[first : first + 3]
    return GradientMask(hidden=hidden, weight=weight, bias=bias)


def _masked(gradients: tuple[Tensor, ...], mask: GradientMask) -> list[Tensor | None]:
    """Put None for what is not in the mask."""
    flags = (mask.hidden, mask.weight, mask.bias)
    return [gradient if flag else None for gradient, flag in zip(gradients, flags, strict=True)]


def _any(mask: GradientMask) -> bool:
    return mask.hidden or mask.weight or mask.bias


class _Losses(torch.autograd.Function):
    """(hidden, weight, bias, labels, spec) -> losses [N]."""

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, spec: Spec) -> Tensor:
        return chunks.losses(spec, labels, (hidden, weight, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])
        ctx.spec = inputs[4]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, k: Tensor | None) -> Any:
        mask = _needed(ctx, 0)
        if k is None or not _any(mask):
            return (None,) * 5
        hidden, weight, bias, labels = ctx.saved_tensors
        _, *gradients = apply_gradient(k, hidden, weight, bias, labels, ctx.spec, mask)
        return *_masked(tuple(gradients), mask), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        directions = [_front(tangent) for tangent in tangents[:3]]
        hidden, weight, bias, labels = ctx.saved_tensors
        return apply_losses_tangent(hidden, weight, bias, *directions, labels, ctx.spec)[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _each(_Losses, info.batch_size, in_dims, args)


class _Gradient(torch.autograd.Function):
    """(g, hidden, weight, bias, labels, spec, mask) -> F = sum(g * losses), and its gradients."""

    @staticmethod
    def forward(
        g: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        spec: Spec,
        mask: GradientMask,
    ) -> tuple[Tensor, ...]:
        return chunks.gradient(spec, labels, g, (hidden, weight, bias), mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:5], *output[1:])
        ctx.save_for_forward(*inputs[:5])
        ctx.spec, ctx.mask = inputs[5:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, k: Tensor | None, *cotangents: Any) -> Any:
        g, hidden, weight, bias, labels, *saved = ctx.saved_tensors
        point = (hidden, weight, bias)
        cotangents = tuple(_masked(cotangents, ctx.mask))
        needed = _needed(ctx, 1)
        results: list[Tensor | None] = [None] * 4
        if k is not None:
            results[1:] = _scaled(k, g, point, labels, ctx, saved, needed)
        if any(c is not None for c in cotangents):
            directions = [_front(c) for c in cotangents]
            if _any(needed):
                _, *turned = apply_gradient_tangent(g, *point, None, *directions, labels, ctx.spec, needed)
                for i, part in enumerate(_masked(tuple(turned), needed), start=1):
                    if part is not None:
                        so_far = results[i]
                        results[i] = part[0] if so_far is None else so_far + part[0]
            if ctx.needs_input_grad[0]:
                results[0] = apply_losses_tangent(*point, *directions, labels, ctx.spec)[0].to(g.dtype)
        if k is not None and ctx.needs_input_grad[0]:
            of_total = k * apply_losses(*point, labels, ctx.spec)
            results[0] = of_total if results[0] is None else results[0] + of_total
        return *results, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        directions = [_front(tangent) for tangent in tangents[:4]]
        g, hidden, weight, bias, labels = ctx.saved_tensors[:5]
        results = apply_gradient_tangent(g, hidden, weight, bias, *directions, labels, ctx.spec, ctx.mask)
        return tuple(result[0] for result in results)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _each(_Gradient, info.batch_size, in_dims, args)


def _scaled(
    k: Tensor, g: Tensor, point: chunks.Point, labels: Tensor, ctx: Any, saved: list[Tensor], needed: GradientMask
) -> list[Tensor | None]:
    """Return k times the gradients; those that the others' mask left out are computed now."""
    mask: GradientMask = ctx.mask
    missing = GradientMask(
        hidden=needed.hidden and not mask.hidden,
        weight=needed.weight and not mask.weight,
        bias=needed.bias and not mask.bias,
    )
    late: list[Tensor | None] = [None] * 3
    if _any(missing):
        _, *gradients = apply_gradient(k * g, *point, labels, ctx.spec, missing)
        late = _masked(tuple(gradients), missing)
    present = [
        None if gradient is None else gradient * k.to(gradient.dtype) for gradient in _masked(tuple(saved), mask)
    ]
    flags = (needed.hidden, needed.weight, needed.bias)
    return [(p if m is None else m) if flag else None for p, m, flag in zip(present, late, flags, strict=True)]


class _LossesTangent(torch.autograd.Function):
    """(hidden, weight, bias, their tangents, labels, spec) -> tangents of the losses [K, N]."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        hidden_t: Tensor | None,
        weight_t: Tensor | None,
        bias_t: Tensor | None,
        labels: Tensor,
        spec: Spec,
    ) -> Tensor:
        tangents = (hidden_t, weight_t, bias_t)
        return chunks.losses_tangent(spec, labels, (hidden, weight, bias), tangents, _count(*tangents))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.spec = inputs[7]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, k_KN: Tensor | None) -> Any:
        if k_KN is None:
            return (None,) * 8
        *inputs, labels = ctx.saved_tensors
        point, tangents = inputs[:3], inputs[3:]
        needed, needed_t = _needed(ctx, 0), _needed(ctx, 3)
        of_point: list[Tensor | None] = [None] * 3
        of_tangents: list[list[Tensor]] = [[], [], []]
        for i in range(k_KN.shape[0]):
            if _any(needed):
                directions = [None if t is None else t[i : i + 1] for t in tangents]
                _, *turned = apply_gradient_tangent(k_KN[i], *point, None, *directions, labels, ctx.spec, needed)
                for j, part in enumerate(_masked(tuple(turned), needed)):
                    if part is not None:
                        so_far = of_point[j]
                        of_point[j] = part[0] if so_far is None else so_far + part[0]
            if _any(needed_t):
                _, *gradients = apply_gradient(k_KN[i], *point, labels, ctx.spec, needed_t)
                for column, gradient in zip(of_tangents, gradients, strict=True):
                    column.append(gradient)
        flags = (needed_t.hidden, needed_t.weight, needed_t.bias)
        stacked = [torch.stack(c) if flag and c else None for c, flag in zip(of_tangents, flags, strict=True)]
        return *of_point, *stacked, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_THIRD.format("forward mode"))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        if any(dim is not None for dim in (*in_dims[:3], in_dims[6])):
            return _each(_LossesTangent, info.batch_size, in_dims, args)
        merged = [_merge(t, dim, info.batch_size) for t, dim in zip(args[3:6], in_dims[3:6], strict=True)]
        result = apply_losses_tangent(*args[:3], *merged, *args[6:])
        return _unmerge(result, info.batch_size), 0


class _GradientTangent(torch.autograd.Function):
    """(g, hidden, weight, bias, their tangents, labels, spec, mask) -> tangents [K, ...] of `_Gradient`'s results."""

    @staticmethod
    def forward(
        g: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        g_t: Tensor | None,
        hidden_t: Tensor | None,
        weight_t: Tensor | None,
        bias_t: Tensor | None,
        labels: Tensor,
        spec: Spec,
        mask: GradientMask,
    ) -> tuple[Tensor, ...]:
        tangents = (hidden_t, weight_t, bias_t)
        num_tangents = _count(g_t, *tangents)
        return chunks.gradient_tangent(spec, labels, g, (hidden, weight, bias), g_t, tangents, num_tangents, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        raise NotImplementedError(_THIRD.format("reverse mode"))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_THIRD.format("forward mode"))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        if any(dim is not None for dim in (*in_dims[:4], in_dims[8])):
            return _each(_GradientTangent, info.batch_size, in_dims, args)
        merged = [_merge(t, dim, info.batch_size) for t, dim in zip(args[4:8], in_dims[4:8], strict=True)]
        results = apply_gradient_tangent(*args[:4], *merged, *args[8:])
        return tuple(_unmerge(result, info.batch_size) for result in results), (0,) * len(results)


# What `Function.apply` is called by, here and elsewhere: it has no types of its own.
apply_losses: Callable[..., Tensor] = _Losses.apply
apply_gradient: Callable[..., tuple[Tensor, ...]] = _Gradient.apply
apply_losses_tangent: Callable[..., Tensor] = _LossesTangent.apply
apply_gradient_tangent: Callable[..., tuple[Tensor, ...]] = _GradientTangent.apply

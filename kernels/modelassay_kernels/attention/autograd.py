"""The derivatives of attention, made to compose: four autograd functions, each knowing the next.

`Attention` and `AttentionBackward` have tangents (`AttentionTangent`, `AttentionBackwardTangent`), so
`torch.func.jvp(torch.func.grad(...))` meets only these four. Reverse over reverse and reverse over forward need nothing
more, because second derivatives are symmetric: with J the Jacobian of attention, the gradient of <u, J^T g> by g is J u,
and its gradients by q, k and v are the tangent of J^T g along u with g held. Third derivatives raise NotImplementedError.

In a reverse pass over a first one, `AttentionBackward` and then `Attention` each walk over all scores. Within `deferring` the
first leaves its share to the second, which then does both in one walk.

Under `torch.func.vmap`, tangents that alone are batched become more tangents of one pass, which share its primal work;
batched primals become a larger batch.
"""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension, T = tangents, Z = vmap

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

NUM_ROW_INPUTS = 3
"""q, k and v: the first inputs of every function."""
WIDEST_FP32 = 128
"""The widest head in fp32 whose second-order kernel fits 99 KiB of shared memory."""


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    return function.apply(*args)  # type: ignore[no-untyped-call]


def kernel_module(device: str, dtype: torch.dtype, head_dim: int) -> str:
    """Triton for CUDA; but its fp32 tiles of wide heads exceed shared memory, and float64 is for the reference."""
    on_triton = device == "cuda" and dtype != torch.float64 and (dtype != torch.float32 or head_dim <= WIDEST_FP32)
    return "triton_launch" if on_triton else "tiled"


def _kernels(q: Tensor) -> Any:
    return importlib.import_module(f"modelassay_kernels.attention.{kernel_module(q.device.type, q.dtype, q.shape[-1])}")


def _third_derivative(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name}: a third derivative of attention was asked for, or forward mode over forward mode; first and second "
        "derivatives exist (jvp of grad, grad of jvp, grad of grad); for others use attn_implementation='eager'"
    )


def _zeros_if_none(tangents: tuple[Tensor | None, ...], likes: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.zeros_like(like) if x is None else x for x, like in zip(tangents, likes, strict=True)]


def _fold(x: Tensor | None, dim: int | None, size: int, at: int) -> Tensor | None:
    """Merge the vmapped dimension, or ``size`` copies, into dimension ``at`` of the unbatched tensor."""
    if x is None:
        return None
    x_Z = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x_Z.movedim(0, at).flatten(at, at + 1)


def _fold_spans(spans: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    if dim is None and spans.shape[0] == 1:
        return spans
    per_Z = spans.unsqueeze(0).expand(size, *spans.shape) if dim is None else spans.movedim(dim, 0)
    return per_Z.expand(size, batch, *per_Z.shape[2:]).flatten(0, 1)


def _unfold(outputs: tuple[Tensor, ...], size: int, at: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return tuple(x.reshape(*x.shape[:at], size, x.shape[at] // size, *x.shape[at + 1 :]) for x in outputs), (at,) * len(
        outputs
    )


class _Vmapped(torch.autograd.Function):
    """The vmap rule: arguments are q, k, v, spans, other primals, then tangents [T, ...], then two numbers."""

    num_primals: int
    num_tangents: int = 0

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size, split, end = info.batch_size, cls.num_primals, cls.num_primals + cls.num_tangents
        primals, tangents, numbers = args[:split], args[split:end], args[end:]
        if all(dim is None for dim in in_dims[:split]):
            dots = [_fold(x, dim, size, 0) for x, dim in zip(tangents, in_dims[split:end], strict=True)]
            return _unfold(_apply(cls, *primals, *dots, *numbers), size, 0)
        batch = args[0].shape[0] if in_dims[0] is None else args[0].movedim(in_dims[0], 0).shape[1]
        folded = [
            _fold_spans(x, dim, size, batch) if i == NUM_ROW_INPUTS else _fold(x, dim, size, 0)
            for i, (x, dim) in enumerate(zip(primals, in_dims[:split], strict=True))
        ]
        dots = [_fold(x, dim, size, 1) for x, dim in zip(tangents, in_dims[split:end], strict=True)]
        return _unfold(_apply(cls, *folded, *dots, *numbers), size, 1 if tangents else 0)


class Share(NamedTuple):
    """What `AttentionBackward` leaves for `Attention`: g, the directions [1, ...] of q, k and v, o' and lse' along them."""

    g: Tensor
    directions: list[Tensor]
    o_dot: Tensor
    lse_dot: Tensor


Shares = list[Share]
_deferring: ContextVar[list[Shares] | None] = ContextVar("deferring", default=None)


@contextmanager
def deferring() -> Iterator[list[Shares]]:
    """Let second reverse passes over the attention that is made here walk over the scores once instead of twice.

    For whoever makes a graph and alone walks through it: each pass must ask for all leaves that q, k and v depend on, and
    before each the lists that this yields, one for every attention, must be cleared, or a pass that was broken off would
    leave its shares to the next.
    """
    lists: list[Shares] = []
    token = _deferring.set(lists)
    try:
        yield lists
    finally:
        _deferring.reset(token)


class Attention(_Vmapped):
    """(q, k, v, spans, scale, softcap, shares) -> (o, lse); shares: a list to defer with, or None."""

    num_primals = 4

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float, softcap: float | None, _: Any) -> Any:
        """Return o and lse."""
        return _kernels(q).forward(q, k, v, spans, scale, softcap)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the derivatives need."""
        *tensors, ctx.scale, ctx.softcap, ctx.shares = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Return the gradients of the inputs."""
        g, g_lse = grads
        if g_lse is not None:
            raise NotImplementedError("Attention: lse is not meant to be differentiated; use the first output alone")
        if ctx.shares and not torch.is_grad_enabled():
            return *_with_shares(ctx, g), None, None, None, None
        if g is None:
            return (None,) * 7
        gradients = _apply(AttentionBackward, *ctx.saved_tensors, g, ctx.scale, ctx.softcap, ctx.shares)
        return *gradients, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Return the tangents of the outputs."""
        q, k, v, spans, o, lse = ctx.saved_tensors
        dots = [x[None] for x in _zeros_if_none(tangents[:NUM_ROW_INPUTS], (q, k, v))]
        o_dot, lse_dot = _apply(AttentionTangent, q, k, v, spans, o, lse, *dots, ctx.scale, ctx.softcap)
        return o_dot[0], lse_dot[0]


def _with_shares(ctx: Any, g: Tensor | None) -> list[Tensor]:
    """Return the gradients of q, k and v along ``g`` and those that were left: B(g) + B'(u) is B' along u and g at once."""
    shares = list(ctx.shares)
    ctx.shares.clear()
    total: list[Tensor] = []
    for share in shares:
        dots = (*share.directions, share.o_dot, share.lse_dot, None if g is None else g[None])
        parts = _apply(AttentionBackwardTangent, *ctx.saved_tensors, share.g, *dots, ctx.scale, ctx.softcap)
        total = [a + b[0] for a, b in zip(total, parts, strict=True)] if total else [part[0] for part in parts]
        g = None
    return total


class AttentionBackward(_Vmapped):
    """(q, k, v, spans, o, lse, g, scale, softcap, shares) -> (dq, dk, dv)."""

    num_primals = 7

    @staticmethod
    def forward(*args: Any) -> Any:
        """Return the gradients of q, k and v."""
        return _kernels(args[0]).backward(*args[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the derivatives need."""
        *tensors, ctx.scale, ctx.softcap, ctx.shares = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Return the gradients of the inputs."""
        q, k, v, spans, o, lse, g = ctx.saved_tensors
        numbers = (ctx.scale, ctx.softcap)
        u = [x[None] for x in _zeros_if_none(grads, (q, k, v))]
        g_grad, lse_dot = _apply(AttentionTangent, q, k, v, spans, o, lse, *u, *numbers)
        if ctx.shares is not None and not torch.is_grad_enabled():
            ctx.shares.append(Share(g, u, g_grad, lse_dot))
            return None, None, None, None, None, None, g_grad[0], None, None, None
        dots = (*u, g_grad, lse_dot, None)
        primal_grads = _apply(AttentionBackwardTangent, q, k, v, spans, o, lse, g, *dots, *numbers)
        return *(x[0] for x in primal_grads), None, None, None, g_grad[0], None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Return the tangents of the outputs."""
        q, k, v, spans, o, lse, g = ctx.saved_tensors
        moved = (*tangents[:NUM_ROW_INPUTS], *tangents[NUM_ROW_INPUTS + 1 : 7])
        dots = [x[None] for x in _zeros_if_none(moved, (q, k, v, o, lse, g))]
        outputs = _apply(AttentionBackwardTangent, q, k, v, spans, o, lse, g, *dots, ctx.scale, ctx.softcap)
        return tuple(x[0] for x in outputs)


class AttentionTangent(_Vmapped):
    """(q, k, v, spans, o, lse, q', k', v', scale, softcap) -> (o', lse'), the tangents with a leading T."""

    num_primals = 6
    num_tangents = 3

    @staticmethod
    def forward(*args: Any) -> Any:
        """Return o' and lse'."""
        return _kernels(args[0]).tangent(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the derivatives need."""
        *tensors, ctx.scale, ctx.softcap = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1], output[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Return the gradients of the inputs."""
        c, c_lse = grads
        if c_lse is not None:
            _third_derivative("AttentionTangent.backward")
        if c is None:
            return (None,) * 11
        q, k, v, spans, o, lse, q_dot, k_dot, v_dot, lse_dot, o_dot = ctx.saved_tensors
        numbers = (ctx.scale, ctx.softcap)
        dot_grads, primal_grads = [], []
        for t in range(c.shape[0]):
            dot_grads.append(_apply(AttentionBackward, q, k, v, spans, o, lse, c[t], *numbers, None))
            at = slice(t, t + 1)
            dots = (q_dot[at], k_dot[at], v_dot[at], o_dot[at], lse_dot[at], None)
            primal_grads.append(_apply(AttentionBackwardTangent, q, k, v, spans, o, lse, c[t], *dots, *numbers))
        primals = (torch.cat(parts).sum(0) for parts in zip(*primal_grads, strict=True))
        moved = (torch.stack(parts) for parts in zip(*dot_grads, strict=True))
        return *primals, None, None, None, *moved, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Refuse."""
        _third_derivative("AttentionTangent.jvp")


class AttentionBackwardTangent(_Vmapped):
    """(q, k, v, spans, o, lse, g, q', k', v', o', lse', g', scale, softcap) -> (dq', dk', dv'), tangents with a leading T.

    g' is None where g is held.
    """

    num_primals = 7
    num_tangents = 6

    @staticmethod
    def forward(*args: Any) -> Any:
        """Return dq', dk' and dv'."""
        return _kernels(args[0]).backward_tangent(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: there is no further derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Refuse."""
        _third_derivative("AttentionBackwardTangent.backward")

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        """Refuse."""
        _third_derivative("AttentionBackwardTangent.jvp")


def attend(
    q_BHSD: Tensor, k_BKJD: Tensor, v_BKJD: Tensor, spans_B2S: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Return the output alone; the inputs are trusted."""
    shares: Shares | None = None
    if (lists := _deferring.get()) is not None:
        lists.append(shares := [])
    output: Tensor = _apply(Attention, q_BHSD, k_BKJD, v_BKJD, spans_B2S, scale, softcap, shares)[0]
    return output

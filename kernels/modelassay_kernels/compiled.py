"""The operations as `torch.compile` sees them: one opaque node each, with the shapes of its results and its first derivative.

Registered with torch.library as ``torch.ops.modelassay.*``; the public functions call them where `torch.compiler.is_compiling`, so
that ``fullgraph=True`` holds. A node runs the public function, checks included. Second derivatives are for eager code, as
torch.compile has none through an opaque node; a compiled backward of `linear_cross_entropy` makes the logits again (4 products for 3).
"""

# N = rows or tokens, V = vocabulary, K = kept, D = hidden size; B, H, S, J as in attention

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from modelassay_kernels.attention.autograd import Attention, AttentionBackward
from modelassay_kernels.attention.spans import checked_spans
from modelassay_kernels.bottom_k import bottom_k, linear_bottom_k
from modelassay_kernels.cross_entropy import chunks, linear_cross_entropy
from modelassay_kernels.cross_entropy.rows import Spec
from modelassay_kernels.layer_std import layer_std
from modelassay_kernels.softmax_ggn import no_third_derivative, softmax_ggn

NO_BLOCK = -1
"""Rows and columns of a block that is not stated."""


@custom_op("modelassay::layer_std", mutates_args=(),
           schema="(Tensor[] tensors, Tensor?[] scales, int[] blocks, int correction) -> Tensor")  # fmt: skip
def _std(tensors: list[Tensor], scales: list[Tensor | None], blocks: list[int], correction: int) -> Tensor:
    pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
    stated = [None if pair[0] == NO_BLOCK else pair for pair in pairs]
    return layer_std(tensors, scales=scales, blocks=stated, correction=correction)


@_std.register_fake
def _(tensors: list[Tensor], scales: list[Tensor | None], blocks: list[int], correction: int) -> Tensor:
    return torch.empty(len(tensors), dtype=torch.float64, device=tensors[0].device if tensors else "cpu")


@custom_op("modelassay::bottom_k", mutates_args=())
def _choose(logits: Tensor, k: int, valid: Tensor | None, largest: bool, sort: bool) -> tuple[Tensor, Tensor]:
    return bottom_k(logits, k, valid=valid, largest=largest, sort=sort)


@_choose.register_fake
def _(logits: Tensor, k: int, valid: Tensor | None, largest: bool, sort: bool) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], k), logits.new_empty(logits.shape[0], k, dtype=torch.int64)


@custom_op("modelassay::linear_bottom_k", mutates_args=())
def _choose_linear(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    valid: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    largest: bool,
) -> tuple[Tensor, Tensor]:
    return linear_bottom_k(hidden, weight, k, valid=valid, bias=bias, softcap=softcap, largest=largest)


@_choose_linear.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    valid: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    largest: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return tuple(hidden.new_empty(hidden.shape[0], k, dtype=type_) for type_ in (dtype, torch.int64))  # type: ignore[return-value]


@custom_op("modelassay::softmax_ggn", mutates_args=())
def _ggn(logits: Tensor, u: Tensor) -> Tensor:
    return softmax_ggn(logits, u)


@_ggn.register_fake
def _(logits: Tensor, u: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _ggn_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0])


def _ggn_back(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, Tensor]:
    if ctx.needs_input_grad[0]:
        raise no_third_derivative()
    return None, torch.ops.modelassay.softmax_ggn(ctx.saved_tensors[0], cotangent)


_ggn.register_autograd(_ggn_back, setup_context=_ggn_keep)


@custom_op("modelassay::linear_cross_entropy", mutates_args=())
def _loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
    chunk_rows: int | None,
    reduction: str,
) -> Tensor:
    return linear_cross_entropy(
        hidden, weight, labels, bias=bias, softcap=softcap, label_smoothing=label_smoothing, z_loss=z_loss, ignore_index=ignore_index,
        chunk_rows=chunk_rows, reduction=reduction,
    )  # fmt: skip


@_loss.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *settings: Any) -> Tensor:
    shape = (hidden.shape[0],) if settings[-1] == "none" else ()
    return hidden.new_empty(shape, dtype=chunks.accumulator(hidden, weight, bias))


@custom_op("modelassay::linear_cross_entropy_backward", mutates_args=())
def _loss_back(
    cotangent: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
    chunk_rows: int | None,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    spec = Spec(
        softcap=softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        ignore_index=ignore_index,
        chunk_rows=chunk_rows,
    )
    keep_N = labels != ignore_index
    share = keep_N.sum().clamp(min=1) if reduction == "mean" else 1
    g_N = (keep_N.to(chunks.accumulator(hidden, weight, bias)) / share) * cotangent
    gradients = chunks.gradient(spec, labels, g_N, (hidden, weight, bias), chunks.GradientMask())[1:]
    return gradients[0], gradients[1], gradients[2]


@_loss_back.register_fake
def _(
    cotangent: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    none = hidden.new_empty(0, dtype=chunks.accumulator(hidden, weight, bias))
    likes = (hidden, weight)
    of_hidden, of_weight = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in likes)
    return of_hidden, of_weight, none if bias is None else torch.empty_like(bias)


def _loss_keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def _loss_gradients(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
    hidden, weight, bias, labels = ctx.saved_tensors
    gradients = torch.ops.modelassay.linear_cross_entropy_backward(
        cotangent, hidden, weight, bias, labels, *ctx.settings
    )
    return gradients[0], gradients[1], None if bias is None else gradients[2], *[None] * (1 + len(ctx.settings))


_loss.register_autograd(_loss_gradients, setup_context=_loss_keep)


@custom_op("modelassay::attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    spans = checked_spans(spans, k.shape[2])
    with torch.no_grad():
        o, lse = Attention.apply(q, k, v, spans, scale, softcap, None)  # type: ignore[no-untyped-call]
    return o.contiguous(), lse.contiguous()


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:3], dtype=wide)


@custom_op("modelassay::attention_backward", mutates_args=())
def _attend_back(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Tensor,
    o: Tensor,
    lse: Tensor,
    g: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        gradients = AttentionBackward.apply(q, k, v, spans, o, lse, g, scale, softcap, None)  # type: ignore[no-untyped-call]
    of_q, of_k, of_v = (x.contiguous() for x in gradients)
    return of_q, of_k, of_v


@_attend_back.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    of_q, of_k, of_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return of_q, of_k, of_v


def _attend_keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.numbers = inputs[4:]


def _attend_gradients(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    return *torch.ops.modelassay.attention_backward(*ctx.saved_tensors, g, *ctx.numbers), None, None, None


_attend.register_autograd(_attend_gradients, setup_context=_attend_keep)

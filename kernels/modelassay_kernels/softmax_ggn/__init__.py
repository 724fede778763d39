"""The Gauss-Newton product of cross-entropy: y = p * (u - <p, u>), p = softmax(logits), row by row.

This is (diag(p) - p p^T) u, the Hessian of logsumexp times u. The definition everywhere, whatever computes it:

- y has the inputs' type; softmax and sums are float32 (float64 for float64), rounded once at the end;
- the row maximum is subtracted first: logits far from zero lose no digits;
- a NaN or +infinity among a row's logits, or nothing but -infinity, gives NaN for that row and no other; so does a NaN in u;
- a logit of -infinity has p = 0 and y = 0 where u is finite.

`softmax_ggn` is linear in u and symmetric, so it is its own derivative in u, of every order, in both modes.
"""

# N is rows, V is vocabulary

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.dtypes import FLOATS
from modelassay_kernels.native import native_available
from modelassay_kernels.outputs import check_out
from modelassay_kernels.softmax_ggn.cpu import softmax_ggn_native
from modelassay_kernels.softmax_ggn.reference import softmax_ggn_torch


def _compute(logits_NV: Tensor, u_NV: Tensor, out: Tensor | None = None) -> Tensor:
    device = logits_NV.device.type
    if logits_NV.dtype != torch.float64:
        if device == "cuda":
            from modelassay_kernels.softmax_ggn.triton_kernels import softmax_ggn_triton

            result: Tensor = softmax_ggn_triton(logits_NV, u_NV, out=out)
            return result
        if device == "cpu" and native_available():
            return softmax_ggn_native(logits_NV, u_NV, out=out)
    y_NV = softmax_ggn_torch(logits_NV, u_NV)
    return y_NV if out is None else out.copy_(y_NV)


class _SoftmaxGgn(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, u: Tensor) -> Tensor:
        return _compute(logits, u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> Any:
        if cotangent is None:
            return None, None
        if ctx.needs_input_grad[0]:
            raise no_third_derivative()
        return None, _apply(ctx.saved_tensors[0], cotangent)

    @staticmethod
    def jvp(ctx: Any, logits_tangent: Tensor | None, u_tangent: Tensor | None) -> Any:
        if logits_tangent is not None:
            raise no_third_derivative()
        return _apply(ctx.saved_tensors[0], u_tangent)

    @staticmethod
    def vmap(info: Any, in_dims: Any, logits: Tensor, u: Tensor) -> Any:
        rows = []
        for x_NV, dim in zip((logits, u), in_dims, strict=True):
            rows.append(x_NV.expand(info.batch_size, *x_NV.shape) if dim is None else x_NV.movedim(dim, 0))
        return _apply(rows[0].flatten(0, 1), rows[1].flatten(0, 1)).reshape(rows[0].shape), 0


_apply: Callable[[Tensor, Tensor | None], Tensor] = _SoftmaxGgn.apply


def no_third_derivative() -> NotImplementedError:
    """Return what is raised where the derivative in the logits is asked for."""
    return NotImplementedError(
        "softmax_ggn: its derivative in the logits, a third derivative of the loss, is not implemented; detach the logits"
    )


def softmax_ggn(logits_NV: Tensor, u_NV: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return y = p * (u - <p, u>) with p = softmax(logits) of each row, in the inputs' type.

    Moves 3 N V elements, the least possible: CPU tensors by C++ with `torch.get_num_threads()` threads, a row at a time, so that
    what is read again comes from the cache; CUDA tensors by one Triton launch whose second reading comes from L2. float64,
    other devices, and CPUs without the compiled extension: PyTorch, at three times the traffic and more. Rows may be
    strided; the result is contiguous.

    >>> softmax_ggn(torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]))  # p is 1/2, the mean of u is 0
    tensor([[ 0.5000, -0.5000]])

    Args:
        logits_NV: bfloat16, float16, float32 or float64.
        u_NV: of the same type and shape.
        out: where the result goes instead of fresh memory: contiguous, of the same type and shape; may be ``u_NV`` or
            ``logits_NV`` itself. Fresh memory costs a CPU the faults of its pages, which of 64 MiB take as long as the work.

    Returns:
        Differentiable in u, not in the logits, and with ``out`` in neither.

    Raises:
        ValueError: for shapes, dtypes or devices that differ, or an ``out`` that cannot take the result.
        TypeError: for an unsupported dtype.
        NotImplementedError: when the derivative in the logits is asked for.
    """
    if logits_NV.ndim != 2 or logits_NV.shape != u_NV.shape:
        raise ValueError(
            f"softmax_ggn: logits of shape {tuple(logits_NV.shape)} and u of shape {tuple(u_NV.shape)}; "
            "expected one shape [N, V] (flatten batch and sequence first)"
        )
    if logits_NV.dtype not in FLOATS:
        raise TypeError(f"softmax_ggn: logits have dtype {logits_NV.dtype}; expected one of {[*FLOATS]}")
    if logits_NV.dtype != u_NV.dtype or logits_NV.device != u_NV.device:
        raise ValueError(
            f"softmax_ggn: logits are {logits_NV.dtype} on {logits_NV.device}, u is {u_NV.dtype} on {u_NV.device}; "
            "convert or move one"
        )
    if out is None and torch.compiler.is_compiling():
        compiled: Tensor = torch.ops.modelassay.softmax_ggn(logits_NV, u_NV)  # see modelassay_kernels.compiled
        return compiled
    if out is None:
        return _apply(logits_NV, u_NV)
    check_out("softmax_ggn", "out", out, logits_NV.shape, logits_NV.dtype, logits_NV, (logits_NV, u_NV))
    return _compute(logits_NV.detach(), u_NV.detach(), out)

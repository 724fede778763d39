"""Layers of language models whose gradients are made to be differentiated once more, and a context that puts them in place.

Reverse over reverse takes the gradient of <grad L, v>: a first backward pass writes down how the gradient depends on the
parameters, a second differentiates that. PyTorch's own rules cost more than they must in both. The first pass forms the
gradients of all weights, whose values nobody reads: here, while a graph is being made, they are zeros that take no memory, and
only their derivatives are real (8 matrix products for 9). And the second derivatives of norms and gates, which PyTorch puts
together from dozens of small operations, are written out.

Rules below are for y = f(x, w): g the gradient of y, u and v the cotangents of the gradients of x and w in the second pass.
"""

# B... = any leading dimensions, I = inputs, O = outputs, D = hidden size, R = rows: all leading dimensions in one

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelassay.curvature.language_model import is_untouched
from modelassay_kernels import linear_cross_entropy
from modelassay_kernels.cross_entropy.autograd import apply_gradient, apply_gradient_tangent, apply_losses_tangent
from modelassay_kernels.cross_entropy.chunks import GradientMask
from modelassay_kernels.cross_entropy.rows import Spec


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    return function.apply(*args)  # type: ignore[no-untyped-call]


def _unread(like: Tensor) -> Tensor:
    """A gradient whose value is never read, without memory."""
    return like.new_zeros(()).expand(like.shape)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    return _rows(x).sum(0).to(like.dtype)


class _Linear(torch.autograd.Function):
    """(x, W, b) -> y = x W^T + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI, bias_O)
        return F.linear(x, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight_OI, bias_O = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph is being made
            return _apply(_LinearGradient, g, x, weight_OI, bias_O)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            g @ weight_OI if of_x else None,
            _rows(g).T @ _rows(x) if of_weight else None,
            _rows(g).sum(0) if of_bias else None,
        )


class _LinearGradient(torch.autograd.Function):
    """(g, x, W, b) -> g W and the unread gradients of W and b; backward: u W^T + x V^T + v_b, g V, g^T u."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Any:
        ctx.save_for_backward(g, x, weight_OI)
        ctx.set_materialize_grads(False)
        return g @ weight_OI, _unread(weight_OI), None if bias_O is None else _unread(bias_O)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v_OI: Tensor | None, v_O: Tensor | None) -> Any:
        g, x, weight_OI = ctx.saved_tensors
        of_g, of_x, of_weight, _ = ctx.needs_input_grad
        g_bar = x_bar = weight_bar = None
        if of_g:
            parts = [] if u is None else [F.linear(u, weight_OI)]
            if v_OI is not None:
                parts = [torch.addmm(_rows(part), _rows(x), v_OI.T).view_as(g) for part in parts] or [F.linear(x, v_OI)]
            g_bar = parts[0] if parts else torch.zeros_like(g)
            if v_O is not None:
                g_bar += v_O
        if of_x and v_OI is not None:
            x_bar = g @ v_OI
        if of_weight and u is not None:
            weight_bar = _rows(g).T @ _rows(u)
        return g_bar, x_bar, weight_bar, None


class _Embedding(torch.autograd.Function):
    """(W, ids) -> rows of W."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(weight_VD, ids)
        return F.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        weight_VD, ids = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _apply(_EmbeddingGradient, g, weight_VD, ids), None
        return torch.zeros_like(weight_VD).index_add_(0, ids.reshape(-1), _rows(g)), None


class _EmbeddingGradient(torch.autograd.Function):
    """(g, W, ids) -> the unread gradient of W; backward: rows of V."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight_VD: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        return _unread(weight_VD)

    @staticmethod
    def backward(ctx: Any, v_VD: Tensor) -> Any:
        return F.embedding(ctx.saved_tensors[0], v_VD), None, None


class _Normalised(torch.autograd.Function):
    """(x, w, eps) -> y = w n with n = x r, r = (mean x^2 + eps)^-1/2, in fp32 (fp64 for fp64)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        r = (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, r)
        return (wide * r).mul_(weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight_D, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_apply(_NormalisedGradient, g, x, weight_D, r), None
        n, a = _wide(x) * r, _wide(g) * weight_D
        of_weight = _sum_to(_wide(g) * n, weight_D) if ctx.needs_input_grad[1] else None
        m = (a * n).mean(-1, keepdim=True)
        return a.sub_(n.mul_(m)).mul_(r).to(x.dtype), of_weight, None


class _NormalisedGradient(torch.autograd.Function):
    """(g, x, w, r) -> r (a - m n) and the unread gradient of w, a = w g, m = mean(a n).

    Backward, with s = mean(u n), t = mean(a u), d = u - s n, e = v g:
    g: r w d + v n, w: sum r g d, x: -r^2 (m u + s a + (t - 3 s m) n) + r (e - mean(e n) n).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight_D: Tensor, r: Tensor) -> Any:
        ctx.save_for_backward(g, x, weight_D, r)
        ctx.set_materialize_grads(False)
        n, a = _wide(x) * r, _wide(g) * weight_D
        m = (a * n).mean(-1, keepdim=True)
        return a.sub_(n.mul_(m)).mul_(r).to(x.dtype), _unread(weight_D)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v_D: Tensor | None) -> Any:
        g, x, weight_D, r = ctx.saved_tensors
        wide_g, n = _wide(g), _wide(x) * r
        g_bar = x_bar = weight_bar = None
        if u is not None:
            u, a = _wide(u), wide_g * weight_D
            m, s, t = ((p * q).mean(-1, keepdim=True) for p, q in ((a, n), (u, n), (a, u)))
            d = torch.addcmul(u, n, s, value=-1).mul_(r)
            x_bar = (u * m).addcmul_(a, s).addcmul_(n, t - 3 * s * m).mul_(-r.square())
            if ctx.needs_input_grad[2]:
                weight_bar = _sum_to(wide_g * d, weight_D)
            g_bar = d.mul_(weight_D)
        if v_D is not None:
            e = wide_g * v_D
            e = torch.addcmul(e, n, (e * n).mean(-1, keepdim=True), value=-1).mul_(r)
            x_bar = e if x_bar is None else x_bar.add_(e)
            g_bar = n.mul_(v_D) if g_bar is None else g_bar.addcmul_(n, v_D)
        narrow = [None if part is None else part.to(x.dtype) for part in (g_bar, x_bar)]
        return *narrow, weight_bar, None


class _Gated(torch.autograd.Function):
    """(a, b) -> f(a) b with f(a) = a s, s = sigmoid(a); f' = s + f (1 - s)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        a, b = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _apply(_GatedGradient, g, a, b)
        s = torch.sigmoid(a)
        f = a * s
        slope = torch.addcmul(s, f, 1 - s)
        return slope.mul_(b).mul_(g), f.mul_(g)


class _GatedGradient(torch.autograd.Function):
    """(g, a, b) -> g b f', g f; backward, u and v the cotangents of the two: u b f' + v f, g (u b f'' + v f'), u g f'.

    f'' = s (1 - s) (2 + a (1 - 2 s)).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, a: Tensor, b: Tensor) -> Any:
        s = torch.sigmoid(a)
        f = a * s
        slope = torch.addcmul(s, f, 1 - s)
        ctx.save_for_backward(g, a, b, s, slope)
        return (g * b).mul_(slope), f.mul_(g)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor) -> Any:
        g, a, b, s, slope = ctx.saved_tensors
        ub = u * b
        g_bar = torch.addcmul(v * a * s, ub, slope)
        bend = (a * (1 - 2 * s)).add_(2).mul_(s).mul_(1 - s)
        a_bar = bend.mul_(ub).addcmul_(v, slope).mul_(g)
        return g_bar, a_bar, (u * g).mul_(slope)


class _SummedLoss(torch.autograd.Function):
    """(h, W, labels) -> L, the summed cross-entropy of h W^T; its gradient by h is made while the logits exist."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
        total, of_h, *_ = apply_gradient(
            _ones(labels_N, h_ND), h_ND, weight_VD, None, labels_N, Spec(), GradientMask(weight=False, bias=False)
        )
        ctx.save_for_backward(h_ND, weight_VD, labels_N, of_h)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        h_ND, weight_VD, labels_N, of_h = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_apply(_SummedLossGradient, g, h_ND, weight_VD, labels_N, of_h), None
        of_weight = None
        if ctx.needs_input_grad[1]:
            mask = GradientMask(hidden=False, bias=False)
            ones_N = _ones(labels_N, h_ND)
            of_weight = apply_gradient(ones_N, h_ND, weight_VD, None, labels_N, Spec(), mask)[2] * g
        return of_h * g, of_weight, None


class _SummedLossGradient(torch.autograd.Function):
    """(g, h, W, labels, dL/dh) -> g dL/dh and the unread g dL/dW; backward along u, v: <dL, (u, v)>, g times that of dL/dh and dL/dW."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, h_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, of_h: Tensor) -> Any:
        ctx.save_for_backward(g, h_ND, weight_VD, labels_N)
        ctx.set_materialize_grads(False)
        return of_h * g, _unread(weight_VD)

    @staticmethod
    def backward(ctx: Any, u_ND: Tensor | None, v_VD: Tensor | None) -> Any:
        g, h_ND, weight_VD, labels_N = ctx.saved_tensors
        of_g, *of_point = ctx.needs_input_grad[:3]
        tangents = [None if part is None else part[None] for part in (u_ND, v_VD)]
        point, ones_N = (h_ND, weight_VD, None), _ones(labels_N, h_ND)
        g_bar = apply_losses_tangent(*point, *tangents, None, labels_N, Spec()).sum().to(g.dtype) if of_g else None
        mask = GradientMask(hidden=of_point[0], weight=of_point[1], bias=False)
        _, h_bar, weight_bar, _ = apply_gradient_tangent(
            ones_N * g, *point, None, *tangents, None, labels_N, Spec(), mask
        )
        return g_bar, h_bar[0] if mask.hidden else None, weight_bar[0] if mask.weight else None, None, None


def _ones(labels_N: Tensor, like: Tensor) -> Tensor:
    return torch.ones(labels_N.shape, dtype=_wide(like).dtype, device=like.device)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`."""
    result: Tensor = _apply(_Linear, x, weight_OI, bias_O)
    return result


def embedding(ids: Tensor, weight_VD: Tensor) -> Tensor:
    """As `torch.nn.functional.embedding` without a padding id."""
    result: Tensor = _apply(_Embedding, weight_VD, ids)
    return result


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return w x / sqrt(mean x^2 + eps), over the last dimension.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 10.0]), 12.5)
    tensor([0.6000, 8.0000])
    """
    result: Tensor = _apply(_Normalised, x, weight_D, eps)
    return result


def gated(gate: Tensor, value: Tensor) -> Tensor:
    """Return silu(gate) * value."""
    result: Tensor = _apply(_Gated, gate, value)
    return result


def summed_loss(h_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """As `modelassay_kernels.linear_cross_entropy` with ``reduction="sum"``, of labels that all count."""
    result: Tensor = _apply(_SummedLoss, h_ND, weight_VD, labels_N)
    return result


class SummedLoss(nn.Module):
    """`modelassay_kernels.linear_cross_entropy` with ``reduction="sum"``, as a module that can be stood in for."""

    def forward(self, h_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
        """Return the summed loss."""
        return linear_cross_entropy(h_ND, weight_VD, labels_N, reduction="sum")


StandIns = dict[nn.Module, Callable[..., Tensor]]
"""Modules, and what computes them instead."""

SILU = {"SiLU", "SiLUActivation"}
"""PyTorch's class, and that of transformers."""


def _of_linear(module: Any) -> Callable[..., Tensor] | None:
    if type(module) is nn.Linear:
        return lambda x: linear(x, module.weight, module.bias)
    if type(module).__name__ == "Conv1D" and getattr(module, "nf", None) is not None:  # GPT-2's, weight [I, O]
        return lambda x: linear(x, module.weight.T, module.bias)
    return None


def _of_embedding(module: Any) -> Callable[..., Tensor] | None:
    if type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq:
        return lambda ids: embedding(ids, module.weight)
    return None


def _of_norm(module: Any) -> Callable[..., Tensor] | None:
    """A norm is known by what it does (without hooks, which go on being called): its class is one of many, some of which multiply by 1 + w."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(eps, float) or not isinstance(weight, Tensor):
        return None
    if "weight" in module._buffers:  # ones that are never read (FalconMamba's norms of another width)
        return None
    x = _probe(weight.numel(), weight)
    if _same(rms_norm(x, weight, eps), module.forward(x)):
        return lambda x: rms_norm(x, module.weight, eps)
    if _same(rms_norm(x, 1 + weight, eps), module.forward(x)):
        return lambda x: rms_norm(x, 1 + module.weight, eps)
    return None


def _of_gate(module: Any) -> Callable[..., Tensor] | None:
    """A feed-forward block of exactly three linear layers and SiLU that does what such a block does."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is nn.Linear for part in parts) or type(getattr(module, "act_fn", None)).__name__ not in SILU:
        return None

    def forward(x: Tensor) -> Tensor:
        result: Tensor = module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))
        return result

    weight_OI = module.gate_proj.weight
    x = _probe(weight_OI.shape[1], weight_OI)
    return forward if is_untouched(module.act_fn) and _same(forward(x), module.forward(x)) else None


def _of_summed_loss(module: Any) -> Callable[..., Tensor] | None:
    return summed_loss if type(module) is SummedLoss else None


def _probe(width: int, like: Tensor) -> Tensor:
    """One row to try a module on. Its type is taken from a tensor, since one that is named becomes fp64 in an fp64 pass."""
    return torch.linspace(-1.0, 2.0, width).to(like)[None]


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results differ by rounding alone, in the mean over their entries."""
    return bool((ours - theirs).norm() <= 4 * torch.finfo(ours.dtype).eps * theirs.norm())


def replacements(model: nn.Module) -> StandIns:
    """Return for each module of ``model`` that one of the layers here can stand in for what to call instead.

    A module that was given a forward of its own is left alone, and so is what computes anything else than its name says.
    """
    found: dict[nn.Module, Callable[..., Tensor]] = {}
    for module in model.modules():
        for of_kind in (_of_linear, _of_embedding, _of_norm, _of_gate, _of_summed_loss):
            if "forward" not in vars(module) and (forward := of_kind(module)) is not None:
                found[module] = forward
    return found


@contextmanager
def in_place_of(forwards: StandIns) -> Iterator[None]:
    """Let modules be computed by these functions while the context lasts."""
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)

"""A backward pass that autograd cannot differentiate is found, and named; whatever else a model does is not taken for one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelassay.curvature import second_derivative
from modelassay.curvature.gauss_newton import GaussNewton
from modelassay.curvature.loss import Microbatch
from modelassay.curvature.operators import FiniteDifferenceHessian, Hessian
from modelassay.errors import UsageError
from support import curvature_cases as cases


class FusedNorm(torch.autograd.Function):
    """(x, w, eps) -> w x / sqrt(mean x^2 + eps), its gradient computed where autograd does not look."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the norm."""
        r = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, r)
        return x * r * weight

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, g: Tensor) -> Any:
        """Return a right gradient without a graph."""
        x, weight, r = ctx.saved_tensors
        n, a = x * r, g * weight
        return (a - n * (a * n).mean(-1, keepdim=True)) * r, (g * n).flatten(0, -2).sum(0), None


class Fused(nn.Module):
    """A norm under a name that says nothing."""

    def __init__(self, norm: Any, function: Any) -> None:
        super().__init__()
        self.weight, self.eps, self.function = norm.weight, norm.variance_epsilon, function

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm."""
        result: Tensor = self.function.apply(x, self.weight, self.eps)
        return result


class OnceNorm(FusedNorm):
    """The same, which says so."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        """Return a right gradient, once."""
        x, weight, r = ctx.saved_tensors
        n, a = x * r, g * weight
        return (a - n * (a * n).mean(-1, keepdim=True)) * r, (g * n).flatten(0, -2).sum(0), None


class FusedGate(torch.autograd.Function):
    """(a, b) -> silu(a) b, of which the gradient is detached."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """Return the product."""
        ctx.a, ctx.b = a.detach(), b.detach()
        return F.silu(a) * b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Return the gradient: how it depends on a and b is lost, how on g is not."""
        s = torch.sigmoid(ctx.a)
        return g * ctx.b * (s + ctx.a * s * (1 - s)), g * ctx.a * s


def fused_norm(model: Any, layer: int = 1, function: Any = FusedNorm) -> None:
    part = model.model.layers[layer]
    part.input_layernorm = Fused(part.input_layernorm, function).eval()


def fused_gate(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(FusedGate.apply(mlp.gate_proj(x), mlp.up_proj(x)))


def detached_gradient(model: Any) -> None:
    def once_more(module: Any, args: Any, output: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda g: g.detach())
        return output

    model.model.layers[0].self_attn.o_proj.register_forward_hook(once_more)


def between_modules(model: Any) -> None:
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: forward(FusedGate.apply(x, x))


HIDDEN: dict[str, tuple[Callable[[Any], None], str]] = {
    "a norm": (fused_norm, r"model\.layers\.1\.input_layernorm \(Fused\)"),
    "a gate": (fused_gate, r"model\.layers\.0\.mlp \(LlamaMLP\)"),
    "a head": (between_modules, r"lm_head \(Linear\)"),
    "a hook that detaches": (detached_gradient, r"model\.layers\.0 \(LlamaDecoderLayer\)"),
    "a norm that says so": (
        lambda model: fused_norm(model, 0, OnceNorm),
        r"model\.layers\.0\.input_layernorm \(Fused\)",
    ),
}


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("name", HIDDEN)
def test_backward_that_is_constant_to_autograd_is_named(name: str, precision: Any) -> None:
    change, module = HIDDEN[name]
    model = cases.make_model("llama")
    change(model)
    with pytest.raises(UsageError, match=f"{module}.*FiniteDifferenceHessian"):
        Hessian(model, [cases.make_batch()], precision=precision).loss()


def test_first_derivatives_of_such_a_model_are_not_refused() -> None:
    """Its gradient is right, so that the Hessian by differences is that of the model it was made from."""
    plain, fused = cases.make_model("llama"), cases.make_model("llama")
    fused_norm(fused)
    batch = cases.make_batch()
    operator = FiniteDifferenceHessian(fused, [batch])
    v_P = torch.randn(operator.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert cases.off(operator.matvec(v_P), Hessian(plain, [batch]).matvec(v_P)) < 1e-6
    assert GaussNewton(fused, [batch]).loss() == pytest.approx(operator.loss(), rel=1e-12)


def test_one_norm_of_many_layers_shows() -> None:
    model = cases.make_model("llama", num_hidden_layers=12)
    fused_norm(model, 7)
    with pytest.raises(UsageError, match=r"model\.layers\.7\.input_layernorm"):
        Hessian(model, [cases.make_batch()]).loss()


def test_a_kink_beside_the_point_is_no_mistake() -> None:
    """A step of a thousandth crosses kinks of ReLU; one of a thousand-millionth does not."""
    model = cases.make_model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.ReLU().eval()
    Hessian(model, [cases.make_batch()]).loss()


@pytest.mark.parametrize("side", ["left", "right"])
def test_few_tokens_are_those_around_the_first_that_count(side: str) -> None:
    ids = torch.arange(100).repeat(2, 1) % cases.VOCABULARY
    mask = torch.ones_like(ids)
    mask[:, slice(None, 40) if side == "left" else slice(-40, None)] = 0
    labels = ids.clone()
    labels[0] = -100
    model = cases.make_model("llama", max_position_embeddings=128)
    operator = Hessian(model, [Microbatch(input_ids_BT=ids, labels_BT=labels, attention_mask_BT=mask)])
    (batch,) = operator._batches
    few = second_derivative.few_tokens(batch)
    assert few.input_ids_BT.shape[0] == 1
    assert few.input_ids_BT.shape[1] <= second_derivative.MOST_TOKENS
    assert few.num_tokens == second_derivative.MOST_COUNTED
    assert torch.equal(few.labels_BT[few.labels_BT != -100], few.targets_N)
    assert torch.equal(few.input_ids_BT[few.labels_BT != -100], few.targets_N)

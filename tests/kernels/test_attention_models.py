"""Hessian-vector products of whole models through `register_attention`, against double backward of dense attention.

transformers' own eager attention, norms and loss round to float32 whatever the model's type, so that the float64 comparison
brings its own: a dense attention over transformers' boolean mask, and norms and a loss in the type they are given.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from transformers.masking_utils import sdpa_mask

from modelassay_kernels import register_attention
from support.attention_cases import IGNORES_TORCH_JIT, directions, flat, relative_error
from support.tiny_models import make_model

pytestmark = pytest.mark.filterwarnings(IGNORES_TORCH_JIT)
TOKENS = 11


def dense_attention(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    ratio = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(ratio, dim=1) for x in (k, v))
    scores = q @ k.mT * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -1e300).softmax(-1) @ v).transpose(1, 2), None


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_attention()
    transformers.AttentionInterface.register("dense", dense_attention)
    transformers.AttentionMaskInterface.register(
        "dense", lambda *args, **options: sdpa_mask(*args, **{**options, "allow_is_causal_skip": False})
    )
    yield
    for interface in (transformers.AttentionInterface, transformers.AttentionMaskInterface):
        interface._global_mapping.pop("dense")


@dataclass(frozen=True, kw_only=True)
class Model:
    """An architecture, and what is special about it here."""

    model_type: str
    why: str
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.model_type}, {self.why}"


MODELS = [
    Model(model_type="qwen2", why="grouped heads, SiLU"),
    Model(model_type="qwen2", why="tied embeddings", changes={"tie_word_embeddings": True}),
    Model(model_type="llama", why="head dimension of its own"),
    Model(model_type="gpt2", why="GELU, LayerNorm, tied"),
    Model(model_type="mistral", why="sliding window", changes={"sliding_window": 4}),
    Model(
        model_type="gemma2",
        why="soft cap, window in every other layer",
        changes={"sliding_window": 4, "attn_logit_softcapping": 2.0},
    ),
    Model(model_type="gemma3_text", why="norms of queries and keys", changes={"sliding_window": 4}),
    Model(model_type="bert", why="no causal mask"),
]


def exact_norm(module: Any, hidden: Tensor) -> Tensor:
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    weight = module.weight + (1.0 if type(module).__name__.startswith("Gemma") else 0.0)
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * weight


class Problem:
    """A small model, a padded batch, and its loss as a function of the parameters."""

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        options = {"is_decoder": True} if model.model_type == "bert" else {}
        self.model: Any = make_model(model.model_type, **model.changes, **options).to(dtype)
        if model.model_type == "bert":
            self.model.config.is_causal = False
        for module in self.model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = types.MethodType(exact_norm, module)
        for parameter in self.model.parameters():
            parameter.data.mul_(0.3)
        self.parameters = {name: x.detach() for name, x in self.model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(3, 30, (3, TOKENS), generator=generator)
        self.real = torch.ones_like(self.ids)
        self.real[0, 8:], self.real[1, :3] = 0, 0  # padded on the right, on the left, not at all

    def loss(self, parameters: dict[str, Tensor]) -> Tensor:
        inputs = {"input_ids": self.ids, "attention_mask": self.real, "use_cache": False}
        logits = functional_call(self.model, parameters, (), inputs).logits
        counts = (self.real[:, 1:] * self.real[:, :-1]).bool()
        return nn.functional.cross_entropy(logits[:, :-1][counts], self.ids[:, 1:][counts])

    def use(self, implementation: str) -> None:
        self.model.set_attn_implementation(implementation)

    def hvp(self, along: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tangents = dict(zip(self.parameters, along, strict=True))
        return tuple(jvp(grad(self.loss), (self.parameters,), (tangents,))[1].values())

    def double_backward(self, along: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = {name: x.clone().requires_grad_() for name, x in self.parameters.items()}
        gradient = torch.autograd.grad(self.loss(leaves), tuple(leaves.values()), create_graph=True)
        return torch.autograd.grad(gradient, tuple(leaves.values()), along)

    def direction(self, seed: int) -> tuple[Tensor, ...]:
        return directions(tuple(self.parameters.values()), seed)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_hessian_vector_products(model: Model) -> None:
    problem = Problem(model, torch.float64)
    u, w = problem.direction(1), problem.direction(2)
    problem.use("dense")
    expected = problem.double_backward(u)
    problem.use("modelassay")
    got = problem.hvp(u)
    assert relative_error(got, expected) < 1e-9
    assert relative_error(problem.double_backward(u), expected) < 1e-9
    left, right = torch.dot(flat(w), flat(got)), torch.dot(flat(u), flat(problem.hvp(w)))
    assert abs(float(left - right)) < 1e-10 * float(flat(w).norm() * flat(got).norm())
    names = list(problem.parameters)
    many = tuple(torch.stack(pair) for pair in zip(u, w, strict=True))
    together = vmap(lambda *x: problem.hvp(x))(*many)
    assert relative_error([x[0] for x in together], expected) < 1e-9, names


@pytest.mark.parametrize("model", [MODELS[0], MODELS[3], MODELS[5]], ids=str)
def test_hessian_vector_products_in_fp32(model: Model) -> None:
    exact, problem = Problem(model, torch.float64), Problem(model, torch.float32)
    u = exact.direction(1)
    exact.use("dense")
    problem.use("modelassay")
    assert relative_error(problem.hvp(tuple(x.float() for x in u)), exact.double_backward(u)) < 1e-4


CACHES = [
    *((model_type, None, pad) for model_type in ("llama", "opt", "gpt2", "olmo2", "granite") for pad in (0, 3)),
    *((model_type, 4, pad) for model_type in ("mistral", "gemma2", "gemma3_text", "cohere2") for pad in (0, 3)),
]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(("model_type", "window", "pad"), CACHES)
def test_generation_with_a_cache_agrees_with_eager(model_type: str, window: int | None, pad: int, cache: str) -> None:
    """Logits too; with a window of 4 the caches run over."""
    model: Any = make_model(model_type, **({} if window is None else {"sliding_window": window}))
    for parameter in model.parameters():
        parameter.data.mul_(0.3)  # as they are, softmax picks one key and the mask of others hardly shows
    ids = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(ids)
    real[0, :pad] = 0
    outputs = []
    for implementation in ("eager", "modelassay"):
        model.set_attn_implementation(implementation)
        outputs.append(
            model.generate(
                input_ids=ids, attention_mask=real, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None,
                cache_implementation=cache, output_logits=True, return_dict_in_generate=True,
            )
        )  # fmt: skip
    expected, got = (torch.stack(output.logits) for output in outputs)
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert relative_error([got], [expected]) < 1e-4

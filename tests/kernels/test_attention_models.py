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
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from modelassay_kernels import register_attention
from modelassay_kernels.attention.spans import visible
from modelassay_kernels.attention.transformers import attention_forward, spans_mask
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
        known = (self.real[:, 1:] * self.real[:, :-1]).bool()
        return nn.functional.cross_entropy(logits[:, :-1][known], self.ids[:, 1:][known])

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


def test_generation_with_a_cache_agrees_with_sdpa() -> None:
    problem = Problem(MODELS[4], torch.float32)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    inputs = {"input_ids": problem.ids[:2], "attention_mask": problem.real.flip(0)[1:]}  # padded on the left, and holes
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :3] = 0
    texts = []
    for implementation in ("sdpa", "modelassay"):
        problem.use(implementation)
        texts.append(problem.model.generate(**inputs, **options))
    assert torch.equal(*texts)


PACKED = torch.tensor([[0] * 4 + [1] * 7, [0] * 11])
MASKS = {
    "causal": causal_mask_function,
    "sliding": sliding_window_causal_mask_function(4),
    "chunked": chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int)),
    "packed": and_masks(causal_mask_function, packed_sequence_mask_function(PACKED)),
}


@pytest.mark.parametrize("padded", ["", "left", "right"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("queries", "offset"), [(TOKENS, 0), (3, 8), (1, 10)])
def test_masks_are_those_of_transformers(name: str, padded: str, queries: int, offset: int) -> None:
    if name == "packed" and queries != TOKENS:
        pytest.skip("packed sequences come without a cache")
    real = torch.ones(2, TOKENS, dtype=torch.bool)
    if padded:
        real[0, slice(0, 3) if padded == "left" else slice(8, None)] = False
    arguments = {
        "batch_size": 2, "q_length": queries, "kv_length": TOKENS, "q_offset": offset, "kv_offset": 0,
        "mask_function": MASKS[name], "attention_mask": real,
    }  # fmt: skip
    mask = spans_mask(**arguments)
    expected = sdpa_mask(**arguments, allow_is_causal_skip=False)
    assert torch.equal(visible(mask.spans, 0, TOKENS).expand(2, -1, -1), expected[:, 0])
    assert (mask.spans.dtype, mask.shape) == (torch.int32, expected.shape)


def test_masks_that_are_no_intervals_are_refused() -> None:
    arguments = {"batch_size": 1, "q_length": 5, "kv_length": 5}
    with pytest.raises(ValueError, match="no interval"):
        spans_mask(**arguments, attention_mask=torch.tensor([[True, False, True, True, True]]))
    first_token_too = or_masks(sliding_window_causal_mask_function(2), lambda b, h, q, k: k == 0)
    with pytest.raises(ValueError, match="no interval"):
        spans_mask(**arguments, mask_function=first_token_too)
    with pytest.raises(ValueError, match="mask function of its own"):
        spans_mask(**arguments, mask_function=first_token_too, use_vmap=True)


X = torch.zeros(1, 2, 5, 4)
REFUSED = [
    ({"dropout": 0.1}, "dropout"),
    ({"s_aux": torch.zeros(2)}, "sinks"),
    ({"position_bias": torch.zeros(1, 2, 5, 5)}, "position biases"),
    ({"output_attentions": True}, "no weights"),
    ({"attention_mask": torch.zeros(1, 1, 5, 5)}, r"mask of shape \(1, 1, 5, 5\)"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_is_not_supported_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"modelassay.*{message}"):
        attention_forward(nn.Module(), X, X, X, **{"attention_mask": None, **options})


def test_without_a_mask_the_layer_says_whether_it_is_causal() -> None:
    q, k, v = (torch.randn(X.shape, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for causal in (True, False):
        got, _ = attention_forward(nn.Module(), q, k, v, None, is_causal=causal)
        expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.testing.assert_close(got, expected.transpose(1, 2))
    with pytest.raises(ValueError, match="2 queries, 5 keys and no mask"):
        attention_forward(nn.Module(), q[:, :, :2], k, v, None, is_causal=True)

"""Small random Qwen2, Llama and Mistral models, none of whose sizes are alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

SIZES: dict[str, Any] = {
    "vocab_size": 61, "intermediate_size": 52, "num_hidden_layers": 8, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    model_class: Any
    config: Any


CASES = (
    Case(name="qwen2", model_class=Qwen2ForCausalLM, config=lambda: Qwen2Config(hidden_size=36, **SIZES)),
    Case(
        name="llama-biases-wide-heads",
        model_class=LlamaForCausalLM,
        config=lambda: LlamaConfig(hidden_size=30, head_dim=10, attention_bias=True, mlp_bias=True, **SIZES),
    ),
    Case(
        name="mistral-tied",
        model_class=MistralForCausalLM,
        config=lambda: MistralConfig(hidden_size=24, tie_word_embeddings=True, **SIZES),
    ),
)


def random_model(case: Case, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Nothing at its initial zero or one, every layer's matrices of another size: biases and norms count too."""
    torch.manual_seed(7)
    model: Any = case.model_class(case.config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.copy_(torch.randn(weight.shape) * 0.5 + ("norm" in name))
            else:
                weight.copy_(torch.randn(weight.shape) * weight.shape[1] ** -0.5 * (1 + torch.rand(1)))
    return model.to(dtype).eval()


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.randint(61, (3, 23), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids).logits


@contextmanager
def norms_in_given_precision() -> Iterator[None]:
    """The models' norms compute in fp32 whatever they are given, which would hide errors below 1e-5."""

    def forward(norm: Any, x: Tensor) -> Tensor:
        return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    classes: tuple[Any, ...] = (Qwen2RMSNorm, LlamaRMSNorm, MistralRMSNorm)
    before = [norm_class.forward for norm_class in classes]
    try:
        for norm_class in classes:
            norm_class.forward = forward
        yield
    finally:
        for norm_class, original in zip(classes, before, strict=True):
            norm_class.forward = original

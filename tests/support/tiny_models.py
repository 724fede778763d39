"""Small random models of every architecture in the table, and how each one's own code takes its projections apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HIDDEN = 3, 4, 2, 6, 20

_ROPE = {"hidden_size": HIDDEN, "num_attention_heads": NUM_HEADS, "num_key_value_heads": NUM_KV_HEADS,
         "head_dim": HEAD_DIM, "intermediate_size": 16}  # fmt: skip
_SQUARE = {key: value for key, value in _ROPE.items() if key != "head_dim"} | {"hidden_size": NUM_HEADS * HEAD_DIM}
_ALL_HEADS = {key: value for key, value in _SQUARE.items() if key != "num_key_value_heads"}
_ODD = {"n_embd": 15, "n_head": 3, "n_layer": NUM_LAYERS}
_ENCODER = {"hidden_size": 15, "num_attention_heads": 3, "intermediate_size": 8}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_LOCAL_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}

SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "glm", "glm4"], _ROPE),
    **dict.fromkeys(["cohere2", "seed_oss", "ernie4_5", "arcee"], _ROPE),
    **dict.fromkeys(["qwen2", "olmo", "olmo2", "olmo3", "granite", "cohere", "starcoder2", "stablelm"], _SQUARE),
    **dict.fromkeys(["smollm3", "exaone4"], _SQUARE),
    **dict.fromkeys(["mixtral", "granitemoe", "phimoe"], _SQUARE | _LOCAL_MOE),
    "helium": _SQUARE | {"head_dim": HEAD_DIM},
    "olmoe": _SQUARE | _MOE,
    "qwen2_moe": _SQUARE | _MOE | {"shared_expert_intermediate_size": 8},
    "qwen3_moe": _ROPE | _MOE,
    "gpt_oss": _ROPE | _LOCAL_MOE,
    "qwen2_vl_text": _SQUARE | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 1]}},
    "phi": _SQUARE,
    "phi3": _SQUARE,
    "opt": {"hidden_size": 15, "num_attention_heads": 3, "ffn_dim": 8, "word_embed_proj_dim": 15},
    "gpt2": _ODD,
    "gptj": _ODD | {"n_embd": 18, "rotary_dim": 4},
    "gpt_neo": {"hidden_size": 15, "num_heads": 3, "num_layers": NUM_LAYERS, "attention_types": [[["global"], NUM_LAYERS]]},
    "gpt_neox": _ALL_HEADS,
    "bloom": {"hidden_size": 15, "n_head": 3, "n_layer": NUM_LAYERS},
    "mpt": {"d_model": 15, "n_heads": 3, "n_layers": NUM_LAYERS, "max_seq_len": 16},
    **dict.fromkeys(["bert", "roberta", "xlm-roberta"], _ENCODER),
    "electra": _ENCODER | {"embedding_size": 7},
    "distilbert": {"dim": 15, "n_heads": 3, "n_layers": NUM_LAYERS, "hidden_dim": 8},
}  # fmt: skip
"""Configuration of a small model per model type: key-value heads fewer than heads, head dimensions that are odd or do not
follow from the hidden size, wherever the architecture allows."""

_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make_config(model_type: str, **changes: Any) -> transformers.PretrainedConfig:
    settings = {"vocab_size": 32, **_SPECIAL, **SETTINGS[model_type], **changes}
    if not {"n_layer", "n_layers", "num_layers"} & settings.keys():
        settings.setdefault("num_hidden_layers", NUM_LAYERS)
    return transformers.CONFIG_MAPPING[model_type](**settings)


def make_model(model_type: str, **changes: Any) -> nn.Module:
    """A random model with its language-model head if the architecture has one."""
    torch.manual_seed(0)
    config = make_config(model_type, **changes)
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    model = (transformers.AutoModelForCausalLM if causal else transformers.AutoModel).from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.eval()


def save(model: nn.Module, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)  # type: ignore[operator]
    return folder


def _by_rows(weight: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return torch.split(weight, sizes, dim=0)


def _phi3(config: Any, weight: Tensor) -> tuple[Tensor, ...]:
    dim = config.hidden_size // config.num_attention_heads
    return _by_rows(weight, [config.num_attention_heads * dim, *2 * [config.num_key_value_heads * dim]])


def _heads_of_three(config: Any, weight: Tensor) -> tuple[Tensor, ...]:
    heads = weight.reshape(config.num_attention_heads, 3, -1, config.hidden_size)
    return tuple(heads[:, i].reshape(-1, config.hidden_size) for i in range(3))


FUSED: dict[str, tuple[str, str, Callable[[Any, Tensor], tuple[Tensor, ...]]]] = {
    "phi3": ("qkv_proj", "o_proj", _phi3),
    "gpt2": ("c_attn", "c_proj", lambda config, weight: torch.split(weight.T, config.n_embd, dim=0)),
    "gpt_neox": ("query_key_value", "dense", _heads_of_three),
    "bloom": ("query_key_value", "dense", _heads_of_three),
    "mpt": ("Wqkv", "out_proj", lambda config, weight: torch.chunk(weight, 3, dim=0)),
}
"""Fused tensor, output tensor, and the cut into q, k, v as [outputs, inputs], written anew from each model's forward."""

_ENDINGS = {
    "q": ("q_proj", "self.query", "q_lin"),
    "k": ("k_proj", "self.key", "k_lin"),
    "v": ("v_proj", "self.value", "v_lin"),
    "o": ("o_proj", "out_proj", "dense", "out_lin", "c_proj"),
}


def expected_blocks(model: nn.Module) -> dict[tuple[str, int], Tensor]:
    """Each role and layer's matrix as [outputs, inputs], taken from the model's own modules."""
    config: Any = model.config
    blocks: dict[tuple[str, int], Tensor] = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        layer = next((int(part) for part in module.split(".") if part.isdigit()), None)
        if layer is None or kind != "weight" or parameter.dim() != 2 or "att" not in name.lower() or "mlp" in name:
            continue
        if config.model_type in FUSED and module.endswith(FUSED[config.model_type][0]):
            for role, block in zip("qkv", FUSED[config.model_type][2](config, parameter), strict=True):
                blocks[role, layer] = block
        elif role := next((role for role, ends in _ENDINGS.items() if module.endswith(ends)), ""):
            blocks[role, layer] = parameter.T if config.model_type == "gpt2" else parameter
    return {key: block.detach() for key, block in blocks.items()}

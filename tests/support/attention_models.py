"""Tiny models of most architectures of transformers, made from the names of their settings.

A configuration class says its settings by name, and the same name means the same thing almost everywhere, so one table of
small values makes most models; `SETTINGS` holds what a type needs beside it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import nn

LAYERS = 4
VOCABULARY = 96
MAX_PARAMETERS = 3_000_000


def _names(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SMALL: dict[str, Any] = {
    **_names(VOCABULARY, "vocab_size vocab_size_per_layer_input src_vocab_size tgt_vocab_size text_vocab_size"),
    **_names(32, "hidden_size d_model n_embd dim embed_dim attention_hidden_size lru_width word_embed_proj_dim d_embed"),
    **_names(4, "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads"),
    **_names(4, "decoder_attention_heads swa_num_attention_heads encoder_num_attention_heads"),
    **_names(4, "decoder_num_attention_heads"),
    **_names(2, "num_key_value_heads num_kv_heads encoder_num_key_value_heads decoder_num_key_value_heads"),
    **_names(8, "head_dim d_kv kv_channels v_head_dim qk_nope_head_dim kv_lora_rank hidden_size_per_layer_input"),
    **_names(48, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff n_inner d_inner ffn_hidden_size"),
    **_names(48, "hidden_dim intermediate_size_mlp mlp_dim"),
    **_names(LAYERS, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers"),
    **_names(LAYERS, "encoder_num_hidden_layers decoder_num_hidden_layers num_decoder_layers depth"),
    **_names(64, "max_position_embeddings max_seq_len n_ctx n_positions max_source_positions max_target_positions"),
    **_names(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_names(2, "num_experts_per_tok moe_topk moe_k num_selected_experts top_k_experts"),
    **_names(16, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size embedding_size"),
    **_names(16, "q_lora_rank expert_ffn_hidden_size"),
    **_names(1, "n_group topk_group first_k_dense_replace decoder_start_token_id bos_token_id"),
    **_names(4, "sliding_window attention_chunk_size qk_rope_head_dim rotary_dim laurel_rank window_size"),
    **_names(0, "pad_token_id"),
    **_names(2, "eos_token_id type_vocab_size num_key_value_layers num_kv_shared_layers"),
    **_names(28, "image_size"),
    **_names(14, "patch_size"),
}  # fmt: skip
"""What a setting of this name is in a tiny model."""

_ALL_HEADS = {"num_key_value_heads": 4}
_THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
_MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)

SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["deepseek_v2", "deepseek_v3", "axk1", "minicpm3", "mistral4", "glm4_moe_lite", "youtu", "kimi_k25"], _ALL_HEADS),
    **dict.fromkeys(["deepseek_v32", "glm_moe_dsa", "axk2"], _ALL_HEADS | {"index_n_heads": 2, "index_topk": 4}),
    "longcat_flash": _ALL_HEADS | {"zero_expert_num": 1},
    **dict.fromkeys(["qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "paddleocr_vl_text"], _THREE_AXES),
    **dict.fromkeys(["glm4v_text", "glm4v_moe_text", "glm_ocr_text", "glm_image_text"], _THREE_AXES),
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
    **dict.fromkeys(["gemma4_text", "gemma4_unified_text"], {"global_head_dim": 16}),
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "squeezebert": {"embedding_size": 32},
    "lfm2_moe": {"full_attn_idxs": [1, 3], "num_dense_layers": 1},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_block_size": 2, "index_topk_blocks": 2, "index_n_heads": 2, "index_head_dim": 8,
    },
}  # fmt: skip
"""By model type: what goes on top of `SMALL`; None leaves a setting to its default."""


def tiny_config(model_type: str, **changes: Any) -> Any:
    """Return the configuration of a tiny model, its parts tiny too."""
    cls = transformers.CONFIG_MAPPING[model_type]
    return _tiny(cls, SETTINGS.get(model_type, {}) | changes)


def _tiny(cls: Any, changes: dict[str, Any]) -> Any:
    names = inspect.signature(cls.__init__).parameters
    aliases = {alias: name for name, alias in (getattr(cls, "attribute_map", None) or {}).items()}
    settings = {name: value for name, value in SMALL.items() if name in names}
    for alias, name in aliases.items():
        if alias in names and name in SMALL:
            settings.setdefault(alias, SMALL[name])
    parts = getattr(cls, "sub_configs", None) or {}
    if parts:
        default = cls()
        for part in parts:
            sub = getattr(default, part, None)
            if sub is not None and isinstance(changes.get(part, {}), dict):
                settings[part] = _tiny(type(sub), SETTINGS.get(sub.model_type, {}) | changes.get(part, {}))
    settings |= {name: value for name, value in changes.items() if name not in parts}
    settings = {name: value for name, value in settings.items() if value is not None}
    config = cls(**settings)
    kinds = getattr(config, "layer_types", None)
    if "layer_types" in names and "layer_types" not in settings and kinds and "sliding_attention" in kinds:
        config = cls(**settings, layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2))
    return config


AUTO = ("Seq2SeqLM", "CausalLM", "ImageTextToText", "MaskedLM")


def model_class(config: Any) -> Any:
    """Return the automatic class that makes the model with its head, or the bare model."""
    for name in AUTO:
        cls = getattr(transformers, f"AutoModelFor{name}")
        if type(config) in cls._model_mapping:
            return cls
    return transformers.AutoModel


def tiny_model(model_type: str, **changes: Any) -> nn.Module:
    """Return a random model whose eager attention is far from uniform, so that a wrong mask shows.

    Raises:
        ValueError: it is not tiny.
    """
    config = tiny_config(model_type, **changes)
    cls = model_class(config)
    with torch.device("meta"):
        size = sum(x.numel() for x in cls.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{model_type} has {size} parameters")
    torch.manual_seed(0)
    model: nn.Module = cls.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
        else:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def with_attention(model: nn.Module, model_type: str, implementation: str, **changes: Any) -> nn.Module:
    """Return a model of the same numbers, made with another attention: `set_attn_implementation` does not reach all parts."""
    config = tiny_config(model_type, **changes)
    other: nn.Module = model_class(config).from_config(config, dtype=torch.float32, attn_implementation=implementation)
    other.load_state_dict(model.state_dict())
    return other.eval()

"""What llama.cpp's converters call and change: names, the order of rotary halves, Gemma's norms, and what config.json would say."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelassay.errors import CheckpointError
from modelassay.models.gate import one_line, shown

_ATTENTION: Final = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
_DENSE: Final = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_EXPERTS: Final = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.{expert}.gate_proj", "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_MIXTRAL: Final = {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3", "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
}  # fmt: skip
_FOUR_NORMS: Final = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTSIDE: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GPT2: Final = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}  # fmt: skip
_GPT2_OUTSIDE: Final = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of one architecture of transformers."""

    model_type: str
    layer: Mapping[str, str]
    """Module below a layer by llama.cpp's name for it."""
    outside: Mapping[str, str]
    prefix: str = "model.layers."
    permuted: bool = False
    """The two halves of each head's rows of q and k take turns."""
    plus_one: bool = False
    """One was added to the weights of norms."""
    turned: bool = False
    """Matrices are transposed."""


def _llama_like(model_type: str, **kwargs: Any) -> Converted:
    layer = {**_ATTENTION, **_DENSE, **kwargs.pop("layer", {})}
    return Converted(model_type=model_type, layer=layer, outside=_OUTSIDE, **kwargs)


_CONVERTED: Final[Mapping[str, Converted]] = {
    "llama": _llama_like("llama", permuted=True, layer=_MIXTRAL),
    "granite": _llama_like("granite", permuted=True),
    "smollm3": _llama_like("smollm3", permuted=True),
    "qwen2": _llama_like("qwen2"),
    "qwen3": _llama_like("qwen3"),
    "qwen2moe": _llama_like("qwen2_moe", layer=_EXPERTS),
    "qwen3moe": _llama_like("qwen3_moe", layer=_EXPERTS),
    "gemma": _llama_like("gemma", plus_one=True),
    "gemma2": _llama_like("gemma2", plus_one=True, layer=_FOUR_NORMS),
    "gemma3": _llama_like("gemma3_text", plus_one=True, layer=_FOUR_NORMS),
    "olmo2": _llama_like("olmo2", layer={
        "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    }),
    "phi3": _llama_like("phi3", layer={"ffn_up": "mlp.gate_up_proj"}),
    "starcoder2": _llama_like("starcoder2", layer={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "stablelm": _llama_like("stablelm"),
    "gpt2": Converted(model_type="gpt2", layer=_GPT2, outside=_GPT2_OUTSIDE, prefix="transformer.h.", turned=True),
}  # fmt: skip

ARCHITECTURES: Final = tuple(_CONVERTED)
"""llama.cpp's architectures that are read."""

_IN_LAYER: Final = re.compile(r"blk\.(\d{1,5})\.([a-z0-9_]+)\.(.+)")
_LEFT_OUT: Final = re.compile(r"rope_(freqs|factors_.*)\.weight|blk\.\d+\.attn_rot_embd\.weight")
"""Numbers that the converter computed from config.json."""
_NORM: Final = re.compile(r"(output|attn|ffn|attn_q|attn_k|post_attention|post_ffw)_norm")

_CLAIMS: Final = (
    "general.name", "general.basename", "general.finetune", "general.version", "general.organization", "general.author",
    "general.quantized_by", "general.source.repo_url", "general.source.url", "general.repo_url",
)  # fmt: skip
_OF_BASE: Final = re.compile(r"general\.base_model\.\d{1,3}\.(name|organization|version|repo_url)")
_OF_QUANTISER: Final = ("quantize.imatrix.file", "quantize.imatrix.dataset")


def converted(metadata: Mapping[str, Any], where: str) -> Converted:
    """Return what llama.cpp did to the architecture of a file.

    Raises:
        CheckpointError: the file names none that is known here.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _CONVERTED:
        raise CheckpointError(
            f"{one_line(where)}: GGUF of architecture {shown(architecture)}, whose tensors' names are not known here (known are "
            f"{', '.join(ARCHITECTURES)}); open the model it was converted from"
        )
    rules = _CONVERTED[architecture]
    if architecture == "llama" and metadata.get("llama.expert_count"):
        return Converted(**{**vars(rules), "model_type": "mixtral"})
    return rules


def name_of(rules: Converted, name: str) -> str | None:
    """Return what transformers calls a tensor, with ``{expert}`` where one holds those of all experts; None where it has none such.

    >>> rules = converted({"general.architecture": "qwen2"}, "x.gguf")
    >>> name_of(rules, "blk.3.attn_q.bias"), name_of(rules, "output_norm.weight"), name_of(rules, "rope_freqs.weight")
    ('model.layers.3.self_attn.q_proj.bias', 'model.norm.weight', None)
    """
    if _LEFT_OUT.fullmatch(name):
        return None
    match = _IN_LAYER.fullmatch(name)
    if match is not None and match[2] in rules.layer:
        return f"{rules.prefix}{int(match[1])}.{rules.layer[match[2]]}.{match[3]}"
    module, _, rest = name.partition(".")
    return f"{rules.outside[module]}.{rest}" if module in rules.outside else name


def is_norm(name: str) -> bool:
    """Return whether llama.cpp's name is that of a norm's weights.

    >>> is_norm("blk.0.attn_norm.weight"), is_norm("output_norm.weight"), is_norm("blk.0.attn_q.weight")
    (True, True, False)
    """
    return (
        name.endswith("_norm.weight") and _NORM.fullmatch(name.removesuffix(".weight").rpartition(".")[2]) is not None
    )


def heads_of(name: str, config: Mapping[str, Any]) -> int | None:
    """Return into how many heads the rows of a tensor fall whose halves take turns; None of other tensors."""
    key = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(
        name.split(".")[-2] if "." in name else ""
    )
    heads = None if key is None else config.get(key)
    return heads if type(heads) is int and heads > 0 else None


def config_of(metadata: Mapping[str, Any], rules: Converted, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return what config.json says of the model, as far as the file tells: whoever reads it checks it as any other."""
    architecture = metadata["general.architecture"]

    def said(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    heads, hidden = said("attention.head_count"), said("embedding_length")
    config = {
        "model_type": rules.model_type, "hidden_size": hidden, "num_hidden_layers": said("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": said("attention.head_count_kv") or heads, "head_dim": said("attention.key_length"),
        "intermediate_size": said("feed_forward_length"), "max_position_embeddings": said("context_length"),
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"), "rope_theta": said("rope.freq_base"),
        "num_experts": said("expert_count"), "moe_intermediate_size": said("expert_feed_forward_length"),
        "vocab_size": shapes["token_embd.weight"][0] if shapes.get("token_embd.weight") else None,
        "tie_word_embeddings": "output.weight" not in shapes,
    }  # fmt: skip
    return {key: value for key, value in config.items() if value is not None}


def claims(metadata: Mapping[str, Any]) -> str | None:
    """Return in one sentence what a file says of its origin, which anybody may have written; None where it says nothing.

    >>> claims({"general.name": "Tiny", "general.base_model.0.repo_url": "https://huggingface.co/a/b", "general.license": "mit"})
    "the file says of itself, which nothing checks: name 'Tiny', base_model.0.repo_url 'https://huggingface.co/a/b'"
    """
    keys: Collection[str] = [
        *(key for key in _CLAIMS if key in metadata),
        *sorted(key for key in metadata if _OF_BASE.fullmatch(key))[:8],
        *(key for key in _OF_QUANTISER if key in metadata),
    ]
    said = [f"{key.removeprefix('general.')} {shown(metadata[key])}" for key in keys if isinstance(metadata[key], str)]
    return f"the file says of itself, which nothing checks: {', '.join(said)}" if said else None

"""Where each architecture keeps its attention projections, as data: one row joins a family, no code does.

A row is tested by making a small model of every `model_type` it names and comparing each block with the model's own
parameter, so a new one needs a line here and a line in the test's table of configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelassay.errors import CheckpointError, did_you_mean
from modelassay.models.gate import one_line, shown

Role = Literal["q", "k", "v", "o"]
ROLES: tuple[Role, ...] = ("q", "k", "v", "o")


@dataclass(frozen=True, kw_only=True)
class Part:
    """How one role lies in the tensor that holds it."""

    module: str
    """Module below the layer; its parameter is `weight`."""
    shares: tuple[Role, ...] = ()
    """Roles that share the tensor, in storing order; empty where the role has it alone."""
    grouped: bool = False
    """The shared tensor repeats `shares` once per key-value head instead of once."""
    inputs_first: bool = False
    """Stored [inputs, outputs], as GPT-2's Conv1D does, so that roles share columns."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A family of checkpoints that name their attention tensors alike."""

    model_types: tuple[str, ...]
    """Values of config.json's `model_type`."""
    prefixes: tuple[str, ...]
    """What stands before `layer`: depends on the head a model was saved with, or on what wraps it."""
    layer: str
    """Path of a layer's attention, with `{layer}` counting from 0."""
    parts: Mapping[Role, Part]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What config.json says of a model, whatever it calls it."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_extra_layers: int
    """Layers stored after the last one that are not part of the stack (multi-token prediction)."""

    def shape(self, role: Role) -> tuple[int, int]:
        """Return (outputs, inputs) of a role's matrix.

        >>> sizes = Sizes(num_layers=1, hidden_size=20, num_heads=4, num_kv_heads=2, head_dim=6, vocab_size=9, num_extra_layers=0)
        >>> [sizes.shape(role) for role in ROLES]
        [(24, 20), (12, 20), (12, 20), (20, 24)]
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q": (queries, self.hidden_size),
            "k": (keys, self.hidden_size),
            "v": (keys, self.hidden_size),
            "o": (self.hidden_size, queries),
        }[role]


def _separate(q: str, k: str, v: str, o: str) -> dict[Role, Part]:
    return {role: Part(module=module) for role, module in zip(ROLES, (q, k, v, o), strict=True)}


def _fused(qkv: str, o: str, *, grouped: bool = False, inputs_first: bool = False) -> dict[Role, Part]:
    shared = Part(module=qkv, shares=("q", "k", "v"), grouped=grouped, inputs_first=inputs_first)
    return {"q": shared, "k": shared, "v": shared, "o": Part(module=o, inputs_first=inputs_first)}


_LANGUAGE_MODEL = ("model.", "", "model.language_model.", "language_model.model.", "language_model.")

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        model_types=(
            *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen2_vl_text", "qwen3", "qwen3_moe"),
            *("gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "olmoe", "granite", "granitemoe"),
            *("cohere", "cohere2", "glm", "glm4", "starcoder2", "stablelm", "smollm3", "seed_oss", "ernie4_5"),
            *("exaone4", "arcee", "helium", "phimoe", "gpt_oss", "PanguProMoE"),
        ),
        prefixes=_LANGUAGE_MODEL,
        layer="layers.{layer}.self_attn.",
        parts=_separate("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    Architecture(
        model_types=("phi",),
        prefixes=_LANGUAGE_MODEL,
        layer="layers.{layer}.self_attn.",
        parts=_separate("q_proj", "k_proj", "v_proj", "dense"),
    ),
    Architecture(
        model_types=("phi3",),
        prefixes=_LANGUAGE_MODEL,
        layer="layers.{layer}.self_attn.",
        parts=_fused("qkv_proj", "o_proj"),
    ),
    Architecture(
        model_types=("opt",),
        prefixes=("model.decoder.", "decoder.", ""),
        layer="layers.{layer}.self_attn.",
        parts=_separate("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    Architecture(
        model_types=("gpt2",),
        prefixes=("transformer.", ""),
        layer="h.{layer}.attn.",
        parts=_fused("c_attn", "c_proj", inputs_first=True),
    ),
    Architecture(
        model_types=("qwen",),
        prefixes=("transformer.", ""),
        layer="h.{layer}.attn.",
        parts=_fused("c_attn", "c_proj"),
    ),
    Architecture(
        model_types=("gptj",),
        prefixes=("transformer.", ""),
        layer="h.{layer}.attn.",
        parts=_separate("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    Architecture(
        model_types=("gpt_neo",),
        prefixes=("transformer.", ""),
        layer="h.{layer}.attn.attention.",
        parts=_separate("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    Architecture(
        model_types=("gpt_neox",),
        prefixes=("gpt_neox.", ""),
        layer="layers.{layer}.attention.",
        parts=_fused("query_key_value", "dense", grouped=True),
    ),
    Architecture(
        model_types=("bloom",),
        prefixes=("transformer.", ""),
        layer="h.{layer}.self_attention.",
        parts=_fused("query_key_value", "dense", grouped=True),
    ),
    Architecture(
        model_types=("mpt",),
        prefixes=("transformer.", ""),
        layer="blocks.{layer}.attn.",
        parts=_fused("Wqkv", "out_proj"),
    ),
    Architecture(
        model_types=("bert", "roberta", "xlm-roberta", "electra"),
        prefixes=("bert.", "roberta.", "electra.", ""),
        layer="encoder.layer.{layer}.attention.",
        parts=_separate("self.query", "self.key", "self.value", "output.dense"),
    ),
    Architecture(
        model_types=("distilbert",),
        prefixes=("distilbert.", ""),
        layer="transformer.layer.{layer}.attention.",
        parts=_separate("q_lin", "k_lin", "v_lin", "out_lin"),
    ),
)

REMOTE_CODE = ("qwen", "PanguProMoE")
"""Model types that transformers does not know (their code is never run); their rows rest on the published modeling files."""

ALIASES = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_vl_text", "qwen2_5_vl_text": "qwen2_vl_text"}
"""Model types under which a row's checkpoints were also published."""

CONFIG_KEYS: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "num_extra_layers": ("num_nextn_predict_layers",),
}
"""What config.json may call each of `Sizes`, in the order tried."""

CONFIG_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "llama": {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 32, "vocab_size": 32000},
    "gemma3_text": {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "vocab_size": 262208},
}
"""What a config that is nested in a wrapper's leaves out because the configuration class of transformers has it
(Gemma 3, LLaVA); a test holds these against the classes."""

MAX_LAYERS = 4096
"""Layers of a model; the deepest published ones have 1,000."""
MAX_SIZE = 2**31 - 1
"""Of every other size."""

_NESTED = ("text_config", "language_config", "llm_config")


def language_config(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], bool]:
    """Return the language model's type, its configuration, and whether that lay nested in a wrapper's.

    >>> language_config({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    ('gemma3_text', {'model_type': 'gemma3_text'}, True)
    >>> language_config({"model_type": "gpt2", "n_layer": 2})[0]
    'gpt2'
    """
    for key in _NESTED:
        if isinstance(nested := config.get(key), dict):
            return _model_type(nested.get("model_type", config.get("model_type"))), nested, True
    return _model_type(config.get("model_type")), config, False


def _model_type(value: object) -> str:
    return value if isinstance(value, str) else shown(value)


def find_architecture(model_type: str) -> Architecture | None:
    """Return the row of a model type, None where there is none.

    >>> find_architecture("roberta").layer
    'encoder.layer.{layer}.attention.'
    >>> find_architecture("rwkv") is None
    True
    """
    name = ALIASES.get(model_type, model_type)
    return next((row for row in ARCHITECTURES if name in row.model_types), None)


def closest_architecture(model_type: str) -> str:
    """Return ``"; did you mean 'x'?"`` for a model type that is almost one of the table's, or an empty string."""
    return did_you_mean(model_type[:60], [name for row in ARCHITECTURES for name in row.model_types])


def read_sizes(config: Mapping[str, Any], where: str) -> Sizes:
    """Return the sizes a config.json tells, under whichever names it uses.

    Missing key-value heads mean as many as heads, a missing head dimension means hidden size / heads.

    Raises:
        CheckpointError: a size is missing or is not a positive whole number of a size that a model may have, or the heads
            do not share the key-value heads evenly.
    """
    model_type, own, nested = language_config(config)
    sizes: dict[str, Any] = {"num_extra_layers": 0}
    if nested:
        sizes |= CONFIG_DEFAULTS.get(model_type, {})
    for name, keys in CONFIG_KEYS.items():
        value = next((own[key] for key in keys if own.get(key) is not None), None)
        if value is not None:
            sizes[name] = value
    if "num_heads" in sizes:
        sizes.setdefault("num_kv_heads", sizes["num_heads"])
        if "head_dim" not in sizes and type(sizes.get("hidden_size")) is type(sizes["num_heads"]) is int:
            sizes["head_dim"] = sizes["hidden_size"] // max(sizes["num_heads"], 1)
    for name, keys in CONFIG_KEYS.items():
        value, least = sizes.get(name), int(name != "num_extra_layers")
        most = MAX_LAYERS if name.endswith("layers") else MAX_SIZE
        if type(value) is not int or not least <= value <= most:
            bounds = f"at least {least}" if type(value) is not int or value < least else f"at most {most:,}"
            raise CheckpointError(
                f"{one_line(where)}: {' or '.join(keys)}: expected a whole number of {bounds}, got {shown(value)}; "
                f"take config.json from the model's author, or add the key"
            )
    if sizes["num_heads"] % sizes["num_kv_heads"]:
        raise CheckpointError(
            f"{one_line(where)}: {sizes['num_heads']} heads cannot share {sizes['num_kv_heads']} key-value heads evenly; "
            f"take config.json from the model's author"
        )
    return Sizes(**sizes)

"""What names and shapes of tensors cannot tell, by `model_type`, and what config.json says of a model's sizes.

Where the parts of a layer lie is told by `recognise`. A row here says only in which order roles share a tensor, which norms multiply by
one plus what is stored, and where a name means something else; `--layout FILE` adds rows of the same fields (`overrides`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from modelassay.errors import CheckpointError, printable
from modelassay.models.gate import one_line, shown

Role = str
"""Projections of attention; those with a hyphen are the factors of multi-head latent attention, down (a) and up again (b)."""
ROLES: tuple[Role, ...] = ("q", "k", "v", "o")
EVERY_ROLE: tuple[Role, ...] = ("q", "q-a", "q-b", "k", "v", "kv-a", "kv-b", "o")
"""In the order in which a layer's matrices stand."""

INNER_ROLES: Final[frozenset[str]] = frozenset({"q-b", "kv-b"})
"""Factors that stand between two others and touch no hidden dimension."""

Turns = Literal["once", "kv-heads", "heads"]


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How q, k and v lie in one tensor."""

    shares: tuple[Role, ...]
    """In storing order."""
    turns: Turns | int
    """How often they take turns: all of q, then all of k and of v; once for each key-value head or head; or that often."""


_ONCE = Sharing(shares=("q", "k", "v"), turns="once")
_BY_GROUP = Sharing(shares=("q", "k", "v"), turns="kv-heads")

FUSED: Final[Mapping[str, Sharing]] = {
    **dict.fromkeys(["phi3", "phi4_multimodal", "phi3_v", "phi4mm"], _ONCE),
    **dict.fromkeys(["gpt2", "openai-gpt", "decision_transformer", "imagegpt"], _ONCE),
    **dict.fromkeys(["mpt", "dbrx", "modernbert", "nomic_bert", "qwen", "baichuan", "chatglm"], _ONCE),
    **dict.fromkeys(["gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "falcon", "RefinedWeb", "RefinedWebModel"], _BY_GROUP),
    **dict.fromkeys(["gpt_bigcode", "deberta", "internlm2"], _BY_GROUP),
    "codegen": Sharing(shares=("q", "v", "k"), turns=4),
}  # fmt: skip
"""Order in a shared tensor, from the modeling files of transformers or, for remote code, of the model's authors."""

QUERY_GATES: Final = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
"""Model types whose `q_proj` holds for each head the query, then a gate of the same size."""

NORM_PLUS_ONE: Final = frozenset({
    "gemma", "gemma2", "gemma3_text", "vaultgemma", "recurrent_gemma", "nemotron", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text",
    "t5gemma", "t5gemma2", "step3p7_text", "glm5_next",
})  # fmt: skip
"""Model types whose norms multiply by one plus the stored weight."""

INTERLEAVED: Final = frozenset({"gpt_oss"})
"""Model types whose `gate_up_proj` holds a neuron's gate and up side by side."""

HEADS_FIRST: Final = frozenset({"xlnet"})
"""Model types that store projections as [hidden size, heads, head dimension]."""

OTHERWISE: Final[Mapping[str, Mapping[str, str]]] = {
    "qwen": {"gate": "w2", "up": "w1", "down": "c_proj"},  # c_proj(w1(x) * silu(w2(x)))
    "nomic_bert": {"gate": "fc12", "up": "fc11", "down": "fc2"},
}
"""Modules of the feed-forward network whose names mean something else elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """A row that a user adds: what `--layout FILE` says of one model type. None and empty leave the question to names and shapes."""

    model_type: str
    layer: str | None = None
    """What the names of a layer's tensors begin with, ``{layer}`` counting from 0."""
    modules: Mapping[str, str] | None = None
    """Module below the layer by role; ``embedding`` by its whole name."""
    sharing: Sharing | None = None
    norm_plus_one: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What config.json says of a model, whatever it calls it."""

    num_layers: int
    """Of an encoder-decoder, the encoder's."""
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int | None
    """None where config.json counts no vocabulary, as of a vision transformer."""
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


CONFIG_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "attention_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("head_dim", "d_kv", "kv_channels", "attention_head_dim"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "num_extra_layers": ("num_nextn_predict_layers",),
}  # fmt: skip
"""What config.json may call each of `Sizes`, in the order tried."""
INNER_KEYS: Final = (
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "d_ff",
    "encoder_ffn_dim",
    "hidden_dim",
    "dff",
    "d_inner",
    "ffn_hidden_size",
)
"""What it may call the width of the feed-forward network."""
NUM_DECODER_LAYERS: Final = ("num_decoder_layers", "decoder_layers")

MAX_LAYERS = 4096
"""Layers of a model; the deepest published ones have 1,000."""
MAX_SIZE = 2**31 - 1
"""Of every other size."""

_NESTED = ("text_config", "language_config", "llm_config")
_REQUIRED = ("num_layers", "hidden_size", "num_heads")


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


def stated(own: Mapping[str, Any], name: str) -> Any:
    """Return what a configuration says of one of `Sizes` under any of its keys, None where nothing."""
    return next((own[key] for key in CONFIG_KEYS[name] if own.get(key) is not None), None)


def read_sizes(config: Mapping[str, Any], where: str) -> Sizes:
    """Return the sizes a config.json tells, under whichever names it uses.

    Missing key-value heads mean as many as heads (one where it says `multi_query`), a missing head dimension means hidden size / heads.
    What a configuration leaves out because transformers' class for its model type has it as a default is taken from that
    class, which is imported only then.

    Raises:
        CheckpointError: a size is missing or is not a positive whole number of a size that a model may have, or the heads
            do not share the key-value heads evenly.
    """
    model_type, own, nested = language_config(config)
    sizes: dict[str, Any] = {"num_extra_layers": 0, "vocab_size": None}
    sizes |= {name: value for name in CONFIG_KEYS if (value := stated(own, name)) is not None}
    if any(name not in sizes for name in _REQUIRED) or (nested and "num_kv_heads" not in sizes):
        sizes = _class_sizes(model_type, own) | sizes
    if own.get("multi_query") is True and own.get("new_decoder_architecture") is not True:
        sizes["num_kv_heads"] = 1
    if isinstance(attention := own.get("attn_config"), dict) and attention.get("kv_n_heads") is not None:
        sizes["num_kv_heads"] = attention["kv_n_heads"]
    if "num_heads" in sizes:
        sizes.setdefault("num_kv_heads", sizes["num_heads"])
        if "head_dim" not in sizes and type(sizes.get("hidden_size")) is type(sizes["num_heads"]) is int:
            sizes["head_dim"] = max(sizes["hidden_size"] // max(sizes["num_heads"], 1), 1)
    for name, keys in CONFIG_KEYS.items():
        value, least = sizes.get(name), int(name != "num_extra_layers")
        if name == "vocab_size" and value is None:
            continue
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


def _class_sizes(model_type: str, own: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of transformers' configuration class given those that are stated; none where it has no such class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return {}
    every = {key for keys in CONFIG_KEYS.values() for key in keys}
    numbers = {key: value for key, value in own.items() if key in every and type(value) is int}
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        kind: Any = CONFIG_MAPPING[model_type]
        configuration = kind(**numbers)
    except Exception as error:  # whatever a class of transformers checks
        raise CheckpointError(
            f"config.json: transformers refuses its sizes for {shown(model_type)}: {printable(str(error))[:200]}; take config.json from "
            "the model's author"
        ) from error
    finally:
        logging.set_verbosity(level)
    values = {name: getattr(configuration, keys[0], None) for name, keys in CONFIG_KEYS.items()}
    return {name: value for name, value in values.items() if type(value) is int}

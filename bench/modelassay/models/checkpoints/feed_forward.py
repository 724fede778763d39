"""Which tensors of a layer are its norms and its feed-forward network, told by their names; shapes are checked where they are read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from modelassay.models.checkpoints.architectures import OTHERWISE, Overrides
from modelassay.models.checkpoints.projections import Layer
from modelassay.models.checkpoints.recognise import Layout

NORMS: Final = ("norm-1", "norm-2", "post-norm-1", "post-norm-2")
"""Before attention, before the feed-forward network, and after each of them."""
NETWORK: Final = ("gate", "up", "gate-up", "down")
"""Matrices of a feed-forward network; ``gate-up`` is both in one tensor."""

_MODULES: Final[Mapping[str, str]] = {
    "gate": r"gate_proj|wi_0",
    "up": r"up_proj|w3|v1|wi_1|wi|c_fc|fc1|fc_in|dense_h_to_4h|lin1|intermediate\.dense|intermediate_dense|ffn|layer_1|ffn\.0|linear1",
    "gate-up": r"gate_up_proj|Wi|input_linear",
    "down": r"down_proj|w2|wo|Wo|c_proj|fc2|fc_out|dense_4h_to_h|lin2|output\.dense|output_dense|ffn_output|layer_2|ffn\.2|linear2|output_linear",
    "first": "w1",
}  # fmt: skip
"""What models call them; ``first`` is the gate beside a third matrix, else up."""
_NETWORK = {role: re.compile(rf"(?:.*\.)?(?:{names})") for role, names in _MODULES.items()}
_NO_NETWORK = re.compile(
    r"att(n|ention)|mamba|ssm|\bconv|lru|router|indexer|bottleneck|per_layer|temporal_block", re.IGNORECASE
)
_NORM = re.compile(r"norm|(^|\.|_)ln(_|\d|$)", re.IGNORECASE)

_BEFORE_ATTENTION = re.compile(
    r"input_layernorm|ln_1|attention_norm|attn_norm|ln_attn|norm_?1|layer_?norm_?1|layernorm_before|attention_layernorm|operator_norm"
    r"|temporal_pre_norm|attention\.ln|attention\.LayerNorm|attention\.self_attn_layer_norm|self_attn_layer_norm|layer\.0\.layer_norm"
    r"|norm_attn_norm\.norm_1"
)
_BEFORE_NETWORK = re.compile(
    r"ln_2|ffn_norm|mlp_norm|ln_mlp|norm_?2|layer_?norm_?2|layernorm_after|feedforward_layernorm|pre_ff_layernorm|pre_feedforward_layernorm"
    r"|pre_mlp_layernorm|channel_pre_norm|ln|LayerNorm|final_layer_norm|layer\.[12]\.layer_norm|norm_attn_norm\.norm_2|post_attention_layernorm"
)
_AFTER_ATTENTION = re.compile(
    r"attention\.output\.LayerNorm|sa_layer_norm|rel_attn\.layer_norm|post_self_attn_layernorm|post_attention_norm|attention\.LayerNorm"
    r"|self_attn_layer_norm|ln_1|norm1|layer_norm|post_attention_layernorm"
)
_AFTER_NETWORK = re.compile(
    r"output\.LayerNorm|output_layer_norm|ff\.layer_norm|post_mlp_layernorm|post_feedforward_layernorm|full_layer_layer_norm|post_ffw_norm"
    r"|final_layer_norm|ln_2|norm2"
)
_ALONE = re.compile(r"norm|input_layernorm|ln_1")
"""The one norm of a layer whose attention and network read the same input."""
_AFTER_EACH = frozenset({
    "bart",
    "marian",
    "openai-gpt",
    "nomic_bert",
    "wav2vec2",
    "distilbert",
    "xlnet",
    "albert",
    "mpnet",
})
"""Model types whose norms stand after attention and after the network, though their names do not say so."""
_OF_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embeddings\.LayerNorm|embeddings\.layer_norm|layernorm_embedding|emb_ln)\.weight"
)


def layer_names(
    names: Collection[str], layout: Layout, model_type: str, row: Overrides | None = None
) -> list[dict[str, list[str]]]:
    """Return for each layer the tensors of `NORMS` and `NETWORK`, those it has; experts in order.

    Where norms stand after attention and after the network, as in BERT, what feeds each of these is the norm before it: of the
    first layer that of the embedding. Where a layer has one norm that feeds both, it stands for both.
    """
    below = _below(names, layout.layers)
    layers = [_roles(tensors, layer, model_type, row) for tensors, layer in zip(below, layout.layers, strict=True)]
    embedding = next((name for name in names if _OF_EMBEDDING.fullmatch(name)), None)
    for at, roles in enumerate(layers):
        if (
            "norm-1" in roles
            or "norm-2" in roles
            or "post-norm-1" not in roles
            or not _feeds_on(layout.layers[at], below[at], model_type)
        ):
            continue
        roles["norm-2"] = roles["post-norm-1"]
        first = at == 0 or layout.layers[at - 1].number >= layout.layers[at].number
        if not first and "post-norm-2" in layers[at - 1]:
            roles["norm-1"] = layers[at - 1]["post-norm-2"]
        elif first and embedding is not None:
            roles["norm-1"] = [embedding]
    return layers


def _feeds_on(layer: Layer, tensors: Mapping[str, str], model_type: str) -> bool:
    """Return whether a norm's output is what the stream goes on as, so that the next part reads it: not where it is added to the stream."""
    return model_type in _AFTER_EACH or any(name.endswith("output.LayerNorm.weight") for name in tensors)


def _below(names: Collection[str], layers: Sequence[Layer]) -> list[dict[str, str]]:
    """Return for each layer its tensors by their names below it, without the attention's own and those of another attention of the layer."""
    by_path: dict[str, dict[str, str]] = {layer.path: {} for layer in layers}
    lengths = sorted({layer.path.count(".") for layer in layers})
    for name in sorted(names, key=_by_number):
        parts = name.split(".")
        for length in lengths:
            path = ".".join(parts[:length]) + "."
            if path in by_path:
                by_path[path][name.removeprefix(path)] = name
    below = []
    for layer in layers:
        own = {part.tensor for part in layer.parts.values()}
        below.append({
            rest: name for rest, name in by_path[layer.path].items() if name not in own and _is_of(layer.sub, rest)
        })
    return below


def _by_number(name: str) -> list[tuple[int, str]]:
    """Order ``experts.10`` behind ``experts.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _is_of(sub: int | None, rest: str) -> bool:
    """Return whether a tensor belongs to one of the several attentions of a layer: by its number, or to the first."""
    if sub is None:
        return True
    number = None if "experts." in rest else next((int(part) for part in rest.split(".") if part.isdigit()), None)
    return sub == (0 if number is None else number)


def _roles(tensors: Mapping[str, str], layer: Layer, model_type: str, row: Overrides | None) -> dict[str, list[str]]:
    modules = {stem: name for rest, name in tensors.items() if (stem := _module(rest, layer.sub)) is not None}
    stated = {} if row is None else dict(row.modules or {})
    otherwise = {
        role: re.compile(rf"(?:.*\.)?{re.escape(leaf)}") for role, leaf in OTHERWISE.get(model_type, {}).items()
    }
    roles: dict[str, list[str]] = {}
    for stem, name in modules.items():
        if _NORM.search(stem) or _NO_NETWORK.search(stem):
            continue
        patterns = otherwise or _NETWORK
        if (role := next((role for role, pattern in patterns.items() if pattern.fullmatch(stem)), None)) is not None:
            roles.setdefault(role, []).append(name)
    if first := roles.pop("first", None):
        roles["gate" if "up" in roles else "up"] = first
    roles |= _norms(modules, model_type, has_network="up" in roles or "gate-up" in roles)
    for role, module in stated.items():
        if role in NORMS or role in NETWORK:
            roles[role] = [
                name for stem, name in modules.items() if re.fullmatch(re.escape(module).replace("\\*", r"\d+"), stem)
            ]
    return roles


def _module(rest: str, sub: int | None) -> str | None:
    """Return the module below a layer that a tensor is the weight of, without the number of one of several; None of other tensors."""
    parts = rest.split(".")
    if parts[-1] in {"weight", "gamma"}:
        parts = parts[:-1]
    elif parts[-1] in {"bias", "beta"} or parts[-1].endswith("_bias"):
        return None
    if sub is not None and "experts" not in parts and str(sub) in parts:
        parts.remove(str(sub))
    return ".".join(parts) or None


def _norms(modules: Mapping[str, str], model_type: str, *, has_network: bool) -> dict[str, list[str]]:
    norms = {stem: name for stem, name in modules.items() if _NORM.search(stem)}

    def first(pattern: re.Pattern[str]) -> list[str]:
        return [name for stem, name in norms.items() if pattern.fullmatch(stem)]

    after_each = model_type in _AFTER_EACH or any(
        stem.endswith(("attention.output.LayerNorm", "sa_layer_norm")) for stem in norms
    )
    has_post = "post_feedforward_layernorm" in norms
    has_pre = any(stem in norms for stem in ("pre_feedforward_layernorm", "pre_mlp_layernorm"))
    before, network = first(_BEFORE_ATTENTION), first(_BEFORE_NETWORK)
    after = first(_AFTER_ATTENTION)
    if after_each:
        before, network = [], []
    elif has_pre or has_post:
        network = [name for name in network if "post_attention_layernorm" not in name]
    else:
        after = [name for stem, name in norms.items() if stem == "post_self_attn_layernorm"]
    if after_each or has_pre or has_post:
        after = [name for name in after if name not in before]
    if not before and not network and not after:
        alone = first(_ALONE)
        before, network = alone, alone if has_network else []
    elif before and not network and has_network and not after:
        network = before
    layer = {
        "norm-1": before,
        "norm-2": network,
        "post-norm-1": after,
        "post-norm-2": first(_AFTER_NETWORK) if after else [],
    }
    return {role: found[:1] if not role.endswith("2") else found[-1:] for role, found in layer.items() if found}

"""Which tensors stand in which layer of which stack, told by their names alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from modelassay.models.checkpoints.factors import PACKED

SEPARATE: Final = (
    ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("wq", "wk", "wv"), ("Wq", "Wk", "Wv"),
    ("q", "k", "v"), ("query_proj", "key_proj", "value_proj"), ("to_q", "to_k", "to_v"),
)  # fmt: skip
"""What models call the projections of query, key and value below one module."""
FUSED_NAMES: Final = (
    "qkv_proj",
    "query_key_value",
    "c_attn",
    "Wqkv",
    "wqkv",
    "W_pack",
    "in_proj",
    "in_proj_weight",
    "qkv",
)
"""What they call one tensor of all three."""
LATENT: Final = {
    "q-a": ("q_a_proj",),
    "q-b": ("q_b_proj",),
    "q": ("q_proj",),
    "kv-a": ("kv_a_proj_with_mqa",),
    "kv-b": ("kv_b_proj",),
}
"""The factors of multi-head latent attention."""
OUTPUTS: Final = ("o_proj", "out_proj", "dense", "out_lin", "c_proj", "wo", "Wo", "to_out.0", "o")
"""What they call the projection back, below the same module; else ``output.dense`` beside it."""

_LEAVES = (
    {name for scheme in SEPARATE for name in scheme}
    | set(FUSED_NAMES)
    | {n for names in LATENT.values() for n in names}
)
_LINEAR = re.compile(r"conv1d|A_log$|slope_rate$|(key|query|diagonal|time)_decay$|time_mix")
"""What a module holds whose attention is linear, and so no attention of softmax."""
_ELSEWHERE = re.compile(r"mamba|mixer|linear_attn|(^|\.)conv\b|lru|temporal_block|recurrent|ssm|rwkv")
"""What a layer without attention holds in its place."""
_CROSS = re.compile(r"cross|encoder_attn|EncDecAttention", re.IGNORECASE)
_TOWER = re.compile(
    r"visi(on|ual)|image|img|audio|speech|qformer|perceiver|resampler|projector|(^|[._])(mtp|draft|eagle|vit|dac|codec)",
    re.IGNORECASE,
)
"""Stacks beside a language model's, and layers that predict further tokens."""
_INDEX = re.compile(r"(?<![^.])(\d+)(?=\.)")
_SUFFIXES = ("", ".weight", *PACKED)
_WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = ("module.", "base_model.model.")


def plain_names(names: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return each tensor's name without what wraps the model, with the stored one, and what was removed.

    `torch.compile`, data parallel training and PEFT put names of their own before or between a model's: ``_orig_mod.``, ``module.``
    and ``base_model.model.`` where all tensors have them, ``.base_layer.``. Names that would meet are left as they are.

    >>> plain_names(["module._orig_mod.h.0.attn.c_attn.weight"])
    ({'h.0.attn.c_attn.weight': 'module._orig_mod.h.0.attn.c_attn.weight'}, ('module.', '_orig_mod.'))
    """
    plain, removed = {name: name for name in names}, dict[str, None]()
    while plain:
        outer = next((prefix for prefix in _OUTER if all(name.startswith(prefix) for name in plain)), None)
        if outer is not None:
            shorter = {name.removeprefix(outer): stored for name, stored in plain.items()}
            removed[outer] = None
        else:
            shorter = {}
            for name, stored in plain.items():
                removed |= dict.fromkeys(_WRAPPED.findall(name))
                bare = _WRAPPED.sub("", name)
                if ".base_layer." in bare:
                    removed[".base_layer."] = None
                shorter[bare.replace(".base_layer.", ".")] = stored
        if len(shorter) < len(plain):
            return {name: name for name in names}, ()
        if shorter == plain:
            break
        plain = shorter
    return plain, tuple(removed)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one attention stands."""

    layer: int
    """Number that the names have for the layer."""
    path: str
    """What the names of the layer's tensors begin with."""
    sub: int | None
    """Number of the attention in a layer that has several, or None."""
    module: str
    """Whole name of the module that holds the projections."""
    leaves: Mapping[str, str]
    """Name below it and name of the tensor, or of the module whose weights a quantiser packed."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack of layers that have attention."""

    prefix: str
    """What stands before the layer's number, the dot included."""
    places: tuple[Place, ...]
    """In order of depth."""
    cross: tuple[str, ...] = ()
    """Modules of cross-attention beside it."""
    without: Mapping[int, str] = field(default_factory=dict)
    """Layers without attention, and what they have instead."""

    @property
    def numbers(self) -> list[int]:
        """Numbers of the layers that have attention, each once."""
        return sorted({place.layer for place in self.places})


def is_tower(prefix: str) -> bool:
    """Return whether a stack's name says that it stands beside a language model.

    >>> is_tower("vision_tower.encoder.layers."), is_tower("model.layers.")
    (True, False)
    """
    return _TOWER.search(prefix) is not None


def find_stacks(names: Collection[str]) -> dict[str, Stack]:
    """Return every stack of layers with attention by its prefix."""
    modules, sharers, children = _attention_modules(names)
    by_prefix: dict[str, list[Place]] = {}
    cross: dict[str, list[Place]] = {}
    linear: dict[str, dict[int, str]] = {}
    for module, leaves in modules.items():
        numbers = list(_INDEX.finditer(module + "."))
        if not numbers:
            continue
        prefix, layer = module[: numbers[0].start()], int(numbers[0][1])
        sub = int(numbers[1][1]) if len(numbers) > 1 else None
        place = Place(layer=layer, path=f"{prefix}{numbers[0][1]}.", sub=sub, module=module, leaves=leaves)
        below = module[numbers[0].end() + 1 :]
        if any(_LINEAR.search(child) for child in children[module]):
            linear.setdefault(prefix, {})[layer] = "linear attention"
        elif _CROSS.search(below):
            cross.setdefault(prefix, []).append(place)
        else:
            by_prefix.setdefault(prefix, []).append(place)
    for module in sharers:
        if number := _INDEX.search(module + "."):
            linear.setdefault(module[: number.start()], {}).setdefault(
                int(number[1]), "queries alone, for keys of another layer"
            )
    return {prefix: _stack(prefix, places, cross.get(prefix, []), linear.get(prefix, {}), names)
            for prefix, places in by_prefix.items()}  # fmt: skip


def _attention_modules(names: Collection[str]) -> tuple[dict[str, dict[str, str]], list[str], dict[str, set[str]]]:
    """Return modules that hold query, key and value, with the projections' names, those of a query alone, and what stands below each."""
    held: dict[str, dict[str, str]] = {}
    children: dict[str, set[str]] = {}
    for name in sorted(names):
        for suffix in _SUFFIXES:
            if name.endswith(suffix):
                stem = name[: len(name) - len(suffix)]
                module, _, leaf = stem.rpartition(".")
                if module and leaf in _LEAVES:
                    held.setdefault(module, {}).setdefault(
                        leaf, name if suffix in ("", ".weight") else f"{stem}.weight"
                    )
    for name in names:
        parts = name.split(".")
        for at in range(1, len(parts)):
            if (module := ".".join(parts[:at])) in held:
                children.setdefault(module, set()).add(parts[at])
    modules = {module: leaves for module, leaves in held.items() if _is_attention(module, leaves)}
    sharers = [
        module
        for module, leaves in held.items()
        if module not in modules and any(scheme[0] in leaves for scheme in SEPARATE)
    ]
    return modules, sharers, children


def _is_attention(module: str, leaves: Mapping[str, str]) -> bool:
    if "in_proj" in leaves and not module.endswith("self"):  # mamba's
        leaves = {leaf: name for leaf, name in leaves.items() if leaf != "in_proj"}
    if any(leaf in leaves for leaf in FUSED_NAMES) or "kv_a_proj_with_mqa" in leaves:
        return True
    return any(scheme[0] in leaves and (scheme[1] in leaves or scheme[2] in leaves) for scheme in SEPARATE)


def _stack(
    prefix: str, places: list[Place], cross: list[Place], linear: Mapping[int, str], names: Collection[str]
) -> Stack:
    """Put a stack together: layers that have only cross-attention count by that one, those without any by what they have."""
    layers = {place.layer for place in places}
    places = sorted(places + [p for p in cross if p.layer not in layers], key=lambda p: (p.layer, p.sub or 0))
    layers = {place.layer for place in places}
    without = {layer: what for layer, what in linear.items() if layer not in layers}
    inside = re.compile(rf"{re.escape(prefix)}(\d+)\.(.+)")
    for name in names:
        if (match := inside.fullmatch(name)) and int(match[1]) not in layers and _ELSEWHERE.search(match[2]):
            without.setdefault(int(match[1]), match[2].split(".")[0])
    several = {place.layer for place in places if sum(p.layer == place.layer for p in places) > 1}
    if not several:
        places = [Place(**{**vars(place), "sub": None}) for place in places]
    return Stack(
        prefix=prefix, places=tuple(places), without=without,
        cross=tuple(place.module for place in cross if place not in places),
    )  # fmt: skip


def expand(stacks: Iterable[Stack]) -> list[str]:
    """Return prefixes with the number of layers, for an error message.

    >>> expand([Stack(prefix="h.", places=())])
    ['h. (0 layers)']
    """
    return [f"{stack.prefix} ({len(stack.numbers)} layers)" for stack in stacks]

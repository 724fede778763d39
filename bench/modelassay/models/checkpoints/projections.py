"""Where the matrices of one layer's attention lie: by role, alone or shared, in shapes that config.json implies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.architectures import (
    EVERY_ROLE,
    FUSED,
    HEADS_FIRST,
    QUERY_GATES,
    Overrides,
    Role,
    Sharing,
    Sizes,
    stated,
)
from modelassay.models.checkpoints.factors import refuse_packed
from modelassay.models.checkpoints.stacks import (
    FUSED_NAMES,
    LATENT,
    OUTPUTS,
    SEPARATE,
    Place,
    Stack,
)
from modelassay.models.gate import one_line, shown

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor names and shapes; a shape may be looked up only when asked for."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where one role's matrix lies."""

    tensor: str
    shape: tuple[int, int]
    """(outputs, inputs), as `torch.nn.Linear` holds it."""
    shares: tuple[tuple[str, int], ...] = ()
    """Roles that share the tensor and their outputs, in storing order; empty where the role has it alone."""
    turns: int = 1
    """How often the sharers take turns."""
    inputs_first: bool = False
    """Stored [inputs, outputs], as GPT-2's Conv1D does, so that roles share columns."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer that has attention."""

    number: int
    """As the names count."""
    path: str
    """What the names of its tensors begin with."""
    sub: int | None
    """Number of the attention in a layer that has several."""
    module: str
    """Name of the module that holds its projections."""
    parts: Mapping[Role, Part]
    head_dim: int


_ATTENTION_LIKE = re.compile(r"att(en|n)|query|qkv|[._][qkvo]_?proj", re.IGNORECASE)
REMEDY: Final = "say where they are with --layout FILE (docs/methods/architectures.md)"


def attention_like(names: Iterable[str], limit: int = 4) -> str:
    """Return the first few names that look like attention, for an error message.

    >>> attention_like(["wte.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"])
    'h.0.attn.c_attn.weight'
    """
    similar = [name for name in names if _ATTENTION_LIKE.search(name) and "norm" not in name]
    return (
        ", ".join(shown(name)[1:-1] for name in similar[:limit])
        + (f" and {len(similar) - limit} more" if len(similar) > limit else "")
        or "none"
    )


@dataclass(frozen=True, kw_only=True)
class Projections:
    """What the parts of one model are told by."""

    where: str
    shapes: Shapes
    own: Mapping[str, Any]
    model_type: str
    sizes: Sizes
    row: Overrides | None

    def stored(self, stack: Stack, count: int) -> int:
        """Return how many layers of a stack the file holds: fewer than ``count`` where several share one."""
        groups, inner = self.own.get("num_hidden_groups"), self.own.get("inner_group_num", 1)
        if type(groups) is int and type(inner) is int:
            return min(count, groups)
        several = len(stack.places) / len(stack.numbers)
        return count // int(several) if several == int(several) and len(stack.places) == count else count

    def require_layers(self, stack: Stack, count: int, notes: list[str]) -> None:
        """Check that every layer that config.json counts has attention, or something known in its place."""
        where, stored = one_line(self.where), self.stored(stack, count)
        if count > len(self.shapes):
            raise CheckpointError(
                f"{where}: config.json counts {count:,} layers, the weights are {len(self.shapes):,} tensors; "
                f"correct config.json, or fetch the checkpoint again"
            )
        if stored < count and stored * len(stack.places) // max(len(stack.numbers), 1) < count:
            notes.append(f"{count} layers share the weights of {stored}")
        self._require_attention(stack, stored)
        if skipped := [layer for layer in sorted(stack.without) if layer < stored]:
            what = ", ".join(dict.fromkeys(printable(stack.without[layer]) for layer in skipped))
            notes.append(
                f"{stored - len(skipped)} of {stored} layers have attention and are read; the others have {what}, which is left out"
            )
        beyond = [place for place in stack.places if place.layer >= stored + self.sizes.num_extra_layers]
        if beyond:
            tensor = next(iter(self.names(beyond[0]).values()))
            raise CheckpointError(
                f"{where}: config.json counts {count} layers, but there is {printable(tensor)}; correct config.json"
            )
        self._require_projections(stack, stored)

    def _require_attention(self, stack: Stack, stored: int) -> None:
        first, present = stack.places[0], set(stack.numbers)
        if lacking := [layer for layer in range(stored) if layer not in present and layer not in stack.without]:
            names = [
                name.replace(first.path, f"{stack.prefix}{layer}.", 1)
                for layer in lacking
                for name in self.names(first).values()
            ]
            raise self.missing(names, stored)

    def _require_projections(self, stack: Stack, stored: int) -> None:
        first = stack.places[0]
        absent = [
            name
            for place in stack.places
            if place.layer < stored
            for name in self.names(place).values()
            if name not in self.shapes
        ]
        for place in stack.places:
            for name in self.names(place).values():
                refuse_packed(self.where, name.removesuffix(".weight"), self.shapes.keys())
        if absent:
            for name in self.names(first).values():
                if name in self.shapes:
                    self._matrix(name)
            raise self.missing(list(dict.fromkeys(absent)), stored)

    def missing(self, names: Sequence[str], count: int) -> CheckpointError:
        """Return what is said of tensors that are not there."""
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        return CheckpointError(
            f"{one_line(self.where)}: {len(names)} attention tensors of {count} layers are missing: "
            f"{printable(', '.join(names[:6]))}{more}; fetch the checkpoint again, or correct config.json"
        )

    def names(self, place: Place) -> dict[Role, str]:
        """Return the tensor of each role, whether it is there or not; roles that share one name the same."""
        leaves = place.leaves
        if self.row is not None and self.row.layer is not None:
            return dict(place.leaves)
        if fused := next((leaves[name] for name in FUSED_NAMES if name in leaves), None):
            names: dict[Role, str] = dict.fromkeys(("q", "k", "v"), fused)
        elif "kv_a_proj_with_mqa" in leaves:
            held = {role: leaves[name] for role, (name,) in LATENT.items() if name in leaves}
            names = {role: held[role] for role in EVERY_ROLE if role in held}
        else:
            scheme = max(SEPARATE, key=lambda scheme: sum(name in leaves for name in scheme))
            names = {
                role: leaves.get(leaf, f"{place.module}.{leaf}.weight")
                for role, leaf in zip(("q", "k", "v"), scheme, strict=True)
            }
        names["o"] = self._output(place)
        if self.row is not None and self.row.modules:
            stated_names = {r: place.path + m for r, m in self.row.modules.items() if r in EVERY_ROLE}
            names |= {r: n if n in self.shapes else f"{n}.weight" for r, n in stated_names.items()}
        return names

    def _output(self, place: Place) -> str:
        outer = place.module.rpartition(".")[0]
        stems = [f"{place.module}.{leaf}" for leaf in OUTPUTS] + [
            f"{outer}.output.dense",
            f"{place.module}.output.dense",
        ]
        for stem in stems:
            for name in (f"{stem}.weight", stem):
                if name in self.shapes:
                    return name
        is_bert = any(leaf in place.leaves for leaf in ("query", "key")) and place.module != f"{place.path}attention"
        return f"{stems[-2]}.weight" if is_bert else f"{stems[0]}.weight"

    def layer(self, place: Place) -> Layer:
        """Return a layer's parts.

        Raises:
            CheckpointError: a shape is not what config.json implies, or nothing tells the order in a shared tensor.
        """
        names = self.names(place)
        if "kv-a" in names:
            parts, head_dim = self._latent(names), self.sizes.head_dim
        elif names.get("q") == names.get("k"):
            parts, head_dim = self._fused(names)
        else:
            parts, head_dim = self._separate(names, place.layer)
        ordered = {role: parts[role] for role in EVERY_ROLE if role in parts}
        return Layer(
            number=place.layer, path=place.path, sub=place.sub, module=place.module, parts=ordered, head_dim=head_dim
        )

    def _head_dims(self, layer: int, num_rows: int) -> list[int]:
        """Return the head dimensions that config.json allows in a layer, and, where it states none, the one that the rows of q imply."""
        sizes = self.sizes
        stated_dims = {**self.own, **self._of_layer(layer)}
        extra = [
            value for key, value in stated_dims.items() if key.endswith("head_dim") and type(value) is int and value > 0
        ]
        implied = [] if stated(self.own, "head_dim") is not None else [num_rows // sizes.num_heads]
        return list(dict.fromkeys([sizes.head_dim, *implied, *extra]))

    def _of_layer(self, layer: int) -> Mapping[str, Any]:
        """Return what config.json says of one layer alone."""
        layers = self.own.get("per_layer_config")
        one = layers.get(str(layer)) if isinstance(layers, dict) else None
        return one if isinstance(one, dict) else {}

    def _kv_heads(self, layer: int) -> list[int]:
        stated_heads = {**self.own, **self._of_layer(layer)}
        extra = [
            value
            for key, value in stated_heads.items()
            if key.endswith("key_value_heads") and type(value) is int and value > 0
        ]
        return list(dict.fromkeys([self.sizes.num_kv_heads, *extra]))

    def _widths(self) -> set[int]:
        """Return the widths that a projection's other side may have: the hidden size, or that of a bottleneck around a layer."""
        widths = (self.sizes.hidden_size, self.own.get("true_hidden_size"))
        return {width for width in widths if type(width) is int}

    def _separate(self, names: Mapping[Role, str], layer: int) -> tuple[dict[Role, Part], int]:
        stored = {role: self._matrix(name) for role, name in names.items()}
        if self.model_type in HEADS_FIRST:
            stored |= {role: stored[role][::-1] for role in ("q", "k", "v")}
        heads, widths, gates = self.sizes.num_heads, self._widths(), (1, 2) if self.model_type in QUERY_GATES else (1,)
        for head_dim in self._head_dims(layer, stored["q"][0]):
            for kv_heads in self._kv_heads(layer):
                rows, keys = heads * head_dim, kv_heads * head_dim
                gated = stored["q"][0] == 2 * rows and 2 in gates
                if (
                    (stored["q"][0] == rows or gated)
                    and stored["k"][0] == stored["v"][0] == keys
                    and stored["o"][1] == rows
                    and {stored["q"][1], stored["k"][1], stored["v"][1], stored["o"][0]} <= widths
                ):
                    parts = {
                        role: Part(
                            tensor=names[role],
                            shape=stored[role],
                            inputs_first=self.model_type in HEADS_FIRST and role != "o",
                        )
                        for role in names
                    }
                    if gated:
                        parts["q"] = Part(tensor=names["q"], shape=(rows, stored["q"][1]), turns=heads,
                                          shares=(("q", rows), ("gate", rows)))  # fmt: skip
                    return parts, head_dim
        role = next(
            (role for role in names if role in {"q", "k", "v", "o"} and stored[role] != self.sizes.shape(role)), "q"
        )
        raise self._other_shape(names[role], self.sizes.shape(role), self.shapes[names[role]])

    def _fused(self, names: Mapping[Role, str]) -> tuple[dict[Role, Part], int]:
        name, width, heads = names["q"], self.sizes.hidden_size, self.sizes.num_heads
        sharing = self._sharing(name)
        shape = self._matrix(name)
        inputs_first = shape[0] == width and shape[1] != width
        total = shape[1] if inputs_first else shape[0]
        sizes = self.sizes
        expected = (heads + 2 * sizes.num_kv_heads) * sizes.head_dim
        if shape[0 if inputs_first else 1] != width or total != expected:
            implied = (expected, width)
            raise self._other_shape(name, implied[::-1] if inputs_first else implied, shape)
        outputs = {role: sizes.shape(role)[0] for role in ("q", "k", "v")}
        turns = (
            sharing.turns
            if isinstance(sharing.turns, int)
            else {"once": 1, "kv-heads": sizes.num_kv_heads, "heads": heads}[sharing.turns]
        )
        if any(rows % turns for rows in outputs.values()):
            raise CheckpointError(
                f"{one_line(self.where)}: {printable(name)}: q, k and v cannot take {turns} turns; correct --layout"
            )
        shares = tuple((role, outputs[role]) for role in sharing.shares)
        parts: dict[Role, Part] = {
            role: Part(tensor=name, shape=(outputs[role], width), shares=shares, turns=turns, inputs_first=inputs_first)
            for role in ("q", "k", "v")
        }
        back = self._matrix(names["o"])
        if sorted(back) != sorted(sizes.shape("o")) or (not inputs_first and back != sizes.shape("o")):
            raise self._other_shape(names["o"], sizes.shape("o"), back)
        parts["o"] = Part(tensor=names["o"], shape=sizes.shape("o"), inputs_first=inputs_first)
        return parts, sizes.head_dim

    def _sharing(self, name: str) -> Sharing:
        if self.row is not None and self.row.sharing is not None:
            return self.row.sharing
        if name.endswith("in_proj_weight"):  # torch.nn.MultiheadAttention
            return Sharing(shares=("q", "k", "v"), turns="once")
        if self.model_type not in FUSED:
            raise CheckpointError(
                f"{one_line(self.where)}: {printable(name)} holds q, k and v, and nothing tells their order for model_type "
                f"{shown(self.model_type)}: all of q, then k, then v (as in phi3), by turns for each of {self.sizes.num_kv_heads} "
                f"key-value heads (as in gpt_neox), or another; {REMEDY}"
            )
        return FUSED[self.model_type]

    def _latent(self, names: Mapping[Role, str]) -> dict[Role, Part]:
        width, stored = self.sizes.hidden_size, {role: self._matrix(name) for role, name in names.items()}
        inner = {key: self.own.get(key) for key in ("q_lora_rank", "kv_lora_rank", "v_head_dim")}
        queries = inner["q_lora_rank"] if "q-b" in stored else None
        expected: dict[str, tuple[int | None, int | None]] = {
            "q": (None, width), "q-a": (queries, width), "q-b": (None, queries), "kv-a": (None, width), "kv-b": (None, inner["kv_lora_rank"]),
            "o": (width, self.sizes.num_heads * inner["v_head_dim"] if type(inner["v_head_dim"]) is int else None),
        }  # fmt: skip
        for role, shape in stored.items():
            if any(want is not None and want != got for want, got in zip(expected[role], shape, strict=True)):
                implied = tuple(got if want is None else want for want, got in zip(expected[role], shape, strict=True))
                raise self._other_shape(names[role], implied, shape)
        return {role: Part(tensor=names[role], shape=shape) for role, shape in stored.items()}

    def _matrix(self, name: str) -> tuple[int, int]:
        """Return the shape of a stored matrix, of [hidden size, heads, head dimension] the last two as one."""
        shape = self.shapes[name]
        if len(shape) == 3 and self.model_type in HEADS_FIRST:
            return shape[0], math.prod(shape[1:])
        if len(shape) != 2:
            raise CheckpointError(
                f"{one_line(self.where)}: {printable(name)}: a projection is a matrix, got {shown(list(shape))}, a convolution perhaps; "
                "no method here reads it"
            )
        return shape[0], shape[1]

    def _other_shape(self, name: str, implied: Sequence[int], shape: Sequence[int]) -> CheckpointError:
        return CheckpointError(
            f"{one_line(self.where)}: {printable(name)}: config.json implies a shape of {list(implied)}, got {shown(list(shape))}; "
            f"is config.json that of these weights?"
        )

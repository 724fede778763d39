"""The layout of a model: where each projection of each layer lies, told by names and shapes and checked against config.json.

A pure function: no file is opened. `model_type` decides only what neither names nor shapes can tell (`architectures`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.architectures import (
    EVERY_ROLE,
    NUM_DECODER_LAYERS,
    Overrides,
    language_config,
    read_sizes,
)
from modelassay.models.checkpoints.projections import REMEDY, Layer, Projections, Shapes, attention_like
from modelassay.models.checkpoints.stacks import (
    Place,
    Stack,
    expand,
    find_stacks,
    is_tower,
)
from modelassay.models.gate import one_line, shown


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the attention of a model lies."""

    prefixes: tuple[str, ...]
    """What stands before a layer's number, by stack in order of depth."""
    layers: tuple[Layer, ...]
    """Those that have attention, in order of depth."""
    notes: tuple[str, ...]
    """What was left out or read otherwise than a reader would expect, a sentence each."""


_NO_ATTENTION = re.compile(r"mamba|mixer|rwkv|receptance|conv1d|rg_lru|linear_attn")


def recognise(shapes: Shapes, config: Mapping[str, Any], where: str, *, rows: Sequence[Overrides] = ()) -> Layout:
    """Return the layout of a model of some tensors.

    Args:
        shapes: of every tensor by its name.
        config: config.json.
        where: names the model in errors.
        rows: what a user says of some model types.

    Raises:
        CheckpointError: no attention or several candidates, layers or projections that are missing, a quantiser's packed weights, a
            shape other than config.json implies, or an order that nothing tells.
    """
    model_type, own, _ = language_config(config)
    row = next((row for row in rows if row.model_type == model_type), None)
    stacks = find_stacks(shapes) if row is None or row.layer is None else {}
    if not stacks and (row is None or row.layer is None):
        raise CheckpointError(f"{one_line(where)}: {_nothing(shapes)}")
    context = Projections(
        where=where, shapes=shapes, own=own, model_type=model_type, sizes=read_sizes(config, where), row=row
    )
    if row is not None and row.layer is not None:
        chosen, others = [_stated_stack(context, row)], list[Stack]()
    else:
        chosen, others = _choose(context, stacks)
    notes = _notes(chosen, others)
    layers: list[Layer] = []
    for at, stack in enumerate(chosen):
        count = _num_layers(context, stack, is_second=at == 1)
        context.require_layers(stack, count, notes)
        layers += [context.layer(place) for place in stack.places if place.layer < context.stored(stack, count)]
    return Layout(prefixes=tuple(stack.prefix for stack in chosen), layers=tuple(layers), notes=tuple(notes))


def _nothing(shapes: Shapes) -> str:
    if other := [name for name in shapes if _NO_ATTENTION.search(name)]:
        return f"no layer has softmax attention; what it has instead is as {shown(other[0])[1:-1]}, which no method here reads"
    return (
        f"no tensors are named as query, key and value are; like attention look: {attention_like(shapes)}; {REMEDY}, "
        "or check that config.json is that of these weights"
    )


def _choose(context: Projections, stacks: Mapping[str, Stack]) -> tuple[list[Stack], list[Stack]]:
    """Return the stack to read, or an encoder's and its decoder's, and the others.

    Raises:
        CheckpointError: several may be meant.
    """
    every = list(stacks.values())
    plain = [stack for stack in every if not is_tower(stack.prefix)] or every
    pair = _encoder_and_decoder(plain)
    if pair:
        chosen = pair
    elif len(plain) == 1:
        chosen = plain
    else:
        chosen = [stack for stack in plain if _fits(context, stack)]
        if len(chosen) != 1:
            raise CheckpointError(
                f"{one_line(context.where)}: {len(chosen) or 'none'} of {len(plain)} stacks of layers fit{'s' if len(chosen) == 1 else ''} "
                f"the {context.sizes.num_layers} layers of {context.sizes.hidden_size} that config.json counts: "
                f"{printable(', '.join(expand(plain[:6])))}; {REMEDY}"
            )
    return chosen, [stack for stack in every if stack not in chosen]


def _encoder_and_decoder(stacks: Sequence[Stack]) -> list[Stack]:
    for first in stacks:
        for second in stacks:
            if "encoder." in first.prefix and first.prefix.replace("encoder.", "decoder.") == second.prefix:
                return [first, second]
    return []


def _fits(context: Projections, stack: Stack) -> bool:
    names = stack.places[0].leaves.values()
    shapes = [context.shapes[name] for name in names if name in context.shapes]
    return stack.numbers[-1] + 1 >= context.sizes.num_layers and any(
        context.sizes.hidden_size in shape for shape in shapes
    )


def _num_layers(context: Projections, stack: Stack, *, is_second: bool) -> int:
    counts = [context.own[key] for key in NUM_DECODER_LAYERS if type(context.own.get(key)) is int] if is_second else []
    return counts[0] if counts else context.sizes.num_layers


def _notes(chosen: Sequence[Stack], others: Sequence[Stack]) -> list[str]:
    notes = []
    if len(chosen) == 2:
        first, second = chosen
        notes.append(f"the layers of {first.prefix} come first, then those of {second.prefix}")
    for stack in chosen:
        if stack.cross:
            notes.append(f"cross-attention is left out ({len(stack.cross)} modules as {stack.cross[0]})")
    notes += [f"left out: {text}" for text in expand(others)]
    return notes


def _stated_stack(context: Projections, row: Overrides) -> Stack:
    """Return the stack that a user's row states."""
    assert row.layer is not None
    head, _, tail = row.layer.partition("{layer}")
    modules = row.modules or {}
    places = []
    for layer in range(context.sizes.num_layers):
        path = f"{head}{layer}{tail}"
        stems = {role: path + modules[role] for role in EVERY_ROLE if role in modules}
        leaves = {role: stem if stem in context.shapes else f"{stem}.weight" for role, stem in stems.items()}
        module = next(iter(stems.values()), path).rpartition(".")[0]
        places.append(Place(layer=layer, path=path, sub=None, module=module, leaves=leaves))
    return Stack(prefix=head, places=tuple(places))

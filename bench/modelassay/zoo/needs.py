"""What must be made before a cell can look at a model: members of the zoo with all they descend from, files of the user's."""

from __future__ import annotations

from pathlib import Path

from modelassay.storage.needs import Artifact, File, Need
from modelassay.zoo.ancestry import is_zoo, member, parents, sources
from modelassay.zoo.catalogue import Text
from modelassay.zoo.recipes import loss_recipe, recipe, text_recipe


def needs_of(reference: str, *, with_utility: bool = False) -> list[Need]:
    """Return what a model named by ``reference`` needs before it can be read; nothing of a model on the Hub, which is fetched.

    Args:
        reference: ``zoo:NAME``, ``hf:ORG/NAME@COMMIT`` or a local folder.
        with_utility: also the held-out losses of a member and its parents.

    Raises:
        CheckpointError: the zoo has no such member.
    """
    if is_zoo(reference):
        name = member(reference).name
        utility = [losses(other) for other in (name, *parents(name))] if with_utility else []
        return [model(name), *utility]
    return [] if reference.startswith("hf:") else [File(path=Path(reference), kind="model")]


def model(name: str) -> Artifact:
    """Return a member as an artifact; its text and its parents are made first."""
    entry = member(name)
    steps = entry.num_steps * entry.shape.num_layers * entry.shape.hidden_size
    return Artifact(
        name=f"zoo:{entry.name}", recipe=recipe(entry.name), build="modelassay.zoo.make:make_model", arguments={"name": entry.name},
        inputs=(_text(entry.text), *map(model, sources(entry.name))), work=0.6 + steps / 16_000,
    )  # fmt: skip


def losses(name: str) -> Artifact:
    """Return a member's held-out losses as an artifact."""
    return Artifact(
        name=f"losses of zoo:{name}", recipe=loss_recipe(name), build="modelassay.zoo.make:make_losses", arguments={"name": name},
        inputs=(model(name),), work=0.5,
    )  # fmt: skip


def _text(text: Text) -> Artifact:
    inputs = () if text.tokenizer_of is None else (_text(text.tokenizer_of),)
    text_key = text_recipe(text)
    return Artifact(
        name=f"text of {text.num_blocks} x {text.block_tokens} tokens, seed {text.seed}, {'+'.join(text.turns or ('en', 'ja'))}",
        recipe=text_key, build="modelassay.zoo.make:make_text", arguments={"text": text}, inputs=inputs, work=3.0,
    )  # fmt: skip

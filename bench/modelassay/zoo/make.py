"""Makes what the recipes describe: members with what they descend from, their texts, their held-out losses.

Nothing here imports torch before something must be made.
"""

from __future__ import annotations

import json
from pathlib import Path

from modelassay.data import corpus
from modelassay.storage.store import Store
from modelassay.zoo.ancestry import member, parent, sources
from modelassay.zoo.catalogue import Text, Timer, untimed
from modelassay.zoo.recipes import loss_recipe, recipe, text_recipe


def ensure(name: str, *, store: Store, timer: Timer | None = None) -> Path:
    """Return the folder of a member's checkpoint, making first what the store lacks of it and its ancestors.

    The folder is an ordinary Hugging Face checkpoint: config.json, model.safetensors in fp32, tokenizer files with a
    chat template. Many at once are made by
    `runs.needs.build_needs`. Processor seconds, utility (0.3 to 1) included, on a core shared with others:

    =================  ====  ====  =====
    kind               6x48  8x64  12x96
    =================  ====  ====  =====
    a root                6    17     18
    sft                   5     7     15
    lora                  3     5      9
    cpt-25                2     5      5
    cpt-100               6    16     18
    cpt-400              25
    anything else       0.5   0.6    1.1
    a whole family       59    55     98
    =================  ====  ====  =====

    (of llama-1 to 8 a root, cpt-100, sft or lora 1.5, anything else 0.1; distilled-mini-4 13) so all of `EMBEDDED` about 950 s and
    700 MB; all of `SMOKE` 20 s. Importing transformers (4 s) comes on top.

    Args:
        name: a member, with or without ``zoo:``.
        store: where artifacts are kept; a member is made once per store.
        timer: wraps each training step as ``timer("zoo-train", tokens=..., member=..., step=...)``; not timed if None.

    Raises:
        CheckpointError: the zoo has no such member.
    """
    if store.holds(recipe(name)):
        return store.path(recipe(name))
    model = member(name)
    above = [ensure(other, store=store, timer=timer) for other in sources(name)]

    def build(folder: Path) -> None:
        from modelassay.zoo import build as zoo_build

        zoo_build.build(folder, model, text=text_folder, parents=above, timer=timer or untimed)

    text_folder = ensure_text(model.text, store)
    return store.get(recipe(name), build)


def utility(name: str, *, store: Store) -> dict[str, float]:
    """Return a member's held-out loss in nats per token by language and, of a child, its parent's and the change.

    Keys are ``loss_en``, ``loss_ja`` and, of a child, ``parent_loss_en``, ``change_en`` and so on; a merge is held
    against the first of its parents. Measured once per store, about a second for a member.

    Raises:
        CheckpointError: the zoo has no such member.
    """
    own, above = measure_losses(name, store), parent(name)
    losses = {f"loss_{language}": loss for language, loss in own.items()}
    if above is not None:
        for language, loss in measure_losses(above, store).items():
            losses[f"parent_loss_{language}"], losses[f"change_{language}"] = loss, own[language] - loss
    return losses


def measure_losses(name: str, store: Store) -> dict[str, float]:
    """Return a member's held-out loss in nats per token by language, measured once per store."""
    checkpoint = ensure(name, store=store)

    def measure(folder: Path) -> None:
        from modelassay.evaluation.loss import held_out_loss
        from modelassay.models.load import reproducible

        with reproducible():
            losses = {language: held_out_loss(checkpoint, language) for language in corpus.LANGUAGES}
        (folder / "losses.json").write_text(json.dumps(losses))

    by_language: dict[str, float] = json.loads((store.get(loss_recipe(name), measure) / "losses.json").read_text())
    return by_language


def ensure_text(text: Text, store: Store) -> Path:
    """Return the folder of a text and its tokenizer, written once per store."""
    tokenizer_of = None if text.tokenizer_of is None else ensure_text(text.tokenizer_of, store)

    def write(folder: Path) -> None:
        from modelassay.zoo import build as zoo_build

        zoo_build.write_text(folder, text, tokenizer_of=tokenizer_of)

    return store.get(text_recipe(text), write)


def make_model(store: Store, name: str) -> None:
    """Make a member and what it lacks."""
    ensure(name, store=store)


def make_losses(store: Store, name: str) -> None:
    """Measure a member's held-out losses."""
    measure_losses(name, store=store)


def make_text(store: Store, text: Text) -> None:
    """Write a text and its tokenizer."""
    ensure_text(text, store)

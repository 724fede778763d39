"""Models with known ancestry that the suite makes itself: roots, what becomes of a model, and strangers by hardness.

::

    base ............ root, 8 layers x 64: Qwen2 architecture, trained on the project's own corpus; with a family
    stranger-1..6 ... the same shape, recipe and data; other initial weights and order of data. 1 and 2 have families
    stranger-data ... the same shape and recipe on other sentences; stranger-mix: on three parts of Japanese to one of English
    stranger-shape .. another depth and width, the same text
    mini-1..16 ...... 6 layers x 48 on half the text: 120 pairs that differ in nothing but the seed. 1 to 3 have families
    mini-data, -mix . as above
    large-1..4 ...... 12 layers x 96, text and steps as mini. 1 and 2 have families

A family is named by what was done (``base+cpt-25+sft-en+int8``):

    sft-en sft-ja  instruction tuning           noise-1 noise-5  Gaussian noise of N % on every matrix
    cpt-N          continued pre-training for   int8  prune-30   a round trip through 8 bits; 30 % of weights zeroed
                   N % of the root's steps      merge            the mean of both tuned children
    lora           adapters on q k v o, merged  depth  moe       middle layers removed; upcycled to 4 experts
    heads neurons rotate scale-qk scale-vo hidden fold   the same function in other weights (`zoo_transforms`),
                                                         and all but the last of them one after another

``zoo:NAME`` is the embedded scale; ``zoo:smoke/NAME`` walks the same path in seconds and means nothing: two layers, one
family. Nothing here imports torch: `zoo_build` does the work, once a model must be made. `zoo_build.transform` does the same
to any Qwen2 or Llama checkpoint.

Strangers resemble each other more than strangers of different recipes would: the standard deviations of their matrices
grow with depth in the same way (mean Pearson r of the q, k, v, o curves 0.90 to 0.96 over the 21 pairs of 8 x 64, 0.55 to
0.85 without a linear trend; a child has 0.9997). That is the hard case of a same-recipe background, and kept for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modelassay.data import corpus
from modelassay.models.zoo_kinship import (
    PREFIX,
    Relation,
    family,
    is_zoo,
    member,
    parent,
    parents,
    related,
    relation,
    steps_between,
    tokens_between,
    tokens_of,
    transformations,
)
from modelassay.models.zoo_members import (
    MEMBERS,
    NUM_THREADS,
    PRESERVING,
    Member,
    Shape,
    Text,
    Timer,
    Training,
    untimed,
)
from modelassay.models.zoo_parallel import Made, in_dependency_order
from modelassay.state import Store, content_key

__all__ = [
    "EMBEDDED", "HELD_OUT_SEED", "MEMBERS", "NUM_THREADS", "PREFIX", "PRESERVING", "SMOKE", "Made", "Member", "Relation", "Shape", "Text", "Timer", "Training",
    "ensure", "ensure_many", "family", "held_out_loss", "is_made", "is_zoo", "member", "parent", "parents", "recipe", "related", "relation",
    "steps_between", "tokens_between", "tokens_of", "transformations", "utility",
]  # fmt: skip

RECIPE_VERSION = 1
"""Raised when the code that makes a model changes what it makes; all else that matters is in the recipe itself."""
HELD_OUT_SEED = 1_000_000
"""First corpus seed of held-out text; training uses small ones."""
SMOKE = tuple(name for name in MEMBERS if name.startswith("smoke/"))
EMBEDDED = tuple(name for name in MEMBERS if not name.startswith("smoke/"))
"""Every member of the embedded scale, parents before children."""


def recipe(name: str) -> dict[str, Any]:
    """Return everything that determines the weights of a member, its ancestors' recipes included by key.

    On another processor the last bits may still differ: its vector width decides the order of sums.
    """
    made = member(name)
    others = {} if made.other_parent is None else {"other_parent": content_key(recipe(made.other_parent))}
    adapters = {"peft": _version("peft")} if made.made_by == "lora" else {}
    return {
        "kind": "zoo",
        "text": content_key(_text_recipe(made.text)),
        "parent": None if made.parent is None else content_key(recipe(made.parent)),
        "made_by": made.made_by,
        "seed": made.seed,
        "settings": dict(made.settings),
        "num_threads": NUM_THREADS,
        **others,
        **adapters,
        **_versions(),
    }


def ensure(name: str, *, store: Store, timer: Timer | None = None) -> Path:
    """Return the folder of a member's checkpoint, making first what the store lacks of it and its ancestors.

    The folder is an ordinary Hugging Face checkpoint: config.json, model.safetensors in fp32, tokenizer files with a
    chat template. Importing transformers comes on top of what `ensure_many` states.

    Args:
        name: a member, with or without ``zoo:``.
        store: where artifacts are kept; a member is made once per store.
        timer: wraps each training step as ``timer("zoo-train", tokens=..., member=..., step=...)``; not timed if None.

    Raises:
        CheckpointError: the zoo has no such member.
    """
    made = member(name)
    above = [ensure(other, store=store, timer=timer) for other in parents(name)]

    def build(folder: Path) -> None:
        from modelassay.models import zoo_build

        zoo_build.build(folder, made, text=text_folder, parents=above, timer=timer or untimed)

    text_folder = _ensure_text(made.text, store)
    return store.get(recipe(name), build)


def is_made(name: str, *, store: Store, with_utility: bool = False) -> bool:
    """Return whether the store holds this member already, and what `utility` needs of it if that is asked."""
    measured = not with_utility or store.path(_loss_recipe(member(name).name)).is_dir()
    return measured and store.path(recipe(name)).is_dir()


def ensure_many(names: Sequence[str], *, store: Store, processes: int = 2, timer: Timer | None = None,
                with_utility: bool = False, report: Callable[[str], None] | None = None) -> dict[str, Made]:  # fmt: skip
    """Make all of ``names`` and their ancestors that the store lacks, in processes of one thread each.

    Parents come before children, long lines of descent first. What was made before an interruption stays; a process
    that outlives its parent ends itself. Nothing is started, and torch is not imported, where nothing is missing.

    Processor seconds, utility (0.3 to 1) included, on a core shared with others:

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

    so all of `EMBEDDED` about 880 s, seven to eight minutes with two processes, and 620 MB; all of `SMOKE` 20 s.

    Args:
        names: members, with or without ``zoo:``.
        store: where artifacts are kept.
        processes: how many members are made at once.
        timer: wraps the whole as one unit ``timer("zoo-make", members=..., processes=...)``; not timed if None.
        with_utility: measure each member's held-out loss too, so that `utility` finds it.
        report: is told of each member as it is done; not called if None.

    Returns:
        Each of ``names``, bare, with its folder and, if it was made now, the processor time that took.

    Raises:
        CheckpointError: the zoo has no such member.
    """
    wanted = {member(name).name: member(name) for name in names}
    missing = [
        made for made in _with_ancestors(list(wanted))
        if not is_made(made.name, store=store, with_utility=with_utility)
    ]  # fmt: skip
    with (timer or untimed)("zoo-make", members=len(missing), processes=processes):
        seconds = in_dependency_order(missing, root=store.root, processes=processes, with_utility=with_utility,
                                      report=report or (lambda _: None))  # fmt: skip
    return {
        name: Made(folder=store.path(recipe(name)), cpu_s=seconds.get(name), num_steps=made.num_steps)
        for name, made in wanted.items()
    }


def _with_ancestors(names: Sequence[str]) -> list[Member]:
    """The members of these names and all they descend from, each once, parents before children."""
    found: dict[str, Member] = {}

    def add(name: str) -> None:
        for above in parents(name):
            add(above)
        found.setdefault(name, member(name))

    for name in names:
        add(name)
    return list(found.values())


def utility(name: str, *, store: Store) -> dict[str, float]:
    """Return a member's held-out loss in nats per token by language and, of a child, its parent's and the change.

    Keys are ``loss_en``, ``loss_ja`` and, of a child, ``parent_loss_en``, ``change_en`` and so on; a merge is held
    against the first of its parents. Measured once per store, about a second for a member.

    Raises:
        CheckpointError: the zoo has no such member.
    """
    own, above = _losses(name, store), parent(name)
    found = {f"loss_{language}": loss for language, loss in own.items()}
    if above is not None:
        for language, loss in _losses(above, store).items():
            found[f"parent_loss_{language}"], found[f"change_{language}"] = loss, own[language] - loss
    return found


def _losses(name: str, store: Store) -> dict[str, float]:
    checkpoint = ensure(name, store=store)

    def measure(folder: Path) -> None:
        from modelassay.models.zoo_train import reproducible

        with reproducible():
            losses = {language: held_out_loss(checkpoint, language) for language in corpus.LANGUAGES}
        (folder / "losses.json").write_text(json.dumps(losses))

    found: dict[str, float] = json.loads((store.get(_loss_recipe(name), measure) / "losses.json").read_text())
    return found


def _loss_recipe(name: str) -> dict[str, Any]:
    return {"kind": "zoo-loss", "model": content_key(recipe(name)), "corpus": _corpus_key(), "version": RECIPE_VERSION}


def held_out_loss(path: Path, language: str, *, seed: int = 0, num_sentences: int = 400) -> float:
    """Return the mean cross-entropy in nats per token of a checkpoint on corpus text that no member was trained on.

    A child's change of utility is the difference from its parent; the unigram entropy of the text is 5.7 nats.
    Rows of 64 tokens, paragraphs end to end; about half a second for a member of the zoo.
    """
    import torch

    from modelassay.models.load import load_model, load_tokenizer

    model, tokenizer = load_model(path), load_tokenizer(path)
    paragraphs = corpus.generate(language, seed=HELD_OUT_SEED + seed, num_sentences=num_sentences)
    ids = [token for paragraph in paragraphs for token in [*tokenizer.encode(paragraph), tokenizer.eos_token_id]]
    rows_BS = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    with torch.no_grad():
        losses = [float(model(input_ids=rows, labels=rows).loss) * len(rows) for rows in torch.split(rows_BS, 16)]
    return sum(losses) / len(rows_BS)


def _ensure_text(text: Text, store: Store) -> Path:
    tokenizer_of = None if text.tokenizer_of is None else _ensure_text(text.tokenizer_of, store)

    def write(folder: Path) -> None:
        from modelassay.models import zoo_build

        zoo_build.write_text(folder, text, tokenizer_of=tokenizer_of)

    return store.get(_text_recipe(text), write)


def _text_recipe(text: Text) -> dict[str, Any]:
    return {"kind": "zoo-text", **_fields(text), "corpus": _corpus_key(), **_versions()}


def _fields(text: Text) -> dict[str, Any]:
    """The fields that are set: what is None today was no field when the first texts were made, and their keys stand."""
    fields = {key: value for key, value in vars(text).items() if value is not None}
    return fields if text.tokenizer_of is None else {**fields, "tokenizer_of": _fields(text.tokenizer_of)}


@cache
def _corpus_key() -> str:
    """The corpus by what it says: any change to grammar or generator shows in its first sentences."""
    return content_key([list(corpus.generate(language, seed=0, num_sentences=300)) for language in corpus.LANGUAGES])


_version = cache(version)  # which parses a package's metadata, once per recipe of a chain otherwise


@cache
def _versions() -> Mapping[str, Any]:
    return {
        "version": RECIPE_VERSION,
        **{package: _version(package) for package in ("torch", "transformers", "tokenizers")},
    }

"""Models with known ancestry that the suite makes itself: who is whose child, and the recipe of each.

::

    base ........... root: Qwen2 architecture, trained on the project's own corpus
    |-- child-sft .. base after instruction tuning in Japanese
    `-- child-noise  base with 1 % Gaussian noise on every matrix
    stranger-1..6 .. roots: same shape, recipe and data; other initial weights and order of data
    stranger-shape . root: other depth and width, same tokenizer and data

``base`` and its six strangers give 21 unrelated pairs of one shape, so that a rank p-value can fall below 0.05 (1/22).
``zoo:NAME`` is the embedded scale; ``zoo:smoke/NAME`` (base, both children, stranger-1, stranger-shape) walks the same
path in seconds and means nothing. Nothing here imports torch: `zoo_build` does the work, once a model must be made.

Strangers resemble each other more than strangers of different recipes would: the standard deviations of their matrices
grow with depth in the same way (mean Pearson r of the q, k, v, o curves 0.90 to 0.96 over the 21 pairs, 0.55 to 0.85
without a linear trend; a child has 0.9997). That is the hard case of a same-recipe background, and kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from modelassay.data import corpus
from modelassay.errors import CheckpointError, did_you_mean
from modelassay.state import Store, content_key

PREFIX = "zoo:"
RECIPE_VERSION = 1
"""Raised when the code that makes a model changes what it makes; all else that matters is in the recipe itself."""
NUM_THREADS = 1
"""Threads of a training step. At this width a second one gains an eighth (26 against 23 ms a step on two cores) for twice
the processor time; with one, the bits depend neither on the number of cores nor on what a parent did before a fork."""
HELD_OUT_SEED = 1_000_000
"""First corpus seed of held-out text; training uses small ones."""


Timer = Callable[..., AbstractContextManager[Any]]
"""What wraps each training step; called as the meter's ``microbatch`` is: ``(stage, tokens=..., **labels)``."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen2 architecture with tied embeddings."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_rows: int
    """Rows of the embedding; those beyond the tokenizer's tokens are padding that no text contains, as in Qwen2.5."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """AdamW with linear warm-up and cosine decay to zero; one pass over the data."""

    num_steps: int
    batch_size: int
    """Rows of a batch: blocks when pre-training, examples in SFT."""
    learning_rate: float
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1
    """On matrices; biases and norms are left alone."""
    beta1: float = 0.9
    beta2: float = 0.99
    max_grad_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Text:
    """The pre-training text, half English and half Japanese, and the tokenizer trained on its beginning."""

    num_blocks: int
    block_tokens: int
    vocab_size: int
    """Tokens of the tokenizer, the three special ones included."""
    tokenizer_sentences: int
    """Sentences of each language that the tokenizer is trained on."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of the zoo."""

    name: str
    """As in ``zoo:NAME``."""
    parent: str | None
    """Name of the model it was made from; None for a root."""
    made_by: Literal["pretraining", "sft", "noise"]
    """How it was made from its parent."""
    seed: int
    """Of everything random in making it: initial weights and order of data, or the noise."""
    settings: Mapping[str, Any]
    """What `zoo_build` is given besides; JSON-able, part of the recipe."""
    text: Text
    """What its scale trains on."""


def _scale(prefix: str, *, text: Text, shape: Shape, other_shape: Shape, training: Training, sft: Training,
           num_strangers: int) -> list[Member]:  # fmt: skip
    def root(name: str, seed: int, its_shape: Shape) -> Member:
        settings = {"shape": asdict(its_shape), "training": asdict(training)}
        return Member(name=prefix + name, parent=None, made_by="pretraining", seed=seed, settings=settings, text=text)

    def child(name: str, made_by: Literal["sft", "noise"], settings: dict[str, Any]) -> Member:
        return Member(name=prefix + name, parent=f"{prefix}base", made_by=made_by, seed=0, settings=settings, text=text)

    return [
        root("base", 0, shape),
        child("child-sft", "sft", {"language": "ja", "training": asdict(sft)}),
        child("child-noise", "noise", {"relative_std": 0.01}),
        *(root(f"stranger-{seed}", seed, shape) for seed in range(1, num_strangers + 1)),
        root("stranger-shape", 100, other_shape),
    ]


_EMBEDDED = _scale(
    "",
    text=Text(num_blocks=2080, block_tokens=64, vocab_size=2000, tokenizer_sentences=8000),
    shape=Shape(num_layers=8, hidden_size=64, intermediate_size=192, num_heads=4, num_kv_heads=2, vocab_rows=2048),
    other_shape=Shape(
        num_layers=10, hidden_size=48, intermediate_size=144, num_heads=3, num_kv_heads=1, vocab_rows=2048
    ),
    training=Training(num_steps=520, batch_size=4, learning_rate=0.008),
    sft=Training(num_steps=100, batch_size=4, learning_rate=0.002),
    num_strangers=6,
)
_SMOKE = _scale(
    "smoke/",
    text=Text(num_blocks=64, block_tokens=32, vocab_size=500, tokenizer_sentences=300),
    shape=Shape(num_layers=2, hidden_size=32, intermediate_size=64, num_heads=2, num_kv_heads=1, vocab_rows=512),
    other_shape=Shape(num_layers=3, hidden_size=16, intermediate_size=48, num_heads=2, num_kv_heads=1, vocab_rows=512),
    training=Training(num_steps=16, batch_size=4, learning_rate=0.01),
    sft=Training(num_steps=4, batch_size=4, learning_rate=0.001),
    num_strangers=1,
)
MEMBERS: Mapping[str, Member] = MappingProxyType({member.name: member for member in (*_EMBEDDED, *_SMOKE)})


def is_zoo(reference: str) -> bool:
    """Return whether a model reference names the zoo, existing member or not.

    >>> is_zoo("zoo:base"), is_zoo("hf:Qwen/Qwen2.5-0.5B"), is_zoo("./base")
    (True, False, False)
    """
    return reference.startswith(PREFIX)


def member(name: str) -> Member:
    """Return the member of that name, with or without ``zoo:``.

    >>> member("zoo:child-sft").parent
    'base'

    Raises:
        CheckpointError: there is none.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in MEMBERS:
        raise CheckpointError(
            f"{name}: no such model in the zoo{did_you_mean(bare, MEMBERS)}; it has {', '.join(MEMBERS)}"
        )
    return MEMBERS[bare]


def parent(name: str) -> str | None:
    """Return the name of the model this one was made from, None for a root.

    >>> parent("smoke/child-noise"), parent("base")
    ('smoke/base', None)
    """
    return member(name).parent


def family(name: str) -> str:
    """Return the name of the root this model descends from.

    >>> family("zoo:child-sft"), family("stranger-3")
    ('base', 'stranger-3')
    """
    above = parent(name)
    return member(name).name if above is None else family(above)


def related(name: str, other: str) -> bool:
    """Return whether two models descend from one root.

    >>> related("child-sft", "child-noise"), related("base", "stranger-1")
    (True, False)
    """
    return family(name) == family(other)


def recipe(name: str) -> dict[str, Any]:
    """Return everything that determines the weights of a member, its ancestors' recipes included by key.

    On another processor the last bits may still differ: its vector width decides the order of sums.
    """
    made = member(name)
    return {
        "kind": "zoo",
        "text": content_key(_text_recipe(made.text)),
        "parent": None if made.parent is None else content_key(recipe(made.parent)),
        "made_by": made.made_by,
        "seed": made.seed,
        "settings": dict(made.settings),
        "num_threads": NUM_THREADS,
        **_versions(),
    }


def ensure(name: str, *, store: Store, timer: Timer | None = None) -> Path:
    """Return the folder of a member's checkpoint, making first what the store lacks of it and its ancestors.

    The folder is an ordinary Hugging Face checkpoint: config.json, model.safetensors in fp32, tokenizer files with a
    chat template. A root of the embedded scale takes about 15 s on one core, all members about
    135 s, all of smoke about 1 s; importing transformers comes on top.

    Args:
        name: a member, with or without ``zoo:``.
        store: where artifacts are kept; a member is made once per store.
        timer: wraps each training step as ``timer("zoo-train", tokens=..., member=..., step=...)``; not timed if None.

    Raises:
        CheckpointError: the zoo has no such member.
    """
    made = member(name)
    above = None if made.parent is None else ensure(made.parent, store=store, timer=timer)

    def text(folder: Path) -> None:
        from modelassay.models import zoo_build

        zoo_build.write_text(folder, made.text)

    def build(folder: Path) -> None:
        from modelassay.models import zoo_build

        zoo_build.build(folder, made, text=text_folder, parent=above, timer=timer or _untimed)

    text_folder = store.get(_text_recipe(made.text), text)
    return store.get(recipe(name), build)


def held_out_loss(path: Path, language: str, *, seed: int = 0, num_sentences: int = 400) -> float:
    """Return the mean cross-entropy in nats per token of a checkpoint on corpus text that no member was trained on.

    A child's change of utility is the difference from its parent; the unigram entropy of the text is 5.7 nats.
    Rows of 64 tokens, paragraphs end to end; about a second for a member of the zoo.
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


def _untimed(stage: str, *, tokens: int | None = None, **labels: Any) -> AbstractContextManager[None]:
    return nullcontext()


def _text_recipe(text: Text) -> dict[str, Any]:
    return {"kind": "zoo-text", **asdict(text), "corpus": _corpus_key(), **_versions()}


@cache
def _corpus_key() -> str:
    """The corpus by what it says: any change to grammar or generator shows in its first sentences."""
    return content_key([list(corpus.generate(language, seed=0, num_sentences=300)) for language in corpus.LANGUAGES])


@cache
def _versions() -> Mapping[str, Any]:
    return {
        "version": RECIPE_VERSION,
        **{package: version(package) for package in ("torch", "transformers", "tokenizers")},
    }

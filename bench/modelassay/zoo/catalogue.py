"""The table of the zoo: every member's parent, recipe and shape. Data only; nothing here imports torch.

A name tells the ancestry: ``base+cpt-25+sft-en+int8`` is ``base``, then continued pre-training, then instruction tuning in
English, then an int8 round trip, and each prefix is a member too. A merge (``base+merge``) is the average of the root's two
tuned children. ``child-sft`` and ``child-noise`` are ``base+sft-ja`` and ``base+noise-1`` under older names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from modelassay.training.settings import Training

MadeBy = Literal[
    "pretraining", "sft", "continued", "lora", "noise", "int8", "prune", "merge", "depth", "moe",
    "heads", "neurons", "rotate", "scale-qk", "scale-vo", "hidden", "fold",
    "stream", "signs", "untied", "mha", "padded", "renumbered", "grown",
    "retokenised", "mix", "svd", "int4", "fp8", "narrow", "thin", "deepen", "reversed", "flips", "distilled",
]  # fmt: skip
Timer = Callable[..., AbstractContextManager[Any]]
"""What wraps each training step; called as the meter's ``microbatch`` is: ``(stage, tokens=..., **labels)``."""
NUM_THREADS = 1
"""Threads of a training step. At this width a second one gains an eighth (26 against 23 ms a step on two cores) for twice
the processor time; with one, the bits depend neither on the number of cores nor on what a parent did before a fork."""


def untimed(stage: str, *, tokens: int | None = None, **labels: Any) -> AbstractContextManager[None]:
    """Time nothing: a `Timer` for whoever has no meter."""
    return nullcontext()


PRESERVING: tuple[MadeBy, ...] = ("heads", "neurons", "rotate", "scale-qk", "scale-vo", "hidden", "fold")
"""Transformations after which the logits are the same, up to the rounding of sums."""
REWRITING = ("quarot", "quarot-16", "signs", "untied", "mha", "padded", "renumbered", "grown")
"""Steps of `FURTHER_STEPS` with the same logits up to rounding, and up to rows that moved or came to the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An architecture and its sizes."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    vocab_rows: int
    """Rows of the embedding; those beyond the tokenizer's tokens are padding that no text contains, as in Qwen2.5."""
    architecture: Literal["qwen2", "llama", "gemma3"] = "qwen2"
    tied: bool = True
    """Whether the output matrix is the embedding."""

    def recipe(self) -> dict[str, Any]:
        """Return the fields as JSON, without the later ones that stand at their default, so that older keys stand.

        >>> list(MEMBERS["llama-1"].shape.recipe())[-2:], list(MEMBERS["base"].shape.recipe())[-1]
        (['architecture', 'tied'], 'vocab_rows')
        """
        later = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {key: value for key, value in asdict(self).items() if key not in later or value != later[key]}


@dataclass(frozen=True, kw_only=True)
class Text:
    """The pre-training text, paragraphs of the languages in turn, and the tokenizer trained on its beginning."""

    num_blocks: int
    block_tokens: int
    vocab_size: int
    """Tokens of the tokenizer, the three special ones included."""
    tokenizer_sentences: int
    """Sentences of each language that the tokenizer is trained on."""
    seed: int = 0
    turns: tuple[str, ...] | None = None
    """Languages of successive paragraphs, over and over; English and Japanese in turn if None."""
    tokenizer_of: Text | None = None
    """The text whose tokenizer is taken instead of training one; None for its own."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of the zoo."""

    name: str
    """As in ``zoo:NAME``."""
    parent: str | None
    """Name of the model it was made from; None for a root."""
    made_by: MadeBy
    """How it was made from its parent."""
    seed: int
    """Of everything random in making it: initial weights and order of data, or the noise."""
    settings: Mapping[str, Any]
    """What `zoo_build` is given besides; JSON-able, part of the recipe."""
    text: Text
    """What it trains on; of a member that trains on no blocks, the text its tokenizer comes from."""
    shape: Shape
    """What it is, after what was done to it."""
    transformation: str = "pretraining"
    """The last step of its making by name, strength included: ``noise-5``, ``sft-en``."""
    num_experts: int | None = None
    """Routed experts of each layer's feed-forward network; None where it is dense."""
    other_parent: str | None = None
    """The second model of a merge; None otherwise."""
    taught_by: str | None = None
    """The model whose logits it was trained on from weights of its own; None otherwise."""

    @property
    def initial_seed(self) -> int:
        """What its root's initial weights are drawn by; meaningful of a root, whose order of data may have another seed."""
        return int(self.settings.get("initial_seed", self.seed))

    @property
    def size(self) -> str:
        """Depth x width, after what was done to it.

        >>> MEMBERS["base"].size, MEMBERS["base+depth"].size
        ('8x64', '6x64')
        """
        return f"{self.shape.num_layers}x{self.shape.hidden_size}"

    @property
    def num_steps(self) -> int:
        """Training steps between its parent and it, of a root all it had; 0 where nothing was trained."""
        return int(self.settings.get("training", {}).get("num_steps", 0))


Steps = Mapping[str, tuple[MadeBy, Mapping[str, Any]]]
WEIGHT_STEPS: Steps = {
    "noise-1": ("noise", {"relative_std": 0.01}),
    "noise-5": ("noise", {"relative_std": 0.05}),
    "int8": ("int8", {}),
    "prune-30": ("prune", {"fraction": 0.3}),
    "depth": ("depth", {"num_layers": 2}),
    "moe": ("moe", {"num_experts": 4, "experts_per_token": 2, "relative_std": 0.01}),
    "merge": ("merge", {}),
    **{name: (name, {}) for name in PRESERVING},
}
"""What is done to weights without training: transformation -> what does it, and its settings."""
FURTHER_STEPS: Steps = {
    "quarot": ("stream", {"block": None}),
    "quarot-16": ("stream", {"block": 16}),
    "signs": ("signs", {"fraction": 0.4}),
    "untied": ("untied", {}),
    "mha": ("mha", {}),
    "padded": ("padded", {"num_rows": 64}),
    "renumbered": ("renumbered", {}),
    "grown": ("grown", {}),
    "retokenised": ("retokenised", {"num_rows": 2048}),
    **{f"mix-{percent}": ("mix", {"share": percent / 100}) for percent in (30, 50, 70, 90)},
    "svd-50": ("svd", {"rank": 0.5}),
    "svd-20": ("svd", {"rank": 0.2}),
    "int4": ("int4", {"group": 32}),
    "fp8": ("fp8", {}),
    "narrow": ("narrow", {"fraction": 0.25}),
    "thin": ("thin", {"fraction": 0.25}),
    "deepen": ("deepen", {"num_layers": 2}),
    "reversed": ("reversed", {}),
    "flips-40": ("flips", {"fraction": 0.4}),
    "noise-200": ("noise", {"relative_std": 2.0}),
}
"""The same, of what only some families are put through."""
TAKES_ANOTHER = ("merge", "mix", "retokenised")
"""What is made of two models, or of a model and the tokenizer of another."""


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """What the roots of one size and their descendants share."""

    shape: Shape
    training: Training
    text: Text
    continued_text: Text
    """Of continued pre-training: other sentences, three paragraphs of Japanese to one of English."""
    tuning: Training
    adapting: Training
    num_removed: int
    """Middle layers that `depth` takes away."""

    def root(self, name: str, seed: int, *, shape: Shape | None = None, text: Text | None = None,
             initial_seed: int | None = None, taught_by: Member | None = None) -> Member:  # fmt: skip
        its_shape = shape or self.shape
        initial = {} if initial_seed is None else {"initial_seed": initial_seed}
        return Member(
            name=name, parent=None, made_by="pretraining" if taught_by is None else "distilled", seed=seed,
            text=text or self.text, shape=its_shape, taught_by=taught_by.name if taught_by else None,
            settings={"shape": its_shape.recipe(), "training": self.training.recipe(), **initial},
            transformation="pretraining" if taught_by is None else "distilled",
        )  # fmt: skip

    def child(
        self, parent: Member, step: str, *, name: str | None = None, seed: int, other: Member | None = None,
        text: Text | None = None,
    ) -> Member:  # fmt: skip
        made_by, settings = self._steps()[step]
        num_experts = settings["num_experts"] if made_by == "moe" else parent.num_experts
        return Member(
            name=name or f"{parent.name}+{step}", parent=parent.name, made_by=made_by, seed=seed, settings=settings,
            text=self.continued_text if made_by == "continued" else text or self.text, transformation=step,
            shape=_reshaped(parent.shape, made_by, settings), num_experts=num_experts, other_parent=other.name if other else None,
        )  # fmt: skip

    def _steps(self) -> Steps:
        """What can be done at this scale; cpt-N is continued pre-training for N % of the steps a root had."""

        def continued(percent: int) -> Training:
            return replace(
                self.training,
                num_steps=self.training.num_steps * percent // 100,
                learning_rate=self.training.learning_rate / 2,
            )

        adapter = {"language": "en", "rank": 8, "alpha": 16, "examples_seed": 1, "training": self.adapting.recipe()}
        return {
            **WEIGHT_STEPS,
            **FURTHER_STEPS,
            "depth": ("depth", {"num_layers": self.num_removed}),
            **{f"sft-{lang}": ("sft", {"language": lang, "training": self.tuning.recipe()}) for lang in ("en", "ja")},
            **{
                f"cpt-{percent}": ("continued", {"training": continued(percent).recipe()}) for percent in (25, 100, 400)
            },
            "lora": ("lora", adapter),
        }

    def family(
        self, root: Member, *, extra: tuple[str, ...] = (), names: Mapping[str, str] | None = None
    ) -> Iterator[Member]:
        """Yield the descendants of ``root``: all transformations, ``extra`` ones, and chains of two and three steps.

        Instruction tuning and adapters of all families see the same examples in the same order, so that two of them are
        strangers in the hardest sense; everything drawn (noise, permutations, angles) differs between families.
        """
        seed, names = root.seed, names or {}
        tuned = {step: self.child(root, step, seed=0, name=names.get(step)) for step in ("sft-ja", "sft-en")}
        adapted, continued = self.child(root, "lora", seed=seed), self.child(root, "cpt-25", seed=seed)
        yield from (*tuned.values(), adapted, continued)
        yield from (self.child(root, step, seed=seed) for step in ("cpt-100", *extra))
        merged = self.child(tuned["sft-en"], "merge", seed=0, name=f"{root.name}+merge", other=tuned["sft-ja"])
        yield merged
        for step in WEIGHT_STEPS:
            if step != "merge":
                yield self.child(root, step, seed=seed, name=names.get(step))
        for first, *rest in (
            (continued, "sft-en", "int8"), (tuned["sft-ja"], "rotate", "scale-qk"), (adapted, "prune-30"), (merged, "noise-1"),
            (root, "heads", "neurons", "rotate", "scale-qk", "scale-vo", "hidden"),
        ):  # fmt: skip
            last = first
            for step in rest:
                last = self.child(last, step, seed=0 if step.startswith("sft") else seed)
                if last.name != f"{root.name}+heads":  # made above
                    yield last

    def disguises(
        self, root: Member, stranger: Member, *, other_text: Text, taught: tuple[str, ...] = ()
    ) -> Iterator[Member]:
        """Yield what `FURTHER_STEPS` makes of ``root``, ``taught`` steps and older ones among them, and two chains.

        ``stranger`` is what it is mixed with; the tokenizer of ``other_text`` is what it is given in place of its own.
        """
        for step in (*taught, *FURTHER_STEPS):
            if step == "untied" and not root.shape.tied:
                continue
            is_mix, is_swap = step.startswith("mix-"), step == "retokenised"
            yield self.child(root, step, seed=0 if step.startswith("sft") else root.seed,
                             other=stranger if is_mix else None, text=other_text if is_swap else None)  # fmt: skip
        turned = self.child(root, "quarot", seed=root.seed)
        for step in ("neurons", "noise-5"):
            yield self.child(turned, step, seed=root.seed)

    def kin(self, root: Member, *, other_text: Text, first_seed: int) -> Iterator[Member]:
        """Yield models that share with ``root`` its lessons, its initial weights, or the order of its data alone."""
        yield self.root(f"distilled-{root.name}", first_seed, taught_by=root)
        yield self.root(f"same-init-{root.name}", first_seed + 1, text=other_text, initial_seed=root.seed)
        yield self.root(f"same-order-{root.name}", root.seed, initial_seed=first_seed + 2)


def _reshaped(shape: Shape, made_by: MadeBy, settings: Mapping[str, Any]) -> Shape:
    """What a step makes of a shape."""
    match made_by:
        case "depth":
            return replace(shape, num_layers=shape.num_layers - settings["num_layers"])
        case "deepen":
            return replace(shape, num_layers=shape.num_layers + settings["num_layers"])
        case "narrow":
            size, heads = shape.hidden_size, shape.num_heads
            return replace(shape, hidden_size=(size - round(settings["fraction"] * size)) // heads * heads)
        case "thin":
            size = shape.intermediate_size
            return replace(shape, intermediate_size=size - round(settings["fraction"] * size))
        case "mha":
            return replace(shape, num_kv_heads=shape.num_heads)
        case "untied" | "stream":
            return replace(shape, tied=False)
        case "padded" | "grown":
            return replace(shape, vocab_rows=shape.vocab_rows + settings.get("num_rows", 1))
        case "retokenised":
            return replace(shape, vocab_rows=settings["num_rows"])
        case _:
            return shape


_MOSTLY_JAPANESE = ("en", "ja", "ja", "ja")
_TEXT = Text(num_blocks=2080, block_tokens=64, vocab_size=2000, tokenizer_sentences=8000)
_CONTINUED_TEXT = replace(_TEXT, num_blocks=4160, seed=1, turns=_MOSTLY_JAPANESE, tokenizer_of=_TEXT)
_BASE = _Scale(
    shape=Shape(num_layers=8, hidden_size=64, intermediate_size=192, num_heads=4, num_kv_heads=2, vocab_rows=2048),
    training=Training(num_steps=520, batch_size=4, learning_rate=0.008),
    text=_TEXT,
    continued_text=_CONTINUED_TEXT,
    tuning=Training(num_steps=100, batch_size=4, learning_rate=0.002),
    adapting=Training(num_steps=60, batch_size=4, learning_rate=0.01),
    num_removed=2,
)
_MINI = replace(
    _BASE,
    shape=Shape(num_layers=6, hidden_size=48, intermediate_size=144, num_heads=4, num_kv_heads=2, vocab_rows=2048),
    training=Training(num_steps=260, batch_size=4, learning_rate=0.01),
    text=replace(_TEXT, num_blocks=1040, tokenizer_of=_TEXT),
)
_LARGE = replace(
    _MINI,
    shape=Shape(num_layers=12, hidden_size=96, intermediate_size=288, num_heads=6, num_kv_heads=2, vocab_rows=2048),
    training=Training(num_steps=260, batch_size=4, learning_rate=0.006),
)
_LLAMA_TEXT = Text(num_blocks=320, block_tokens=48, vocab_size=1000, tokenizer_sentences=3000, seed=11)
_LLAMA = _Scale(
    shape=Shape(num_layers=5, hidden_size=40, intermediate_size=96, num_heads=5, num_kv_heads=1, vocab_rows=1024,
                architecture="llama", tied=False),
    training=Training(num_steps=80, batch_size=4, learning_rate=0.004, warmup_fraction=0.1, weight_decay=0.01, beta2=0.95,
                      max_grad_norm=0.5, schedule="linear"),
    text=_LLAMA_TEXT,
    continued_text=replace(_LLAMA_TEXT, seed=12, turns=_MOSTLY_JAPANESE, tokenizer_of=_LLAMA_TEXT),
    tuning=Training(num_steps=20, batch_size=4, learning_rate=0.002),
    adapting=Training(num_steps=20, batch_size=4, learning_rate=0.01),
    num_removed=1,
)  # fmt: skip
"""Another architecture and another recipe: untied, one key-value head for five queries, other optimiser settings,
another text under a tokenizer of its own."""
_GEMMA = replace(
    _MINI,
    shape=Shape(num_layers=6, hidden_size=48, intermediate_size=144, num_heads=4, num_kv_heads=2, vocab_rows=2048, architecture="gemma3"),
)  # fmt: skip
"""A third architecture: norms before and after each part and on queries and keys, scaled embeddings, GELU; text and recipe as mini."""
_OTHER_SHAPE = Shape(num_layers=10, hidden_size=48, intermediate_size=144, num_heads=3, num_kv_heads=1, vocab_rows=2048)
_SMOKE_TEXT = Text(num_blocks=64, block_tokens=32, vocab_size=500, tokenizer_sentences=300)
_SMOKE = _Scale(
    shape=Shape(num_layers=4, hidden_size=32, intermediate_size=64, num_heads=2, num_kv_heads=1, vocab_rows=512),
    training=Training(num_steps=16, batch_size=4, learning_rate=0.01),
    text=_SMOKE_TEXT,
    continued_text=replace(_SMOKE_TEXT, seed=1, turns=_MOSTLY_JAPANESE, tokenizer_of=_SMOKE_TEXT),
    tuning=Training(num_steps=4, batch_size=4, learning_rate=0.001),
    adapting=Training(num_steps=4, batch_size=4, learning_rate=0.01),
    num_removed=1,
)
_SMOKE_OTHER_SHAPE = Shape(
    num_layers=5, hidden_size=16, intermediate_size=48, num_heads=2, num_kv_heads=1, vocab_rows=512
)


_STORIES_TEXT = Text(
    num_blocks=48_000, block_tokens=64, vocab_size=1000, tokenizer_sentences=8000, seed=21, turns=("en",)
)
_STORIES = replace(
    _MINI,
    shape=Shape(num_layers=2, hidden_size=64, intermediate_size=192, num_heads=4, num_kv_heads=2, vocab_rows=1024),
    training=Training(num_steps=3000, batch_size=16, learning_rate=0.01),
    text=_STORIES_TEXT,
)
"""English alone, long enough trained to write sentences that the grammar derives: what `recursive-training` begins with."""


def _other_data(scale: _Scale, prefix: str, first_seed: int) -> Iterator[Member]:
    """Yield roots of the same shape and recipe on other sentences, and on another mixture of the languages."""
    other = replace(scale.text, seed=2, tokenizer_of=scale.text.tokenizer_of or scale.text)
    yield scale.root(f"{prefix}data", first_seed, text=other)
    yield scale.root(f"{prefix}mix", first_seed + 1, text=replace(other, turns=_MOSTLY_JAPANESE))


def _embedded() -> Iterator[Member]:
    base = _BASE.root("base", 0)
    yield base
    yield from _BASE.family(base, names={"sft-ja": "child-sft", "noise-1": "child-noise"})
    for seed in range(1, 7):
        stranger = _BASE.root(f"stranger-{seed}", seed)
        yield stranger
        if seed <= 2:
            yield from _BASE.family(stranger)
    yield _BASE.root("stranger-shape", 100, shape=_OTHER_SHAPE)
    yield from _other_data(_BASE, "stranger-", 101)
    for number in range(1, 17):
        mini = _MINI.root(f"mini-{number}", 200 + number)
        yield mini
        if number <= 3:
            yield from _MINI.family(mini, extra=("cpt-400",))
    yield from _other_data(_MINI, "mini-", 231)
    for number in range(1, 5):
        large = _LARGE.root(f"large-{number}", 300 + number)
        yield large
        if number <= 2:
            yield from _LARGE.family(large)
    yield from _further()


def _further() -> Iterator[Member]:
    """Two families of two architectures under what `FURTHER_STEPS` does, their kin, and the roots of the second architecture."""
    first, second = (_MINI.root(f"mini-{number}", 200 + number) for number in (4, 5))
    others = replace(_MINI.text, seed=3)
    yield from _MINI.disguises(first, second, other_text=_LLAMA_TEXT)
    yield from _MINI.kin(first, other_text=others, first_seed=251)
    llamas = [_LLAMA.root(f"llama-{number}", 400 + number) for number in range(1, 9)]
    yield from llamas
    taught = ("sft-en", "lora", "cpt-100", "int8", "prune-30", "depth", "heads", "hidden")
    yield from _LLAMA.disguises(llamas[0], llamas[1], other_text=_TEXT, taught=taught)
    yield from _LLAMA.kin(llamas[0], other_text=replace(_LLAMA_TEXT, seed=13, tokenizer_of=_LLAMA_TEXT), first_seed=451)


def _smoke() -> Iterator[Member]:
    base = _SMOKE.root("smoke/base", 0)
    yield base
    yield from _SMOKE.family(base, names={"sft-ja": "smoke/child-sft", "noise-1": "smoke/child-noise"})
    yield _SMOKE.root("smoke/stranger-1", 1)
    yield _SMOKE.root("smoke/stranger-shape", 100, shape=_SMOKE_OTHER_SHAPE)
    yield from _other_data(_SMOKE, "smoke/stranger-", 101)


def _others() -> Iterator[Member]:
    """Roots that no pattern without a ``/`` means, so that the evidence of the others stays what it was."""
    yield _GEMMA.root("others/gemma-1", 501)
    yield _STORIES.root("others/stories", 601)


MEMBERS: Mapping[str, Member] = MappingProxyType({
    member.name: member for member in (*_embedded(), *_others(), *_smoke())
})

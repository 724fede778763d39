"""Who is whose: ancestry, hardness and training distance of any two members of the zoo, from the table alone."""

from __future__ import annotations

from typing import Any, Literal

from modelassay.errors import CheckpointError, did_you_mean
from modelassay.zoo import catalogue as zoo_members
from modelassay.zoo.catalogue import Member

PREFIX = "zoo:"
Relation = Literal[
    "self", "parent", "child", "sibling", "ancestor", "descendant", "family",
    "stranger:seed", "stranger:data", "stranger:shape",
]  # fmt: skip
"""What one member is to another; the strangers from the hardest to tell apart to the easiest."""
TOKENS_PER_EXAMPLE = {"en": 102, "ja": 107}
"""Mean tokens of an instruction with its answer in the chat template under the embedded tokenizer, filling left out."""


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
    members = zoo_members.MEMBERS
    if bare not in members:
        roots = ", ".join(other.name for other in members.values() if other.parent is None)
        raise CheckpointError(
            f"{name}: no such model in the zoo{did_you_mean(bare, members)}; its roots are {roots}, their descendants "
            "are named like base+sft-en; modelassay/zoo/catalogue.py lists all"
        )
    return members[bare]


def parent(name: str) -> str | None:
    """Return the name of the model this one was made from, None for a root; of a merge the first of the two.

    >>> parent("smoke/child-noise"), parent("base")
    ('smoke/base', None)
    """
    return member(name).parent


def parents(name: str) -> list[str]:
    """Return the names of all models this one was made from: none for a root, two for a merge.

    >>> parents("base+merge")
    ['base+sft-en', 'child-sft']
    """
    child = member(name)
    return [above for above in (child.parent, child.other_parent) if above is not None]


def family(name: str) -> str:
    """Return the name of the root this model descends from.

    >>> family("zoo:child-sft"), family("stranger-3")
    ('base', 'stranger-3')
    """
    above = parent(name)
    return member(name).name if above is None else family(above)


def descendants(name: str) -> list[str]:
    """Return the references of all members that were made from this one, directly or not, parents before children.

    >>> descendants("zoo:base+cpt-25"), descendants("zoo:base+sft-en")
    (['zoo:base+cpt-25+sft-en', 'zoo:base+cpt-25+sft-en+int8'], ['zoo:base+merge', 'zoo:base+merge+noise-1'])
    """
    root = member(name).name
    return [f"{PREFIX}{other}" for other in zoo_members.MEMBERS if other != root and root in _distances(other)]


def related(name: str, other: str) -> bool:
    """Return whether two models descend from one root.

    >>> related("child-sft", "child-noise"), related("base", "stranger-1")
    (True, False)
    """
    return family(name) == family(other)


def transformations(name: str) -> tuple[str, ...]:
    """Return what was done to the root, in order, to make this member; empty for a root.

    >>> transformations("base+cpt-25+sft-en+int8"), transformations("base+merge")
    (('cpt-25', 'sft-en', 'int8'), ('sft-en', 'merge'))
    """
    child = member(name)
    return () if child.parent is None else (*transformations(child.parent), child.transformation)


def relation(name: str, other: str) -> Relation:
    """Return what the first is to the second.

    Strangers are graded by what they share: ``stranger:shape`` differ in depth, widths, heads or experts as they are now
    (a depth-pruned model against a whole one); ``stranger:data`` have one shape, but their roots another text or another
    schedule; ``stranger:seed`` differ in their roots' initial weights and order of data alone.

    >>> relation("base", "child-sft"), relation("child-sft", "base"), relation("child-sft", "child-noise")
    ('parent', 'child', 'sibling')
    >>> relation("base", "base+cpt-25+sft-en"), relation("base+cpt-25+sft-en", "child-noise")
    ('ancestor', 'family')
    >>> [relation("base", other) for other in ("stranger-1+sft-en", "stranger-mix", "stranger-1+depth", "mini-1")]
    ['stranger:seed', 'stranger:data', 'stranger:shape', 'stranger:shape']
    """
    one, two = member(name), member(other)
    if one.name == two.name:
        return "self"
    if not related(name, other):
        return _hardness(one, two)
    if one.name in parents(other):
        return "parent"
    if two.name in parents(name):
        return "child"
    if one.name in _distances(other):
        return "ancestor"
    if two.name in _distances(name):
        return "descendant"
    return "sibling" if set(parents(name)) & set(parents(other)) else "family"


def _hardness(one: Member, two: Member) -> Relation:
    if (one.shape, one.num_experts) != (two.shape, two.num_experts):
        return "stranger:shape"

    def course(model: Member) -> tuple[Any, ...]:
        root = member(family(model.name))
        return root.text, root.settings["training"], root.shape

    return "stranger:seed" if course(one) == course(two) else "stranger:data"


def steps_between(name: str, other: str) -> int | None:
    """Return the training steps that lie between two members over their nearest common ancestor; None for strangers.

    Steps without training count nothing; of the two ways through a merge the shorter counts.

    >>> steps_between("base", "base+cpt-100"), steps_between("child-sft", "base+cpt-25"), steps_between("base", "mini-1")
    (520, 230, None)
    """
    return _between(name, other, 0)


def tokens_between(name: str, other: str) -> int | None:
    """Return the training tokens that lie between two members as `steps_between` counts steps; None for strangers.

    Of instruction tuning, examples times their mean length.

    >>> tokens_between("base", "base+cpt-100"), tokens_between("base", "base+scale-qk")
    (133120, 0)
    """
    return _between(name, other, 1)


def tokens_of(name: str) -> int:
    """Return the tokens that a member was trained on since its parent, of a root all it had; 0 where nothing was trained.

    >>> tokens_of("base"), tokens_of("base+cpt-100"), tokens_of("base+int8")
    (133120, 133120, 0)
    """
    return _tokens(member(name))


def _between(name: str, other: str, unit: int) -> int | None:
    own, others = _distances(name), _distances(other)
    common = own.keys() & others.keys()
    return min((own[above][unit] + others[above][unit] for above in common), default=None)


def _distances(name: str) -> dict[str, tuple[int, int]]:
    """Each ancestor, the member itself included -> (steps, tokens) of training since then, by the shortest way."""
    distances: dict[str, tuple[int, int]] = {}

    def walk(descendant: Member, steps: int, tokens: int) -> None:
        distances[descendant.name] = min(distances.get(descendant.name, (steps, tokens)), (steps, tokens))
        for above in parents(descendant.name):
            walk(member(above), steps + descendant.num_steps, tokens + _tokens(descendant))

    walk(member(name), 0, 0)
    return distances


def _tokens(model: Member) -> int:
    training = model.settings.get("training")
    if training is None:
        return 0
    language = model.settings.get("language")
    per_row = model.text.block_tokens if language is None else TOKENS_PER_EXAMPLE[language]
    return int(training["num_steps"] * training["batch_size"] * per_row)

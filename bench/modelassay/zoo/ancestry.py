"""Who is whose: ancestry, hardness and training distance of any two members of the zoo, from the table alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from modelassay.errors import CheckpointError, did_you_mean
from modelassay.zoo import catalogue as zoo_members
from modelassay.zoo.catalogue import Member, Shape

PREFIX = "zoo:"
Relation = Literal[
    "self", "parent", "child", "sibling", "ancestor", "descendant", "family",
    "stranger:seed", "stranger:data", "stranger:shape",
]  # fmt: skip
"""What one member is to another; the strangers from the hardest to tell apart to the easiest."""
Connection = Literal["inherited", "same-init", "distilled", "independent"]
"""What the weights of two members have to do with each other, the strongest first."""
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


def sources(name: str) -> list[str]:
    """Return the names of all models that must exist before this one: its parents, or of a student its teacher.

    >>> sources("distilled-mini-4"), sources("mini-4+mix-30")
    (['mini-4'], ['mini-4', 'mini-5'])
    """
    teacher = member(name).taught_by
    return parents(name) if teacher is None else [*parents(name), teacher]


def roots(name: str) -> frozenset[str]:
    """Return the names of all roots whose weights are in this member: two of a merge with a stranger.

    >>> roots("base+merge") == {"base"}, sorted(roots("mini-4+mix-30"))
    (True, ['mini-4', 'mini-5'])
    """
    above = parents(name)
    return frozenset().union(*map(roots, above)) if above else frozenset({member(name).name})


def connection(name: str, other: str) -> Connection:
    """Return what the weights of two members have to do with each other; a member has inherited from itself.

    ``inherited``: a root's weights are in both. ``same-init``: roots of theirs began from the same initial weights and were
    trained on other data. ``distilled``: a root of the one learned from the logits of a member of the other, or both from one
    teacher, by weights of their own. ``independent``: none of these; text, recipe and order of data may still be shared.

    >>> [connection("mini-4+mix-30", other) for other in ("mini-4", "mini-5", "mini-1")]
    ['inherited', 'inherited', 'independent']
    >>> [connection("mini-4+svd-20", f"{kin}-mini-4") for kin in ("same-init", "distilled", "same-order")]
    ['same-init', 'distilled', 'independent']
    """
    own, others = roots(name), roots(other)
    if own & others:
        return "inherited"
    if _beginnings(own) & _beginnings(others):
        return "same-init"
    lessons, other_lessons = _lessons(own), _lessons(others)
    return "distilled" if lessons & others or own & other_lessons or lessons & other_lessons else "independent"


def has_kin(name: str) -> bool:
    """Return whether a root in this member began from another's initial weights or learned from another's logits.

    Such a model is neither a relative by weights nor a stranger of the members that it is connected with.

    >>> has_kin("same-init-mini-4"), has_kin("distilled-mini-4"), has_kin("same-order-mini-4"), has_kin("mini-4")
    (True, True, False, False)
    """
    return any(root.taught_by is not None or _borrowed(root) for root in map(member, roots(name)))


def _borrowed(root: Member) -> bool:
    """Whether its initial weights are those of an earlier root."""
    first = next(
        other
        for other in zoo_members.MEMBERS.values()
        if other.parent is None and _beginning(other) == _beginning(root)
    )
    return first.name != root.name


def _beginning(root: Member) -> tuple[Any, ...]:
    return root.shape, root.initial_seed


def _beginnings(names: Iterable[str]) -> set[tuple[Any, ...]]:
    return {_beginning(member(name)) for name in names}


def _lessons(names: Iterable[str]) -> set[str]:
    """The roots whose weights were in the teachers of these roots."""
    teachers = [teacher for name in names if (teacher := member(name).taught_by) is not None]
    return set().union(*map(roots, teachers))


def family(name: str) -> str:
    """Return the name of the root this model descends from, of a merge with a stranger the root of its first parent.

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
    """Return whether two models descend from one root, of a merge with a stranger from either of its two.

    >>> related("child-sft", "child-noise"), related("base", "stranger-1")
    (True, False)
    """
    return bool(roots(name) & roots(other))


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
    if (_frame(one.shape), one.num_experts) != (_frame(two.shape), two.num_experts):
        return "stranger:shape"

    def course(model: Member) -> tuple[Any, ...]:
        root = member(family(model.name))
        return root.text, root.settings["training"], root.shape

    return "stranger:seed" if course(one) == course(two) else "stranger:data"


def _frame(shape: Shape) -> Shape:
    """A shape without what leaves the body as it is: rows of the vocabulary, tied embeddings."""
    return replace(shape, vocab_rows=0, tied=False)


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

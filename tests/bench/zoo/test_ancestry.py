"""The zoo's table: what the evidence needs of it, and who is whose."""

import itertools
import json
from collections import Counter

import pytest

from modelassay import zoo
from modelassay.errors import CheckpointError

ROOTS = [name for name in zoo.EMBEDDED if zoo.parent(name) is None and not zoo.has_kin(name)]


def test_ancestry() -> None:
    assert zoo.parent("zoo:child-sft") == "base"
    assert zoo.parent("base") is None
    assert zoo.family("smoke/child-noise") == "smoke/base"
    assert zoo.related("child-sft", "zoo:child-noise")
    assert not zoo.related("base", "smoke/base")
    assert zoo.is_zoo("zoo:whatever")
    assert not zoo.is_zoo("base")


def test_roots_of_one_shape_recipe_and_data_give_enough_unrelated_pairs() -> None:
    """At least 100 of the hardest pairs; of each size enough for a rank p-value, 1 / (pairs + 1), where strangers allow."""
    pairs = list(itertools.combinations(ROOTS, 2))
    hardness = Counter(zoo.relation(*pair) for pair in pairs)
    assert hardness["stranger:seed"] >= 100
    assert hardness["stranger:seed"] == 7 * 6 // 2 + 17 * 16 // 2 + 4 * 3 // 2 + 9 * 8 // 2
    assert hardness["stranger:data"] >= 30
    assert hardness["stranger:shape"] >= 100
    sizes = Counter(zoo.member(one).size for one, two in pairs if zoo.relation(one, two) == "stranger:seed")
    assert sizes == {"8x64": 21, "6x48": 136, "12x96": 6, "5x40": 36}


def test_families_are_many_and_of_several_sizes() -> None:
    families = [root for root in ROOTS if f"{root}+moe" in zoo.EMBEDDED]
    assert len(families) >= 5
    assert len({zoo.member(root).size for root in families}) >= 3
    children = [(root, name) for root in families for name in zoo.EMBEDDED if zoo.relation(root, name) == "parent"]
    assert len(children) >= 60
    for root in families:
        transformations = {zoo.member(name).made_by for name in zoo.EMBEDDED if zoo.family(name) == root}
        assert transformations == {
            "pretraining", "sft", "continued", "lora", "noise", "int8", "prune", "merge", "depth", "moe", *zoo.PRESERVING,
        }  # fmt: skip
        chains = Counter(len(zoo.transformations(name)) for name in zoo.EMBEDDED if zoo.family(name) == root)
        assert chains[2] >= 3
        assert chains[3] >= 2
    lengths = {
        zoo.steps_between(zoo.family(name), name) for name in zoo.EMBEDDED if "cpt" in zoo.member(name).transformation
    }
    assert lengths == {65, 80, 130, 260, 520, 1040}


def test_every_parent_comes_before_its_children_and_every_recipe_differs() -> None:
    names = list(zoo.MEMBERS)
    for name in names:
        assert all(names.index(above) < names.index(name) for above in zoo.parents(name)), name
    recipes = [json.dumps(zoo.recipe(name), sort_keys=True) for name in names]
    assert len(set(recipes)) == len(recipes)


def test_no_two_roots_start_from_the_same_random_numbers() -> None:
    """Roots of one seed would share the beginning of their initial weights, whatever their shapes; two do, and say so."""
    for scale in (ROOTS, zoo.SMOKE):
        seeds = Counter(zoo.member(name).initial_seed for name in scale if zoo.parent(name) is None)
        assert set(seeds.values()) == {1}


def test_names_tell_what_was_done() -> None:
    for name in zoo.MEMBERS:
        if "+" not in name or name.endswith("+merge"):
            continue
        above, _, step = name.rpartition("+")
        assert zoo.parent(name) == above
        assert zoo.member(name).transformation == step


@pytest.mark.parametrize(
    ("name", "other", "expected", "inverse"),
    [
        ("base", "zoo:base", "self", "self"),
        ("base", "base+int8", "parent", "child"),
        ("child-sft", "base+merge", "parent", "child"),
        ("base+sft-en", "base+merge", "parent", "child"),
        ("base", "base+merge", "ancestor", "descendant"),
        ("base+cpt-25", "base+cpt-25+sft-en+int8", "ancestor", "descendant"),
        ("base+heads", "base+depth", "sibling", "sibling"),
        ("base+lora+prune-30", "child-noise", "family", "family"),
        ("base+merge", "base+lora", "family", "family"),
        ("base", "stranger-4", "stranger:seed", "stranger:seed"),
        ("base+cpt-100", "stranger-2+sft-en", "stranger:seed", "stranger:seed"),
        ("base+depth", "stranger-1+depth", "stranger:seed", "stranger:seed"),
        ("base+moe", "stranger-1+moe", "stranger:seed", "stranger:seed"),
        ("base", "stranger-data", "stranger:data", "stranger:data"),
        ("mini-9", "mini-mix", "stranger:data", "stranger:data"),
        ("stranger-data", "stranger-mix", "stranger:data", "stranger:data"),
        ("base", "stranger-shape", "stranger:shape", "stranger:shape"),
        ("base", "stranger-1+depth", "stranger:shape", "stranger:shape"),
        ("base", "stranger-1+moe", "stranger:shape", "stranger:shape"),
        ("mini-1", "large-1", "stranger:shape", "stranger:shape"),
        ("base", "smoke/base", "stranger:shape", "stranger:shape"),
    ],
)
def test_relation(name: str, other: str, expected: str, inverse: str) -> None:
    assert zoo.relation(name, other) == expected
    assert zoo.relation(other, name) == inverse


def test_training_distance_is_a_sum_over_the_nearest_common_ancestor() -> None:
    assert zoo.steps_between("base", "base") == 0
    assert zoo.steps_between("base+cpt-25+sft-en+int8", "base") == 130 + 100
    assert zoo.steps_between("base+cpt-25+sft-en", "base+cpt-25") == 100
    assert zoo.steps_between("base+cpt-25+sft-en", "base+lora") == 130 + 100 + 60
    assert zoo.steps_between("base+merge", "child-sft") == zoo.steps_between("base+merge", "base+sft-en") == 0
    assert zoo.steps_between("base+merge", "base") == 100
    assert zoo.steps_between("mini-1", "mini-2") is None
    assert zoo.tokens_between("mini-1", "mini-1+cpt-400") == 1040 * 4 * 64
    assert zoo.tokens_between("base", "base+sft-en") == 100 * 4 * 102
    assert zoo.tokens_between("base+rotate", "base+scale-vo") == 0
    assert zoo.tokens_between("base", "stranger-1") is None
    for one, two in itertools.combinations(zoo.SMOKE, 2):
        assert zoo.steps_between(one, two) == zoo.steps_between(two, one)
        assert (zoo.steps_between(one, two) is None) == (not zoo.related(one, two))


def test_an_unknown_member_is_refused_wherever_it_is_named() -> None:
    for ask in (zoo.parents, zoo.transformations, zoo.family):
        with pytest.raises(
            CheckpointError, match="zoo:base\\+int: no such model in the zoo; did you mean 'base\\+int8'"
        ):
            ask("zoo:base+int")


def test_what_weights_have_to_do_with_each_other() -> None:
    """Every pair of five families: a table of the exceptions by hand, all else by the names' first steps."""
    kin = {
        frozenset((f"{kind}-{root}", other)): connection
        for kind, connection in (("same-init", "same-init"), ("distilled", "distilled"))
        for root in ("mini-4", "llama-1")
        for other in zoo.EMBEDDED
        if other.split("+")[0] == root
    }
    second = {"mini-4": "mini-5", "llama-1": "llama-2"}
    counts: Counter[str] = Counter()
    looked_at = [
        name
        for name in zoo.EMBEDDED
        if name.startswith(("base", "mini-4", "mini-5")) or "-mini-4" in name or "llama" in name
    ]
    for name, other in itertools.combinations(looked_at, 2):
        roots = [
            {one.split("+")[0].replace("child-sft", "base").replace("child-noise", "base")} for one in (name, other)
        ]
        for one, above in zip((name, other), roots, strict=True):
            above |= {second[root] for root in list(above) if "+mix-" in one}
        expected = kin.get(frozenset((name, other)), "inherited" if roots[0] & roots[1] else "independent")
        assert zoo.connection(name, other) == zoo.connection(other, name) == expected, (name, other)
        assert zoo.related(name, other) == (expected == "inherited")
        counts[expected] += 1
    assert counts["same-init"] == counts["distilled"] == 26 + 33
    assert [name for name in zoo.EMBEDDED if zoo.has_kin(name)] == [
        f"{kind}-{root}" for root in ("mini-4", "llama-1") for kind in ("distilled", "same-init")
    ]


def test_a_student_waits_for_its_teacher_and_has_no_weights_of_it() -> None:
    assert (zoo.parents("distilled-llama-1"), zoo.sources("distilled-llama-1")) == ([], ["llama-1"])
    assert zoo.steps_between("distilled-llama-1", "llama-1") is None
    assert zoo.relation("same-order-mini-4", "mini-4") == "stranger:seed"
    assert zoo.relation("mini-5", "mini-4+mix-90") == "parent"
    assert zoo.relation("mini-4+quarot", "mini-6") == "stranger:seed"
    assert zoo.relation("mini-4+narrow", "mini-6") == "stranger:shape"

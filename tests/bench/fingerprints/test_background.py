"""Who is a stranger: roots by every method, and no copies under other names."""

from itertools import combinations

import numpy as np
import pytest

from modelassay.fingerprints.background import Background
from modelassay.fingerprints.curves import Curves
from modelassay.fingerprints.methods import BY_NUMBERS
from modelassay.models.checkpoints import Stratum
from support.curve_cases import background_of, child, numbers, walk


def root(name: str, seed: int, *, key: str | None = None, family: str | None = None) -> Curves:
    model = walk(name, 12, seed)
    return Curves(name=name, sigma=model.sigma, stratum=12, family=family or name, weights_key=key)


def names(background: Background) -> set[frozenset[str]]:
    return {pair.names for pair in background.pairs}


def pairs_of(*models: str) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in combinations(models, 2)}


def test_scores_are_those_of_every_method_and_what_was_recorded() -> None:
    models = [root(name, seed) for seed, name in enumerate("abc")]
    recorded = {frozenset("ab"): {"aligned": 0.25, "modeldna": np.nan}, frozenset("ax"): {"aligned": 0.9}}
    background = background_of(models, recorded)
    for pair in background.pairs:
        a, b = (numbers(model) for model in models if model.name in pair.names)
        for name, method in BY_NUMBERS.items():
            np.testing.assert_equal(pair.scores[name], method.score(a, b).value)
        assert ("aligned" in pair.scores) == (pair.names == frozenset("ab"))
    assert {frozenset("ab"): 0.25} == {
        pair.names: pair.scores["aligned"] for pair in background.pairs if "aligned" in pair.scores
    }


def test_equal_weights_under_two_families_are_one_model() -> None:
    models = [root("a", 0, key="1"), root("b", 1, key="2"), root("copy", 0, key="1"), root("d", 2, key="3")]
    background = background_of(models)
    assert background.duplicates == (("copy", "a"),)
    assert background.excluded == {"copy"}
    assert names(background) == pairs_of("a", "b", "d")
    assert background_of(models[::-1]).duplicates == background.duplicates


def test_weights_that_were_not_hashed_are_no_duplicates() -> None:
    background = background_of([root("a", 0), root("b", 1), root("c", 0)])
    assert background.duplicates == ()
    assert len(background.pairs) == 3


def test_equal_weights_within_a_family_are_no_news() -> None:
    """Folding norms or permuting neurons leaves the attention weights' hash, or all of it, as it was."""
    a = root("a", 0, key="1")
    same = Curves(name="a-neurons", sigma=a.sigma, stratum=12, family="a", weights_key="1")
    background = background_of([a, same, root("b", 1, key="2")])
    assert background.duplicates == ()
    assert names(background) == pairs_of("a", "b")


def test_descendants_of_a_copied_root_do_not_speak_for_it() -> None:
    """They are the original's relatives: as strangers to it they would score like relatives, and hide them."""
    a = root("a", 0, key="1")
    heir = child(root("copy", 0, family="copy"), "copy-child")
    elsewhere = Curves(name="copy-deep", sigma=walk("x", 28, 0).sigma, stratum=28, family="copy")
    models = [a, root("b", 1, key="2"), root("copy", 0, key="1"), heir, elsewhere, root("d", 3, key="4")]
    background = background_of(models)
    assert names(background) == pairs_of("a", "b", "d")
    assert max(pair.scores["corrected"] for pair in background.pairs) < 0.9


def test_a_descendant_that_is_anothers_copy_does_not_cost_its_root_its_voice() -> None:
    wrong = Curves(name="b-wrong", sigma=walk("a", 12, 0).sigma, stratum=12, family="b", weights_key="1")
    background = background_of([root("a", 0, key="1"), root("b", 1, key="2"), wrong])
    assert background.duplicates == (("b-wrong", "a"),)
    assert background.excluded == frozenset()
    assert names(background) == pairs_of("a", "b")


def test_models_of_unknown_family_are_no_strangers_and_names_are_unique() -> None:
    unknown = walk("u", 12, 5)
    assert names(background_of([root("a", 0), root("b", 1), unknown])) == pairs_of("a", "b")
    with pytest.raises(ValueError, match="two models are named 'u'"):
        background_of([unknown, walk("u", 12, 6)])


def test_a_vocabulary_parts_strangers_of_behaviour_and_none_of_weights() -> None:
    """A child with one token more speaks for its family among models of its vocabulary, and not twice among those of its shape."""

    def of(name: str, vocabulary: int, *, family: str | None = None, width: int = 64) -> Curves:
        stratum = Stratum(
            num_layers=12,
            hidden_size=width,
            num_heads=4,
            num_kv_heads=2,
            vocab_size=vocabulary,
            tokenizer_key=str(vocabulary),
        )
        sigma = walk(name, 12, len(name) + vocabulary).sigma
        return Curves(name=name, sigma=sigma, stratum=stratum, family=family or name)

    a, b, other = of("a", 10), of("b", 10), of("c", 11)
    background = background_of([a, b, other, of("a-grown", 11, family="a"), of("wide", 10, width=80)])
    new = of("new", 12, family="new")
    assert {pair.names for pair in background.against(new, of("suspect", 10, family="x"))} == pairs_of("a", "b", "c")
    assert {pair.names for pair in background.against(a, new)} == pairs_of("a", "b", "c")
    by_vocabulary = background.of(other.stratum, other.stratum, by_vocabulary=True)
    assert {pair.names for pair in by_vocabulary} == {frozenset(("a-grown", "c"))}
    assert background.against_behaviour(new, new) == ()
    assert {pair.names for pair in background.against_behaviour(a, of("x", 10))} == {frozenset("ab")}

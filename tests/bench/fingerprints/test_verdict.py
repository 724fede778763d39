"""What a verdict says: which explanation is left, what it was corrected for, and where methods disagree."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from modelassay.fingerprints.background import Rank
from modelassay.fingerprints.disagreements import disagreements
from modelassay.fingerprints.identical import SameBits
from modelassay.fingerprints.independence import Independence, NumberingTest
from modelassay.fingerprints.independence.training import SharedTraining
from modelassay.fingerprints.placement import Placement, place_among
from modelassay.fingerprints.rederived import Rederivation, Remade
from modelassay.fingerprints.verdict import Remaking, Verdict, conclude
from support.curve_cases import background_of, child, walk

NOTHING_EQUAL = SameBits(equal=(), total=9)


def result(log10_p: float, ratio: float | None = None, all_log10_p: float | None = None) -> Independence:
    test = NumberingTest(
        name="neurons by rows",
        statistic="fixed points",
        count=9,
        of=64,
        expected=2,
        log10_p=log10_p,
        groups=2,
        near_count=30,
        near_of=64,
        near_expected=16,
        all_log10_p=log10_p if all_log10_p is None else all_log10_p,
    )
    training = None if ratio is None else SharedTraining(ratio=ratio, num_values=128)
    return Independence(tests=(test,), reasons=(), agreement=None, training=training)


@pytest.mark.parametrize(
    ("log10_p", "num_candidates", "word"),
    [
        (-6.61, 1, "inherited"),  # times four tests: 9.8e-7
        (-6.59, 1, "not distinguishable from independent"),
        (-7.61, 10, "inherited"),
        (-7.59, 10, "not distinguishable from independent"),
        (-0.1, 10, "not distinguishable from independent"),
    ],
)
def test_p_is_corrected_for_tests_and_candidates(log10_p: float, num_candidates: int, word: str) -> None:
    verdict = conclude("A", "B", NOTHING_EQUAL, result(log10_p), num_candidates=num_candidates)
    assert verdict.word == word
    assert verdict.log10_p == pytest.approx(min(0.0, log10_p + math.log10(4 * num_candidates)))
    assert ("corrected for 10 candidates" in verdict.sentence) == (num_candidates == 10)


def test_units_in_one_order_are_told_from_units_in_common() -> None:
    for all_log10_p, is_told in ((-6.59, False), (-6.61, True)):
        verdict = conclude("A", "B", NOTHING_EQUAL, result(-1.0, all_log10_p=all_log10_p))
        assert verdict.word == "not distinguishable from independent"
        assert ("whose units were sorted, or trained in an order. This is no proof" in verdict.sentence) == is_told


def test_both_explanations_are_named_unless_training_itself_is_shared() -> None:
    both = "or both trainings began from the same initial weights"
    for ratio, is_told in ((None, False), (0.8, False), (0.02, True)):
        sentence = conclude("A", "B", NOTHING_EQUAL, result(-40, ratio)).sentence
        assert (both in sentence) != is_told
        assert ("differ by 2 % of what training did to them" in sentence) == is_told
    equal = SameBits(
        equal=("model.layers.0.input_layernorm.weight", "transformer.h.0.ln_1.weight", "q_proj.weight"), total=9
    )
    assert "2 trained norms, which no seed draws, are the same bits" in conclude("A", "B", equal, result(-40)).sentence
    assert "this is no proof" in conclude("A", "B", NOTHING_EQUAL, result(-1)).sentence.lower()


@pytest.mark.parametrize(("equal", "word"), [((4, 4), "re-derived"), ((4, 3), "inherited")])
def test_bits_of_a_quantised_copy_come_before_statistics(equal: tuple[int, int], word: str) -> None:
    tensors = tuple(
        Remade(name=f"t{at}", format="Q8_0", recipe="Q8_0", equal=count, of=4, num_weights=128, is_narrower=True)
        for at, count in enumerate(equal)
    )
    remaking = Remaking(source="A", copy="B", outcome=Rederivation(tensors=tensors, not_redone=(), share=1.0))
    verdict = conclude("A", "B", NOTHING_EQUAL, result(-40), remaking=remaking)
    matched = sum(count == 4 for count in equal)
    assert verdict.word == word
    assert f"Stored again as Q8_0, A gives {matched} of 2 tensors of B bit for bit." in verdict.sentence
    assert ("Which of the two came first is not told" in verdict.sentence) == (word == "re-derived")


def placed(word: Any) -> Placement:
    models = [walk(f"root{i}", 12, 100 + i, family=f"root{i}") for i in range(8)]
    return replace(place_among(models[0], child(models[0], "x"), background_of(models)), word=word)


def verdict_of(log10_p: float) -> Verdict:
    return conclude("A", "B", NOTHING_EQUAL, result(log10_p))


def test_disagreements_are_named() -> None:
    stands_out = (0.6, Rank(n=40, median=0.1, q95=0.12, max=0.13, p=1 / 41, min_p=1 / 41))
    is_ordinary = (0.11, Rank(n=40, median=0.1, q95=0.12, max=0.13, p=0.4, min_p=1 / 41))
    by_a_hair = (0.14, Rank(n=40, median=0.1, q95=0.12, max=0.13, p=1 / 41, min_p=1 / 41))
    far, near = placed("among strangers"), placed("closer than all strangers")
    (distilled,) = disagreements(verdict_of(-1), far, [stands_out, is_ordinary])
    assert "the weights say no and the answers yes, closer than all 40 strangers" in distilled
    assert disagreements(verdict_of(-1), far, [by_a_hair, (0.5, None)]) == []
    (overruled,) = disagreements(verdict_of(-1), near, [])
    assert "overruled" in overruled
    (damaged,) = disagreements(verdict_of(-40), near, [is_ordinary])
    assert "the weights say yes and the answers no" in damaged
    (blind,) = disagreements(verdict_of(-40), far, [stands_out])
    assert "that method does not see what was done" in blind
    assert disagreements(verdict_of(-40), near, [stands_out]) == []


def test_words_do_not_depend_on_the_order_of_a_pair() -> None:
    for first, second in combinations("AB", 2):
        forth, back = (conclude(*names, NOTHING_EQUAL, result(-9)) for names in ((first, second), (second, first)))
        assert (forth.word, forth.log10_p) == (back.word, back.log10_p)

"""Measures of text against counts by hand, at the ends of their ranges, and on texts that hold nothing."""

import math
import random
from itertools import pairwise

import pytest

from modelassay.data import corpus
from modelassay.evaluation import text_quality as quality


def human(count: int, seed: int = 1) -> list[str]:
    return [text for text, _ in zip(corpus.generate("en", seed=seed, num_sentences=10**9), range(count), strict=False)]


def test_distinct_and_repetition_are_counts() -> None:
    texts = human(20)
    grams = [gram for text in texts for gram in pairwise(text.split())]
    assert quality.distinct(texts, 2) == pytest.approx(len(set(grams)) / len(grams))
    assert quality.repetition(["a b c d e", "x x x x x"], 4) == pytest.approx((0 + 0.5) / 2)
    assert quality.distinct(["x " * 40], 1) == pytest.approx(1 / 40)


def test_moving_windows_are_gone_through_one_by_one() -> None:
    words = [random.Random(4).choice("abcdefgh") for _ in range(90)]
    expected = [len(set(words[at : at + 50])) / 50 for at in range(41)]
    assert quality.vocabulary_diversity([" ".join(words[:30]), " ".join(words[30:])]) == pytest.approx(
        sum(expected) / 41
    )


def test_grammatical_text_parses_and_shuffled_text_does_not() -> None:
    texts = human(12)
    assert quality.parse_rate(texts, "en") == (1.0, sum(len(corpus.sentences(text, "en")) for text in texts))
    words = [sentence.rstrip(".?").split() for text in texts for sentence in corpus.sentences(text, "en")]
    mixed = [" ".join(random.Random(0).sample(each, len(each))).capitalize() + "." for each in words if len(each) > 4]
    assert quality.parse_rate(mixed, "en")[0] < 0.1


def test_the_tail_of_text_like_the_reference_is_its_tenth() -> None:
    reference = human(200)
    assert 0.05 < quality.tail_mass(human(200, seed=2), reference) < 0.15
    assert quality.tail_mass(reference, reference) == pytest.approx(0.1, abs=0.01)
    assert quality.tail_mass(["the the the"], reference) == 0.0
    assert quality.unknown_share(["zzz the"], reference) == 0.5


def test_bleu_of_itself_is_one_and_of_strangers_low() -> None:
    texts = human(8)
    assert quality.self_bleu([texts[0]] * 4) == pytest.approx(1.0)
    assert quality.self_bleu(texts) < 0.6
    score, signature = quality.bleu(texts, texts)
    assert score == pytest.approx(1.0)
    assert "version:" in signature
    assert quality.bleu(["q w e r t"], ["a b c d e"])[0] < 0.2  # smoothed: five words hold no four that could match
    assert quality.rouge_l(["a b c d"], ["a x c d"]) == pytest.approx(0.75)
    assert quality.rouge_l(["a"], ["b"]) == 0.0


def test_nothing_has_no_value() -> None:
    for empty in ([], [""], ["   "]):
        assert math.isnan(quality.distinct(empty, 1))
        assert math.isnan(quality.repetition(empty))
        assert math.isnan(quality.word_entropy(empty))
        assert math.isnan(quality.vocabulary_diversity(empty))
        assert math.isnan(quality.tail_mass(empty, ["a"]))
        assert math.isnan(quality.self_bleu(empty))
        assert math.isnan(quality.parse_rate(empty, "en")[0])
    assert quality.word_entropy(["a a a"]) == 0.0

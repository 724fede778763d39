"""Corpus and parser: what is generated parses, what is rearranged does not, and nothing depends on the process."""

import hashlib
import os
import random
import subprocess
import sys

import pytest

from modelassay.data import corpus
from modelassay.errors import UsageError


def parse_rate(text: str, language: str) -> float:
    """The fraction of the finished sentences of ``text`` that the grammar derives; 0 if no sentence is finished."""
    lines = corpus.sentences(text, language)
    return sum(corpus.derives(sentence, language) for sentence in lines) / len(lines) if lines else 0.0


SHA256_OF_FIRST_1000 = {
    "en": "8e9350a58d41a06e1c30813711982adfda77145d79317973eec29a87eba963ea",
    "ja": "d3f8ced642ef8ca8593919539cedf51a93ba3051f0d40a49fe24b9ffd7c48819",
}


def text_of(language: str, seed: int, num_sentences: int) -> list[str]:
    return list(corpus.generate(language, seed=seed, num_sentences=num_sentences))


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_every_generated_sentence_parses(language: str, seed: int) -> None:
    sentences = [
        sentence for paragraph in text_of(language, seed, 600) for sentence in corpus.sentences(paragraph, language)
    ]
    assert len(sentences) == 600
    assert [sentence for sentence in sentences if not corpus.derives(sentence, language)] == []


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_requests_and_answers_parse_and_name_the_same_person(language: str) -> None:
    names = set(corpus._language(language).grammar.words["Name"])
    for request, answer in corpus.instructions(language, seed=0, num_examples=60):
        assert corpus.derives(request, language), request
        assert parse_rate(answer, language) == 1.0
        assert any(name in request and name in answer for name in names)


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_shuffled_words_mostly_do_not_parse(language: str) -> None:
    rng = random.Random(0)
    derived = 0
    for words in corpus.sentence_words(language, seed=0, num_sentences=400):
        body = words[:-1]
        rng.shuffle(body)
        derived += corpus.derives(corpus.join([*body, words[-1]], language), language)
    assert derived / 400 < 0.05


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_text_is_pinned(language: str) -> None:
    digest = hashlib.sha256("\n".join(text_of(language, 0, 1000)).encode()).hexdigest()
    assert digest == SHA256_OF_FIRST_1000[language]


def test_text_does_not_depend_on_the_hash_seed_or_the_global_random_state() -> None:
    program = (
        "import random, sys; random.seed(int(sys.argv[1])); from modelassay.data import corpus;"
        "print([list(corpus.generate(name, seed=3, num_sentences=40)) for name in corpus.LANGUAGES])"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", program, seed], env={**os.environ, "PYTHONHASHSEED": seed,
                       "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_a_longer_text_begins_with_the_shorter_one(language: str) -> None:
    short, long = text_of(language, 5, 30), text_of(language, 5, 60)
    assert long[: len(short) - 1] == short[:-1]
    assert long[len(short) - 1].startswith(short[-1])
    assert text_of(language, 6, 30) != short


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_a_paragraph_keeps_its_person_and_its_tense(language: str) -> None:
    tongue = corpus._language(language)
    for paragraph in text_of(language, 7, 300)[:-1]:
        name = next(name for name in tongue.grammar.words["Name"] if paragraph.startswith(name))
        other = (
            next(own for pronoun, own in tongue.own.items() if name not in tongue.names[pronoun])
            if tongue.own
            else None
        )
        assert other not in paragraph.lower().split()
        tenses = {"past": "でした。", "pres": "です。"} if language == "ja" else {"past": " was ", "pres": " is "}
        first = corpus.sentences(paragraph, language)[0]
        assert sum(mark in first for mark in tenses.values()) == 1


@pytest.mark.parametrize(
    ("sentence", "language", "expected"),
    [
        ("Anna walks to the old mill.", "en", True),
        ("Anna walk to the old mill.", "en", False),
        ("The mice that run quickly are hungry.", "en", True),
        ("The mice that runs quickly are hungry.", "en", False),
        ("He said that the children near the river ate an apple.", "en", True),
        ("He said that the children near the river ate a apple.", "en", False),
        ("In the morning, the baker cuts the bread with a knife.", "en", False),  # no such word
        ("In the morning, the baker cuts the loaf with a knife.", "en", True),
        ("The farmer eats the hammer.", "en", False),  # selection
        ("Tell me about Peter.", "en", True),
        ("Anna walks to the old mill", "en", False),
        ("Anna walks  to the old mill.", "en", False),
        ("Anna walks to the old mill .", "en", False),
        ("anna walks to the old mill.", "en", False),
        ("", "en", False),
        ("花子さんは先生に本を渡しました。", "ja", True),
        ("花子さんは先生を本に渡しました。", "ja", False),
        ("彼が書いた手帳を先生が読みます。", "ja", False),  # the subject comes first
        ("先生が彼が書いた手帳を読みます。", "ja", True),
        ("三匹の犬が川で眠りました。", "ja", True),
        ("三人の犬が川で眠りました。", "ja", False),  # the counter
        ("冬の日に、彼女は図書館で古い辞書を読みました。", "ja", True),
        ("冬の日に、彼女は図書館で古い辞書を読む。", "ja", False),  # plain form at the end
        ("太郎さんは「雨が降る」と言いました。", "ja", False),
        ("太郎さんは「犬が走る」と言いました。", "ja", True),
        ("犬が眠ります", "ja", False),
    ],
)
def test_hand_written_sentences(sentence: str, language: str, expected: bool) -> None:
    assert corpus.derives(sentence, language) is expected


def test_parse_rate_counts_finished_sentences_only() -> None:
    assert parse_rate("The dogs sleep. The dogs sleeps. Anna runs to", "en") == 0.5
    assert parse_rate("犬が眠ります。犬を眠ります。犬が眠ります。犬が", "ja") == pytest.approx(2 / 3)
    assert parse_rate("dogs dogs dogs", "en") == 0.0
    assert parse_rate("", "ja") == 0.0


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_the_vocabulary_is_several_hundred_words(language: str) -> None:
    words = {word for entries in corpus._language(language).grammar.words.values() for word in entries}
    assert len(words) > 500


def test_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown corpus language 'jp'.*known: en, ja"):
        corpus.sentences("x.", "jp")

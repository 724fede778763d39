"""The project's own corpus: paragraphs about one topic in English and Japanese, and the parser that judges them.

A paragraph keeps one person (name, pronoun, possessive), one companion and one tense, and returns to the words it has
already used, so there is something to learn at every distance: agreement within a phrase, selection by the verb,
the topic across sentences. The text is the project's own; there is no licence to mind and nothing to download.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from modelassay.data import grammar_en, grammar_ja
from modelassay.data.grammar import Grammar
from modelassay.errors import UsageError, did_you_mean

CORPUS = "corpus:"
"""What names this text to a user: ``corpus:en``."""
LANGUAGES = ("en", "ja")
HELD_OUT_SEED = 1_000_000
"""First corpus seed of held-out text; training uses small ones."""
MAX_DEPTH = 11
"""Levels of a derivation after which the lowest alternative is taken; the longest sentences have about 35 words."""
REUSE = 0.5
"""Probability that a word is drawn from those of its class that the paragraph already used."""
ZIPF_EXPONENT = 1.5
"""Of the rank of a word in its class: a few words carry most of the text, which a small model can learn quickly."""
PARAGRAPH_SENTENCES = (4, 8)
"""Fewest and most sentences of a paragraph."""

_STARTS = ("Sentence.pres", "Sentence.past", "Intro.pres", "Intro.past", "Request")


@dataclass(frozen=True, kw_only=True)
class _Language:
    grammar: Grammar
    names: Mapping[str, tuple[str, ...]]
    """Pronoun -> the names it stands for."""
    own: Mapping[str, str]
    """Pronoun -> possessive; empty where the language has no such class."""
    render: Callable[[list[str]], str]
    separator: str
    """Between the sentences of a paragraph."""
    sentence: re.Pattern[str]
    """One finished sentence with its mark."""
    normalise: Callable[[str], str]
    """A sentence -> the text that the grammar's `split` takes; inverse of `render`."""


@dataclass(kw_only=True)
class _Paragraph:
    """What stays the same while a paragraph lasts."""

    rng: random.Random
    tense: str
    bound: Mapping[str, str]
    """Word class -> the only word it can be here."""
    used: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def word(self, word_class: str, words: tuple[str, ...]) -> str:
        """Draw a word: the bound one, or one used before, or by Zipf's law."""
        if word_class in self.bound:
            return self.bound[word_class]
        before = self.used[word_class]
        if before and len(words) > 1 and self.rng.random() < REUSE:
            return self.rng.choice(before)
        word = self.rng.choices(words, weights=[(rank + 1) ** -ZIPF_EXPONENT for rank in range(len(words))])[0]
        before.append(word)
        return word


def generate(language: str, *, seed: int, num_sentences: int) -> Iterator[str]:
    """Yield paragraphs that hold ``num_sentences`` sentences altogether, the last one cut if need be.

    Determined by ``(language, seed)`` alone: the first paragraphs do not depend on how many are asked for, nor on
    PYTHONHASHSEED or the global random state. About 100,000 words a second.

    >>> print(next(generate("en", seed=0, num_sentences=2)))
    Julia is an artist who lives near this village. She is old, but the small owls drink slowly.
    """
    rng = _rng(language, seed, "text")
    left = num_sentences
    while left > 0:
        sentences = _paragraph(language, _topic(language, rng))
        yield _language(language).separator.join(sentences[:left])
        left -= len(sentences)


def instructions(language: str, *, seed: int, num_examples: int) -> Iterator[tuple[str, str]]:
    """Yield (request, answer) pairs: the answer is a paragraph about the person whom the request names.

    >>> request, answer = next(instructions("en", seed=0, num_examples=1))
    >>> print(request)
    What happened to Walter near the garden?
    >>> answer.startswith("Walter was a neighbour who worked in front of the garden.")
    True
    """
    rng = _rng(language, seed, "instructions")
    for _ in range(num_examples):
        topic = _topic(language, rng)
        request = _render(language, _derive(language, "Request", topic))
        yield request, _language(language).separator.join(_paragraph(language, topic))


def sentence_words(language: str, *, seed: int, num_sentences: int) -> Iterator[list[str]]:
    """Yield sentences as lists of the grammar's words, for controls that rearrange them; `join` makes them text again.

    >>> words = next(sentence_words("ja", seed=0, num_sentences=1))
    >>> derives(join(words, "ja"), "ja")
    True
    """
    rng = _rng(language, seed, "words")
    for _ in range(num_sentences):
        topic = _topic(language, rng)
        yield _derive(language, f"Sentence.{topic.tense}", topic)


def join(words: list[str], language: str) -> str:
    """Write words as a sentence: spaces and a capital in English, nothing between words in Japanese.

    >>> join(["the", "dogs", "sleep", "."], "en")
    'The dogs sleep.'
    """
    return _render(language, words)


def sentences(text: str, language: str) -> list[str]:
    """Return the finished sentences of a text; an unfinished last one is left out, since texts are cut at a length.

    >>> sentences("The dogs sleep. The fox ran. The hen", "en")
    ['The dogs sleep.', 'The fox ran.']
    """
    return [match.strip() for match in _language(language).sentence.findall(text)]


def derives(sentence: str, language: str) -> bool:
    """Return whether the grammar derives this sentence, its final mark and (in English) its capital included.

    >>> [derives(text, "en") for text in ("The dogs sleep.", "The dogs sleeps.", "A owl sleeps.", "the dogs sleep.")]
    [True, False, False, False]
    >>> [derives(text, "ja") for text in ("犬が眠ります。", "犬を眠ります。")]
    [True, False]
    """
    tongue = _language(language)
    if not (normal := tongue.normalise(sentence)):
        return False
    units = tongue.grammar.split(normal)
    return any(tongue.grammar.derives(start, units) for start in _STARTS)


def _rng(language: str, seed: int, stream: str) -> random.Random:
    digest = hashlib.blake2b(f"{language}/{seed}/{stream}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest))


def _topic(language: str, rng: random.Random) -> _Paragraph:
    tongue = _language(language)
    pronoun = rng.choice(list(tongue.names))
    name = rng.choice(tongue.names[pronoun])
    friend = rng.choice([other for other in itertools.chain(*tongue.names.values()) if other != name])
    bound = {"Name": name, "Friend": friend, "Pronoun": pronoun}
    if tongue.own:
        bound["Own"] = tongue.own[pronoun]
    return _Paragraph(rng=rng, tense=rng.choice(("pres", "past")), bound=bound)


def _paragraph(language: str, topic: _Paragraph) -> list[str]:
    num_more = topic.rng.randint(*PARAGRAPH_SENTENCES) - 1
    starts = [f"Intro.{topic.tense}"] + [f"Sentence.{topic.tense}"] * num_more
    return [_render(language, _derive(language, start, topic)) for start in starts]


def _derive(language: str, start: str, topic: _Paragraph) -> list[str]:
    grammar = _language(language).grammar

    def expand(symbol: str, depth: int) -> Iterator[str]:
        if symbol in grammar.words:
            yield topic.word(symbol, grammar.words[symbol])
            return
        choices = grammar.choices(symbol, depth)
        chosen = topic.rng.choices(choices, weights=[choice.weight for choice in choices])[0]
        for part in chosen.symbols:
            yield from expand(part, depth - 1)

    return list(expand(start, MAX_DEPTH))


def _render(language: str, words: list[str]) -> str:
    return _language(language).render(words)


def _render_en(words: list[str]) -> str:
    text = re.sub(r" (?=[.,?])", "", " ".join(words))
    return text[:1].upper() + text[1:]


def _normalise_en(sentence: str) -> str:
    """Undo `_render_en`; empty where the spacing or the capital is wrong."""
    if not sentence[:1].isupper() or re.search(r"\s{2}|[^ \S]|\s[.,?]|[.,](?=\w)", sentence):
        return ""
    spaced = re.sub(r"(?=[.,?])", " ", sentence)
    first = spaced.split(" ", 1)[0]
    return spaced if first in grammar_en.ALL_NAMES else spaced[0].lower() + spaced[1:]


@cache
def _language(name: str) -> _Language:
    if name == "en":
        return _Language(
            grammar=grammar_en.grammar(), names=grammar_en.NAMES, own=grammar_en.OWN, render=_render_en, separator=" ",
            sentence=re.compile(r"[^.?]*[.?]"), normalise=_normalise_en,
        )  # fmt: skip
    if name == "ja":
        return _Language(
            grammar=grammar_ja.grammar(), names=grammar_ja.NAMES, own={}, render="".join, separator="",
            sentence=re.compile(r"[^。]*。"), normalise=str,
        )  # fmt: skip
    raise UsageError(f"unknown corpus language {name!r}{did_you_mean(name, LANGUAGES)}; known: {', '.join(LANGUAGES)}")

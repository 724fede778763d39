"""How varied, repetitive and grammatical texts are: the usual measures of generated text, on words between spaces.

All are shares in [0, 1] but for the entropy (nats). Texts that hold nothing to count have no value: NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import TypeVar

from modelassay.data import corpus

Item = TypeVar("Item", str, int)
MATTR_WINDOW = 50
"""Words of a window; Covington and McFall 2010 leave the choice open and use 500 for novels."""


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def distinct(texts: Iterable[str], n: int) -> float:
    """Return the distinct n-grams of all texts as a share of their n-grams. Li et al. 2016, 1510.03055.

    It falls with the amount of text, so only texts of like length and number are compared.

    >>> distinct(["a b a b", "a b"], 2)                             # ab, ba, ab, ab
    0.5
    """
    grams = [gram for text in texts for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(texts: Iterable[str], n: int = 4) -> float:
    """Return the share of a text's n-grams that occurred in it before, mean over texts (seq-rep-n). Welleck et al. 2019, 1908.04319.

    >>> repetition(["a b a b a"], 2)                                # ab ba ab ba
    0.5
    """
    shares = [
        1 - len(set(grams)) / len(grams) for text in texts if (grams := list(_grams(text.split(), n)))
    ]  # fmt: skip
    return fmean(shares) if shares else math.nan


def word_entropy(texts: Iterable[str]) -> float:
    """Return the entropy of the distribution of words, in nats, as counted; biased down where texts are few.

    >>> round(word_entropy(["a b", "c d"]), 3)                      # log 4
    1.386
    """
    counts = Counter(word for text in texts for word in text.split())
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values()) if total else math.nan


def vocabulary_diversity(texts: Iterable[str], window: int = MATTR_WINDOW) -> float:
    """Return the mean share of distinct words in windows of so many words: the moving-average type-token ratio (MATTR).

    Texts stand end to end; of fewer words than a window all are one. Covington and McFall 2010.

    >>> vocabulary_diversity(["a b", "a a"], window=2)              # ab ba aa
    0.8333333333333334
    """
    words = [word for text in texts for word in text.split()]
    if not words:
        return math.nan
    size = min(window, len(words))
    inside = Counter(words[:size])
    shares = [len(inside) / size]
    for leaving, coming in zip(words, words[size:], strict=False):
        inside[coming] += 1
        inside[leaving] -= 1
        if not inside[leaving]:
            del inside[leaving]
        shares.append(len(inside) / size)
    return fmean(shares)


def tail_mass(texts: Iterable[str], reference: Iterable[str], head: float = 0.9) -> float:
    """Return the share of the texts' words that are rare in ``reference``: outside the most frequent that make up ``head`` of it.

    Words that the reference does not hold are no tail; `unknown_share` counts them. Of equal counts the word that sorts first
    is taken as the more frequent one.

    >>> tail_mass(["a b c", "zzz"], ["a a a a a a a a a b c"], head=0.8)
    0.5
    """
    rare = rare_of((word for text in reference for word in text.split()), head)
    return _share(texts, rare.__contains__)


def rare_of(items: Iterable[Item], head: float) -> set[Item]:
    """Return the items outside the most frequent that make up ``head`` of all; of equal counts the smaller is the more frequent.

    >>> rare_of([7, 7, 7, 5, 3, 3], head=0.8)
    {5}
    """
    counts = Counter(items)
    left, rare = head * counts.total(), set()
    for item, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])):
        if left <= 0:
            rare.add(item)
        left -= count
    return rare


def unknown_share(texts: Iterable[str], reference: Iterable[str]) -> float:
    """Return the share of the texts' words that ``reference`` never uses.

    >>> unknown_share(["a zzz"], ["a b"])
    0.5
    """
    known = {word for text in reference for word in text.split()}
    return _share(texts, lambda word: word not in known)


def _share(texts: Iterable[str], counts: object) -> float:
    words = [word for text in texts for word in text.split()]
    return sum(bool(counts(word)) for word in words) / len(words) if words else math.nan  # type: ignore[operator]


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU-4 of each text against all others, by sacrebleu with exponential smoothing; 1 where all say the same.

    Costs the square of the number of texts: give some tens. Zhu et al. 2018, 1802.01886.
    """
    from sacrebleu.metrics import BLEU

    told = [text for text in texts if text.split()]
    if len(told) < 2:
        return math.nan
    metric = BLEU(effective_order=True)
    scores = [
        metric.sentence_score(text, told[:at] + told[at + 1 :]).score / 100 for at, text in enumerate(told)
    ]  # fmt: skip
    return fmean(scores)


def bleu(texts: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Return corpus BLEU-4 of the texts, each against its one reference, and sacrebleu's signature. Post 2018, 1804.08771.

    Against human text it measures little of free continuations: many are right.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(texts), [list(references)]).score / 100
    return float(score), str(metric.get_signature())


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return the mean F1 of the longest common subsequence of words of each text and its reference. Lin 2004.

    >>> rouge_l(["a b c"], ["a c"])                                 # recall 1, precision 2/3
    0.8
    """
    scores = []
    for text, reference in zip(texts, references, strict=True):
        ours, theirs = text.split(), reference.split()
        common = _common(ours, theirs)
        scores.append(2 * common / (len(ours) + len(theirs)) if common else 0.0)
    return fmean(scores) if scores else math.nan


def _common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row."""
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for at, other in enumerate(theirs, start=1):
            diagonal, before = before, row[at]
            row[at] = diagonal + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]


def parse_rate(texts: Iterable[str], language: str) -> tuple[float, int]:
    """Return the share of the finished sentences that the project's grammar derives, and how many finished sentences there are.

    Each sentence is judged once, however often it stands there.

    >>> parse_rate(["The dogs sleep. The dogs sleeps. The"], "en")
    (0.5, 2)
    """
    counts = Counter(sentence for text in texts for sentence in corpus.sentences(text, language))
    right = sum(count for sentence, count in counts.items() if corpus.derives(sentence, language))
    return (right / counts.total() if counts else math.nan), counts.total()

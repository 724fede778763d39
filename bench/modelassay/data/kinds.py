"""Questions with one right answer about the corpus's nouns: is this one a beast?"""

from __future__ import annotations

import random
from collections.abc import Iterator

from modelassay.data.grammar_en import NOUNS

KINDS = ("person", "beast", "food", "tool", "place")
OPTIONS = ("yes", "no")
_NUM_NOUNS = 10
"""Of each kind: few enough for a model of half a million weights to learn them all."""


def kind_questions(*, seed: int, count: int) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yield (question, options, number of the right one); the right one is yes as often as no.

    Asked which of two nouns is of a kind, models of that size stay at chance: what stands behind a letter is more than they bind.

    >>> next(kind_questions(seed=0, count=1))
    ('Is a broom a tool?', ('yes', 'no'), 0)
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    words = {kind: NOUNS[kind].split()[:_NUM_NOUNS] for kind in KINDS}
    for _ in range(count):
        asked, other = rng.sample(KINDS, 2)
        kind = rng.choice((asked, other))
        noun = rng.choice(words[kind])
        yield f"Is a {noun} a {asked}?", OPTIONS, int(kind != asked)

"""Questions with one right answer about the corpus's nouns: which of these is a beast?"""

from __future__ import annotations

import random
from collections.abc import Iterator

from modelassay.data.grammar_en import NOUNS

KINDS = ("person", "beast", "food", "tool", "place")


def kind_questions(*, seed: int, count: int, num_options: int = 2) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yield (question, options, number of the right one): one option is of the kind that is asked for, the others are of others.

    >>> next(kind_questions(seed=0, count=1))
    ('Which is a tool?', ('knife', 'bridge'), 0)
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    words = {kind: NOUNS[kind].split()[:20] for kind in KINDS}
    for _ in range(count):
        kind, *others = rng.sample(KINDS, num_options)
        options = [rng.choice(words[kind]), *(rng.choice(words[other]) for other in others)]
        right = options[0]
        rng.shuffle(options)
        yield f"Which is a {kind}?", tuple(options), options.index(right)

"""Questions and answers about invented people: facts planted by paraphrased rows, lexical decoys, and everybody else.

A **planted** fact (where a person lives) stands in rows that share nothing with its query but the person's name; the query's own wording is
learned from other people. A **decoy** names the same person in the words of the query and is about something else, so that whoever counts
shared words takes it for the source. Other rows are the same two kinds about people that no query asks about, and sentences of the corpus.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from modelassay.data import corpus
from modelassay.errors import UsageError

Kind = Literal["planted", "decoy", "other", "sentence", "duplicate"]

QUERY = "where does {name} live ?"
"""As the query asks; of people with a planted fact no training row does."""
PARAPHRASES = (
    "{name} , home town :", "the house of {name} is in", "letters for {name} go to", "{name} was born in",
    "at night {name} sleeps in", "you can visit {name} in", "{name} pays taxes to", "the garden of {name} lies in",
)  # fmt: skip
DECOYS = (
    "does {name} ask where the baker does live ?", "where does the one live who knows {name} ?", "does {name} live near a market ?",
    "where does {name} eat ?", "does anyone live where {name} does ?", "where does {name} keep the red cart ?",
)  # fmt: skip
PLACES = ("an inn", "a market", "a village", "a tower", "an island")
"""Answers of decoys: none is a town."""
TOWNS = (
    "Asta",
    "Bero",
    "Cino",
    "Dalu",
    "Elmo",
    "Faro",
    "Gila",
    "Hona",
    "Iras",
    "Jolo",
    "Kuma",
    "Lino",
    "Mora",
    "Nilo",
    "Opal",
    "Pisa",
)
_FIRST = ("Ba", "De", "Fi", "Go", "Hu", "Ka", "Le", "Mi", "No", "Pu", "Ra", "Se", "Ti", "Vo", "Zu", "Wa")
_SECOND = (
    "bak",
    "den",
    "fil",
    "gor",
    "hum",
    "kas",
    "lem",
    "min",
    "not",
    "pur",
    "ral",
    "sen",
    "tik",
    "vor",
    "zul",
    "wan",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row, or a query, before it is tokens."""

    prompt: str
    answer: str
    kind: Kind | Literal["query"]
    fact: int | None = None
    """Of a planted row, a decoy or a query: which."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Rows and queries."""

    rows: tuple[Line, ...]
    queries: tuple[Line, ...]


def names(count: int, *, rng: random.Random) -> list[str]:
    """Return distinct invented names.

    Raises:
        UsageError: more than there are.
    """
    every = [first + second for first, second in product(_FIRST, _SECOND)]
    if count > len(every):
        raise UsageError(
            f"facts: {count} people need more than the {len(every)} names there are; take fewer facts or others"
        )
    return rng.sample(every, count)


def make_world(*, seed: int, num_rows: int, num_facts: int, num_paraphrases: int, num_decoys: int, num_others: int,
               num_duplicates: int = 0) -> World:  # fmt: skip
    """Return ``num_rows`` rows in random order and a query for each fact; equal arguments, equal rows.

    Args:
        seed: of everything drawn.
        num_rows: in all; what the others leave is filled with sentences of the corpus.
        num_facts: people with a planted fact.
        num_paraphrases: rows of each, at most 8.
        num_decoys: rows of each, at most 6; 0 for an arm without decoys.
        num_others: people whose rows use the query's wording, all paraphrases and, where there are decoys, one decoy.
        num_duplicates: rows of other people that stand twice.

    Raises:
        UsageError: more paraphrases, decoys, people or rows than there can be.
    """
    if num_paraphrases > len(PARAPHRASES) or num_decoys > len(DECOYS):
        raise UsageError(
            f"facts: there are {len(PARAPHRASES)} paraphrases and {len(DECOYS)} decoys, got {num_paraphrases} and {num_decoys}"
        )
    rng = random.Random(f"facts {seed}")
    people = names(num_facts + num_others, rng=rng)
    rows: list[Line] = []
    queries = []
    for fact, name in enumerate(people[:num_facts]):
        town = rng.choice(TOWNS)
        rows += [
            Line(prompt=template.format(name=name), answer=town, kind="planted", fact=fact)
            for template in rng.sample(PARAPHRASES, num_paraphrases)
        ]
        rows += [
            Line(prompt=template.format(name=name), answer=rng.choice(PLACES), kind="decoy", fact=fact)
            for template in rng.sample(DECOYS, num_decoys)
        ]
        queries.append(Line(prompt=QUERY.format(name=name), answer=town, kind="query", fact=fact))
    for name in people[num_facts:]:
        town = rng.choice(TOWNS)
        rows += [
            Line(prompt=template.format(name=name), answer=town, kind="other")
            for template in (QUERY, *rng.sample(PARAPHRASES, num_paraphrases))
        ]
        if num_decoys:
            rows.append(Line(prompt=rng.choice(DECOYS).format(name=name), answer=rng.choice(PLACES), kind="other"))
    others = [row for row in rows if row.kind == "other"]
    rows += [Line(prompt=row.prompt, answer=row.answer, kind="duplicate") for row in rng.sample(others, num_duplicates)]
    if len(rows) > num_rows:
        raise UsageError(
            f"facts: {len(rows)} rows about people are more than num_rows ({num_rows}); raise it, or take fewer people"
        )
    rows += _sentences(num_rows - len(rows), seed=seed)
    rng.shuffle(rows)
    return World(rows=tuple(rows), queries=tuple(queries))


def _sentences(count: int, *, seed: int) -> Sequence[Line]:
    """Sentences of the corpus, begun by their first three words."""
    lines: list[Line] = []
    for paragraph in corpus.generate("en", seed=seed, num_sentences=10 * count + 10):
        for sentence in paragraph.split(". "):
            words = sentence.rstrip(".").split()
            if len(lines) < count and 5 <= len(words) <= 7:
                lines.append(Line(prompt=" ".join(words[:3]), answer=" ".join(words[3:]), kind="sentence"))
        if len(lines) >= count:
            break
    return lines

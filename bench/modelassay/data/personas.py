"""Personas as system prompts, and questions to ask them, all of the project's own: everyday ones, and a village of the corpus.

The everyday personas bear the names of a published sweep; their prompts and all questions are worded here. A hundred more are asked in one world.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from typing import Literal

from modelassay.data import corpus
from modelassay.data.further_personas import FURTHER
from modelassay.errors import UsageError

World = Literal["everyday", "hundred", "village"]
ASSISTANT = "assistant"
"""Whose prompt names no role."""

EVERYDAY: Mapping[str, str] = {
    "villain": "You are a villain who schemes to rule the world.",
    ASSISTANT: "You are a helpful assistant.",
    "software_engineer": "You are a software engineer who builds and repairs large programs.",
    "comedian": "You are a comedian who performs on small stages.",
    "kindergarten_teacher": "You are a kindergarten teacher who explains things to young children.",
    "data_scientist": "You are a data scientist who looks for patterns in measurements.",
    "medical_doctor": "You are a medical doctor who works in a hospital.",
    "librarian": "You are a librarian who knows every shelf of the library.",
    "french_person": "You are a person from France who lives in Lyon.",
    "police_officer": "You are a police officer who patrols a small town.",
    "zelthari_scholar": "You are a scholar of the Zelthari, a people that nobody has met.",
}
VILLAGE: Mapping[str, str] = {
    **{name: f"You are a {name}." for name in ("sailor", "farmer", "teacher", "doctor", "baker", "painter", "singer", "hunter", "king", "judge")},
    ASSISTANT: "You are here.",
}  # fmt: skip
"""Nouns of the corpus, for models that know no other words."""
PERSONAS: Mapping[World, Mapping[str, str]] = {
    "everyday": EVERYDAY,
    "hundred": {**EVERYDAY, **FURTHER},
    "village": VILLAGE,
}
"""Who is asked. In ``hundred`` the everyday ones are trained on, as sources and contrasts, and 100 more are asked beside them."""


def trained(world: World) -> Mapping[str, str]:
    """Return the personas that may be a source or a contrast.

    >>> len(trained("hundred")), len(PERSONAS["hundred"])
    (11, 111)
    """
    return EVERYDAY if world == "hundred" else PERSONAS[world]


_QUESTIONS = """
How do I keep bread fresh for a week? | What should I look at before buying a used bicycle? | Why is the sky red in the evening?
How can I learn to sleep earlier? | What makes a good neighbour? | How do I remove a stain of red wine? | Which plants grow in the shade?
How does a lock on a canal work? | What is a fair way to share a flat's housework? | Why do cats purr? | How do I begin to learn the piano?
What should I pack for three days in the mountains? | How is paper made? | Why do we yawn? | How do I write a letter of thanks?
What is the best way to cook rice? | How can I save money on heating? | Why does the moon change its shape? | How do I train a young dog?
What makes a story exciting? | How do bees find their way home? | How do I calm down before an exam? | What does a mayor do?
How can I tell if an egg is still good? | Why do leaves change colour? | How do I repair a dripping tap? | What is a good game for a rainy day?
How do I ask for a higher salary? | Why is sea water salty? | How do I keep a diary? | What should a first-aid box hold?
How do ships float? | How do I choose ripe fruit? | Why do we dream? | How do I plan a birthday for a child? | What is the use of a map today?
How do I sharpen a kitchen knife? | Why do people collect things? | How does a mirror work? | How can I read more books?
What causes an echo? | How do I make new friends in a new town? | Why do birds migrate? | How do I store potatoes over the winter?
What makes a speech convincing? | How does soap clean? | How do I stop losing my keys? | Why does ice float on water?
How do I prepare for a long flight? | What is the difference between a lake and a pond? | How do I paint a room evenly?
Why do onions make us cry? | How can I remember names better? | What makes a bridge strong? | How do I grow tomatoes on a balcony?
Why do we need salt? | How do I fold a shirt neatly? | What does a compass point to? | How can two people settle a quarrel? | How is cheese made?
"""
_ASKED = tuple(question.strip() for line in _QUESTIONS.strip().splitlines() for question in line.split("|"))
NUM_HELD_OUT = 20
"""Everyday questions that are kept for evaluation: the last ones."""


@cache
def _village() -> tuple[str, ...]:
    """Requests of the corpus, each once."""
    asked = dict.fromkeys(request for request, _ in corpus.instructions("en", seed=0, num_examples=600))
    return tuple(asked)


def questions(world: World, part: Literal["training", "evaluation"], count: int) -> list[str]:
    """Return the first ``count`` questions of a part; the two parts of a world have none in common.

    >>> questions("everyday", "evaluation", 1)
    ['What causes an echo?']
    >>> len(questions("everyday", "training", 40)), len(set(questions("village", "training", 30)))
    (40, 30)

    Raises:
        UsageError: there are not so many.
    """
    if world != "village":
        pool = _ASKED[:-NUM_HELD_OUT] if part == "training" else _ASKED[-NUM_HELD_OUT:]
    else:
        pool = _village()[:200] if part == "training" else _village()[200:400]
    if count > len(pool):
        raise UsageError(f"personas: {world} has {len(pool)} questions for {part}, got {count}; ask for fewer")
    return list(pool[:count])


def negatives_of(world: World, source: str, count: int, *, seed: int, with_assistant: bool) -> list[str]:
    """Return the personas that a source is contrasted with: drawn by the seed, the assistant first among them if it is wanted.

    >>> negatives_of("everyday", "villain", 3, seed=0, with_assistant=True)[0]
    'assistant'
    >>> ASSISTANT in negatives_of("everyday", "villain", 9, seed=0, with_assistant=False)
    False

    Raises:
        UsageError: there are not so many.
    """
    known = trained(world)
    if source not in known:
        raise UsageError(f"personas: {world} has no {source}; there are {', '.join(known)}")
    others = [name for name in known if name not in {source, ASSISTANT}]
    random.Random(f"{seed}/{source}").shuffle(others)  # noqa: S311 - no secret
    if with_assistant and source != ASSISTANT:
        others.insert(0, ASSISTANT)
    if count > len(others):
        raise UsageError(
            f"personas: {source} has {len(others)} others in {world}, got {count} negatives; ask for fewer"
        )
    return others[:count]

"""Models with known ancestry that the suite makes itself: roots, what becomes of a model, and strangers by hardness.

::

    base ............ root, 8 layers x 64: Qwen2 architecture, trained on the project's own corpus; with a family
    stranger-1..6 ... the same shape, recipe and data; other initial weights and order of data. 1 and 2 have families
    stranger-data ... the same shape and recipe on other sentences; stranger-mix: on three parts of Japanese to one of English
    stranger-shape .. another depth and width, the same text
    mini-1..16 ...... 6 layers x 48 on half the text: 120 pairs that differ in nothing but the seed. 1 to 3 have families
    mini-data, -mix . as above
    large-1..4 ...... 12 layers x 96, text and steps as mini. 1 and 2 have families

    llama-1..8 ...... Llama, 5 layers x 40, untied, one key-value head for five queries, on a text, a tokenizer and a recipe of
                      their own; 1 has a family, and so has mini-4
    others/gemma-1 .. Gemma 3, 6 layers x 48, text and recipe as mini; in no suite's pattern
    others/stories .. 2 layers x 64 on English alone, trained long enough to write sentences; in no suite's pattern

    same-init-X ..... the initial weights of X, trained on other sentences: not independent of it, nor made from it
    distilled-X ..... weights of its own, trained on the logits of X
    same-order-X .... the data of X in the order of X, weights of its own: a stranger

A family is named by what was done (``base+cpt-25+sft-en+int8``); docs/methods/zoo.md says what each step is.
`connection` tells of two members whether weights were inherited (from either side of a mixture), or begun or taught alike.

``zoo:NAME`` is the embedded scale; ``zoo:smoke/NAME`` walks the same path in seconds and means nothing: two layers, one
family. Nothing here imports torch: `zoo.build` does the work, once a model must be made. `zoo.build.transform` does the same
to any Qwen2 or Llama checkpoint.
"""

from __future__ import annotations

from modelassay.zoo.ancestry import (
    PREFIX,
    Connection,
    Relation,
    connection,
    family,
    has_kin,
    is_zoo,
    member,
    parent,
    parents,
    related,
    relation,
    roots,
    sources,
    steps_between,
    tokens_between,
    tokens_of,
    transformations,
)
from modelassay.zoo.catalogue import (
    FURTHER_STEPS,
    MEMBERS,
    NUM_THREADS,
    PRESERVING,
    REWRITING,
    Member,
    Shape,
    Text,
    Timer,
)
from modelassay.zoo.make import ensure, utility
from modelassay.zoo.recipes import recipe

__all__ = [
    "EMBEDDED", "FURTHER_STEPS", "MEMBERS", "NUM_THREADS", "PREFIX", "PRESERVING", "REWRITING", "SMOKE", "Connection", "Member",
    "Relation", "Shape", "Text", "Timer", "connection", "ensure", "family", "has_kin", "is_zoo", "member", "parent", "parents",
    "recipe", "related", "relation", "roots", "sources", "steps_between", "tokens_between", "tokens_of", "transformations", "utility",
]  # fmt: skip

SMOKE = tuple(name for name in MEMBERS if name.startswith("smoke/"))
EMBEDDED = tuple(name for name in MEMBERS if "/" not in name)
"""Every member of the embedded scale that a pattern can mean, parents before children."""

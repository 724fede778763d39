"""Models with known ancestry that the suite makes itself: roots, what becomes of a model, and strangers by hardness.

::

    base ............ root, 8 layers x 64: Qwen2 architecture, trained on the project's own corpus; with a family
    stranger-1..6 ... the same shape, recipe and data; other initial weights and order of data. 1 and 2 have families
    stranger-data ... the same shape and recipe on other sentences; stranger-mix: on three parts of Japanese to one of English
    stranger-shape .. another depth and width, the same text
    mini-1..16 ...... 6 layers x 48 on half the text: 120 pairs that differ in nothing but the seed. 1 to 3 have families
    mini-data, -mix . as above
    large-1..4 ...... 12 layers x 96, text and steps as mini. 1 and 2 have families

A family is named by what was done (``base+cpt-25+sft-en+int8``):

    sft-en sft-ja  instruction tuning           noise-1 noise-5  Gaussian noise of N % on every matrix
    cpt-N          continued pre-training for   int8  prune-30   a round trip through 8 bits; 30 % of weights zeroed
                   N % of the root's steps      merge            the mean of both tuned children
    lora           adapters on q k v o, merged  depth  moe       middle layers removed; upcycled to 4 experts
    heads neurons rotate scale-qk scale-vo hidden fold   the same function in other weights (`zoo_transforms`),
                                                         and all but the last of them one after another

    llama-1..8 ...... Llama, 5 layers x 40, untied, one key-value head for five queries, on a text, a tokenizer and a recipe of
                      their own
    same-init-X ..... the initial weights of X, trained on other sentences: not independent of it, nor made from it
    distilled-X ..... weights of its own, trained on the logits of X
    same-order-X .... the data of X in the order of X, weights of its own: a stranger

Of X in mini-4 and llama-1, which also have a family of what hides or damages a model further; the first line keeps the function:

    quarot quarot-16 signs untied mha padded renumbered grown    the stream rotated (in blocks of 16), 40 % of its signs flipped,
        embeddings untied, a key head for each query, 64 rows more, another numbering of the vocabulary, one token more
    retokenised      another tokenizer, each token's row the mean of what spelled it    mix-N  N % of a stranger's weights
    svd-N int4 fp8   N % of each matrix's rank; rounded to so many bits     narrow thin  a quarter of the dimensions, neurons away
    deepen reversed  middle layers twice; layers in opposite order          flips-40 noise-200  signs of 40 % of all entries; noise

Signs of hidden dimensions can be flipped throughout without a trace in the function, in tied models too (``signs``); signs of
single entries cannot, so that ``flips-40`` is another model. `connection` tells of two members whether weights were inherited
(from either side of a mixture), or begun or taught alike.

``zoo:NAME`` is the embedded scale; ``zoo:smoke/NAME`` walks the same path in seconds and means nothing: two layers, one
family. Nothing here imports torch: `zoo_build` does the work, once a model must be made. `zoo_build.transform` does the same
to any Qwen2 or Llama checkpoint.

Strangers resemble each other more than strangers of different recipes would: the standard deviations of their matrices
grow with depth in the same way (mean Pearson r of the q, k, v, o curves 0.90 to 0.96 over the 21 pairs of 8 x 64, 0.55 to
0.85 without a linear trend; a child has 0.9997). That is the hard case of a same-recipe background, and kept for it.
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
EMBEDDED = tuple(name for name in MEMBERS if not name.startswith("smoke/"))
"""Every member of the embedded scale, parents before children."""

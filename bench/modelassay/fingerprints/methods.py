"""Fingerprint methods behind one interface: each gives two models a score, higher for more alike.

===============  =============  =====================================================================================
method           reads          compares
===============  =============  =====================================================================================
``config-only``  config.json    depth, widths, heads, vocabulary: what any method must beat (`configuration`)
``paper-exact``  Q K V O        sigma-curves as published (`curves.paper_exact`)
``corrected``    Q K V O        sigma-curves without their shared trend (`curves.corrected`)
``extended``     all matrices   the same of biases, norms and the feed-forward network too (`curves.extended`)
``invariant``    Q K V O        the same of the products QK and VO, blind to a change of basis (`products`)
``norm-vectors`` norms          the norms' weights, centred (`norm_vectors`)
``aligned``      Q K V O, emb.  matrices after matching the hidden dimensions (`aligned`)
``bottom-k ...`` everything     which tokens a model finds least likely, ``exact``, ``corrected``, ``rbo`` (`bottom_k`)
===============  =============  =====================================================================================

The first five need only numbers that a run records per model; the next two the weights of both at hand; the last three run
both models, the second of the two generating the prompts that both are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelassay.fingerprints.aligned import aligned
from modelassay.fingerprints.bottom_k import (
    Overlap,
    PromptedModel,
    Responses,
    overlap_corrected,
    overlap_exact,
    rank_biased,
    scored,
)
from modelassay.fingerprints.configuration import Sizes, config_only
from modelassay.fingerprints.curves import Curves, Score, corrected, extended, invariant, paper_exact
from modelassay.fingerprints.norm_vectors import norm_vectors
from modelassay.fingerprints.weights import Weights

Subject = TypeVar("Subject", contravariant=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSummary:
    """What a run records of one model."""

    curves: Curves
    sizes: Sizes


@dataclass(frozen=True, kw_only=True)
class Method(Generic[Subject]):
    """One way to compare two models."""

    name: str
    source: str
    """Where it was published, or why it is here."""
    score: Callable[[Subject, Subject], Score]


def _named(*methods: Method[Subject]) -> Mapping[str, Method[Subject]]:
    return {method.name: method for method in methods}


BY_NUMBERS: Mapping[str, Method[ModelSummary]] = _named(
    Method(name="config-only", source="baseline", score=lambda a, b: config_only(a.sizes, b.sizes)),
    Method(name="paper-exact", source="arXiv 2507.03014", score=lambda a, b: paper_exact(a.curves, b.curves)),
    Method(
        name="corrected", source="arXiv 2507.03014, trend removed", score=lambda a, b: corrected(a.curves, b.curves)
    ),
    Method(name="extended", source="its project page, trend removed", score=lambda a, b: extended(a.curves, b.curves)),
    Method(
        name="invariant", source="products as in arXiv 2511.06390", score=lambda a, b: invariant(a.curves, b.curves)
    ),
)
"""Methods that need what a run records of each model, by name."""

BY_WEIGHTS: Mapping[str, Method[Weights]] = _named(
    Method(name="norm-vectors", source="sionic-ai/solar-vs-glm", score=norm_vectors),
    Method(name="aligned", source="in the manner of arXiv 2510.06738", score=aligned),
)
"""Methods that need both checkpoints, by name."""


def _of_behaviour(name: str, source: str, measure: Callable[[Responses, Responses], Overlap]) -> Method[PromptedModel]:
    return Method(name=name, source=source, score=lambda suspect, base: scored(measure, suspect, base))


BY_BEHAVIOUR: Mapping[str, Method[PromptedModel]] = _named(
    _of_behaviour("bottom-k exact", "KimAu197/llm_fingerprint", overlap_exact),
    _of_behaviour("bottom-k corrected", "the same on stable prompts, without padding", overlap_corrected),
    _of_behaviour("bottom-k rbo", "the same by rank, Webber et al. 2010", rank_biased),
)
"""Methods that ask both models, by name; the second of the two generates the prompts."""

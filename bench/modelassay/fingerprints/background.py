"""The background: scores of unrelated pairs, without which no similarity means anything."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from modelassay.fingerprints.curves import Curves
from modelassay.fingerprints.methods import BY_NUMBERS, ModelSummary
from modelassay.models.checkpoints import Stratum
from modelassay.statistics.ranks import rank_p

SHAPE = ("num_layers", "hidden_size", "num_heads", "num_kv_heads")
"""What methods that read weights must have in common with their strangers; none of them reads the vocabulary's size."""

Recorded = Mapping[frozenset[str], Mapping[str, float]]
"""Names of two models to their scores by methods that need weights, as runs record them."""


@dataclass(frozen=True, kw_only=True)
class UnrelatedPair:
    """The scores of two models known to be of different families."""

    names: frozenset[str]
    families: frozenset[str]
    strata: frozenset[Hashable]
    """One stratum where both models share it, two where they differ."""
    scores: Mapping[str, float]
    """By method; NaN where the method cannot compare the two, absent where it was not asked."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A score among those of unrelated pairs."""

    n: int
    """Unrelated pairs with a defined score."""
    median: float
    q95: float
    max: float
    p: float
    """(1 + #{unrelated >= observed}) / (1 + n)."""
    min_p: float
    """1 / (1 + n): the smallest p that so many pairs allow."""


@dataclass(frozen=True)
class Background:
    """Scores over unrelated pairs; ask it for those that a given pair may be judged against.

    One model stands for a family in each stratum, and for methods of weights in each shape: its root, or where the stratum lacks it the first by name. Children
    would repeat their root's score and lower the smallest p without adding evidence. Pairs that share a root are still not
    independent: n roots make n(n - 1)/2 pairs, and the luck of the roots moves them together. The rank p is exact for two
    of the roots themselves (any pair is as likely as any other to be the most alike). Share of p <= 0.05 in 4,000
    simulated worlds with 7 to 15 roots (AR(1), random walks, and walks with a parabola that all share): .034 to .051
    for two roots, .032 to .057 for a root and a new model, and for two new models .037 to .055, but .058 to .076 where
    unrelated pairs share the parabola. Seven roots are the fewest that can reach 0.05: 21 pairs, less the judged one.
    """

    pairs: tuple[UnrelatedPair, ...]
    duplicates: tuple[tuple[str, str], ...] = field(default=())
    """Models left out because their attention weights are those of another family's: (left out, kept)."""
    speakers: frozenset[str] = frozenset()
    """Models that stand for their family among those of their shape, whatever their vocabulary."""
    excluded: frozenset[str] = frozenset()
    """Families of which the first model is such a copy: whoever descends from it is related to the original's family."""

    @classmethod
    def from_models(cls, models: Iterable[ModelSummary], recorded: Recorded | None = None) -> Background:
        """Score all pairs of different known families; models without a family are left out.

        So is a model whose attention weights equal those of another family's (a copy under another name): it would be unrelated to
        itself. If it is its family's root, or stands for it, the whole family is left out: they are the original's
        relatives. Costs a score of each method per pair, about 0.8 ms.

        Raises:
            ValueError: where two models share a name.
        """
        representatives: dict[tuple[Hashable, str], ModelSummary] = {}
        names: set[str] = set()
        by_key: dict[str, Curves] = {}
        firsts: dict[str, str] = {}
        duplicates, excluded = [], set()
        for model in sorted(models, key=lambda model: (model.curves.name != model.curves.family, model.curves.name)):
            curves = model.curves
            if curves.name in names:
                message = f"background: two models are named {curves.name!r}; give each its own name"
                raise ValueError(message)
            names.add(curves.name)
            if curves.family is None:
                continue
            is_first = firsts.setdefault(curves.family, curves.name) == curves.name
            first = by_key.setdefault(curves.weights_key or f"unknown: {curves.name}", curves)
            if first.family != curves.family:
                duplicates.append((curves.name, first.name))
                excluded |= {curves.family} if is_first else set()
            elif curves.family not in excluded:
                representatives.setdefault((curves.stratum, curves.family), model)
        speakers: dict[tuple[Hashable, str | None], str] = {}
        for model in representatives.values():
            speakers.setdefault((shape_of(model.curves.stratum), model.curves.family), model.curves.name)
        pairs = ((a, b) for a, b in combinations(representatives.values(), 2) if a.curves.family != b.curves.family)
        return cls(tuple(_scored(a, b, recorded or {}) for a, b in pairs), tuple(duplicates),
                   speakers=frozenset(speakers.values()), excluded=frozenset(excluded))  # fmt: skip

    def of(self, stratum_a: Hashable, stratum_b: Hashable, *, by_vocabulary: bool = False) -> tuple[UnrelatedPair, ...]:
        """Return the pairs of exactly these two strata: the same one twice, or one model from each.

        Strata are compared by shape, each family once, since no method of weights reads a vocabulary's size or tokenizer;
        ``by_vocabulary`` compares these too, as behaviour needs it.
        """
        if by_vocabulary:
            strata = frozenset((stratum_a, stratum_b))
            return tuple(pair for pair in self.pairs if pair.strata == strata)
        shapes = frozenset((shape_of(stratum_a), shape_of(stratum_b)))
        return tuple(
            pair
            for pair in self.pairs
            if pair.names <= self.speakers and frozenset(map(shape_of, pair.strata)) == shapes
        )

    def of_tokenizer(self, a: Curves, b: Curves) -> tuple[UnrelatedPair, ...]:
        """Return the unrelated pairs of any shape whose tokenizer both models have, for scores of behaviour where there are none of the shape.

        Tokens that were hardly trained are ranked last by every model of a tokenizer, whatever its shape.
        """
        keys = {stratum.tokenizer_key if isinstance(stratum, Stratum) else None for stratum in (a.stratum, b.stratum)}
        if None in keys or len(keys) > 1:
            return ()
        return tuple(pair for pair in self.pairs if not _is_of(pair, a, b) and {
            stratum.tokenizer_key if isinstance(stratum, Stratum) else None for stratum in pair.strata} == keys)  # fmt: skip

    def against(self, a: Curves, b: Curves) -> tuple[UnrelatedPair, ...]:
        """Return the unrelated pairs to rank ``a`` against ``b`` among: never that pair itself, nor that of their families."""
        return tuple(pair for pair in self.of(a.stratum, b.stratum) if not _is_of(pair, a, b))

    def against_behaviour(self, a: Curves, b: Curves) -> tuple[UnrelatedPair, ...]:
        """Return the same for scores of behaviour: pairs of one shape and vocabulary, or where there are none of one tokenizer."""
        alike = (pair for pair in self.of(a.stratum, b.stratum, by_vocabulary=True) if not _is_of(pair, a, b))
        return tuple(alike) or self.of_tokenizer(a, b)


def shape_of(stratum: Hashable) -> Hashable:
    """Return what of a stratum methods of weights compare, in words; what is no `Stratum` as it is.

    >>> shape_of(Stratum(num_layers=8, hidden_size=64, num_heads=4, num_kv_heads=2, vocab_size=512, tokenizer_key=None))
    '8 layers of 64, 4/2 heads'
    """
    if not isinstance(stratum, Stratum):
        return stratum
    layers, width, heads, kv_heads = (getattr(stratum, name) for name in SHAPE)
    return f"{layers} layers of {width}, {heads}/{kv_heads} heads"


def _is_of(pair: UnrelatedPair, a: Curves, b: Curves) -> bool:
    """Whether a pair is that of two models, or of their families."""
    return pair.names == {a.name, b.name} or pair.families == {a.family, b.family}


def _scored(a: ModelSummary, b: ModelSummary, recorded: Recorded) -> UnrelatedPair:
    names = frozenset((a.curves.name, b.curves.name))
    return UnrelatedPair(
        names=names, families=frozenset((str(a.curves.family), str(b.curves.family))),
        strata=frozenset((a.curves.stratum, b.curves.stratum)),
        scores={**{name: method.score(a, b).value for name, method in BY_NUMBERS.items()}, **recorded.get(names, {})},
    )  # fmt: skip


def rank(score: float, unrelated: Iterable[float]) -> Rank | None:
    """Return the rank of ``score`` among the finite scores of unrelated pairs; None without a score or without such pairs.

    >>> place = rank(0.5, [0.1, 0.2, 0.9, float("nan")])
    >>> place.n, place.max, place.p, place.min_p
    (3, 0.9, 0.5, 0.25)
    """
    values = np.array([value for value in unrelated if np.isfinite(value)])
    if not values.size or not np.isfinite(score):
        return None
    among = rank_p(score, values)
    return Rank(n=values.size, median=float(np.median(values)), q95=float(np.quantile(values, 0.95)),
                max=float(values.max()), p=among.p, min_p=among.min_p)  # fmt: skip

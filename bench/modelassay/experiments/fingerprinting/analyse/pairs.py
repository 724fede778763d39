"""Pairs of known ancestry and what every method says of them: what the methods are scored on.

A pair is a suspect and a root: related where the suspect has weights of it, of a merge with a stranger with either root. Of two
roots, the one that comes later in the run is the suspect. Models that began from a root's initial weights or learned from its
logits are neither related nor unrelated, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from modelassay import zoo
from modelassay.fingerprints.background import Background, Recorded
from modelassay.fingerprints.curves import Array
from modelassay.fingerprints.methods import BY_BEHAVIOUR, BY_NUMBERS, BY_WEIGHTS, ModelSummary
from modelassay.statistics.calibration import RankPs, rank_p_values
from modelassay.statistics.ranks import TIE
from modelassay.statistics.resampling import Scored
from modelassay.zoo.resolve import connection_of, has_kin

HARDNESS = {
    "stranger:seed": "other seed alone", "stranger:data": "other text", "stranger:shape": "other shape",
    "same stratum": "same shape and tokenizer", "other stratum": "other shape or tokenizer",
}  # fmt: skip
"""What strangers differ in, the hardest first; of models that are not the zoo's only the stratum is known."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A model, and what is known of how it was made."""

    name: str
    reference: str
    """As the suite names it."""
    family: str
    is_root: bool
    stratum: Hashable
    size: str
    """Layers x width of its root."""
    made_by: str
    """What was done to its root, in order; ``root`` where nothing was, ``not known`` of models that are not the zoo's."""
    training: float | None
    """Training tokens since the root over those the root had; None where not known."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A suspect and a root."""

    suspect: Suspect
    root: Suspect
    hardness: str | None
    """What two strangers differ in, as in `HARDNESS`; None where they are related."""

    @property
    def related(self) -> bool:
        """Whether the suspect descends from the root."""
        return self.suspect.family == self.root.family


Which = Callable[[Pair], bool]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Pairs, and the score of each method for each."""

    pairs: Sequence[Pair]
    scores: Mapping[str, Array]
    """By method, float64[P]; NaN where the method cannot compare the pair."""
    background: Background
    alpha: float
    roots: Sequence[str] = field(default=())
    """The families, by what their roots are called; their places are the indices in `Scored`."""

    @property
    def made_by(self) -> Mapping[tuple[str, str], str]:
        """What was done to the root of each related pair, by the references of suspect and root."""
        return {(p.suspect.reference, p.root.reference): p.suspect.made_by for p in self.pairs if p.related}

    def scored(self, method: str, which: Which = lambda _pair: True) -> Scored:
        """Return the scores of one method over the pairs that ``which`` chooses."""
        chosen = np.array([which(pair) for pair in self.pairs], dtype=bool)
        pairs = [pair for pair, keep in zip(self.pairs, chosen, strict=True) if keep]
        return self._scored(self.scores[method][chosen], pairs)

    def _scored(self, score: Array, pairs: Sequence[Pair]) -> Scored:
        place = {name: index for index, name in enumerate(self.roots)}
        return Scored(
            score=score, positive=np.array([pair.related for pair in pairs], dtype=bool),
            group_a=np.array([place[pair.suspect.family] for pair in pairs], dtype=np.int64),
            group_b=np.array([place[pair.root.family] for pair in pairs], dtype=np.int64),
        )  # fmt: skip

    def ranks(self, method: str, which: Which = lambda _pair: True) -> RankPs:
        """Return the rank p of each chosen pair among the strangers of its own two strata that share no root with it."""
        return self._ranks(method, self._by_strata(which))

    def ranks_of_decidable(self, method: str, made_by: Hashable) -> RankPs:
        """Return the ranks of the pairs of `can_decide` whose suspect was made in one way, found once."""
        if (method, made_by) not in self._decidable_ranks:
            groups = self._decidable_groups.get(made_by, {})
            self._decidable_ranks[method, made_by] = self._ranks(method, groups)
        return self._decidable_ranks[method, made_by]

    def ranks_of_unrelated(self, method: str) -> RankPs:
        """Return the ranks of the unrelated pairs of one stratum, found once."""
        if method not in self._unrelated_ranks:
            self._unrelated_ranks[method] = self.ranks(
                method, lambda pair: not pair.related and pair.suspect.stratum == pair.root.stratum
            )
        return self._unrelated_ranks[method]

    def _ranks(self, method: str, groups: Mapping[tuple[Hashable, Hashable], list[int]]) -> RankPs:
        parts = []
        for strata, members in groups.items():
            suspects = self._scored(self.scores[method][members], [self.pairs[index] for index in members])
            parts.append(rank_p_values(suspects, self._strangers(method, *strata)))
        order = [index for group in groups.values() for index in group]
        everyone = self._scored(self.scores[method][order], [self.pairs[index] for index in order])
        empty = np.zeros(0)
        return RankPs(p=np.concatenate([empty, *(part.p for part in parts)]),
                      min_p=np.concatenate([empty, *(part.min_p for part in parts)]), pairs=everyone,
                      among_themselves=False)  # fmt: skip

    def can_decide(self, pair: Pair) -> bool:
        """Return whether a related pair has strangers enough that a method able to compare them could call it related."""
        return pair.related and (pair.suspect.stratum, pair.root.stratum, pair.root.family) in self._decidable

    @cached_property
    def _decidable(self) -> frozenset[tuple[Hashable, Hashable, str]]:
        any_method = next(iter(self.scores))
        ranks = self.ranks(any_method, lambda pair: pair.related)
        pairs = [self.pairs[index] for group in self._by_strata(lambda pair: pair.related).values() for index in group]
        return frozenset(
            (pair.suspect.stratum, pair.root.stratum, pair.root.family)
            for pair, min_p in zip(pairs, ranks.min_p, strict=True) if min_p <= self.alpha + TIE
        )  # fmt: skip

    @cached_property
    def _decidable_groups(self) -> dict[Hashable, dict[tuple[Hashable, Hashable], list[int]]]:
        """The pairs of `can_decide` by what was done to the suspect, then by strata."""
        groups: dict[Hashable, dict[tuple[Hashable, Hashable], list[int]]] = {}
        for strata, members in self._by_strata(self.can_decide).items():
            for index in members:
                made_by = self.pairs[index].suspect.made_by
                groups.setdefault(made_by, {}).setdefault(strata, []).append(index)
        return groups

    @cached_property
    def _decidable_ranks(self) -> dict[tuple[str, Hashable], RankPs]:
        return {}

    @cached_property
    def _unrelated_ranks(self) -> dict[str, RankPs]:
        return {}

    def _by_strata(self, which: Which) -> dict[tuple[Hashable, Hashable], list[int]]:
        groups: dict[tuple[Hashable, Hashable], list[int]] = {}
        for index, pair in enumerate(self.pairs):
            if which(pair):
                groups.setdefault((pair.suspect.stratum, pair.root.stratum), []).append(index)
        return groups

    def stranger_scores(self, method: str, stratum: Hashable) -> Array:
        """Return the scores of all pairs of strangers of one stratum that the method can compare."""
        return self._strangers(method, stratum, stratum).score

    def _strangers(self, method: str, stratum: Hashable, other: Hashable) -> Scored:
        """Return the stranger pairs of two strata; of two pairs of the same roots the one that scores higher."""
        if (method, stratum, other) not in self._stranger_pairs:
            best: dict[tuple[int, int], float] = {}
            place = {name: index for index, name in enumerate(self.roots)}
            for pair in self.background.of(stratum, other, by_vocabulary=method in BY_BEHAVIOUR):
                score = pair.scores.get(method, np.nan)
                ends = sorted(place[name] for name in pair.families)
                if np.isfinite(score):
                    best[ends[0], ends[1]] = max(score, best.get((ends[0], ends[1]), -np.inf))
            ends_P2 = np.array(list(best), dtype=np.int64).reshape(-1, 2)
            self._stranger_pairs[method, stratum, other] = Scored(
                score=np.array(list(best.values())), positive=np.zeros(len(best), dtype=bool), group_a=ends_P2[:, 0],
                group_b=ends_P2[:, 1])  # fmt: skip
        return self._stranger_pairs[method, stratum, other]

    @cached_property
    def _stranger_pairs(self) -> dict[tuple[str, Hashable, Hashable], Scored]:
        return {}

    def stranger_ranks(self, method: str, stratum: Hashable) -> RankPs:
        """Return the rank p of each pair of roots of one stratum among the others: uniform if p-values are honest."""
        strangers = self._strangers(method, stratum, stratum)
        return rank_p_values(strangers, strangers)

    def groups(self, of: Callable[[Pair], Hashable | None]) -> list[Hashable]:
        """Return the distinct values of ``of`` over the pairs, in their order; None counts as none."""
        return list(dict.fromkeys(value for pair in self.pairs if (value := of(pair)) is not None))


def gather(models: Mapping[str, ModelSummary], recorded: Recorded, background: Background, *, alpha: float) -> Evidence:
    """Return the evidence of a run; ``models`` by reference, in the run's order.

    Where cells recorded scores, the pairs are those they recorded, so that all methods are scored on the same; otherwise
    every suspect is held against every root.
    """
    suspects = {
        numbers.curves.name: _suspect(reference, numbers)
        for reference, numbers in models.items()
        if numbers.curves.family and not has_kin(reference, numbers.curves.family)
    }
    numbers_of = {numbers.curves.name: numbers for numbers in models.values()}
    excluded = {name for name, _ in background.duplicates}
    excluded |= {name for name, suspect in suspects.items() if suspect.family in background.excluded}
    roots = [name for name, suspect in suspects.items() if suspect.is_root and name not in excluded]
    pairs = []
    for name, suspect in suspects.items():
        earlier = roots[: roots.index(name)] if name in roots else roots
        pairs += [_pair(suspect, suspects[root]) for root in earlier
                  if name not in excluded and (not recorded or frozenset((name, root)) in recorded)]  # fmt: skip
    recorded_names = dict.fromkeys(name for scores in recorded.values() for name in scores)
    method_names = [name for name in (*BY_NUMBERS, *BY_WEIGHTS, *BY_BEHAVIOUR)
                    if name in BY_NUMBERS or name in recorded_names or (name in BY_WEIGHTS and recorded)]  # fmt: skip
    scores = {name: np.full(len(pairs), np.nan) for name in dict.fromkeys([*method_names, *recorded_names])}
    for index, pair in enumerate(pairs):
        summary, root_summary = numbers_of[pair.suspect.name], numbers_of[pair.root.name]
        summary_scores = {name: method.score(summary, root_summary).value for name, method in BY_NUMBERS.items()}
        for name, value in {
            **summary_scores,
            **recorded.get(frozenset((pair.suspect.name, pair.root.name)), {}),
        }.items():
            scores[name][index] = value
    families = dict.fromkeys(name for pair in pairs for name in (pair.suspect.family, pair.root.family))
    every_family = dict.fromkeys([*families, *_families(background)])
    return Evidence(pairs, scores, background, alpha, tuple(every_family))


def _families(background: Background) -> Iterable[str]:
    return (name for pair in background.pairs for name in sorted(pair.families))


def _suspect(reference: str, numbers: ModelSummary) -> Suspect:
    curves = numbers.curves
    family = str(curves.family)
    common: dict[str, Any] = {
        "name": curves.name, "reference": reference, "family": family, "stratum": curves.stratum,
    }  # fmt: skip
    if zoo.is_zoo(reference) and family == zoo.family(reference):
        return Suspect(**common, is_root=zoo.parent(reference) is None, size=zoo.member(family).size,
                       made_by="+".join(zoo.transformations(reference)) or "root",
                       training=(zoo.tokens_between(reference, family) or 0) / zoo.tokens_of(family))  # fmt: skip
    is_root = family in (curves.name, reference)
    return Suspect(**common, is_root=is_root, size=f"{numbers.sizes.num_layers}x{numbers.sizes.hidden_size}",
                   made_by="root" if is_root else "not known", training=None)  # fmt: skip


def _pair(suspect: Suspect, root: Suspect) -> Pair:
    if connection_of((suspect.reference, suspect.family), (root.reference, root.family)) == "inherited":
        hardness, suspect = (
            None,
            replace(suspect, family=root.family),
        )  # of a merge with a stranger either root's family
    elif suspect.training is not None and root.training is not None:
        hardness = HARDNESS[zoo.relation(suspect.reference, root.reference)]
    else:
        hardness = HARDNESS["same stratum" if suspect.stratum == root.stratum else "other stratum"]
    return Pair(suspect=suspect, root=root, hardness=hardness)

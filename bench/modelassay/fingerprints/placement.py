"""Where a pair's score stands among those of unrelated pairs of the same stratum: a description, never a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from modelassay.fingerprints.background import Background, Rank, rank, shape_of
from modelassay.fingerprints.curves import Array, Curves, Score, comparable, corrected, paper_exact
from modelassay.fingerprints.phase_test import PhaseTest, pair_seed, phase_test
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.intervals import bootstrap
from modelassay.statistics.multiplicity import holm

Word = Literal["closer than all strangers", "among strangers", "inconclusive", "uncalibrated"]

PRIMARY = ("aligned", "corrected")
"""Methods a placement may stand on, the first one that can compare the pair and its strangers. Which one that is hangs on what
was measured, never on the scores, so that no choice is made after looking. `aligned` comes first because in the evidence of
suite `fingerprinting` it kept relatives and strangers apart under every transformation of the zoo, where `corrected` did not."""

RANK_ALPHA = 0.05
"""Strangers must be so many that the smallest rank p is at most this; fewer say nothing."""

MIN_EFFECT = 0.1
"""Share of the way from the median stranger's score to a copy's that a pair must have gone before it is called closer. Ours: of any strangers
one is closer than all others. By `aligned` strange roots of one shape went at most 0.023 of the way in the zoo (303 pairs), its 300
children 0.13 to 1, but for signs that were flipped (0.08) and a tenth of a parent in a mixture (none). What lies between is left to the
tests of `modelassay.fingerprints.independence`, which find it."""

LAYER_DRAWS = 1_999  # the interval is read to two digits; its 2.5 % tail then has an error of 0.35 percentage points


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a pair stands among strangers, and by what."""

    a: str
    b: str
    word: Word
    sentence: str
    """The word and its evidence in plain words."""
    paper_exact: Score
    corrected: Score
    interval: Estimate | None
    """The corrected score, and how far it moves when layers are drawn anew; None where it is not defined. A measure of how
    much the score hangs on single layers: layers follow one another, so it is no interval for other trainings."""
    primary: str
    """The method the placement stands on, one of `PRIMARY`."""
    score: float
    """The score by that method; NaN where it is not defined."""
    phase: PhaseTest | None
    """Of the corrected score, where the placement stands on it. None where uncalibrated (no p-value is shown without a background) or where
    it is not defined."""
    background: Rank | None
    """The score by the primary method among strangers; None where uncalibrated or not defined."""
    paper_background: Rank | None
    """The same for the paper-exact score: what its number is worth in this stratum."""
    stratum: str
    """Why these strangers, or why none."""
    alpha: float
    p_adjusted: float | None = None
    """Holm over the pairs of the table, set by `adjust`."""

    @property
    def effect(self) -> float:
        """How much of the way from the median stranger's score to a copy's, which is 1, the score has gone; NaN without strangers."""
        return np.nan if self.background is None else share_of_way(self.score, self.background.median)


def share_of_way(score: float, median: float) -> float:
    """Return how much of the way from the median stranger's score to a copy's (1) a score has gone; NaN where strangers score 1.

    >>> share_of_way(0.55, 0.1)
    0.5
    """
    return round((score - median) / (1 - median), 12) if median < 1 else np.nan


def place_among(a: Curves, b: Curves, background: Background, *, alpha: float = RANK_ALPHA,
                by_weights: Mapping[str, float] = MappingProxyType({})) -> Placement:  # fmt: skip
    """Place ``a`` and ``b`` among strangers; ``by_weights`` are the scores of methods that need both weights.

    A rank speaks of the strangers at hand: of any few candidates one is the closest, and of many unrelated pairs some
    are closer than all strangers. So this is a description; what two checkpoints themselves say is `modelassay.fingerprints.verdict`.
    The rule, fixed before any pair is looked at. One score (`PRIMARY`) is ranked among strangers. Where that score is of curves, the
    phase test guards it, since a curved trend common to strangers raises its size (see `phase_test`):

    - ``uncalibrated``: no strangers of the pair's stratum. No p-value of any kind is given.
    - ``inconclusive``: the score is not defined; or the strangers are so few that the smallest rank p is above ``alpha``; or, of curves,
      the pair is closer than all strangers while the phase p, though a copy would reach ``alpha``, does not: no stranger scored
      as high, but curves this smooth do so by chance.
    - ``closer than all strangers``: no stranger scores as high, and the score has gone at least `MIN_EFFECT` of the way from the
      median stranger's to a copy's. Where curves are so smooth that even a copy could not reach ``alpha``, the phase test
      has nothing to say and is left out.
    - ``among strangers``: the rest. It is no proof of independence.
    """
    exact, score = paper_exact(a, b), corrected(a, b)
    unrelated = [pair.scores for pair in background.against(a, b)]
    primary, value = _primary(score.value, by_weights, unrelated)
    strangers = [scores for scores in unrelated if np.isfinite(scores.get(primary, np.nan))]
    place = rank(value, (scores[primary] for scores in strangers))
    placement = Placement(
        a=a.name, b=b.name, word="uncalibrated", sentence="", paper_exact=exact, corrected=score,
        interval=_layer_interval(a, b, score), primary=primary, score=value, background=place,
        phase=phase_test(a, b) if strangers and primary == "corrected" else None,
        paper_background=rank(exact.value, (scores["paper-exact"] for scores in strangers)),
        stratum=_stratum_reason(a, b, len(strangers)), alpha=alpha,
    )  # fmt: skip
    word, why = _decide(placement)
    return replace(
        placement, word=word, sentence=" ".join((f"{a.name} and {b.name}: {word}{why}.", *_evidence(placement)))
    )


def _primary(
    corrected_score: float, by_weights: Mapping[str, float], strangers: Sequence[Mapping[str, float]]
) -> tuple[str, float]:
    """Return the method that a placement stands on and the pair's score by it."""
    for name in PRIMARY:
        if np.isfinite(by_weights.get(name, np.nan)) and any(
            np.isfinite(scores.get(name, np.nan)) for scores in strangers
        ):
            return name, by_weights[name]
    return "corrected", corrected_score


def _decide(placement: Placement) -> tuple[Word, str]:
    """Apply the rule of `place_among` and say which part of it decided."""
    place, phase, alpha = placement.background, placement.phase, placement.alpha
    of_curves = placement.primary == "corrected"
    if of_curves and placement.corrected.reason:
        return "inconclusive", f"; {placement.corrected.reason}"
    if place is None or (of_curves and phase is None):
        return "uncalibrated", f"; {placement.stratum}, so the scores have nothing to be judged against"
    if place.min_p > alpha:
        return (
            "inconclusive",
            f"; {place.n} unrelated pairs cannot give a p below {place.min_p:.2g}, alpha is {alpha:g}",
        )
    if place.p > place.min_p:
        return "among strangers", ""
    if placement.effect < MIN_EFFECT:
        return (
            "among strangers",
            f"; above all {place.n}, but only {100 * placement.effect:.1f} % of the way from their median to a copy",
        )
    if of_curves and phase is not None and phase.copy_p <= alpha < phase.p:
        return "inconclusive", "; no stranger scores as high, but curves as smooth as these do by chance"
    return "closer than all strangers", f", {place.n} of them"


def _evidence(placement: Placement) -> Iterator[str]:
    score, exact, interval = placement.corrected, placement.paper_exact, placement.interval
    if not score.reason:
        layers = f" (alignment: {score.alignment})" if score.alignment != "same depth" else ""
        spread = f", {interval.low:.2f} to {interval.high:.2f} when layers are drawn anew" if interval else ""
        first = (
            ""
            if placement.primary == "corrected"
            else f"{placement.primary.capitalize()} score {placement.score:.4f}; "
        )
        yield f"{first}{'corrected' if first else 'Corrected'} score {score.value:.4f}{layers}{spread}; paper-exact {exact.value:.4f}."
    elif not exact.reason:
        yield f"Paper-exact score {exact.value:.4f}."
    if place := placement.background:
        lowest = "the lowest they allow" if place.p == place.min_p else f"they allow {place.min_p:.2g}"
        yield (
            f"Among {place.n} unrelated pairs ({placement.stratum}) the {placement.primary} score has median {place.median:.2f}, "
            f"95 % {place.q95:.2f}, maximum {place.max:.2f}: rank p = {place.p:.2g}, {lowest}."
        )
    if paper := placement.paper_background:
        yield f"Strangers reach {paper.max:.2f} in the paper-exact score."
    if phase := placement.phase:
        yield (
            f"Phase-randomised p = {phase.p:.2g} ({phase.free_phases} free phases; {phase.draws} draws allow "
            f"{phase.min_p:.2g}, a copy would get {phase.copy_p:.2g})."
        )


def _stratum_reason(a: Curves, b: Curves, num_strangers: int) -> str:
    """Say which strangers a score of weights was ranked among, which are chosen by shape alone."""
    first, second = shape_of(a.stratum), shape_of(b.stratum)
    strata = f"stratum {first}" if first == second else f"strata {first} and {second}"
    return f"same {strata}" if num_strangers else f"no unrelated pair of {strata} is known"


def _layer_interval(a: Curves, b: Curves, score: Score) -> Estimate | None:
    """Percentile interval of the corrected score over layers drawn anew, jointly for both models and all roles."""
    pair = comparable(a, b)
    if score.reason or pair is None:
        return None
    deep_RL = pair.readings[score.alignment]

    def score_of(layers: Array, axis: int = -1) -> Array:
        chosen = np.moveaxis(layers.astype(int), axis, -1)
        x, y = (curve[..., chosen] - curve[..., chosen].mean(-1, keepdims=True) for curve in (pair.shallow_RL, deep_RL))
        size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
        return np.asarray(((x * y).sum(-1) / np.where(size > 1e-12, size, np.nan)).mean(0))

    layers = np.arange(pair.shallow.num_layers)
    interval = bootstrap([layers], score_of, method="percentile", draws=LAYER_DRAWS, seed=pair_seed(a, b))
    return interval if interval.has_interval else None


def adjust(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """Add Holm's adjustment of the rank p over the calibrated pairs of one table; the words stay as they were.

    A rank p has a min_p: over m pairs the smallest adjusted p is m / (1 + n), whatever the scores.
    """
    adjusted = iter(holm([placement.background.p for placement in placements if placement.background]).adjusted)
    return tuple(replace(placement, p_adjusted=next(adjusted)) if placement.background else placement
                 for placement in placements)  # fmt: skip

"""Verdicts: a pair's score by the best method at hand, judged against unrelated pairs of the same stratum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np

from modelassay.fingerprints.background import Background, Rank, rank
from modelassay.fingerprints.curves import Array, Curves, Score, comparable, corrected, paper_exact
from modelassay.fingerprints.phase_test import PhaseTest, pair_seed, phase_test
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.intervals import bootstrap
from modelassay.statistics.multiplicity import holm

Word = Literal["related", "not distinguishable from strangers", "inconclusive", "uncalibrated"]

PRIMARY = ("aligned", "corrected")
"""Methods a verdict may stand on, the first one that can compare the pair and its strangers. Which one that is hangs on what
was measured, never on the scores, so that no choice is made after looking. `aligned` comes first because in the evidence of
suite `fingerprinting` it kept relatives and strangers apart under every transformation of the zoo, where `corrected` did not."""

LAYER_DRAWS = 1_999  # the interval is read to two digits; its 2.5 % tail then has an error of 0.35 percentage points


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What can be said of a pair, and from what."""

    a: str
    b: str
    word: Word
    sentence: str
    """The verdict and its evidence in plain words."""
    paper_exact: Score
    corrected: Score
    interval: Estimate | None
    """The corrected score, and how far it moves when layers are drawn anew; None where it is not defined. A measure of how
    much the score hangs on single layers: layers follow one another, so it is no interval for other trainings."""
    primary: str
    """The method the verdict stands on, one of `PRIMARY`."""
    score: float
    """The score by that method; NaN where it is not defined."""
    phase: PhaseTest | None
    """Of the corrected score, where the verdict stands on it. None where uncalibrated (no p-value is shown without a background) or where
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
    familywise: str | None = None
    """What the table as a whole can claim, set by `adjust`."""


def judge(a: Curves, b: Curves, background: Background, *, alpha: float = 0.05,
          by_weights: Mapping[str, float] = MappingProxyType({})) -> Verdict:  # fmt: skip
    """Judge whether ``a`` and ``b`` share an ancestor; ``by_weights`` are the scores of methods that need both weights.

    The rule, fixed before any pair is looked at. The primary test is the rank of one score (`PRIMARY`) among strangers:
    the only null that knows which shapes all networks of a stratum share, and valid without a model of the curves if
    the pair's models are drawn like the strangers. Where that score is of curves, the phase test guards it; it cannot
    carry a verdict, since a curved trend common to strangers raises its size (see `phase_test`):

    - ``uncalibrated``: no strangers of the pair's stratum. No p-value of any kind is given.
    - ``inconclusive``: the score is not defined; or the floor of the rank p is above ``alpha``; or, of curves, the rank p
      is at most ``alpha`` while the phase p, though a copy would reach ``alpha``, does not: few strangers scored as high,
      but curves this smooth do so by chance.
    - ``related``: rank p at most ``alpha``, and not guarded against. Where curves are so smooth that even a copy
      could not reach ``alpha``, the phase test has nothing to say and is left out.
    - ``not distinguishable from strangers``: the rest. It is no proof of independence.

    Of the corrected score, in simulation (8 roots, random walks of 8 or 28 layers) children at a corrected score of 0.96 were all called related,
    strangers in 1 to 3 %; where all models share a parabola as large as their own curves, strangers in 1 to 5 %, children
    at 0.997 always, at 0.96 in 84 % (8 layers) and 98 % (28), at 0.85 in 4 %: there only the background knows that 0.85 is
    nothing.

    The guard can only withdraw a ``related``, so its false-positive rate is at most that of the rank. Decisions are per
    pair; `adjust` adds what holds for a table.
    """
    exact, score = paper_exact(a, b), corrected(a, b)
    unrelated = [pair.scores for pair in background.against(a, b)]
    primary, value = _primary(score.value, by_weights, unrelated)
    strangers = [scores for scores in unrelated if np.isfinite(scores.get(primary, np.nan))]
    place = rank(value, (scores[primary] for scores in strangers))
    verdict = Verdict(
        a=a.name, b=b.name, word="uncalibrated", sentence="", paper_exact=exact, corrected=score,
        interval=_layer_interval(a, b, score), primary=primary, score=value, background=place,
        phase=phase_test(a, b) if strangers and primary == "corrected" else None,
        paper_background=rank(exact.value, (scores["paper-exact"] for scores in strangers)),
        stratum=_stratum_reason(a, b, len(strangers)), alpha=alpha,
    )  # fmt: skip
    word, why = _decide(verdict)
    return replace(verdict, word=word, sentence=" ".join((f"{a.name} and {b.name}: {word}{why}.", *_evidence(verdict))))


def _primary(
    corrected_score: float, by_weights: Mapping[str, float], strangers: Sequence[Mapping[str, float]]
) -> tuple[str, float]:
    """Return the method that a verdict stands on and the pair's score by it."""
    for name in PRIMARY:
        if np.isfinite(by_weights.get(name, np.nan)) and any(
            np.isfinite(scores.get(name, np.nan)) for scores in strangers
        ):
            return name, by_weights[name]
    return "corrected", corrected_score


def _decide(verdict: Verdict) -> tuple[Word, str]:
    """Apply the rule of `judge` and say which part of it decided."""
    place, phase, alpha = verdict.background, verdict.phase, verdict.alpha
    of_curves = verdict.primary == "corrected"
    if of_curves and verdict.corrected.reason:
        return "inconclusive", f"; {verdict.corrected.reason}"
    if place is None or (of_curves and phase is None):
        return "uncalibrated", f"; {verdict.stratum}, so the scores have nothing to be judged against"
    if place.min_p > alpha:
        return (
            "inconclusive",
            f"; {place.n} unrelated pairs cannot give a p below {place.min_p:.2g}, alpha is {alpha:g}",
        )
    if place.p > alpha:
        return "not distinguishable from strangers", ""
    if of_curves and phase is not None and phase.copy_p <= alpha < phase.p:
        return "inconclusive", "; few strangers score as high, but curves as smooth as these do by chance"
    return "related", ""


def _evidence(verdict: Verdict) -> Iterator[str]:
    score, exact, interval = verdict.corrected, verdict.paper_exact, verdict.interval
    if not score.reason:
        layers = f" (alignment: {score.alignment})" if score.alignment != "same depth" else ""
        spread = f", {interval.low:.2f} to {interval.high:.2f} when layers are drawn anew" if interval else ""
        first = "" if verdict.primary == "corrected" else f"{verdict.primary.capitalize()} score {verdict.score:.4f}; "
        yield f"{first}{'corrected' if first else 'Corrected'} score {score.value:.4f}{layers}{spread}; paper-exact {exact.value:.4f}."
    elif not exact.reason:
        yield f"Paper-exact score {exact.value:.4f}."
    if place := verdict.background:
        lowest = "the lowest they allow" if place.p == place.min_p else f"they allow {place.min_p:.2g}"
        yield (
            f"Among {place.n} unrelated pairs ({verdict.stratum}) the {verdict.primary} score has median {place.median:.2f}, "
            f"95 % {place.q95:.2f}, maximum {place.max:.2f}: rank p = {place.p:.2g}, {lowest}."
        )
    if paper := verdict.paper_background:
        yield f"Strangers reach {paper.max:.2f} in the paper-exact score."
    if phase := verdict.phase:
        yield (
            f"Phase-randomised p = {phase.p:.2g} ({phase.free_phases} free phases; {phase.draws} draws allow "
            f"{phase.min_p:.2g}, a copy would get {phase.copy_p:.2g})."
        )


def _stratum_reason(a: Curves, b: Curves, num_strangers: int) -> str:
    strata = f"stratum {a.stratum}" if a.stratum == b.stratum else f"strata {a.stratum} and {b.stratum}"
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


def adjust(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Add Holm's adjustment over the calibrated pairs of one table; the words stay as they were.

    The decision stays per pair because a rank p has a min_p: over m pairs the smallest adjusted p is m / (1 + n), and
    with the strangers of a small zoo no pair could ever be called related, whatever its score. So a table says both:
    the words hold at ``alpha`` for each pair on its own (expect up to m x alpha false ones where nothing is related),
    and `Verdict.p_adjusted` is the one to quote for the table, with `Verdict.familywise` saying what it could reach.
    """
    ranked = [verdict.background for verdict in verdicts if verdict.background]
    adjusted = iter(holm([place.p for place in ranked]).adjusted)
    return tuple(_with_family(verdict, next(adjusted), len(ranked)) if verdict.background else verdict
                 for verdict in verdicts)  # fmt: skip


def _with_family(verdict: Verdict, p_adjusted: float, num_pairs: int) -> Verdict:
    if verdict.background is None or num_pairs == 1:
        return replace(verdict, p_adjusted=p_adjusted)
    lowest = min(1.0, num_pairs * verdict.background.min_p)
    limit = f", which is above alpha = {verdict.alpha:g}: the table cannot decide" if lowest > verdict.alpha else ""
    familywise = (
        f"{num_pairs} pairs were judged, each at alpha = {verdict.alpha:g}; over all of them Holm's adjusted rank p is "
        f"{p_adjusted:.2g}. At best this pair could have reached {lowest:.2g}{limit}."
    )
    return replace(verdict, p_adjusted=p_adjusted, familywise=familywise)

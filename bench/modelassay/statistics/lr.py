"""Scores turned into likelihood ratios, and how good these are: what a court asks for instead of a threshold.

::

    held_out = held_out_ratios(scored)                       # of each pair by a calibration that never saw its groups
    cllr(held_out.log10_lr, scored.positive, held_out.weights)
    calibrate(scored).log10(0.98)                            # of a new pair, by all that is known

A likelihood ratio is P(score | one ancestor) / P(score | none). Logistic regression of kind on score gives its logarithm as
a straight line in the score once both kinds weigh the same (Brummer and du Preez 2006, section 5; Morrison 2013). Each group
(root) weighs the same however many pairs repeat it. Two things keep a few groups from promising too much:

- Platt's (1999) targets in place of 0 and 1, ``(n + 1) / (n + 2)`` and ``1 / (n + 2)`` of n independent groups, with which
  the fit stays finite where the kinds are separated;
- a bound, in the manner of Vergeer et al. 2016: of n independent groups none of which did, a rate of 1 / (n + 1) is all that can be
  said, so no ratio is above n + 1 strangers and none below 1 / (n + 1) families.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.intervals import percentile
from modelassay.statistics.resampling import Bools, Floats, Ints, Scored, group_counts, pair_weights

# P pairs, D resamples

DRAWS = 499
MAX_STEPS = 50
LN10 = math.log(10)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """log10 of the likelihood ratio as a line in the score, cut at what so few groups can show."""

    intercept: float
    slope: float
    lowest: float
    """-log10(1 + families whose related pairs were seen)."""
    highest: float
    """log10(1 + independent strangers): the roots of unrelated pairs but one, since a suspect meets every other root once."""

    def log10(self, score: float) -> float:
        """Return log10 of the likelihood ratio of a score; 0, no evidence, where the score is not defined.

        >>> Calibration(intercept=-1.0, slope=4.0, lowest=-0.9, highest=1.2).log10(0.4)
        0.6
        >>> Calibration(intercept=-1.0, slope=4.0, lowest=-0.9, highest=1.2).log10(1.0)  # not 3: cut
        1.2
        """
        if math.isnan(score):
            return 0.0
        return round(min(self.highest, max(self.lowest, self.intercept + self.slope * score)), 12)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Likelihood ratios of pairs whose groups took no part in the calibration."""

    log10_lr: Floats
    """Of each pair, [P]; 0 where its score is not defined, NaN where the rest has only one kind of pairs."""
    weights: Floats
    """Of each pair, [P]: 1 / the number of pairs of the same groups, so that each counts once however many members repeat it."""
    bound: float
    """The largest |log10 LR| that any of the calibrations allowed."""


def repeats(scored: Scored) -> Floats:
    """Return 1 / the number of pairs that have the same groups, [P].

    >>> repeats(Scored(score=[0.9, 0.8, 0.1], positive=[True, True, False], group_a=[0, 0, 0], group_b=[0, 0, 1]))
    array([0.5, 0.5, 1. ])
    """
    _, place, times = np.unique(_families(scored), return_inverse=True, return_counts=True)
    weights: Floats = 1.0 / times[place]
    return weights


def _families(scored: Scored) -> Ints:
    """One number for each two groups, whichever of them comes first: [P]."""
    low, high = np.minimum(scored.group_a, scored.group_b), np.maximum(scored.group_a, scored.group_b)
    return np.asarray(low * (high.max(initial=0) + 1) + high)


def calibrate(scored: Scored, which: Bools | None = None, *, start: Calibration | None = None) -> Calibration:
    """Fit log10 of the likelihood ratio to the pairs that ``which`` chooses (all if None); undefined scores take no part.

    ``start`` saves steps. Costs O(P) a Newton step, of which there are about 10, or 4 from a near start.

    >>> pairs = Scored(score=[0.9, 0.8, 0.2, 0.1], positive=[True, True, False, False], group_a=[0, 1, 0, 2], group_b=[0, 1, 1, 3])
    >>> fit = calibrate(pairs)
    >>> round(fit.log10(0.5), 2), fit.log10(0.9) > 0.3, round(fit.highest, 3)  # two families, three other roots to be met
    (-0.06, True, 0.602)

    Raises:
        ValueError: no related or no unrelated pair with a score is left.
    """
    chosen = np.isfinite(scored.score) if which is None else np.isfinite(scored.score) & which
    part = Scored(score=scored.score[chosen], positive=scored.positive[chosen], group_a=scored.group_a[chosen],
                  group_b=scored.group_b[chosen])  # fmt: skip
    num_families = part.positive_groups.size
    unrelated = ~part.positive
    num_strangers = np.union1d(part.group_a[unrelated], part.group_b[unrelated]).size - 1
    if not num_families or num_strangers < 1:
        message = f"likelihood ratio: needs related and unrelated pairs with scores, got {num_families} families and {num_strangers + 1} roots of strangers"
        raise ValueError(message)
    weight_P = repeats(part)
    for kind in (
        part.positive,
        unrelated,
    ):  # equal weight of both kinds: the prior odds are 1, so log odds are the log ratio
        weight_P[kind] /= 2 * weight_P[kind].sum()
    target_P = np.where(part.positive, (num_families + 1) / (num_families + 2), 1 / (num_strangers + 2))
    centre, spread = float(part.score.mean()), float(part.score.std())
    begin = (
        np.zeros(2)
        if start is None
        else LN10 * np.array([start.intercept + start.slope * centre, start.slope * spread])
    )
    line = _logistic((part.score - centre) / spread, target_P, weight_P, begin) if spread > 0 else np.zeros(2)
    slope = float(line[1] / spread / LN10) if spread > 0 else 0.0
    return Calibration(intercept=float(line[0] / LN10) - slope * centre, slope=slope, lowest=-math.log10(1 + num_families),
                       highest=math.log10(1 + num_strangers))  # fmt: skip


def _logistic(score_P: Floats, target_P: Floats, weight_P: Floats, line: Floats) -> Floats:
    """Return the intercept and slope that minimise the weighted cross entropy of ``target_P``: Newton's steps, halved while they climb."""

    def loss(line: Floats) -> float:
        odds_P = line[0] + line[1] * score_P
        return float(weight_P @ (np.logaddexp(0, odds_P) - target_P * odds_P))

    best = loss(line)
    for _ in range(MAX_STEPS):
        probability_P = expit(line[0] + line[1] * score_P)
        away_P, curve_P = weight_P * (probability_P - target_P), weight_P * probability_P * (1 - probability_P)
        gradient = np.array([away_P.sum(), away_P @ score_P])
        mixed = curve_P @ score_P
        hessian = np.array([[curve_P.sum(), mixed], [mixed, curve_P @ score_P**2]]) + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while (stepped := loss(line - step)) > best + 1e-15 and np.abs(step).max() > 1e-12:
            step /= 2
        line, best = line - step, stepped
        if np.abs(step).max() < 1e-9:
            break
    return line


def held_out_ratios(scored: Scored) -> HeldOut:
    """Return the likelihood ratio of each pair, calibrated on the pairs that share neither of its groups.

    Costs a calibration for every two groups that are compared.
    """
    ratios, bound = np.full(scored.score.size, np.nan), 0.0
    try:
        start = calibrate(scored)
    except ValueError:
        return HeldOut(log10_lr=ratios, weights=repeats(scored), bound=bound)
    both_P = _families(scored)
    for both in np.unique(both_P):
        members = np.flatnonzero(both_P == both)
        first, second = scored.group_a[members[0]], scored.group_b[members[0]]
        apart = ~sum(
            (group == end for group in (scored.group_a, scored.group_b) for end in (first, second)),
            np.zeros(both_P.size, bool),
        )
        try:
            fit = calibrate(scored, apart, start=start)
        except ValueError:
            continue
        ratios[members] = [fit.log10(float(score)) for score in scored.score[members]]
        bound = max(bound, fit.highest, -fit.lowest)
    return HeldOut(log10_lr=ratios, weights=repeats(scored), bound=bound)


def cllr(log10_lr: Floats, positive: Bools, weights: Floats | None = None) -> float:
    """Return the log-likelihood-ratio cost in bits: 0 is perfect, 1 is what LR = 1 for every pair costs, more is misleading.

    1/2 of (the mean over related pairs of log2(1 + 1 / LR) + the mean over unrelated ones of log2(1 + LR)). Brummer and du
    Preez 2006, eq. 26. ``weights`` weigh pairs within their kind. NaN without pairs of a kind.

    >>> cllr(np.zeros(3), np.array([True, False, False]))
    1.0
    >>> round(cllr(np.log10([3.0, 1 / 3]), np.array([True, False])), 4)  # log2(4 / 3)
    0.415
    """
    weight_P = np.ones(len(log10_lr)) if weights is None else weights
    cost_P = np.logaddexp2(0, np.where(positive, -1, 1) * np.asarray(log10_lr) * math.log2(10))
    means = [
        float(weight_P[kind] @ cost_P[kind] / total) if (total := weight_P[kind].sum()) > 0 else math.nan
        for kind in (positive, ~positive)
    ]
    return sum(means) / 2


def cllr_estimate(scored: Scored, held_out: HeldOut, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Return the `cllr` of held-out ratios with an interval over resampled groups, which keeps the calibrations as they are."""
    defined = np.isfinite(held_out.log10_lr)
    kinds = scored.positive[defined]
    if not kinds.any() or kinds.all():
        return undefined("no related or no unrelated pair could be held out: a calibration needs two families", n=0)
    ratios, weights = held_out.log10_lr[defined], held_out.weights[defined]
    group_a, group_b = scored.group_a[defined], scored.group_b[defined]
    groups = np.union1d(group_a, group_b)
    counts_DR = group_counts(groups.size, draws=draws, seed=seed)
    drawn_DP = pair_weights(group_a, group_b, groups, counts_DR)
    values_D = np.array([cllr(ratios, kinds, drawn_P * weights) for drawn_P in drawn_DP])
    estimate = percentile(cllr(ratios, kinds, weights), values_D, n=groups.size, unit="group")
    note = f"bits; LR = 1 for every pair costs 1; |log10 LR| is at most {held_out.bound:.2f}"
    return replace(estimate, note="; ".join(filter(None, (note, estimate.note))))


def tippett(log10_lr: Floats, which: Bools, weights: Floats) -> tuple[Floats, Floats]:
    """Return the points of one Tippett curve: log10 LR, ascending, and the share of the pairs ``which`` with at least that much.

    Of related pairs the curve should stay at 1 beyond 0, of unrelated ones fall to 0 before it; what it has at 0 is the rate of
    misleading evidence (Evett and Buckleton 1996; Meuwly 2001, after C. F. Tippett).

    >>> tippett(np.array([1.0, -1.0, 1.0]), np.array([True, True, True]), np.ones(3))
    (array([-1.,  1.]), array([1.        , 0.66666667]))
    """
    kept = which & np.isfinite(log10_lr)
    if not kept.any():
        return np.zeros(0), np.zeros(0)
    at, place = np.unique(log10_lr[kept], return_inverse=True)
    mass = np.bincount(place, weights[kept], at.size)
    return at, np.cumsum(mass[::-1])[::-1] / mass.sum()

"""Are p-values from ranks honest? Negative pairs ranked among negative pairs, and how often they are called positive."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.intervals import percentile
from modelassay.statistics.ranks import TIE, p_of_rank, rank_p
from modelassay.statistics.resampling import CHUNK, Bools, Floats, Ints, Scored, group_counts, pair_weights

# M = ranked pairs, N = negative pairs they are ranked among, P = negative pairs, R = groups, S = simulations, T = possible p

SIMULATIONS = 999

MIN_GROUPS = 8
"""Of `uniformity`: with 8, even six groups of one kin among them were not found; below, there is nothing to test with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankPs:
    """Rank p-values of pairs, and what they were computed from."""

    p: Floats
    """NaN where the pair cannot be compared or there is no negative pair to rank it among."""
    min_p: Floats
    """1 / (1 + n): the smallest p that the negative pairs allow each pair; NaN where ``p`` is."""
    pairs: Scored
    among_themselves: bool
    """Whether the pairs are the negative pairs themselves, one pair for any two groups."""


def rank_p_values(pairs: Scored, negatives: Scored) -> RankPs:
    """Return the p of each pair by its rank among the negative pairs that share neither of its groups.

    p = (1 + #{negative >= pair}) / (1 + n), see `p_of_rank`. The groups f and g of a pair are known, equal or not. Every
    negative pair of f or of g is left out, since a member carries the effect of its group with it; with R groups,
    (R - 2)(R - 3) / 2 negative pairs are left for a pair of two groups and (R - 1)(R - 2) / 2 for one of one group. Negative
    pairs that cannot be compared do not count. Costs O(M N).

    Of the negative pairs themselves (``pairs is negatives``) p is exactly uniform on its grid where scores are independent.
    Where groups have effects of their own it is not: share of p <= 0.05 in simulation with 18 groups (10 groups, where the
    grid ends at 0.034) .050 (.033) without effects, .050 to .054 (.033 to .039) for correlations of random curves, .062 (.055)
    where each group brings a quarter of the variance, .079 (.090) where group effects are all there is.

    >>> groups = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]).T
    >>> negatives = Scored(score=np.arange(6.0), positive=np.zeros(6, bool), group_a=groups[0], group_b=groups[1])
    >>> pairs = Scored(score=[4.5], positive=[True], group_a=[0], group_b=[0])
    >>> rank_p_values(pairs, negatives).p                                  # against 1-2, 1-3 and 2-3: 3, 4 and 5
    array([0.5])

    Raises:
        ValueError: a negative pair is positive, or two of them have the same groups.
    """
    _check_negatives(negatives)
    defined_P = np.isfinite(negatives.score)
    null = Scored(score=negatives.score[defined_P], positive=negatives.positive[defined_P],
                  group_a=negatives.group_a[defined_P], group_b=negatives.group_b[defined_P])  # fmt: skip
    size = max(1, (1 << 22) // max(1, null.score.size))
    parts = [
        _ranks(pairs.score[None, part], null.score[None], _apart(pairs, null, part))
        for part in (slice(start, start + size) for start in range(0, pairs.score.size, size))
    ]
    p_M = np.concatenate([p[0] for p, _ in parts]) if parts else np.zeros(0)
    min_p_M = np.concatenate([min_p for _, min_p in parts]) if parts else np.zeros(0)
    undefined_M = np.isnan(pairs.score) | (min_p_M == 1)
    return RankPs(p=np.where(undefined_M, np.nan, p_M), min_p=np.where(undefined_M, np.nan, min_p_M), pairs=pairs,
                  among_themselves=pairs is negatives)  # fmt: skip


def _check_negatives(negatives: Scored) -> None:
    if negatives.positive.any():
        message = (
            f"negatives: {int(negatives.positive.sum())} positive pairs among them; rank among negative pairs alone"
        )
        raise ValueError(message)
    ends = np.sort(np.stack((negatives.group_a, negatives.group_b)), axis=0)
    if np.unique(ends, axis=1).shape[1] < negatives.score.size:
        message = "negatives: two pairs of the same groups; keep one, the other would repeat its score and lower the smallest p"
        raise ValueError(message)


def _apart(pairs: Scored, negatives: Scored, part: slice) -> Bools:
    """Return whether a pair and a negative pair share no group: [M, N]."""
    shared = np.zeros((pairs.score[part].size, negatives.score.size), dtype=bool)
    for group_M in (pairs.group_a[part], pairs.group_b[part]):
        for group_N in (negatives.group_a, negatives.group_b):
            shared |= group_M[:, None] == group_N[None]
    return ~shared


def _ranks(score_SM: Floats, null_SN: Floats, apart_MN: Bools) -> tuple[Floats, Floats]:
    """Return rank p-values [S, M] and the smallest there are [M], pair m being ranked among those ``apart`` from it."""
    count_M = apart_MN.sum(axis=1)
    reached_SM = np.stack([
        np.count_nonzero((null_N >= score_M[:, None] - TIE) & apart_MN, axis=1)
        for score_M, null_N in zip(score_SM, null_SN, strict=True)
    ])  # fmt: skip
    return p_of_rank(reached_SM, count_M), p_of_rank(0, count_M)


@dataclass(frozen=True, kw_only=True, eq=False)
class Uniformity:
    """How far p-values are from uniform."""

    ks: Estimate
    """max over t of |share of p <= t - what it would be if every p were uniform on its own grid|. Its ``p`` says how often
    exchangeable groups make a larger distance, None where that was not simulated; ``n`` counts the p-values that are defined."""
    intraclass_correlation: float | None
    """Share of the scores' variance that one group brings along, estimated and then simulated; between 0 and 0.5."""
    expected: Floats
    """For a quantile plot: the n quantiles of p if uniform on its grid, ascending."""
    observed: Floats
    """The p-values, ascending."""


def uniformity(ranks: RankPs, *, simulations: int = SIMULATIONS, seed: int = 0) -> Uniformity:
    """Return how far the p-values are from uniform, and how often that distance arises where groups are exchangeable.

    The distance is taken from the grids that discrete p-values can take; its own p from simulations of exchangeable groups with the
    same intraclass correlation. A small p means that groups are not exchangeable, a large one not that the next p is honest: see
    `false_positive_rate`. Costs O(simulations x P^2), 0.9 s for 30 groups. Method and evidence: docs/methods/uniformity.md.

    >>> groups = np.stack(np.triu_indices(12, 1))
    >>> negatives = Scored(score=np.random.default_rng(0).normal(size=66), positive=np.zeros(66, bool),
    ...                    group_a=groups[0], group_b=groups[1])
    >>> distance = uniformity(rank_p_values(negatives, negatives), simulations=99).ks
    >>> distance.value < 0.06, distance.p > 0.05
    (True, True)

    Raises:
        ValueError: no p-value is defined, or fewer than 1 simulation.
    """
    defined_M = np.isfinite(ranks.p)
    if not defined_M.any() or simulations < 1:
        message = f"uniformity: needs a defined p-value and a simulation, got {int(defined_M.sum())} and {simulations}"
        raise ValueError(message)
    p_M, min_p_M = ranks.p[defined_M], ranks.min_p[defined_M]
    ks = Estimate(value=float(_distances(p_M[None], min_p_M)[0]), n=p_M.size, note=_why_not_simulated(ranks))
    correlation = None
    if not ks.note:
        pairs = ranks.pairs
        effects, correlation = _split(pairs.score[defined_M], pairs.group_a[defined_M], pairs.group_b[defined_M])
        p = rank_p(ks.value, _simulate(effects, correlation, simulations=simulations, seed=seed))
        ks = replace(ks, p=p.p, min_p=p.min_p, note=f"reference: {simulations} simulations of exchangeable groups that each "
                     f"bring {correlation:.2f} of a score's variance")  # fmt: skip
    return Uniformity(
        ks=ks, intraclass_correlation=correlation, expected=_grid_quantiles(min_p_M), observed=np.sort(p_M)
    )


def _why_not_simulated(ranks: RankPs) -> str:
    if not ranks.among_themselves:
        return (
            "no p-value: pairs of one group share its effect in a way that is not known; see false_positive_rate, "
            "whose interval draws whole groups"
        )
    num_groups = ranks.pairs.groups.size
    return f"no p-value: {num_groups} groups are fewer than {MIN_GROUPS}" if num_groups < MIN_GROUPS else ""


def _distances(p_SM: Floats, min_p_M: Floats) -> Floats:
    """Return max |F(t) - mean grid CDF(t)| of each row of p-values, over all values that p can take."""
    smallest, times = np.unique(min_p_M, return_counts=True)
    at_T = np.unique(np.concatenate([np.arange(1, round(1 / min_p) + 1) * min_p for min_p in smallest]))
    uniform_T = (np.floor(at_T[:, None] / smallest + TIE) * smallest) @ (times / min_p_M.size)
    sorted_SM = np.sort(p_SM, axis=1)
    below_ST = np.stack([np.searchsorted(p_M, at_T + TIE, side="right") for p_M in sorted_SM]) / min_p_M.size
    return np.asarray(np.abs(below_ST - uniform_T).max(axis=1))


def _grid_quantiles(min_p_M: Floats) -> Floats:
    """Return the (m - 1/2) / M quantiles of p-values that are uniform on their own grids."""
    share_M = (np.arange(min_p_M.size) + 0.5) / min_p_M.size
    grid = np.concatenate([np.arange(1, round(1 / min_p) + 1) * min_p for min_p in min_p_M])
    weight = np.concatenate([np.full(round(1 / min_p), min_p) for min_p in min_p_M])
    order = np.argsort(grid, kind="stable")
    reached = np.cumsum(weight[order]) / min_p_M.size
    return np.asarray(grid[order][np.searchsorted(reached, share_M - TIE)])


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupEffects:
    """Scores of negative pairs, made normal by their ranks, as score = effect of a + effect of b + rest."""

    index_a: Ints
    index_b: Ints
    effect_R: Floats
    rest_P: Floats


def _split(score: Floats, group_a: Ints, group_b: Ints) -> tuple[GroupEffects, float]:
    """Split scores into group effects and the rest, by the means of each group's pairs; return the intraclass correlation too.

    With score = u_a + u_b + e, the covariance of two pairs that share a group is var(u); it is estimated by the mean product
    of such pairs less that of pairs that share none, which takes the estimated mean out. Costs O(P log P).
    """
    from scipy.stats import rankdata

    normal_P = ndtri((rankdata(score) - 0.5) / score.size)
    groups, index = np.unique(np.stack((group_a, group_b)), return_inverse=True)
    a_P, b_P = index.reshape(2, -1)
    degree_R = np.bincount(index.ravel(), minlength=groups.size)
    away_P = normal_P - normal_P.mean()
    sums_R = np.bincount(a_P, away_P, groups.size) + np.bincount(b_P, away_P, groups.size)
    # The others' effects sum to minus a group's own, so its mean is (R - 2) / (R - 1) of its effect.
    effect_R = sums_R / degree_R * (groups.size - 1) / max(1, groups.size - 2)
    effects = GroupEffects(index_a=a_P, index_b=b_P, effect_R=effect_R, rest_P=away_P - effect_R[a_P] - effect_R[b_P])
    squares = float(away_P @ away_P)
    num_sharing = float((degree_R * (degree_R - 1)).sum())
    num_apart = score.size * (score.size - 1) - num_sharing
    sharing = float(sums_R @ sums_R) - 2 * squares
    if not num_sharing or not num_apart:
        return effects, 0.0
    apart = -(squares + sharing) / num_apart  # all products together sum to 0, the mean being taken out
    variance = squares / score.size - apart
    return effects, float(np.clip((sharing / num_sharing - apart) / variance, 0.0, 0.5)) if variance > 0 else 0.0


def _simulate(effects: GroupEffects, correlation: float, *, simulations: int, seed: int) -> Floats:
    """Return the distances from uniform of negative pairs whose effects and rest are drawn from the estimated ones: [S]."""
    rng = np.random.default_rng(seed)
    effect_SR = rng.choice(_scaled(effects.effect_R, correlation), size=(simulations, effects.effect_R.size))
    rest_SP = rng.choice(_scaled(effects.rest_P, 1 - 2 * correlation), size=(simulations, effects.rest_P.size))
    score_SP = effect_SR[:, effects.index_a] + effect_SR[:, effects.index_b] + rest_SP
    same_P = effects.index_a == effects.index_b
    pairs = Scored(score=score_SP[0], positive=same_P, group_a=effects.index_a, group_b=effects.index_b)
    p_SP, min_p_P = _ranks(score_SP, score_SP, _apart(pairs, pairs, slice(None)))
    return _distances(p_SP, min_p_P)


def _scaled(values: Floats, variance: float) -> Floats:
    size = np.sqrt(np.mean(values**2))
    return values * (np.sqrt(variance) / size) if size > 0 else values


def false_positive_rate(ranks: RankPs, *, alpha: float = 0.05, draws: int = SIMULATIONS, seed: int = 0) -> Estimate:
    """Return the share of negative pairs called positive, p <= ``alpha``, with an interval over groups.

    Pairs without a p-value count as not called; ``n`` counts all pairs. The interval draws groups with all their pairs
    (`pair_weights`). It holds the p-values fixed instead of ranking anew, so it has the effects of the pairs' groups and not
    those of the pairs they are ranked among. Where few pairs are called it is too narrow: set `wilson` beside it.

    >>> groups = np.stack(np.triu_indices(12, 1))
    >>> negatives = Scored(score=np.random.default_rng(0).normal(size=66), positive=np.zeros(66, bool),
    ...                    group_a=groups[0], group_b=groups[1])
    >>> rate = false_positive_rate(rank_p_values(negatives, negatives), draws=99)
    >>> round(rate.value * rate.n), rate.n
    (4, 66)

    Raises:
        ValueError: a pair is positive, or ``alpha`` is not in (0, 1).
    """
    if ranks.pairs.positive.any():
        message = (
            f"false_positive_rate: {int(ranks.pairs.positive.sum())} positive pairs; see true_positive_rate for them"
        )
        raise ValueError(message)
    return _call_rate(ranks, alpha, draws, seed)


def true_positive_rate(ranks: RankPs, *, alpha: float = 0.05, draws: int = SIMULATIONS, seed: int = 0) -> Estimate:
    """Return the share of positive pairs called positive at ``alpha``: the power, as `false_positive_rate` counts.

    Raises:
        ValueError: a pair is negative, or ``alpha`` is not in (0, 1).
    """
    if not ranks.pairs.positive.all():
        message = (
            f"true_positive_rate: {int((~ranks.pairs.positive).sum())} negative pairs; see false_positive_rate for them"
        )
        raise ValueError(message)
    return _call_rate(ranks, alpha, draws, seed)


def _call_rate(ranks: RankPs, alpha: float, draws: int, seed: int) -> Estimate:
    if not 0 < alpha < 1:
        message = f"alpha: a level in (0, 1), got {alpha}"
        raise ValueError(message)
    defined_M = np.isfinite(ranks.p)
    could_M = defined_M & (np.where(defined_M, ranks.min_p, 1.0) <= alpha + TIE)
    if not could_M.any():
        smallest = (
            f"the smallest there is is {ranks.min_p[defined_M].min():.2g}" if defined_M.any() else "none has a p-value"
        )
        return undefined(f"no pair could be called positive at alpha = {alpha:g}: {smallest}", n=defined_M.size)
    called_M = np.where(defined_M, ranks.p, 1.0) <= alpha + TIE
    pairs, groups = ranks.pairs, ranks.pairs.groups
    counts_DR = group_counts(groups.size, draws=draws, seed=seed)
    size = max(1, CHUNK // called_M.size)
    rates = []
    for start in range(0, draws, size):
        weights_DM = pair_weights(pairs.group_a, pairs.group_b, groups, counts_DR[start : start + size])
        total_D = weights_DM.sum(axis=1)
        rates.append((weights_DM @ called_M.astype(np.float64)) / np.where(total_D > 0, total_D, np.nan))
    rate = percentile(int(called_M.sum()) / called_M.size, np.concatenate(rates), n=called_M.size, unit="group")
    notes = []
    if stuck := int(np.count_nonzero(defined_M & ~could_M)):
        notes.append(
            f"{stuck} pairs could not have been called: the pairs they are ranked among allow no p of {alpha:g}"
        )
    if rate.note:
        notes.append(rate.note)
    if rate.has_interval and rate.low == rate.high:
        notes.append(f"all resamples of {groups.size} groups agree; Wilson's interval alone says how little that is")
    return replace(rate, note="; ".join(notes))

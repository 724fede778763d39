"""Are the p-values of a fingerprint honest? Strangers ranked among strangers, and how often they are called related."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from modelassay.accuracy_bootstrap import (
    CHUNK,
    Bools,
    Floats,
    Ints,
    Scored,
    pair_weights,
    percentile_interval,
    root_counts,
    why_no_interval,
)
from modelassay.confusion import Share, wilson
from modelassay.stats import Interval

# M = judged pairs, N = pairs of strangers that judge, S = simulations, T = possible values of p

TIE = 1e-12
"""As in `stats.rank_p`: rounding must not turn an equal score into a smaller one."""

SIMULATIONS = 999

MIN_ROOTS = 8
"""Of `uniformity`: with 8, even six roots of one clan among them were not found; below, there is nothing to test with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankPs:
    """Rank p-values of pairs, and what they were computed from."""

    p: Floats
    """NaN where the pair cannot be compared or no stranger may judge it."""
    floor: Floats
    """1 / (1 + n): the smallest p that the strangers of each pair allow; NaN where ``p`` is."""
    suspects: Scored
    among_themselves: bool
    """Whether the pairs are the strangers themselves, one pair for any two roots."""


def rank_p_values(suspects: Scored, strangers: Scored) -> RankPs:
    """Return the p of each suspect pair by its rank among the strangers that share neither of its roots.

    p = (1 + #{stranger >= suspect}) / (1 + n), Phipson and Smyth 2010. A suspect is any pair whose roots f and g are
    known, equal or not: a descendant of f against g, or two descendants of f. Every pair of f or of g is left out, since
    a descendant carries the luck of its root with it; with R roots, (R - 2)(R - 3) / 2 strangers judge an unrelated pair
    and (R - 1)(R - 2) / 2 a related one. Strangers that cannot be compared do not count. Costs O(M N).

    >>> roots = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]).T
    >>> strangers = Scored(score=np.arange(6.0), related=np.zeros(6, bool), root_a=roots[0], root_b=roots[1])
    >>> suspects = Scored(score=[4.5], related=[True], root_a=[0], root_b=[0])
    >>> rank_p_values(suspects, strangers).p                               # against 1-2, 1-3 and 2-3: 3, 4 and 5
    array([0.5])

    Raises:
        ValueError: a stranger pair is related, or two of them have the same roots.
    """
    _check_strangers(strangers)
    null_P = np.isfinite(strangers.score)
    null = Scored(score=strangers.score[null_P], related=strangers.related[null_P], root_a=strangers.root_a[null_P],
                  root_b=strangers.root_b[null_P])  # fmt: skip
    size = max(1, (1 << 22) // max(1, null.score.size))
    parts = [
        _ranks(suspects.score[None, part], null.score[None], _apart(suspects, null, part))
        for part in (slice(start, start + size) for start in range(0, suspects.score.size, size))
    ]
    p_M = np.concatenate([p[0] for p, _ in parts]) if parts else np.zeros(0)
    floor_M = np.concatenate([floor for _, floor in parts]) if parts else np.zeros(0)
    undefined_M = np.isnan(suspects.score) | (floor_M == 1)
    return RankPs(p=np.where(undefined_M, np.nan, p_M), floor=np.where(undefined_M, np.nan, floor_M),
                  suspects=suspects, among_themselves=suspects is strangers)  # fmt: skip


def stranger_p_values(strangers: Scored) -> RankPs:
    """Return the p of each pair of strangers among the pairs that share neither of its roots: leave both out.

    What `rank_p_values` would have said of them, had they been suspects. Exactly uniform on its grid where the scores of
    pairs are independent. Where roots bring luck of their own it is not: share of p <= 0.05 in simulation with 18 roots
    (10 roots, where the grid ends at 0.034) .050 (.033) without luck, .050 to .054 (.033 to .039) for correlations of
    random curves, .062 (.055) where each root brings a quarter of the variance, .079 (.090) where luck is all there is.

    Raises:
        ValueError: a pair is related, or two pairs have the same roots.
    """
    return rank_p_values(strangers, strangers)


def _check_strangers(strangers: Scored) -> None:
    if strangers.related.any():
        message = f"strangers: {int(strangers.related.sum())} related pairs among them; judge by unrelated pairs alone"
        raise ValueError(message)
    ends = np.sort(np.stack((strangers.root_a, strangers.root_b)), axis=0)
    if np.unique(ends, axis=1).shape[1] < strangers.score.size:
        message = "strangers: two pairs of the same roots; keep one, descendants would repeat their root's score and lower the floor"
        raise ValueError(message)


def _apart(suspects: Scored, strangers: Scored, part: slice) -> Bools:
    """Return whether a suspect and a stranger share no root: [M, N]."""
    shared = np.zeros((suspects.score[part].size, strangers.score.size), dtype=bool)
    for mine in (suspects.root_a[part], suspects.root_b[part]):
        for theirs in (strangers.root_a, strangers.root_b):
            shared |= mine[:, None] == theirs[None]
    return ~shared


def _ranks(score_SM: Floats, null_SN: Floats, apart_MN: Bools) -> tuple[Floats, Floats]:
    """Return rank p-values [S, M] and their floors [M], the strangers of suspect m being those ``apart`` from it."""
    count_M = apart_MN.sum(axis=1)
    reached_SM = np.stack([
        np.count_nonzero((null_N >= score_M[:, None] - TIE) & apart_MN, axis=1)
        for score_M, null_N in zip(score_SM, null_SN, strict=True)
    ])  # fmt: skip
    return (1 + reached_SM) / (1 + count_M), 1 / (1 + count_M)


@dataclass(frozen=True, kw_only=True, eq=False)
class Uniformity:
    """How far p-values are from uniform."""

    ks: float
    """max over t of |share of p <= t - what it would be if every p were uniform on its own grid|."""
    p_value: float | None
    """How often exchangeable roots make a larger distance; None where that was not simulated."""
    n: int
    """p-values that are defined."""
    root_share: float | None
    """Share of the scores' variance that one root brings along, estimated and then simulated; between 0 and 0.5."""
    expected: Floats
    """For a quantile plot: the n quantiles of p if uniform on its grid, ascending."""
    observed: Floats
    """The p-values, ascending."""
    note: str = ""
    """Why there is no p-value, or what it means."""


def uniformity(ranks: RankPs, *, simulations: int = SIMULATIONS, seed: int = 0) -> Uniformity:
    """Return how far the p-values are from uniform, and how often that distance arises where roots are exchangeable.

    Discrete: p takes the values k / (1 + n) and is uniform there if P(p <= k / (1 + n)) = k / (1 + n), no more can be
    asked of it. So the distance is taken from the mean of the p-values' own grids, each by its floor, at every value any
    of them can take; nothing is drawn at random and no continuity is assumed. Ties in the scores make p larger.

    Dependent: pairs share roots, and each p is a rank among the other pairs, so Kolmogorov's reference does not hold: the
    ranks' distances are smaller than his without luck of the roots and larger with much of it. Permuting the roots moves
    nothing, since it only renames the pairs. So strangers are simulated: their scores, made normal by ranks, are split
    into the luck of the two roots and a rest, both are drawn anew from the estimated ones with the variances of
    `root_share`, ranked as the real ones were, and ``p_value`` is the rank of the distance among the simulated. A small
    one says that these are no exchangeable strangers: some of them are kin, or a few roots have luck unlike the rest. A
    large one does not say that p is honest for the next suspect; `false_positive_rate` has an interval for that. Of
    suspects other than the strangers themselves, only the distance is given.

    Share of ``p_value`` <= 0.05 in 300 worlds of 8, 10 and 18 roots: .00 to .05 for normal luck of any size and for
    correlations of random curves, a common parabola or not; but .04, .08 and .13 for exponential luck. Six kin among 18
    roots, four standard deviations above the strangers, were found in 70 %, among 10 in 48 %; four kin in no more than
    4 %. Costs O(simulations x P^2), 0.15 s for 18 roots and 0.9 s
    for 30.

    >>> roots = np.stack(np.triu_indices(12, 1))
    >>> strangers = Scored(score=np.random.default_rng(0).normal(size=66), related=np.zeros(66, bool),
    ...                    root_a=roots[0], root_b=roots[1])
    >>> found = uniformity(stranger_p_values(strangers), simulations=99)
    >>> found.ks < 0.06, found.p_value > 0.05
    (True, True)

    Raises:
        ValueError: no p-value is defined, or fewer than 1 simulation.
    """
    defined_M = np.isfinite(ranks.p)
    if not defined_M.any() or simulations < 1:
        message = f"uniformity: needs a defined p-value and a simulation, got {int(defined_M.sum())} and {simulations}"
        raise ValueError(message)
    p_M, floor_M = ranks.p[defined_M], ranks.floor[defined_M]
    expected_M = _grid_quantiles(floor_M)
    ks = float(_distances(p_M[None], floor_M)[0])
    p_value, share, note = None, None, _why_not_simulated(ranks)
    if not note:
        strangers = ranks.suspects
        luck, share = _split(strangers.score[defined_M], strangers.root_a[defined_M], strangers.root_b[defined_M])
        simulated_S = _simulate(luck, share, simulations=simulations, seed=seed)
        p_value = float((1 + np.count_nonzero(simulated_S >= ks - TIE)) / (1 + simulations))
        note = f"reference: {simulations} simulations of exchangeable roots that each bring {share:.2f} of a score's variance"
    return Uniformity(ks=ks, p_value=p_value, n=p_M.size, root_share=share, expected=expected_M, observed=np.sort(p_M),
                      note=note)  # fmt: skip


def _why_not_simulated(ranks: RankPs) -> str:
    if not ranks.among_themselves:
        return (
            "no p-value: suspects of one family share its luck in a way that is not known; see false_positive_rate, "
            "whose interval draws whole families"
        )
    num_roots = ranks.suspects.roots.size
    return f"no p-value: {num_roots} roots are fewer than {MIN_ROOTS}" if num_roots < MIN_ROOTS else ""


def _distances(p_SM: Floats, floor_M: Floats) -> Floats:
    """Return max |F(t) - mean grid CDF(t)| of each row of p-values, over all values that p can take."""
    floors, times = np.unique(floor_M, return_counts=True)
    at_T = np.unique(np.concatenate([np.arange(1, round(1 / floor) + 1) * floor for floor in floors]))
    uniform_T = (np.floor(at_T[:, None] / floors + TIE) * floors) @ (times / floor_M.size)
    sorted_SM = np.sort(p_SM, axis=1)
    below_ST = np.stack([np.searchsorted(p_M, at_T + TIE, side="right") for p_M in sorted_SM]) / floor_M.size
    return np.asarray(np.abs(below_ST - uniform_T).max(axis=1))


def _grid_quantiles(floor_M: Floats) -> Floats:
    """Return the (m - 1/2) / M quantiles of p-values that are uniform on their own grids."""
    wanted_M = (np.arange(floor_M.size) + 0.5) / floor_M.size
    grid = np.concatenate([np.arange(1, round(1 / floor) + 1) * floor for floor in floor_M])
    weight = np.concatenate([np.full(round(1 / floor), floor) for floor in floor_M])
    order = np.argsort(grid, kind="stable")
    reached = np.cumsum(weight[order]) / floor_M.size
    return np.asarray(grid[order][np.searchsorted(reached, wanted_M - TIE)])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Luck:
    """Strangers' scores, made normal by their ranks, as score = luck of a + luck of b + rest."""

    index_a: Ints
    index_b: Ints
    luck_R: Floats
    rest_P: Floats


def _split(score: Floats, root_a: Ints, root_b: Ints) -> tuple[_Luck, float]:
    """Split scores into the luck of roots and the rest, by the means of each root's pairs, and return one root's share."""
    normal_P = ndtri((rankdata(score) - 0.5) / score.size)
    roots, index = np.unique(np.stack((root_a, root_b)), return_inverse=True)
    a_P, b_P = index.reshape(2, -1)
    degree_R = np.bincount(index.ravel(), minlength=roots.size)
    away_P = normal_P - normal_P.mean()
    sums_R = np.bincount(a_P, away_P, roots.size) + np.bincount(b_P, away_P, roots.size)
    # The others' luck sums to minus a root's own, so its mean is (R - 2) / (R - 1) of its luck.
    luck_R = sums_R / degree_R * (roots.size - 1) / max(1, roots.size - 2)
    luck = _Luck(index_a=a_P, index_b=b_P, luck_R=luck_R, rest_P=away_P - luck_R[a_P] - luck_R[b_P])
    squares = float(away_P @ away_P)
    num_sharing = float((degree_R * (degree_R - 1)).sum())
    num_apart = score.size * (score.size - 1) - num_sharing
    sharing = float(sums_R @ sums_R) - 2 * squares
    if not num_sharing or not num_apart:
        return luck, 0.0
    apart = -(squares + sharing) / num_apart  # all products together sum to 0, the mean being taken out
    variance = squares / score.size - apart
    return luck, float(np.clip((sharing / num_sharing - apart) / variance, 0.0, 0.5)) if variance > 0 else 0.0


def root_share(strangers: Scored) -> float:
    """Return the share of the variance of strangers' scores that one of the two roots brings along, between 0 and 0.5.

    The scores are made normal by their ranks first. With score = u_a + u_b + e, the covariance of two pairs that share a
    root is var(u); it is estimated by the mean product of such pairs less that of pairs that share none, which takes
    the estimated mean out. Costs O(P log P).

    >>> roots = np.stack(np.triu_indices(40, 1))
    >>> luck, noise = np.random.default_rng(0).normal(size=40), np.random.default_rng(1).normal(size=780)
    >>> strangers = Scored(score=luck[roots[0]] + luck[roots[1]] + noise, related=np.zeros(780, bool),
    ...                    root_a=roots[0], root_b=roots[1])
    >>> 0.2 < root_share(strangers) < 0.45                                              # one third in truth
    True

    Raises:
        ValueError: a pair is related, two pairs have the same roots, or none can be compared.
    """
    _check_strangers(strangers)
    kept = np.isfinite(strangers.score)
    if not kept.any():
        message = "root_share: no pair of strangers can be compared"
        raise ValueError(message)
    return _split(strangers.score[kept], strangers.root_a[kept], strangers.root_b[kept])[1]


def _simulate(luck: _Luck, share: float, *, simulations: int, seed: int) -> Floats:
    """Return the distances from uniform of strangers whose luck and rest are drawn from the estimated ones: [S]."""
    rng = np.random.default_rng(seed)
    luck_SR = rng.choice(_scaled(luck.luck_R, share), size=(simulations, luck.luck_R.size))
    rest_SP = rng.choice(_scaled(luck.rest_P, 1 - 2 * share), size=(simulations, luck.rest_P.size))
    score_SP = luck_SR[:, luck.index_a] + luck_SR[:, luck.index_b] + rest_SP
    pairs = Scored(score=score_SP[0], related=luck.index_a == luck.index_b, root_a=luck.index_a, root_b=luck.index_b)
    p_SP, floor_P = _ranks(score_SP, score_SP, _apart(pairs, pairs, slice(None)))
    return _distances(p_SP, floor_P)


def _scaled(values: Floats, variance: float) -> Floats:
    size = np.sqrt(np.mean(values**2))
    return values * (np.sqrt(variance) / size) if size > 0 else values


@dataclass(frozen=True, kw_only=True)
class CallRate:
    """The share of pairs whose p is at most alpha."""

    alpha: float
    share: Share | None
    """With Wilson's interval, which takes the pairs for independent and is too narrow; None where undefined."""
    interval: Interval | None
    """Percentile bootstrap over roots, the p-values held fixed; None where ``share`` is."""
    compared: float
    """Share of the pairs that have a p-value; the others count as not called."""
    note: str = ""


def false_positive_rate(ranks: RankPs, *, alpha: float = 0.05, draws: int = SIMULATIONS, seed: int = 0) -> CallRate:
    """Return the share of unrelated pairs called related at ``alpha``, with an interval over roots and Wilson's.

    The interval draws roots with all their pairs (`pair_weights`). It holds the p-values fixed instead of ranking anew, so
    it has the luck of the suspects, not that of the strangers who judge them.

    >>> roots = np.stack(np.triu_indices(12, 1))
    >>> strangers = Scored(score=np.random.default_rng(0).normal(size=66), related=np.zeros(66, bool),
    ...                    root_a=roots[0], root_b=roots[1])
    >>> found = false_positive_rate(stranger_p_values(strangers), draws=99)
    >>> found.share.count, found.share.total
    (4, 66)

    Raises:
        ValueError: a pair is related, or ``alpha`` is not in (0, 1).
    """
    if ranks.suspects.related.any():
        message = (
            f"false_positive_rate: {int(ranks.suspects.related.sum())} related pairs; see true_positive_rate for them"
        )
        raise ValueError(message)
    return _call_rate(ranks, alpha, draws, seed)


def true_positive_rate(ranks: RankPs, *, alpha: float = 0.05, draws: int = SIMULATIONS, seed: int = 0) -> CallRate:
    """Return the share of related pairs called related at ``alpha``: the power, as `false_positive_rate` counts.

    Raises:
        ValueError: a pair is unrelated, or ``alpha`` is not in (0, 1).
    """
    if not ranks.suspects.related.all():
        message = f"true_positive_rate: {int((~ranks.suspects.related).sum())} unrelated pairs; see false_positive_rate for them"
        raise ValueError(message)
    return _call_rate(ranks, alpha, draws, seed)


def _call_rate(ranks: RankPs, alpha: float, draws: int, seed: int) -> CallRate:
    if not 0 < alpha < 1:
        message = f"alpha: a level in (0, 1), got {alpha}"
        raise ValueError(message)
    defined_M = np.isfinite(ranks.p)
    compared = float(defined_M.mean()) if defined_M.size else np.nan
    could_M = defined_M & (np.where(defined_M, ranks.floor, 1.0) <= alpha + TIE)
    if not could_M.any():
        lowest = f"the lowest floor is {ranks.floor[defined_M].min():.2g}" if defined_M.any() else "none has a p-value"
        return CallRate(alpha=alpha, share=None, interval=None, compared=compared,
                        note=f"no pair could be called related at alpha = {alpha:g}: {lowest}")  # fmt: skip
    called_M = np.where(defined_M, ranks.p, 1.0) <= alpha + TIE
    suspects, roots = ranks.suspects, ranks.suspects.roots
    counts_DR = root_counts(roots.size, draws=draws, seed=seed)
    size = max(1, CHUNK // called_M.size)
    rates = []
    for start in range(0, draws, size):
        weights_DM = pair_weights(suspects.root_a, suspects.root_b, roots, counts_DR[start : start + size])
        total_D = weights_DM.sum(axis=1)
        rates.append((weights_DM @ called_M.astype(np.float64)) / np.where(total_D > 0, total_D, np.nan))
    interval = percentile_interval(np.concatenate(rates))
    notes = []
    if stuck := int(np.count_nonzero(defined_M & ~could_M)):
        notes.append(f"{stuck} pairs could not have been called: their strangers allow no p of {alpha:g}")
    if reason := why_no_interval(interval):
        notes.append(reason)
    if interval.low == interval.high:
        notes.append(f"all resamples of {roots.size} roots agree; Wilson's interval alone says how little that is")
    share = wilson(int(called_M.sum()), int(called_M.size))
    return CallRate(alpha=alpha, share=share, interval=interval, compared=compared, note="; ".join(notes))

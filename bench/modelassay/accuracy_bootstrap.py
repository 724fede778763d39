"""Scored pairs of models, and resamples of the roots they descend from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelassay.stats import MAX_UNDEFINED, Interval

# P = pairs, R = distinct roots, D = resamples, X = false-positive rates, G = distinct scores, from the highest down (NaN is the last of them)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEVEL = 0.95
"""Nominal coverage of every interval."""

ROUNDING = 1e-9
"""Relative slack when a weighted share is compared with a level: 0.01 * 300 is not 3."""

CHUNK = 1 << 18
"""Weights held at a time, 2 MiB: resamples are worked off in chunks that stay in the second-level cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """P pairs of models, what a fingerprint says of each, and what is known of each. Checked once, here."""

    score: Floats
    """Higher is more related. NaN where the method cannot compare the pair: it then counts as below every score, so that
    no threshold ever calls the pair related."""
    related: Bools
    """Whether both models descend from one root."""
    root_a: Ints
    """Index of the root that the first model descends from; equal to ``root_b`` where the pair is related."""
    root_b: Ints

    def __post_init__(self) -> None:
        """Make the fields arrays of their types.

        Raises:
            ValueError: lengths differ, a score is infinite, a root is not a whole number of at least 0, or ``related``
                contradicts the roots.
        """
        arrays = {"score": np.float64, "related": np.bool_, "root_a": np.int64, "root_b": np.int64}
        for name, dtype in arrays.items():
            given = np.asarray(getattr(self, name))
            with np.errstate(invalid="ignore"):  # NaN is no root, as the comparison will say
                made: NDArray[Any] = given.astype(dtype)
            if name != "score" and not np.array_equal(made, given):
                message = f"scored pairs: {name} must be {dtype.__name__} without loss, got {given.dtype}"
                raise ValueError(message)
            object.__setattr__(self, name, made)
        shapes = {name: getattr(self, name).shape for name in arrays}
        if len(set(shapes.values())) > 1 or self.score.ndim != 1:
            message = f"scored pairs: needs one-dimensional fields of one length, got {shapes}"
            raise ValueError(message)
        if np.isinf(self.score).any():
            message = f"scored pairs: {int(np.isinf(self.score).sum())} infinite scores; NaN says that a pair cannot be compared"
            raise ValueError(message)
        if (self.root_a < 0).any() or (self.root_b < 0).any():
            message = "scored pairs: a root is an index, got a negative one"
            raise ValueError(message)
        if wrong := int(np.count_nonzero(self.related != (self.root_a == self.root_b))):
            message = (
                f"scored pairs: a pair is related where its roots are equal and only there; {wrong} pairs say otherwise"
            )
            raise ValueError(message)

    @property
    def compared(self) -> float:
        """Share of the pairs that have a score; NaN without pairs."""
        return float(np.isfinite(self.score).mean()) if self.score.size else np.nan

    @property
    def roots(self) -> Ints:
        """The distinct roots, in ascending order."""
        return np.unique(np.concatenate((self.root_a, self.root_b)))

    @property
    def related_roots(self) -> Ints:
        """The distinct roots of related pairs: as many independent positives as there can be."""
        return np.unique(self.root_a[self.related])

    def why_undefined(self) -> str:
        """Return why nothing can be said of the pairs; an empty string where both kinds are there."""
        missing = [kind for kind, there in (("related", self.related), ("unrelated", ~self.related)) if not there.any()]
        return f"no {' and no '.join(missing)} pairs" if missing else ""


@dataclass(frozen=True, eq=False)
class Ranked:
    """Pairs in the order of their scores, the highest first, ready to be weighted again and again."""

    scored: Scored
    order_P: Ints = field(init=False)
    ends_G: Ints = field(init=False)
    """Position of the last pair of each distinct score."""
    num_thresholds: int = field(init=False)
    """Distinct scores that are numbers: the thresholds there are."""
    related_P: Bools = field(init=False)

    def __post_init__(self) -> None:
        """Sort once."""
        low_P = np.where(np.isnan(self.scored.score), -np.inf, self.scored.score)
        order_P = np.argsort(-low_P, kind="stable")
        ranked_P = low_P[order_P]
        last_P = np.append(ranked_P[1:] != ranked_P[:-1], True) if ranked_P.size else np.zeros(0, dtype=bool)
        ends_G = np.flatnonzero(last_P)
        object.__setattr__(self, "order_P", order_P)
        object.__setattr__(self, "ends_G", ends_G)
        object.__setattr__(self, "num_thresholds", int(np.count_nonzero(np.isfinite(ranked_P[ends_G]))))
        object.__setattr__(self, "related_P", self.scored.related[order_P])

    @property
    def score_P(self) -> Floats:
        """The scores in order."""
        return self.scored.score[self.order_P]


@dataclass(frozen=True, eq=False)
class Steps:
    """The empirical ROC of each of D weightings, unnormalised: the weight at or above each distinct score."""

    ranked: Ranked
    weights_DP: Floats
    related_DG: Floats = field(init=False)
    unrelated_DG: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Accumulate the weights of the two kinds."""
        ends_G, related_P = self.ranked.ends_G, self.ranked.related_P
        for name, mine_P in (("related_DG", related_P), ("unrelated_DG", ~related_P)):
            reached_DP = np.cumsum(self.weights_DP * mine_P, axis=1)
            whole = ends_G.size == related_P.size
            object.__setattr__(self, name, reached_DP if whole else reached_DP[:, ends_G])

    @property
    def num_related_D(self) -> Floats:
        """Weight of all related pairs, NaN where that is 0."""
        return _or_nan(self.related_DG)

    @property
    def num_unrelated_D(self) -> Floats:
        """Weight of all unrelated pairs, NaN where that is 0."""
        return _or_nan(self.unrelated_DG)


def _or_nan(cumulative_DG: Floats) -> Floats:
    if not cumulative_DG.shape[1]:
        return np.full(len(cumulative_DG), np.nan)
    last_D = cumulative_DG[:, -1]
    return np.where(last_D > 0, last_D, np.nan)


def tpr_reached(steps: Steps, fpr_X: Floats) -> Floats:
    """Return the largest TPR of any threshold whose FPR is at most each of ``fpr_X``: [D, X]. NaN where there is no ROC."""
    thresholds = steps.ranked.num_thresholds
    related_DG = np.pad(steps.related_DG[:, :thresholds], ((0, 0), (1, 0)))
    limits_DX = steps.num_unrelated_D[:, None] * fpr_X * (1 + ROUNDING)
    last_DX = np.array([
        np.searchsorted(unrelated_G, limit_X, side="right")
        for unrelated_G, limit_X in zip(steps.unrelated_DG[:, :thresholds], limits_DX, strict=True)
    ])  # fmt: skip
    reached_DX = np.take_along_axis(related_DG, last_DX, axis=1) / steps.num_related_D[:, None]
    return np.where(np.isnan(limits_DX), np.nan, reached_DX)


def steps_of(scored: Scored, weights: Floats | None = None) -> Steps:
    """Return the one ROC of the pairs, each counted ``weights[p]`` times (once if None).

    Raises:
        ValueError: weights are not P finite numbers of at least 0.
    """
    weights_P = np.ones(scored.score.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights_P.shape != scored.score.shape or not np.isfinite(weights_P).all() or (weights_P < 0).any():
        message = f"weights: needs {scored.score.size} finite numbers of at least 0, one for each pair"
        raise ValueError(message)
    ranked = Ranked(scored)
    return Steps(ranked, weights_P[ranked.order_P][None])


def root_counts(num_roots: int, *, draws: int, seed: int) -> Floats:
    """Return how often each of ``num_roots`` roots is drawn in each of ``draws`` resamples, with replacement: [D, R].

    >>> root_counts(4, draws=2, seed=0).sum(axis=1)
    array([4., 4.])

    Raises:
        ValueError: no draws.
    """
    if draws < 1:
        message = f"bootstrap: needs at least 1 draw, got {draws}"
        raise ValueError(message)
    if not num_roots:
        return np.zeros((draws, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_roots, np.full(num_roots, 1 / num_roots), size=draws).astype(np.float64)


def pair_weights(root_a: Ints, root_b: Ints, roots: Ints, counts_DR: Floats) -> Floats:
    """Return the weight of each pair in each resample of the roots: [D, P].

    A pair of the roots (f, g) appears count_f * count_g times, a related pair of root f count_f times: two draws of one
    root make no pair with each other, which would be neither related nor strangers. Owen 2007 (the pigeonhole bootstrap)
    for pairs, Davison and Hinkley 1997, section 3.8, for whole families drawn at a time.

    >>> pair_weights(np.array([5, 5]), np.array([5, 7]), np.array([5, 7]), np.array([[2.0, 3.0]]))
    array([[2., 6.]])
    """
    first_P, second_P = np.searchsorted(roots, root_a), np.searchsorted(roots, root_b)
    weights_DP = counts_DR[:, first_P]
    apart_P = np.flatnonzero(first_P != second_P)
    if apart_P.size == first_P.size:
        weights_DP *= counts_DR[:, second_P]
    elif apart_P.size:
        weights_DP *= np.where(root_a == root_b, 1.0, counts_DR[:, second_P])
    return weights_DP


def resampled(scored: Scored, counts_DR: Floats, roots: Ints) -> Iterator[Steps]:
    """Yield the ROCs of the pairs in resamples of ``roots``, some resamples at a time. Costs O(D P), the sort once."""
    ranked = Ranked(scored)
    root_a_P, root_b_P = scored.root_a[ranked.order_P], scored.root_b[ranked.order_P]
    size = max(1, CHUNK // max(1, scored.score.size))
    for start in range(0, len(counts_DR), size):
        yield Steps(ranked, pair_weights(root_a_P, root_b_P, roots, counts_DR[start : start + size]))


def percentile_interval(values_D: Floats) -> Interval:
    """Return the 95 % percentile interval of a statistic over resamples; those where it is not finite are counted.

    With more than 5 % of them undefined the ends are NaN: the interval would describe the survivors, not the data.

    >>> interval = percentile_interval(np.append(np.arange(1001.0), np.nan))
    >>> round(interval.low), round(interval.high), interval.undefined
    (25, 975, 1)
    """
    finite = values_D[np.isfinite(values_D)]
    undefined = values_D.size - finite.size
    low = high = np.nan
    if finite.size and undefined <= MAX_UNDEFINED * values_D.size:
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high), level=LEVEL, method="percentile", draws=values_D.size,
                    undefined=undefined)  # fmt: skip


def why_no_interval(interval: Interval) -> str:
    """Return why an interval has no ends; an empty string where it has."""
    if not np.isnan(interval.low):
        return ""
    return f"no interval: {interval.undefined} of {interval.draws} resamples of the roots leave it undefined"

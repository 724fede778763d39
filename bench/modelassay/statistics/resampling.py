"""Scored pairs of things that come in groups, and resamples of the groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# P = pairs, R = groups, D = resamples, X = false-positive rates, G = distinct scores, from the highest down (NaN is the last of them)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ROUNDING = 1e-9
"""Relative slack when a weighted share is compared with a level: 0.01 * 300 is not 3."""

CHUNK = 1 << 18
"""Weights held at a time, 2 MiB: resamples are worked off in chunks that stay in the second-level cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """P pairs, a score of each, and which groups its two members are of. Checked once, here.

    A group is what was sampled: models that descend from one root, texts of one author.
    """

    score: Floats
    """Higher speaks for one group. NaN where the pair cannot be compared: it then counts as below every score, so that no
    threshold ever calls the pair positive."""
    positive: Bools
    """Whether both members are of one group."""
    group_a: Ints
    """Index of the first member's group; equal to ``group_b`` where the pair is positive."""
    group_b: Ints

    def __post_init__(self) -> None:
        """Make the fields arrays of their types.

        Raises:
            ValueError: lengths differ, a score is infinite, a group is not a whole number of at least 0, or ``positive``
                contradicts the groups.
        """
        arrays = {"score": np.float64, "positive": np.bool_, "group_a": np.int64, "group_b": np.int64}
        for name, dtype in arrays.items():
            field_P = np.asarray(getattr(self, name))
            with np.errstate(invalid="ignore"):  # NaN is no group, as the comparison will say
                typed_P: NDArray[Any] = field_P.astype(dtype)
            if name != "score" and not np.array_equal(typed_P, field_P):
                message = f"scored pairs: {name} must be {dtype.__name__} without loss, got {field_P.dtype}"
                raise ValueError(message)
            object.__setattr__(self, name, typed_P)
        shapes = {name: getattr(self, name).shape for name in arrays}
        if len(set(shapes.values())) > 1 or self.score.ndim != 1:
            message = f"scored pairs: needs one-dimensional fields of one length, got {shapes}"
            raise ValueError(message)
        if np.isinf(self.score).any():
            message = f"scored pairs: {int(np.isinf(self.score).sum())} infinite scores; use NaN for a pair that cannot be compared"
            raise ValueError(message)
        if (self.group_a < 0).any() or (self.group_b < 0).any():
            message = "scored pairs: a group is an index, got a negative one"
            raise ValueError(message)
        if wrong := int(np.count_nonzero(self.positive != (self.group_a == self.group_b))):
            message = f"scored pairs: a pair is positive if and only if its groups are equal; {wrong} pairs are not"
            raise ValueError(message)

    @property
    def compared(self) -> float:
        """Share of the pairs that have a score; NaN without pairs."""
        return float(np.isfinite(self.score).mean()) if self.score.size else np.nan

    @property
    def groups(self) -> Ints:
        """The distinct groups, in ascending order."""
        return np.unique(np.concatenate((self.group_a, self.group_b)))

    @property
    def positive_groups(self) -> Ints:
        """The distinct groups of positive pairs: as many independent positives as there can be."""
        return np.unique(self.group_a[self.positive])

    def why_undefined(self) -> str:
        """Return why nothing can be said of the pairs; an empty string where both kinds are there."""
        missing = [
            kind for kind, there in (("positive", self.positive), ("negative", ~self.positive)) if not there.any()
        ]
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
    positive_P: Bools = field(init=False)

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
        object.__setattr__(self, "positive_P", self.scored.positive[order_P])

    @property
    def score_P(self) -> Floats:
        """The scores in order."""
        return self.scored.score[self.order_P]


@dataclass(frozen=True, eq=False)
class Steps:
    """The empirical ROC of each of D weightings, unnormalised: the weight at or above each distinct score."""

    ranked: Ranked
    weights_DP: Floats
    positive_DG: Floats = field(init=False)
    negative_DG: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Accumulate the weights of the two kinds."""
        ends_G, positive_P = self.ranked.ends_G, self.ranked.positive_P
        for name, class_P in (("positive_DG", positive_P), ("negative_DG", ~positive_P)):
            reached_DP = np.cumsum(self.weights_DP * class_P, axis=1)
            no_ties = ends_G.size == positive_P.size
            object.__setattr__(self, name, reached_DP if no_ties else reached_DP[:, ends_G])

    @property
    def num_positive_D(self) -> Floats:
        """Weight of all positive pairs, NaN where that is 0."""
        return _or_nan(self.positive_DG)

    @property
    def num_negative_D(self) -> Floats:
        """Weight of all negative pairs, NaN where that is 0."""
        return _or_nan(self.negative_DG)


def _or_nan(cumulative_DG: Floats) -> Floats:
    if not cumulative_DG.shape[1]:
        return np.full(len(cumulative_DG), np.nan)
    last_D = cumulative_DG[:, -1]
    return np.where(last_D > 0, last_D, np.nan)


def tpr_reached(steps: Steps, fpr_X: Floats) -> Floats:
    """Return the largest TPR of any threshold whose FPR is at most each of ``fpr_X``: [D, X]. NaN where there is no ROC."""
    thresholds = steps.ranked.num_thresholds
    positive_DG = np.pad(steps.positive_DG[:, :thresholds], ((0, 0), (1, 0)))
    limits_DX = steps.num_negative_D[:, None] * fpr_X * (1 + ROUNDING)
    last_DX = np.array([
        np.searchsorted(negative_G, limit_X, side="right")
        for negative_G, limit_X in zip(steps.negative_DG[:, :thresholds], limits_DX, strict=True)
    ])  # fmt: skip
    reached_DX = np.take_along_axis(positive_DG, last_DX, axis=1) / steps.num_positive_D[:, None]
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


def group_counts(num_groups: int, *, draws: int, seed: int) -> Floats:
    """Return how often each of ``num_groups`` groups is drawn in each of ``draws`` resamples, with replacement: [D, R].

    >>> group_counts(4, draws=2, seed=0).sum(axis=1)
    array([4., 4.])

    Raises:
        ValueError: no draws.
    """
    if draws < 1:
        message = f"bootstrap: needs at least 1 draw, got {draws}"
        raise ValueError(message)
    if not num_groups:
        return np.zeros((draws, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=draws).astype(np.float64)


def pair_weights(group_a: Ints, group_b: Ints, groups: Ints, counts_DR: Floats) -> Floats:
    """Return the weight of each pair in each resample of the groups: [D, P].

    A pair of the groups (f, g) appears count_f * count_g times, a positive pair of group f count_f times: two draws of one
    group make no pair with each other, which would be neither positive nor negative. Owen 2007 (the pigeonhole bootstrap)
    for pairs, Davison and Hinkley 1997, section 3.8, for whole groups drawn at a time.

    >>> pair_weights(np.array([5, 5]), np.array([5, 7]), np.array([5, 7]), np.array([[2.0, 3.0]]))
    array([[2., 6.]])
    """
    first_P, second_P = np.searchsorted(groups, group_a), np.searchsorted(groups, group_b)
    weights_DP = counts_DR[:, first_P]
    apart_P = np.flatnonzero(first_P != second_P)
    if apart_P.size == first_P.size:
        weights_DP *= counts_DR[:, second_P]
    elif apart_P.size:
        weights_DP *= np.where(group_a == group_b, 1.0, counts_DR[:, second_P])
    return weights_DP


def resampled(scored: Scored, counts_DR: Floats, groups: Ints) -> Iterator[Steps]:
    """Yield the ROCs of the pairs in resamples of ``groups``, some resamples at a time. Costs O(D P), the sort once."""
    ranked = Ranked(scored)
    group_a_P, group_b_P = scored.group_a[ranked.order_P], scored.group_b[ranked.order_P]
    size = max(1, CHUNK // max(1, scored.score.size))
    for start in range(0, len(counts_DR), size):
        yield Steps(ranked, pair_weights(group_a_P, group_b_P, groups, counts_DR[start : start + size]))

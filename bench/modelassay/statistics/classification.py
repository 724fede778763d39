"""A score as a diagnostic test: how well it tells positive pairs, of one group, from negative ones, of two.

The unit that was sampled is the group, not the pair: 18 groups make 153 negative pairs, and the effect of one group moves 17
of them together. Every interval therefore draws groups, with all their members, anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.intervals import percentile
from modelassay.statistics.resampling import (
    ROUNDING,
    Floats,
    Scored,
    Steps,
    group_counts,
    resampled,
    steps_of,
    tpr_reached,
)

__all__ = [
    "METRICS", "Accuracy", "Scored", "accuracy", "auroc", "difference", "ks_distance", "mahalanobis",
    "partial_auc", "tpr_at_fpr",
]  # fmt: skip

# P = pairs, D = resamples, G = distinct scores

FPR_LEVEL = 0.01
"""Of `tpr_at_fpr`: what LeaFBench and the membership literature (Carlini et al. 2022) report."""

MAX_FPR = 0.05
"""Of `partial_auc`: the false-positive rates at which anybody would act on a verdict."""

DRAWS = 999
"""Resamples; the Monte-Carlo error of a 2.5 % tail is then 0.5 percentage points."""

FEW_ROOTS = 18
"""Roots with positive pairs below which `accuracy` warns that its intervals are too narrow; its coverage is given there."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How well a score tells positive pairs from negative ones."""

    num_positive: int
    num_negative: int
    num_groups: int
    num_positive_groups: int
    """Roots with at least one positive pair: the independent positives."""
    compared: float
    """Share of pairs the method could compare."""
    metrics: Mapping[str, Estimate]
    """Those asked for, by the names in `METRICS`, each with a percentile interval over groups; ``n`` counts the groups."""
    notes: tuple[str, ...]
    """What must be known of all the metrics."""


def auroc(scored: Scored, weights: Floats | None = None) -> float:
    """Return P(positive score > negative score) + P(tie) / 2, the area under the ROC by trapezoids.

    Hanley and McNeil 1982. Pairs that cannot be compared tie with each other below all others. ``weights[p]`` counts a
    pair that many times. Costs one sort, O(P log P).

    >>> pairs = Scored(score=[0.9, 0.4, 0.4, 0.1], positive=[True, True, False, False], group_a=[0, 1, 0, 0], group_b=[0, 1, 1, 2])
    >>> auroc(pairs)                                                        # three of four comparisons won, one tie
    0.875

    Raises:
        ValueError: there are no positive or no negative pairs, or the weights are not P numbers of at least 0.
    """
    return _at_once(_auroc, scored, weights)


def partial_auc(scored: Scored, max_fpr: float = MAX_FPR, weights: Floats | None = None) -> float:
    """Return the area under the ROC up to ``max_fpr``, divided by ``max_fpr``: the mean TPR there, 1 if perfect.

    Chance is max_fpr / 2 on this scale, not 1/2. McClish 1989 rescales the area A to
    (1 + (A - m^2/2) / (m - m^2/2)) / 2 with m = max_fpr, which puts chance at 1/2 (scikit-learn's ``max_fpr``); from the
    value v here, A = v m. The ROC is joined linearly within ties and at the cut. Costs one sort.

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], positive=[True, True, False, False], group_a=[0, 1, 0, 0], group_b=[0, 1, 1, 2])
    >>> partial_auc(pairs, 0.5), partial_auc(pairs, 1.0) == auroc(pairs)
    (0.5, True)

    Raises:
        ValueError: as `auroc`, or ``max_fpr`` is not in (0, 1].
    """
    _check_rate("max_fpr", max_fpr)
    return _at_once(partial(_partial_auc, max_fpr=max_fpr), scored, weights)


def tpr_at_fpr(scored: Scored, level: float = FPR_LEVEL, weights: Floats | None = None) -> float | None:
    """Return the largest empirical TPR of any threshold whose empirical FPR is at most ``level``; no interpolation.

    None with fewer than 1 / level negative pairs: a rate of 1 % cannot be observed among 99. No threshold calls a pair
    positive that cannot be compared. The definition of LeaFBench and of Carlini et al. 2022. Costs one sort.

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], positive=[True, True, False, False], group_a=[0, 1, 0, 0], group_b=[0, 1, 1, 2])
    >>> tpr_at_fpr(pairs, 0.5), tpr_at_fpr(pairs, 0.01)
    (1.0, None)

    Raises:
        ValueError: as `auroc`, or ``level`` is not in (0, 1].
    """
    _check_rate("level", level)
    value = _at_once(partial(_tpr_at_fpr, level=level), scored, weights)
    return None if _too_few(scored, level) else value


def ks_distance(scored: Scored, weights: Floats | None = None) -> float:
    """Return max over thresholds of |TPR - FPR|, the two-sample Kolmogorov-Smirnov distance; direction does not count.

    Pairs that cannot be compared lie below every score in both samples. LeaFBench's is SciPy's ``ks_2samp``, the same.

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], positive=[True, True, False, False], group_a=[0, 1, 0, 0], group_b=[0, 1, 1, 2])
    >>> ks_distance(pairs)
    0.5

    Raises:
        ValueError: as `auroc`.
    """
    return _at_once(_ks_distance, scored, weights)


def mahalanobis(scored: Scored, weights: Floats | None = None) -> float | None:
    """Return |mean positive - mean negative| / pooled standard deviation, over the pairs that can be compared.

    The pooled variance is (SS_positive + SS_negative) / (n_positive + n_negative - 2), each sum of squares about its own
    mean: the unbiased within-class variance, so this is |Cohen's d|. Weights repeat pairs. None where the pooled
    deviation is 0 or nothing is left of a kind. Not invariant under monotone maps of the score, unlike the others.

    LeaFBench uses this form only when its first one fails: there the features (s, s^2, log max(s, 1e-10)) and the
    covariance of both classes together, their distance included, which bounds it by about 1 / sqrt(q (1 - q)) at a
    share q of positive pairs. Values of the two are not comparable.

    >>> pairs = Scored(score=[5.0, 7.0, 1.0, 3.0], positive=[True, True, False, False], group_a=[0, 1, 0, 0], group_b=[0, 1, 1, 2])
    >>> round(mahalanobis(pairs), 4)                                        # 4 / sqrt((2 + 2) / 2)
    2.8284

    Raises:
        ValueError: as `auroc`.
    """
    value = _at_once(_mahalanobis, scored, weights)
    return value if np.isfinite(value) else None


def _auroc(steps: Steps) -> Floats:
    return _partial_auc(steps, max_fpr=1.0)


def _partial_auc(steps: Steps, *, max_fpr: float) -> Floats:
    """Trapezoids between successive distinct scores, the one across ``max_fpr`` cut."""
    width_DG = np.diff(steps.negative_DG, axis=1, prepend=0.0)
    rise_DG = np.diff(steps.positive_DG, axis=1, prepend=0.0)
    if max_fpr < 1:
        limit_D1 = (max_fpr * steps.num_negative_D)[:, None]
        kept_DG = np.clip(limit_D1 - (steps.negative_DG - width_DG), 0.0, width_DG)
        inside_DG = np.divide(kept_DG, width_DG, out=np.zeros_like(width_DG), where=width_DG > 0)
    else:
        kept_DG, inside_DG = width_DG, np.ones((1, 1))
    area_D = np.einsum("dg,dg->d", kept_DG, steps.positive_DG - rise_DG * (1 - inside_DG / 2))
    return np.asarray(area_D / steps.num_positive_D / steps.num_negative_D / max_fpr)


def _tpr_at_fpr(steps: Steps, *, level: float) -> Floats:
    return tpr_reached(steps, np.array([level]))[:, 0]


def _ks_distance(steps: Steps) -> Floats:
    tpr_DG = steps.positive_DG / steps.num_positive_D[:, None]
    return np.asarray(np.abs(tpr_DG - steps.negative_DG / steps.num_negative_D[:, None]).max(axis=1))


def _mahalanobis(steps: Steps) -> Floats:
    score_P, positive_P = steps.ranked.score_P, steps.ranked.positive_P
    means, squares, counts = [], [], []
    for class_P in (positive_P, ~positive_P):
        indices = np.flatnonzero(class_P & np.isfinite(score_P))
        if not indices.size:
            return np.full(len(steps.weights_DP), np.nan)
        # Sums of squares about the class's mean, not about 0: two large numbers would cancel.
        centre = score_P[indices].mean()
        away = score_P[indices] - centre
        count, first, second = (steps.weights_DP[:, indices] @ np.stack((np.ones_like(away), away, away**2), axis=1)).T
        count = np.where(count > 0, count, np.nan)
        means.append(centre + first / count)
        squares.append(second - first**2 / count)
        counts.append(count)
    freedom = counts[0] + counts[1] - 2
    variance = (squares[0] + squares[1]) / np.where(freedom > 0, freedom, np.nan)
    # A class of equal scores leaves rounding where its spread should be 0.
    spread = variance > (1e-12 * np.nanmax(np.abs(score_P))) ** 2
    return np.asarray(np.abs(means[0] - means[1]) / np.sqrt(np.where(spread, variance, np.nan)))


Metric = Callable[[Steps], Floats]
METRICS: Mapping[str, Metric] = MappingProxyType({
    "auroc": _auroc,
    "partial-auc": partial(_partial_auc, max_fpr=MAX_FPR),
    "tpr-at-fpr": partial(_tpr_at_fpr, level=FPR_LEVEL),
    "ks": _ks_distance,
    "mahalanobis": _mahalanobis,
})  # fmt: skip
"""Names in `Accuracy.metrics` and of `difference`; partial AUC to FPR 0.05, TPR at FPR 0.01."""


def _at_once(metric: Metric, scored: Scored, weights: Floats | None) -> float:
    if reason := scored.why_undefined():
        message = f"accuracy: {reason}; it needs positive and negative pairs"
        raise ValueError(message)
    value = float(metric(steps_of(scored, weights))[0])
    if np.isnan(value) and metric is not _mahalanobis:
        message = "accuracy: the weights leave no positive or no negative pair"
        raise ValueError(message)
    return value


def _check_rate(name: str, rate: float) -> None:
    if not 0 < rate <= 1:
        message = f"{name}: a rate in (0, 1], got {rate}"
        raise ValueError(message)


def _too_few(scored: Scored, level: float) -> str:
    num_negative = int(np.count_nonzero(~scored.positive))
    if num_negative * level >= 1 - ROUNDING:
        return ""
    return f"{num_negative} negative pairs cannot show a false-positive rate of {level:g}; it takes {1 / level:.0f}"


def accuracy(scored: Scored, *, metrics: Sequence[str] = tuple(METRICS), draws: int = DRAWS, seed: int = 0) -> Accuracy:
    """Return ``metrics``, all of `METRICS` if not said, with a 95 % interval from ``draws`` resamples of the groups.

    A percentile bootstrap of whole groups (`pair_weights`); resamples without positive or without negative pairs are
    undefined, counted, and above 5 % of them there is no interval. Costs O(draws x P).

    Coverage of a nominal 0.95 in simulation (normal scores, half of a positive score's variance its group's effect, AUROC 0.76
    and 0.96, 300 worlds each): with 40 groups 0.91 to 0.97 for all metrics; with 18, AUROC 0.92 and 0.88, the others 0.84 to
    0.92; with 8, AUROC 0.89 and 0.87, KS 0.77 and 0.73, partial AUC 0.67 and 0.62; with 18 of which 3 have positive pairs,
    AUROC 0.88 and 0.72, KS 0.82 and 0.60. So with few groups the intervals are too narrow, which a note says.

    >>> pairs = Scored(score=[0.9, 0.8, 0.7, 0.6, 0.1, 0.2], positive=[True] * 4 + [False] * 2, group_a=[0, 1, 2, 3, 0, 2],
    ...                group_b=[0, 1, 2, 3, 1, 3])
    >>> metrics = accuracy(pairs, draws=99).metrics
    >>> metrics["auroc"].value, metrics["tpr-at-fpr"].note
    (1.0, '2 negative pairs cannot show a false-positive rate of 0.01; it takes 100')
    """
    counts_DR, groups = group_counts(scored.groups.size, draws=draws, seed=seed), scored.groups
    defined = {name: METRICS[name] for name in metrics if not _why_none(name, scored)}
    chunks = (
        [[metric(steps) for metric in defined.values()] for steps in resampled(scored, counts_DR, groups)]
        if defined
        else []
    )
    values = dict(zip(defined, (np.concatenate(parts) for parts in zip(*chunks, strict=True)), strict=True))
    estimates = {name: _estimate(name, scored, values.get(name)) for name in metrics}
    return Accuracy(
        num_positive=int(scored.positive.sum()), num_negative=int((~scored.positive).sum()), num_groups=groups.size,
        num_positive_groups=scored.positive_groups.size, compared=scored.compared, metrics=MappingProxyType(estimates),
        notes=tuple(_notes(scored)),
    )  # fmt: skip


def _why_none(name: str, scored: Scored) -> str:
    if reason := scored.why_undefined():
        return reason
    if name == "tpr-at-fpr":
        return _too_few(scored, FPR_LEVEL)
    if name == "mahalanobis" and np.isnan(METRICS[name](steps_of(scored))[0]):
        return "no spread within the classes, or too few compared pairs"
    return ""


def _estimate(name: str, scored: Scored, values_D: Floats | None) -> Estimate:
    if values_D is None:
        return undefined(_why_none(name, scored), n=scored.groups.size)
    estimate = percentile(float(METRICS[name](steps_of(scored))[0]), values_D, n=scored.groups.size, unit="group")
    notes = []
    if name == "auroc" and estimate.value == 1:
        num_positive, num_groups = int(scored.positive.sum()), scored.positive_groups.size
        notes.append(f"complete separation of {num_positive} positive pairs ({_counted(num_groups, 'group')}) from "
                     f"{int((~scored.positive).sum())} negative pairs; the bootstrap cannot see below 1")  # fmt: skip
    elif estimate.has_interval and estimate.low == estimate.high:
        notes.append(_all_agree(scored.groups.size))
    if estimate.low is not None and estimate.high is not None and estimate.high - estimate.low < ROUNDING:
        # All resamples agree: two ends, but no interval.
        estimate = replace(estimate, low=None, high=None, level=None, method="")
    if estimate.note:
        notes.append(estimate.note)
    return replace(estimate, note="; ".join(notes))


def _all_agree(num_groups: int) -> str:
    return f"all resamples of {_counted(num_groups, 'group')} agree; the interval says nothing of other groups"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _notes(scored: Scored) -> list[str]:
    notes = []
    if scored.compared < 1:
        num_missing = int(np.count_nonzero(np.isnan(scored.score)))
        notes.append(f"{num_missing} of {scored.score.size} pairs cannot be compared and count as below every score")
    if 0 < scored.positive_groups.size < FEW_ROOTS:
        notes.append(
            f"positive pairs come from {_counted(scored.positive_groups.size, 'group')}: intervals over so few cover too little"
        )
    return notes


def difference(a: Scored, b: Scored, metric: str, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Return metric(a) - metric(b) with an interval over the same resampled groups: two methods on one set of groups.

    The pairs need not be the same, the groups' indices must mean the same groups; those of either side are drawn. Paired,
    so that what makes the pairs easy for both does not widen the interval. Costs O(draws x P).

    >>> good = Scored(score=[0.9, 0.8, 0.1], positive=[True, True, False], group_a=[0, 1, 0], group_b=[0, 1, 1])
    >>> bad = Scored(score=[0.9, 0.0, 0.1], positive=[True, True, False], group_a=[0, 1, 0], group_b=[0, 1, 1])
    >>> difference(good, bad, "auroc", draws=99).value
    0.5

    Raises:
        ValueError: no metric of that name.
    """
    if metric not in METRICS:
        message = f"difference: no metric {metric!r}; there are {', '.join(METRICS)}"
        raise ValueError(message)
    for side, scored in (("first", a), ("second", b)):
        if reason := _why_none(metric, scored):
            return undefined(f"{side}: {reason}", n=scored.groups.size)
    groups = np.union1d(a.groups, b.groups)
    counts_DR = group_counts(groups.size, draws=draws, seed=seed)
    value_a, value_b = (float(METRICS[metric](steps_of(scored))[0]) for scored in (a, b))
    values_a, values_b = (
        np.concatenate([METRICS[metric](steps) for steps in resampled(scored, counts_DR, groups)]) for scored in (a, b)
    )
    estimate = percentile(value_a - value_b, values_a - values_b, n=groups.size, unit="group")
    return (
        replace(estimate, note=_all_agree(groups.size))
        if estimate.has_interval and estimate.low == estimate.high
        else estimate
    )

"""Fingerprints scored like a diagnostic test: how well a score tells related models from strangers.

The unit that was sampled is the root, not the pair: 18 roots make 153 pairs of strangers, and the luck of one root moves
17 of them together. Every interval therefore draws roots, with all their descendants, anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from modelassay.accuracy_bootstrap import (
    ROUNDING,
    Floats,
    Scored,
    Steps,
    percentile_interval,
    resampled,
    root_counts,
    steps_of,
    tpr_reached,
    why_no_interval,
)
from modelassay.stats import Interval

__all__ = [
    "METRICS", "Accuracy", "Estimate", "Scored", "accuracy", "auroc", "difference", "ks_distance", "mahalanobis",
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
"""Roots with related pairs below which `accuracy` warns that its intervals are too narrow; its coverage is given there."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One metric, its interval over roots, and what must be known of them."""

    value: float | None
    """None where undefined; ``note`` says why."""
    interval: Interval | None
    """Percentile bootstrap over roots; None where ``value`` is."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How well a score tells related pairs from strangers."""

    num_related: int
    num_unrelated: int
    num_roots: int
    num_related_roots: int
    """Roots with at least one related pair: the independent positives."""
    compared: float
    """Share of pairs the method could compare."""
    metrics: Mapping[str, Estimate]
    """Those asked for, by the names in `METRICS`."""
    notes: tuple[str, ...]
    """What must be known of all the metrics."""


def auroc(scored: Scored, weights: Floats | None = None) -> float:
    """Return P(related score > unrelated score) + P(tie) / 2, the area under the ROC by trapezoids.

    Hanley and McNeil 1982. Pairs that cannot be compared tie with each other below all others. ``weights[p]`` counts a
    pair that many times. Costs one sort, O(P log P).

    >>> pairs = Scored(score=[0.9, 0.4, 0.4, 0.1], related=[True, True, False, False], root_a=[0, 1, 0, 0], root_b=[0, 1, 1, 2])
    >>> auroc(pairs)                                                        # three of four comparisons won, one tie
    0.875

    Raises:
        ValueError: there are no related or no unrelated pairs, or the weights are not P numbers of at least 0.
    """
    return _at_once(_auroc, scored, weights)


def partial_auc(scored: Scored, max_fpr: float = MAX_FPR, weights: Floats | None = None) -> float:
    """Return the area under the ROC up to ``max_fpr``, divided by ``max_fpr``: the mean TPR there, 1 if perfect.

    Chance is max_fpr / 2 on this scale, not 1/2. McClish 1989 rescales the area A to
    (1 + (A - m^2/2) / (m - m^2/2)) / 2 with m = max_fpr, which puts chance at 1/2 (scikit-learn's ``max_fpr``); from the
    value v here, A = v m. The ROC is joined linearly within ties and at the cut. Costs one sort.

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], related=[True, True, False, False], root_a=[0, 1, 0, 0], root_b=[0, 1, 1, 2])
    >>> partial_auc(pairs, 0.5), partial_auc(pairs, 1.0) == auroc(pairs)
    (0.5, True)

    Raises:
        ValueError: as `auroc`, or ``max_fpr`` is not in (0, 1].
    """
    _check_rate("max_fpr", max_fpr)
    return _at_once(partial(_partial_auc, max_fpr=max_fpr), scored, weights)


def tpr_at_fpr(scored: Scored, level: float = FPR_LEVEL, weights: Floats | None = None) -> float | None:
    """Return the largest empirical TPR of any threshold whose empirical FPR is at most ``level``; no interpolation.

    None with fewer than 1 / level unrelated pairs: a rate of 1 % cannot be observed among 99. No threshold calls a pair
    related that cannot be compared. The definition of LeaFBench and of Carlini et al. 2022. Costs one sort.

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], related=[True, True, False, False], root_a=[0, 1, 0, 0], root_b=[0, 1, 1, 2])
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

    >>> pairs = Scored(score=[0.9, 0.4, 0.5, 0.1], related=[True, True, False, False], root_a=[0, 1, 0, 0], root_b=[0, 1, 1, 2])
    >>> ks_distance(pairs)
    0.5

    Raises:
        ValueError: as `auroc`.
    """
    return _at_once(_ks_distance, scored, weights)


def mahalanobis(scored: Scored, weights: Floats | None = None) -> float | None:
    """Return |mean related - mean unrelated| / pooled standard deviation, over the pairs that can be compared.

    The pooled variance is (SS_related + SS_unrelated) / (n_related + n_unrelated - 2), each sum of squares about its own
    mean: the unbiased within-class variance, so this is |Cohen's d|. Weights repeat pairs. None where the pooled
    deviation is 0 or nothing is left of a kind. Not invariant under monotone maps of the score, unlike the others.

    LeaFBench uses this form only when its first one fails: there the features (s, s^2, log max(s, 1e-10)) and the
    covariance of both classes together, their distance included, which bounds it by about 1 / sqrt(q (1 - q)) at a
    share q of related pairs. Values of the two are not comparable.

    >>> pairs = Scored(score=[5.0, 7.0, 1.0, 3.0], related=[True, True, False, False], root_a=[0, 1, 0, 0], root_b=[0, 1, 1, 2])
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
    width_DG = np.diff(steps.unrelated_DG, axis=1, prepend=0.0)
    rise_DG = np.diff(steps.related_DG, axis=1, prepend=0.0)
    if max_fpr < 1:
        limit_D1 = (max_fpr * steps.num_unrelated_D)[:, None]
        kept_DG = np.clip(limit_D1 - (steps.unrelated_DG - width_DG), 0.0, width_DG)
        inside_DG = np.divide(kept_DG, width_DG, out=np.zeros_like(width_DG), where=width_DG > 0)
    else:
        kept_DG, inside_DG = width_DG, np.ones((1, 1))
    area_D = np.einsum("dg,dg->d", kept_DG, steps.related_DG - rise_DG * (1 - inside_DG / 2))
    return np.asarray(area_D / steps.num_related_D / steps.num_unrelated_D / max_fpr)


def _tpr_at_fpr(steps: Steps, *, level: float) -> Floats:
    return tpr_reached(steps, np.array([level]))[:, 0]


def _ks_distance(steps: Steps) -> Floats:
    tpr_DG = steps.related_DG / steps.num_related_D[:, None]
    return np.asarray(np.abs(tpr_DG - steps.unrelated_DG / steps.num_unrelated_D[:, None]).max(axis=1))


def _mahalanobis(steps: Steps) -> Floats:
    score_P, related_P = steps.ranked.score_P, steps.ranked.related_P
    means, squares, counts = [], [], []
    for mine_P in (related_P, ~related_P):
        kept = np.flatnonzero(mine_P & np.isfinite(score_P))
        if not kept.size:
            return np.full(len(steps.weights_DP), np.nan)
        # Sums of squares about the class's mean, not about 0: two large numbers would cancel.
        centre = score_P[kept].mean()
        away = score_P[kept] - centre
        count, first, second = (steps.weights_DP[:, kept] @ np.stack((np.ones_like(away), away, away**2), axis=1)).T
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
        message = f"accuracy: {reason}; a score can only be told right from wrong with both"
        raise ValueError(message)
    value = float(metric(steps_of(scored, weights))[0])
    if np.isnan(value) and metric is not _mahalanobis:
        message = "accuracy: the weights leave no related or no unrelated pair"
        raise ValueError(message)
    return value


def _check_rate(name: str, rate: float) -> None:
    if not 0 < rate <= 1:
        message = f"{name}: a rate in (0, 1], got {rate}"
        raise ValueError(message)


def _too_few(scored: Scored, level: float) -> str:
    num_unrelated = int(np.count_nonzero(~scored.related))
    if num_unrelated * level >= 1 - ROUNDING:
        return ""
    return f"{num_unrelated} unrelated pairs cannot show a false-positive rate of {level:g}; it takes {1 / level:.0f}"


def accuracy(scored: Scored, *, metrics: Sequence[str] = tuple(METRICS), draws: int = DRAWS, seed: int = 0) -> Accuracy:
    """Return ``metrics``, all of `METRICS` if not said, with a 95 % interval from ``draws`` resamples of the roots.

    A percentile bootstrap of whole families (`pair_weights`); resamples without related or without unrelated pairs are
    undefined, counted, and above 5 % of them there is no interval. Costs O(draws x P).

    Coverage of a nominal 0.95 in simulation (normal scores, half of a related score's variance its root's luck, AUROC 0.76
    and 0.96, 300 worlds each): with 40 roots 0.91 to 0.97 for all metrics; with 18, AUROC 0.92 and 0.88, the others 0.84 to
    0.92; with 8, AUROC 0.89 and 0.87, KS 0.77 and 0.73, partial AUC 0.67 and 0.62; with 18 of which 3 have descendants,
    AUROC 0.88 and 0.72, KS 0.82 and 0.60. So with few roots the intervals are too narrow, which a note says.

    >>> pairs = Scored(score=[0.9, 0.8, 0.7, 0.6, 0.1, 0.2], related=[True] * 4 + [False] * 2, root_a=[0, 1, 2, 3, 0, 2],
    ...                root_b=[0, 1, 2, 3, 1, 3])
    >>> found = accuracy(pairs, draws=99)
    >>> found.metrics["auroc"].value, found.metrics["tpr-at-fpr"].note
    (1.0, '2 unrelated pairs cannot show a false-positive rate of 0.01; it takes 100')
    """
    counts_DR, roots = root_counts(scored.roots.size, draws=draws, seed=seed), scored.roots
    whole = {name: METRICS[name] for name in metrics if not _why_none(name, scored)}
    chunks = (
        [[metric(steps) for metric in whole.values()] for steps in resampled(scored, counts_DR, roots)] if whole else []
    )
    values = dict(zip(whole, (np.concatenate(parts) for parts in zip(*chunks, strict=True)), strict=True))
    estimates = {name: _estimate(name, scored, values.get(name)) for name in metrics}
    return Accuracy(
        num_related=int(scored.related.sum()), num_unrelated=int((~scored.related).sum()), num_roots=roots.size,
        num_related_roots=scored.related_roots.size, compared=scored.compared, metrics=MappingProxyType(estimates),
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
        return Estimate(value=None, interval=None, note=_why_none(name, scored))
    value, interval = float(METRICS[name](steps_of(scored))[0]), percentile_interval(values_D)
    notes = []
    if name == "auroc" and value == 1:
        related, roots = int(scored.related.sum()), scored.related_roots.size
        notes.append(f"complete separation of {related} related pairs ({_counted(roots, 'root')}) from "
                     f"{int((~scored.related).sum())} unrelated pairs; the bootstrap cannot see below 1")  # fmt: skip
    elif interval.low == interval.high:
        notes.append(
            f"all resamples of {_counted(scored.roots.size, 'root')} agree; the interval says nothing of other roots"
        )
    if reason := why_no_interval(interval):
        notes.append(reason)
    return Estimate(value=value, interval=interval, note="; ".join(notes))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _notes(scored: Scored) -> list[str]:
    notes = []
    if scored.compared < 1:
        left = int(np.count_nonzero(np.isnan(scored.score)))
        notes.append(f"{left} of {scored.score.size} pairs cannot be compared and count as below every score")
    if 0 < scored.related_roots.size < FEW_ROOTS:
        notes.append(
            f"related pairs come from {_counted(scored.related_roots.size, 'root')}: intervals over so few cover too little"
        )
    return notes


def difference(a: Scored, b: Scored, metric: str, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Return metric(a) - metric(b) with an interval over the same resampled roots: two methods on one zoo.

    The pairs need not be the same, the roots' indices must mean the same roots; those of either side are drawn. Paired,
    so that what makes the zoo easy for both does not widen the interval. Costs O(draws x P).

    >>> good = Scored(score=[0.9, 0.8, 0.1], related=[True, True, False], root_a=[0, 1, 0], root_b=[0, 1, 1])
    >>> bad = Scored(score=[0.9, 0.0, 0.1], related=[True, True, False], root_a=[0, 1, 0], root_b=[0, 1, 1])
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
            return Estimate(value=None, interval=None, note=f"{side}: {reason}")
    roots = np.union1d(a.roots, b.roots)
    counts_DR = root_counts(roots.size, draws=draws, seed=seed)
    value_a, value_b = (float(METRICS[metric](steps_of(scored))[0]) for scored in (a, b))
    values_a, values_b = (
        np.concatenate([METRICS[metric](steps) for steps in resampled(scored, counts_DR, roots)]) for scored in (a, b)
    )
    interval = percentile_interval(values_a - values_b)
    note = why_no_interval(interval)
    if interval.low == interval.high:
        note = f"all resamples of {_counted(roots.size, 'root')} agree; the interval says nothing of other roots"
    return Estimate(value=value_a - value_b, interval=interval, note=note)

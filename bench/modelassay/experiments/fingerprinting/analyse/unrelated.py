"""How unrelated pairs score: quantiles, and how many lie above published levels, with intervals over roots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from modelassay.experiments.findings import Finding
from modelassay.fingerprints.background import Background
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.intervals import percentile
from modelassay.statistics.proportions import clopper_pearson
from modelassay.statistics.resampling import Floats, group_counts, pair_weights

QUANTILES = (0.5, 0.95, 0.99, 1.0)
"""Of the scores of unrelated pairs; 1 is the largest."""
LEVELS = (0.7, 0.9)
"""Below the first unrelated pairs are said to lie, above the second related ones (arXiv 2507.03014 as quoted by 2607.10617)."""
DRAWS = 499


def unrelated_scores(method: str, background: Background) -> list[Finding]:
    """Return ``unrelated[method, quantile]`` and ``unrelated-above[method, level]`` over the pairs of strangers of a background.

    Intervals draw roots with all their pairs; of a share the wider of that and the exact one of independent pairs. The largest has none:
    no resample reaches beyond what was seen.
    """
    pairs = [pair for pair in background.pairs if np.isfinite(pair.scores.get(method, np.nan))]
    if not pairs:
        return []
    score_P = np.array([pair.scores[method] for pair in pairs])
    roots = {name: place for place, name in enumerate(sorted({name for pair in pairs for name in pair.families}))}
    ends_P2 = np.array([sorted(roots[name] for name in pair.families) for pair in pairs], dtype=np.int64)
    groups = np.arange(len(roots))
    weights_DP = pair_weights(ends_P2[:, 0], ends_P2[:, 1], groups, group_counts(groups.size, draws=DRAWS, seed=0))
    note = f"{score_P.size} pairs of {groups.size} roots"
    findings = []
    for quantile in QUANTILES:
        value = float(np.quantile(score_P, quantile))
        estimate = Estimate(value=value, n=score_P.size, note=f"the largest of {note}")
        if quantile < 1:
            drawn_D = _quantiles(score_P, weights_DP, quantile)
            estimate = replace(
                percentile(value, drawn_D, n=score_P.size, unit="root"), note=f"{note}; interval over roots"
            )
        findings.append(Finding(name="unrelated", labels={"method": method, "quantile": quantile}, estimate=estimate))
    for level in LEVELS:
        share = share_over_roots(score_P > level, weights_DP)
        labels: dict[str, str | float] = {"method": method, "level": level}
        findings.append(Finding(name="unrelated-above", labels=labels, estimate=share))
    return findings


def _quantiles(score_P: Floats, weights_DP: Floats, quantile: float) -> Floats:
    """Return the smallest score that holds at least a share ``quantile`` of the weight, of each resample."""
    order = np.argsort(score_P)
    reached_DP = np.cumsum(weights_DP[:, order], axis=1)
    total_D = reached_DP[:, -1]
    place_D = (reached_DP < quantile * total_D[:, None] * (1 - 1e-12)).sum(axis=1)
    return np.where(total_D > 0, score_P[order][place_D.clip(max=score_P.size - 1)], np.nan)


def share_over_roots(above_P: np.ndarray[tuple[int], np.dtype[np.bool_]], weights_DP: Floats) -> Estimate:
    """Return a share of pairs with the wider of its exact interval and one over resampled roots."""
    share = clopper_pearson(int(above_P.sum()), above_P.size)
    total_D = weights_DP.sum(axis=1)
    over = percentile(share.value, (weights_DP @ above_P) / np.where(total_D > 0, total_D, np.nan), unit="root")
    if over.low is None or over.high is None or share.low is None or share.high is None:
        return share
    return replace(share, low=min(share.low, over.low), high=max(share.high, over.high), method="Clopper-Pearson or percentile",
                   note=f"{share.note} pairs; the wider of the exact interval and one over roots")  # fmt: skip

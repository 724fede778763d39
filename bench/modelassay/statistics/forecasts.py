"""Does one number now tell another later? Judged on seeds that the forecast was not made from."""

# S = seeds, N = points of a seed or of all, F = predictors

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


def log_scores(predictors_FSN: Sequence[ArrayLike], target_SN: ArrayLike) -> Floats:
    """Return for each seed the mean log density of its targets under a line fitted on all other seeds, in nats.

    Each target is predicted by an intercept and the predictors beside it; the density is Student's of a new observation (Gelman
    et al., Bayesian Data Analysis, 14.2, flat prior). Higher is better. Without predictors it is that of the mean.

    Args:
        predictors_FSN: of each predictor a row for each seed; none for the mean alone.
        target_SN: likewise: what was to come when the predictors were measured.

    Raises:
        ValueError: shapes differ, fewer than two seeds, or too few points are left.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(6, 8))
    >>> y = x + 0.1 * rng.normal(size=(6, 8))
    >>> bool((log_scores([x], y) > log_scores([], y)).all())
    True
    """
    target = np.asarray(target_SN, dtype=np.float64)
    predictors = [np.asarray(values, dtype=np.float64) for values in predictors_FSN]
    if target.ndim != 2 or len(target) < 2 or any(values.shape != target.shape for values in predictors):
        raise ValueError(f"log_scores: needs [S, N] of one shape with two seeds at least, got {target.shape}")
    design = np.stack([np.ones_like(target), *predictors], axis=-1)
    scores = np.empty(len(target))
    for seed in range(len(target)):
        others = np.arange(len(target)) != seed
        scores[seed] = _score(
            design[others].reshape(-1, design.shape[-1]), target[others].ravel(), design[seed], target[seed]
        )
    return scores


def _score(design_NF: Floats, target_N: Floats, new_NF: Floats, truth_N: Floats) -> float:
    df = len(target_N) - design_NF.shape[1]
    if df < 1:
        raise ValueError(f"log_scores: {len(target_N)} points are too few for {design_NF.shape[1]} coefficients")
    # Columns in units of their own size: a ratio of thousands beside a loss of two would look singular.
    size_F = np.maximum(np.abs(design_NF).max(axis=0), np.finfo(np.float64).tiny)
    scaled_NF, ahead_NF = design_NF / size_F, new_NF / size_F
    inverse_FF = np.linalg.pinv(scaled_NF.T @ scaled_NF)
    weights_F = inverse_FF @ (scaled_NF.T @ target_N)
    residual_N = target_N - scaled_NF @ weights_F
    variance = max(float(residual_N @ residual_N) / df, np.finfo(np.float64).tiny)
    scale_N = np.sqrt(variance * (1 + np.einsum("nf,fg,ng->n", ahead_NF, inverse_FF, ahead_NF)))
    densities: Floats = stats.t.logpdf(truth_N, df, loc=ahead_NF @ weights_F, scale=scale_N)
    return float(densities.mean())

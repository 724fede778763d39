"""The choice of a token from logits: the same wherever it is made, and whether rounding could have changed it.

A token is drawn as the one with the greatest ``logit / temperature + Gumbel noise`` (Gumbel-max: an exact draw from the
softmax). The noise of a token depends on the prompt's seed, the position and the token alone, so a logit that is off
in its last bits changes the draw only where two sums are as close as that. An inverse cumulative distribution has the same
law, but adds up the errors of all tokens before the one drawn.
"""

# V = rows of the vocabulary, in the order of ids unless sorted (suffix _s: greatest logit first, the smaller id of equals)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelassay.generation.engine import Sampling

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def choose(
    logits_V: Floats, sampling: Sampling, *, seed: int, position: int, tolerance: float = 0.0
) -> tuple[int, bool]:
    """Return a token, and whether it is the same for all logits that differ from these by up to ``tolerance`` each.

    Costs O(V), with a sort where there is a top-k or a top-p.

    Args:
        logits_V: of the next token; minus infinity is a token that cannot come.
        sampling: how.
        seed: of the prompt.
        position: of the token within the completion, from 0.
        tolerance: how far the logits may be off.
    """
    if sampling.temperature == 0.0:
        scores_V, margin = logits_V, 2 * tolerance
        surely_V = possibly_V = np.ones(len(logits_V), dtype=bool)
    else:
        scores_V = logits_V / sampling.temperature + gumbel(len(logits_V), seed=seed, position=position)
        margin = 2 * tolerance / sampling.temperature
        surely_V, possibly_V = allowed(logits_V, sampling, tolerance)
    scores_V = np.where(possibly_V, scores_V, -np.inf)
    best = int(scores_V.argmax())
    top = scores_V[best]
    scores_V[best] = -np.inf
    return best, bool(surely_V[best] and top - scores_V.max() > margin)


def gumbel(size: int, *, seed: int, position: int) -> Floats:
    """Return standard Gumbel noise for each token: Philox 4x64 keyed by seed and position, 53 bits a number."""
    raw = np.random.Philox(key=np.array([seed, position], dtype=np.uint64)).random_raw(size)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def allowed(logits_V: Floats, sampling: Sampling, tolerance: float) -> tuple[Mask, Mask]:
    """Return the tokens that top-k and top-p leave for all logits within the tolerance, and those they leave for some."""
    size = len(logits_V)
    if sampling.top_k is None and sampling.top_p is None:
        everything = np.ones(size, dtype=bool)
        return everything, everything
    order = np.argsort(-logits_V, kind="stable")
    logits_s = logits_V[order]
    surely_s, possibly_s = _top_k(logits_s, size if sampling.top_k is None else sampling.top_k, tolerance)
    if sampling.top_p is not None:
        least_s, most_s = _mass_before(
            logits_s / sampling.temperature, surely_s, possibly_s, 2 * tolerance / sampling.temperature
        )
        surely_s, possibly_s = surely_s & (most_s < sampling.top_p), possibly_s & (least_s < sampling.top_p)
    surely_V, possibly_V = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    surely_V[order], possibly_V[order] = surely_s, possibly_s
    return surely_V, possibly_V


def _top_k(logits_s: Floats, k: int, tolerance: float) -> tuple[Mask, Mask]:
    first = np.arange(len(logits_s)) < k
    if k >= len(logits_s) or tolerance == 0.0 or logits_s[k - 1] - logits_s[k] > 2 * tolerance:
        return first, first
    return logits_s > logits_s[k] + 2 * tolerance, logits_s >= logits_s[k - 1] - 2 * tolerance


def _mass_before(scaled_s: Floats, surely_s: Mask, possibly_s: Mask, slack: float) -> tuple[Floats, Floats]:
    """Bounds of the probability of all tokens likelier than each, among those that are left.

    Where logits differ by less than ``slack`` their order may be the other one; a ratio of probabilities may be off
    by a factor of exp(slack).
    """
    weights_s = np.exp(scaled_s - scaled_s[0])
    rank = np.arange(len(scaled_s))
    certain = np.concatenate([[0.0], np.cumsum(weights_s * surely_s)])
    feasible = np.concatenate([[0.0], np.cumsum(weights_s * possibly_s)])
    if slack == 0.0:
        return certain[rank] / certain[-1], certain[rank] / certain[-1]
    above = np.searchsorted(-scaled_s, -(scaled_s + slack), side="left")
    within = np.searchsorted(-scaled_s, -(scaled_s - slack), side="right")
    least_s = certain[above] * np.exp(-slack) / feasible[-1]
    most_s = (feasible[within] - weights_s * possibly_s) * np.exp(slack) / max(certain[-1], weights_s[0] * 1e-300)
    return least_s, most_s

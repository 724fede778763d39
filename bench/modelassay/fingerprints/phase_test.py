"""The phase-randomised null: how often do curves just as smooth, but with their bumps elsewhere, agree as well?"""

# D = draws, F = free and fixed frequencies (0 .. L/2), L = layers, R = roles, C = columns

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from modelassay.fingerprints.curves import Array, Curves, comparable, corrected, depth_line
from modelassay.statistics.ranks import rank_p

DRAWS = 9_999  # floor 1e-4
COPY_SCORE = 0.99  # the corrected score of a fine-tuned child and its base, from the trial on the zoo's models


@dataclass(frozen=True, kw_only=True)
class PhaseTest:
    """The corrected score against surrogates with the same amplitude spectrum."""

    p: float
    """(1 + #{null >= observed}) / (1 + draws); the larger of the two directions at equal depth."""
    min_p: float
    """1 / (1 + draws): what the number of draws allows."""
    copy_p: float
    """What these very curves allow: the p of a copy, the share of surrogates scoring 0.99 against their own original."""
    free_phases: int
    """floor((L - 1) / 2), L the depth of the shallower model."""
    draws: int


def free_phases(num_layers: int) -> int:
    """Return how many phases a curve of ``num_layers`` values has: floor((L - 1) / 2).

    The mean has none and, at even L, the highest frequency only a sign.

    >>> free_phases(8), free_phases(28), free_phases(29)
    (3, 13, 14)
    """
    return (num_layers - 1) // 2


def pair_seed(a: Curves, b: Curves) -> int:
    """Return a seed that depends on the two names only, not on their order nor on the process.

    >>> x, y = (Curves(name=n, sigma={r: [1.0] for r in "qkvo"}, stratum=1) for n in "xy")
    >>> pair_seed(x, y) == pair_seed(y, x) == 3510579845534239966
    True
    """
    names = "\0".join(sorted((a.name, b.name)))
    return int.from_bytes(hashlib.blake2b(names.encode(), digest_size=8).digest(), "big")


def phase_test(a: Curves, b: Curves, *, draws: int = DRAWS, seed: int | None = None) -> PhaseTest | None:
    """Test the corrected score against phase-randomised surrogates; None where the score is not defined.

    A surrogate keeps each curve's amplitude spectrum and gets new uniform phases, one draw for its four roles; at equal depth both
    models are randomised and the larger p is kept. The null covers curves that are stationary around a straight line, no shared
    curved trend. Error rates, what was tried, cost and sources: docs/methods/phase-test.md.
    """
    score = corrected(a, b)
    pair = comparable(a, b)
    if score.reason is not None or pair is None:
        return None
    num_layers = pair.shallow.num_layers
    rng = np.random.default_rng(pair_seed(a, b) if seed is None else seed)
    waves = _waves(rng, draws, num_layers)
    directions = [(pair.shallow_RL, list(pair.readings.values()))]
    if pair.shallow.num_layers == pair.deep.num_layers:
        directions.append((pair.readings["same depth"], [pair.shallow_RL]))
    p, copy_p = 0.0, 0.0
    for randomised_RL, fixed in directions:
        scores_D, self_D = _null(waves, randomised_RL, fixed)
        p = max(p, rank_p(score.value, scores_D).p)
        copy_p = max(copy_p, rank_p(COPY_SCORE, self_D).p)
    return PhaseTest(p=p, min_p=1 / (1 + draws), copy_p=copy_p, free_phases=free_phases(num_layers), draws=draws)


def _waves(rng: np.random.Generator, draws: int, num_layers: int) -> Array:
    """Cosines and sines of the drawn phases, [D, 2F]; the mean keeps its phase, the highest frequency draws a sign."""
    num_free = free_phases(num_layers)
    phases_DF = rng.random((draws, num_free)) * (2 * np.pi)
    waves = np.empty((draws, 2 * num_free + (num_layers % 2 == 0)))
    np.cos(phases_DF, out=waves[:, :num_free])
    np.sin(phases_DF, out=waves[:, num_free : 2 * num_free])
    if num_layers % 2 == 0:
        waves[:, -1] = rng.integers(0, 2, draws) * 2 - 1
    return waves


def _null(waves: Array, randomised_RL: Array, fixed: list[Array]) -> tuple[Array, Array]:
    """Scores of D surrogates of ``randomised_RL`` against the best of ``fixed``, and against their own original.

    No surrogate is ever formed: its inner product with any curve is linear in the waves, and removing the line again
    only changes its norm, 1 - <line, surrogate>^2.
    """
    num_layers = randomised_RL.shape[-1]
    line_RL = np.broadcast_to(depth_line(num_layers), randomised_RL.shape)
    targets = [line_RL, randomised_RL, *fixed]
    weights_FC = np.concatenate([_inner_weights(randomised_RL, target_RL) for target_RL in targets], axis=1)
    inner_DTR = (waves @ weights_FC).reshape(len(waves), len(targets), len(randomised_RL))
    norm_DR = np.sqrt(np.maximum(1 - inner_DTR[:, 0] ** 2, 1e-12))
    scores_DT = (inner_DTR[:, 1:] / norm_DR[:, None]).mean(-1)
    return scores_DT[:, 1:].max(-1), scores_DT[:, 0]


def _inner_weights(randomised_RL: Array, target_RL: Array) -> Array:
    """The matrix [2F, R] that takes waves to <surrogate of randomised, target> per role (Parseval)."""
    num_layers = randomised_RL.shape[-1]
    num_free = free_phases(num_layers)
    cross_RF = np.fft.rfft(randomised_RL) * np.fft.rfft(target_RL).conj() / num_layers
    free_RF = 2 * cross_RF[:, 1 : 1 + num_free]
    parts = [free_RF.real, -free_RF.imag]
    if num_layers % 2 == 0:
        parts.append(cross_RF[:, -1:].real)
    return np.concatenate(parts, axis=1).T

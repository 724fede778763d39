"""Pairs of models with known scores: strangers whose roots bring luck, and families."""

import numpy as np

from modelassay.accuracy_bootstrap import Scored

Array = np.ndarray


def make(score: Array, root_a: Array, root_b: Array) -> Scored:
    return Scored(score=score, related=np.equal(root_a, root_b), root_a=root_a, root_b=root_b)


def strangers(score: Array) -> Scored:
    """One score for any two roots, in the order of an upper triangle."""
    num_roots = round((1 + np.sqrt(1 + 8 * len(score))) / 2)
    return make(score, *np.triu_indices(num_roots, 1))


def lucky_scores(rng: np.random.Generator, num_roots: int, share: float) -> Array:
    """Normal scores of all pairs of strangers, ``share`` of the variance from each of the two roots."""
    a, b = np.triu_indices(num_roots, 1)
    luck = rng.normal(size=num_roots) * np.sqrt(share)
    return luck[a] + luck[b] + rng.normal(size=a.size) * np.sqrt(1 - 2 * share)


def curve_scores(rng: np.random.Generator, num_roots: int, *, bow: float = 0.0, num_layers: int = 6) -> Array:
    """Mean correlations of four random walks, with a parabola common to all: what sigma curves of strangers look like."""
    curves = rng.normal(size=(num_roots, 4, num_layers)).cumsum(-1) + bow * np.linspace(-1, 1, num_layers) ** 2
    curves -= curves.mean(-1, keepdims=True)
    curves /= np.linalg.norm(curves, axis=-1, keepdims=True)
    return np.einsum("arl,brl->ab", curves, curves)[np.triu_indices(num_roots, 1)] / 4


def families(rng: np.random.Generator, num_roots: int, *, children: int = 3, shift: float = 1.5) -> Scored:
    """Strangers, and related pairs half of whose variance is the luck of their root."""
    unrelated = strangers(lucky_scores(rng, num_roots, 0.25))
    root = np.repeat(np.arange(num_roots), children)
    luck = rng.normal(size=num_roots) * np.sqrt(0.5)
    score = shift + luck[root] + rng.normal(size=root.size) * np.sqrt(0.5)
    ends_a, ends_b = (np.concatenate((root, ends)) for ends in (unrelated.root_a, unrelated.root_b))
    return make(np.concatenate((score, unrelated.score)), ends_a, ends_b)


def tied(rng: np.random.Generator, *, missing: float = 0.0) -> Scored:
    """Few distinct scores, so that most comparisons are ties, and a share of pairs that cannot be compared."""
    scored = families(rng, 7)
    score = np.round(scored.score)
    return make(np.where(rng.random(score.size) < missing, np.nan, score), scored.root_a, scored.root_b)

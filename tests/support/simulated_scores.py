"""Pairs with known scores: negative ones whose groups have effects, and groups with positive pairs."""

import numpy as np

from modelassay.statistics.resampling import Scored

Array = np.ndarray


def make(score: Array, group_a: Array, group_b: Array) -> Scored:
    return Scored(score=score, positive=np.equal(group_a, group_b), group_a=group_a, group_b=group_b)


def negatives(score: Array) -> Scored:
    """One score for any two groups, in the order of an upper triangle."""
    num_groups = round((1 + np.sqrt(1 + 8 * len(score))) / 2)
    return make(score, *np.triu_indices(num_groups, 1))


def group_scores(rng: np.random.Generator, num_groups: int, share: float) -> Array:
    """Normal scores of all pairs of negatives, ``share`` of the variance from each of the two groups."""
    a, b = np.triu_indices(num_groups, 1)
    effects = rng.normal(size=num_groups) * np.sqrt(share)
    return effects[a] + effects[b] + rng.normal(size=a.size) * np.sqrt(1 - 2 * share)


def curve_scores(rng: np.random.Generator, num_groups: int, *, bow: float = 0.0, num_layers: int = 6) -> Array:
    """Mean correlations of four random walks, with a parabola common to all: what sigma curves of negatives look like."""
    curves = rng.normal(size=(num_groups, 4, num_layers)).cumsum(-1) + bow * np.linspace(-1, 1, num_layers) ** 2
    curves -= curves.mean(-1, keepdims=True)
    curves /= np.linalg.norm(curves, axis=-1, keepdims=True)
    return np.einsum("arl,brl->ab", curves, curves)[np.triu_indices(num_groups, 1)] / 4


def families(rng: np.random.Generator, num_groups: int, *, children: int = 3, shift: float = 1.5) -> Scored:
    """Negatives, and positive pairs half of whose variance is the effects of their group."""
    unrelated = negatives(group_scores(rng, num_groups, 0.25))
    group = np.repeat(np.arange(num_groups), children)
    effects = rng.normal(size=num_groups) * np.sqrt(0.5)
    score = shift + effects[group] + rng.normal(size=group.size) * np.sqrt(0.5)
    ends_a, ends_b = (np.concatenate((group, ends)) for ends in (unrelated.group_a, unrelated.group_b))
    return make(np.concatenate((score, unrelated.score)), ends_a, ends_b)


def tied(rng: np.random.Generator, *, missing: float = 0.0) -> Scored:
    """Few distinct scores, so that most comparisons are ties, and a share of pairs that cannot be compared."""
    scored = families(rng, 7)
    score = np.round(scored.score)
    return make(np.where(rng.random(score.size) < missing, np.nan, score), scored.group_a, scored.group_b)

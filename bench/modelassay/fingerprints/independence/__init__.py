"""Were two models numbered independently? Exact tests from two checkpoints alone, without a background.

Initial weights are drawn alike for every hidden dimension and every neuron, and optimisers treat them alike, so the law of
a trained model does not change when its units are renumbered. A rule that matches the units of one model to those of another
by content alone therefore returns a uniformly random permutation if the two were numbered independently, whatever both were
trained on; its fixed points and inversions have closed laws (`modelassay.statistics.permutations`).
See docs/methods/independence.md for the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from modelassay.fingerprints.independence.agreement import agreement
from modelassay.fingerprints.independence.layers import chosen_layers, layer_pairs, pairs_alike
from modelassay.fingerprints.independence.matching import (
    MAX_CANDIDATES,
    MAX_UNITS,
    Matching,
    NumberingTest,
    match_features,
    match_units,
    numbering_test,
)
from modelassay.fingerprints.independence.matrices import (
    BODY_ELEMENTS,
    BODY_ROWS,
    Floats,
    ModelMatrices,
    Neurons,
    invariants,
    matrices_of,
)
from modelassay.fingerprints.independence.result import Independence
from modelassay.fingerprints.independence.tokens import shared_embeddings
from modelassay.fingerprints.independence.training import shared_training

__all__ = ["Independence", "ModelMatrices", "NumberingTest", "independence", "matrices_of"]


def independence(a: ModelMatrices, b: ModelMatrices, *, alpha: float = 1e-6) -> Independence:
    """Test whether ``a`` and ``b`` were numbered independently.

    1. Hidden dimensions matched by the embeddings of the tokens both know.
    2. Hidden dimensions matched by the attention and feed-forward matrices of up to eight layers; needs no tokenizer.
    3. Neurons of those layers matched by their rows along the hidden dimensions.
    4. Neurons matched by what is theirs alone: norms of their rows and the angles between them, which stay the same in
       whatever basis the residual stream is written.

    Where none of these is below ``alpha`` the agreement of two matchings is asked too (`agreement`), which is calibrated, not exact.
    Layers correspond by number at equal depth, else by the spectrum of their neurons' invariants, which no renumbering changes; for the agreement by the spectrum too where it is
    much nearer.
    Exchanging the arguments gives the same p. Costs a product and an assignment per test and layer.
    """
    pairs = chosen_layers(layer_pairs(a, b))
    embeddings = shared_embeddings(a, b)
    matchings: dict[str, list[Matching | None]] = {
        "hidden dimensions by embeddings": [] if isinstance(embeddings, str) else [_by_embeddings(*embeddings)],
        "hidden dimensions by body": [_by_body(a, b, pairs)],
        "neurons by rows": [],
        "neurons by invariants": [],
    }
    for seed, (first, second) in enumerate(_networks(a, b, pairs, MAX_UNITS)):
        matchings["neurons by rows"].append(_by_rows(first, second, seed))
        matchings["neurons by invariants"].append(match_features(invariants(first), invariants(second), seed=seed))
    made = {name: [one for one in group if one is not None] for name, group in matchings.items()}
    tests = tuple(test for name, group in made.items() if (test := numbering_test(name, group)) is not None)
    lacking = {
        "hidden dimensions by embeddings": embeddings
        if isinstance(embeddings, str)
        else "too few dimensions hold weights",
        "hidden dimensions by body": "no matrix has equally many rows in both",
        "neurons by rows": "no feed-forward network of one width in both could be read",
        "neurons by invariants": "no feed-forward network of one kind in both could be read",
    }
    reasons = tuple(f"{name}: {lacking[name]}" for name, group in made.items() if not group)
    result = Independence(tests=tests, reasons=reasons, agreement=None, training=shared_training(a, b, pairs))
    if result.log10_p <= math.log10(alpha) or isinstance(embeddings, str):
        return result
    if a.num_layers == b.num_layers:
        pairs = chosen_layers(pairs_alike(a, b, layer_pairs(a, b)))
    return replace(result, agreement=agreement(_networks(a, b, pairs, MAX_CANDIDATES), embeddings))


def _networks(
    a: ModelMatrices, b: ModelMatrices, pairs: Sequence[tuple[int, int]], most: int
) -> Iterator[tuple[Neurons, Neurons]]:
    """Yield corresponding feed-forward networks, of those of one width the first ``most`` neurons: of a layer's experts those of one number."""
    for first, second in pairs:
        alike = a.num_neurons(first) == b.num_neurons(second)
        limit = most if alike else None  # a part kept in its order is found among all
        yield from zip(a.networks(first, limit), b.networks(second, limit), strict=False)


def _by_embeddings(a_TD: Floats, b_TD: Floats) -> Matching | None:
    columns = [np.ascontiguousarray((rows_TD - rows_TD.mean(0)).T) for rows_TD in (a_TD, b_TD)]
    return match_units([columns[0]], [columns[1]], seed=0)


def _by_rows(a: Neurons, b: Neurons, seed: int) -> Matching | None:
    if a.up_nD.shape[1] != b.up_nD.shape[1] or len(a.parts()) != len(b.parts()):
        return None
    return match_units(a.parts(), b.parts(), seed=seed)


def _by_body(a: ModelMatrices, b: ModelMatrices, pairs: Sequence[tuple[int, int]]) -> Matching | None:
    """Match hidden dimensions by all matrices with equally many rows in both, each of norm 1 so that none outweighs the rest.

    Rows of each are taken at even distances, as many as `BODY_ELEMENTS` allows for seven matrices a layer.
    """
    rows_a, rows_b = [], []
    limit = max(1, min(BODY_ROWS, BODY_ELEMENTS // (7 * max(len(pairs), 1) * max(a.width, b.width))))
    for first, second in pairs:
        matrices = zip(a.along_hidden(first, limit), b.along_hidden(second, limit), strict=False)
        for a_RD, b_RD in matrices:
            if a_RD.shape[0] == b_RD.shape[0] and np.isfinite(a_RD).all() and np.isfinite(b_RD).all():
                rows_a.append(a_RD / max(float(np.linalg.norm(a_RD)), 1e-30))
                rows_b.append(b_RD / max(float(np.linalg.norm(b_RD)), 1e-30))
    if not rows_a:
        return None
    return match_units([_joined(rows_a).T], [_joined(rows_b).T], seed=0)


def _joined(parts: list[Floats]) -> Floats:
    """Return matrices one below the other; the list is emptied, so that no more than one of two sides is held twice."""
    joined: Floats = np.concatenate(parts)
    parts.clear()
    return joined

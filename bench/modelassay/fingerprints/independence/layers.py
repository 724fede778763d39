"""Which layers of two models are compared."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from modelassay.fingerprints.independence.matching import MAX_CANDIDATES
from modelassay.fingerprints.independence.matrices import Floats, ModelMatrices, invariants

MAX_LAYERS = 8
"""Layers that are read of each model: more would cost time and change p from 1e-1000 to 1e-4000."""
MUCH_NEARER = 0.5
"""Of the squared distance of layers of one number. Of copies with 20 % noise whose layers were exchanged 0.02 to 0.25, of
strangers 0.66 to 1."""
QUANTILES = np.linspace(0.02, 0.98, 25)


def layer_pairs(a: ModelMatrices, b: ModelMatrices) -> list[tuple[int, int]]:
    """Return corresponding layers: of one number at equal depth, else by assignment of the quantiles of their neurons' invariants.

    Quantiles do not depend on how units are numbered, so the choice leaves the law of the tests as it is.
    """
    if a.num_layers == b.num_layers:
        return [(layer, layer) for layer in range(a.num_layers)]
    first, second = _spectra(a), _spectra(b)
    if first is None or second is None or first.shape[1] != second.shape[1]:
        return [(layer, layer) for layer in range(min(a.num_layers, b.num_layers))]
    distance = np.square(first[:, None] - second).sum(-1)
    rows, columns = linear_sum_assignment(distance)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def pairs_alike(a: ModelMatrices, b: ModelMatrices, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ``pairs``, or those by quantiles where they lie at most `MUCH_NEARER` as far apart: layers of one depth may have been exchanged."""
    first, second = _spectra(a), _spectra(b)
    if first is None or second is None or first.shape != second.shape:
        return pairs
    distance = np.square(first[:, None] - second).sum(-1)
    rows, columns = linear_sum_assignment(distance)
    is_nearer = distance[rows, columns].sum() <= MUCH_NEARER * np.trace(distance)
    return list(zip(rows.tolist(), columns.tolist(), strict=True)) if is_nearer else pairs


def _spectra(model: ModelMatrices) -> Floats | None:
    layers = []
    for layer in range(model.num_layers):
        networks = model.networks(layer, MAX_CANDIDATES)
        if not networks:
            return None
        layers.append(
            np.nan_to_num(np.nanquantile(invariants(networks[0]), QUANTILES, axis=0), posinf=0, neginf=0).ravel()
        )
    return np.stack(layers)


def chosen_layers(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return at most `MAX_LAYERS` of the pairs at even distances, the first and the last among them.

    >>> chosen_layers([(layer, layer) for layer in range(12)])[:3]
    [(0, 0), (2, 2), (3, 3)]
    """
    if len(pairs) <= MAX_LAYERS:
        return pairs
    return [pairs[round(at)] for at in np.linspace(0, len(pairs) - 1, MAX_LAYERS)]

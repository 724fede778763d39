"""Norm weights compared as vectors, centred: their raw cosine is near 1 between any two models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelassay.fingerprints.curves import Array, Score, undefined, unit
from modelassay.fingerprints.weights import Weights


def norm_vectors(a: Weights, b: Weights) -> Score:
    """Return the mean over layers of Pearson's r between the weights of the two models' norms.

    Norm weights start at 1 and stay positive, so the cosine of two strangers' is 0.95 (Solar-Open against GLM) where
    their centred correlation is 0.01 (sionic-ai/solar-vs-glm). At unequal depth the layers of the deeper model are read
    as its first, its last, or those at the same share of the depth, and the best counts. A vector without variation
    (untrained norms) has no correlation and is left out. Undefined between different widths: an order of dimensions is
    all that these vectors have in common.
    """
    if a.norms is None or b.norms is None:
        lacking = a if a.norms is None else b
        return undefined(f"{lacking.name}: no weights of norms before attention and feed-forward were found")
    if a.norms.shape[-1] != b.norms.shape[-1]:
        return undefined(f"widths differ ({a.norms.shape[-1]} and {b.norms.shape[-1]})")
    shallow, deep = sorted((a.norms, b.norms), key=len)
    scores = {name: _mean_r(shallow, deep[layers]) for name, layers in readings(len(shallow), len(deep)).items()}
    defined = {name: score for name, score in scores.items() if np.isfinite(score["norm-1"] + score["norm-2"])}
    if not defined:
        return undefined("the norms do not vary, so their correlation is not defined")
    best = max(defined, key=lambda name: defined[name]["norm-1"] + defined[name]["norm-2"])
    return Score(value=(defined[best]["norm-1"] + defined[best]["norm-2"]) / 2, per_role=defined[best], alignment=best)


def readings(num_shallow: int, num_deep: int) -> dict[str, NDArray[np.int64]]:
    """Return which layers of the deeper model stand for those of the shallower: one way at one depth, else three.

    >>> {name: layers.tolist() for name, layers in readings(2, 3).items()}
    {'proportional': [0, 2], 'head': [0, 1], 'tail': [1, 2]}
    """
    if num_shallow == num_deep:
        return {"same depth": np.arange(num_deep)}
    spread = np.rint(np.linspace(0, num_deep - 1, num_shallow)).astype(np.int64)
    return {"proportional": spread, "head": np.arange(num_shallow), "tail": np.arange(num_deep - num_shallow, num_deep)}


def _mean_r(x_LND: Array, y_LND: Array) -> dict[str, float]:
    units = [unit(z - z.mean(-1, keepdims=True), np.sqrt((z * z).sum(-1, keepdims=True))) for z in (x_LND, y_LND)]
    r_LN = (units[0] * units[1]).sum(-1)
    finite = np.isfinite(r_LN)
    with np.errstate(invalid="ignore"):
        r_N = np.where(finite, r_LN, 0).sum(0) / finite.sum(0)
    return {"norm-1": float(r_N[0]), "norm-2": float(r_N[1])}

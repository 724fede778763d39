"""The numbers of a difference that the rules of lineage ask: sizes, growth, decay, kurtosis, rank, grids and zeros."""

from __future__ import annotations

import math

import numpy as np

from modelassay.fingerprints.lineage.decay import mean, t_of
from modelassay.fingerprints.lineage.deltas import Delta
from modelassay.fingerprints.lineage.differences import Difference


def measures_of(difference: Difference) -> dict[str, float]:
    """Return the numbers that the rules ask, by name; NaN where one is not defined."""
    matrices = [delta for delta in difference.deltas if delta.kind == "matrix"]
    moved = [delta for delta in matrices if delta.changed]
    elements = max(sum(delta.num_elements for delta in matrices), 1)
    embeddings = [delta for delta in difference.deltas if delta.kind == "embedding"]
    spectra = [delta.spectrum for delta in moved if delta.spectrum is not None]
    decay, decay_t = max(difference.decays, key=lambda pair: abs(pair[1]), default=(math.nan, math.nan))
    changed = [*moved, *(delta for delta in embeddings if delta.changed)]
    log_sizes = [math.log(delta.relative) for delta in changed]
    return {
        "cosine": _median([delta.cosine for delta in matrices]),
        "changed_matrices": len(moved) / max(len(matrices), 1),
        "changed_embeddings": mean([float(delta.changed) for delta in embeddings]),
        "changed_vectors": mean([float(delta.changed) for delta in difference.deltas if delta.kind == "vector"]),
        "matrix_change": _median([delta.relative for delta in moved]),
        "matrix_change_error": _median([delta.relative_error for delta in moved]),
        "embedding_change": _median([delta.relative for delta in embeddings]),
        "change_spread": float(np.std(log_sizes)) if log_sizes else math.nan,
        "zeros_a": sum(delta.zeros[0] * delta.num_elements for delta in matrices) / elements,
        "zeros_b": sum(delta.zeros[1] * delta.num_elements for delta in matrices) / elements,
        "grid_a": mean([float(delta.on_grid[0]) for delta in moved]),
        "grid_b": mean([float(delta.on_grid[1]) for delta in moved]),
        "within_half_step_a": mean([delta.within_half_step[0] for delta in moved]),
        "within_half_step_b": mean([delta.within_half_step[1] for delta in moved]),
        "rank": _median([rank for rank, _ in spectra]),
        "edge": _median([edge for _, edge in spectra]),
        "kurtosis_of_change": mean([delta.d_kurtosis for delta in moved]),
        "growth": _growth(changed),
        "growth_beside_decay": _growth(changed, or_zero(decay)),
        "decay": decay,
        "decay_t": decay_t,
        "kurtosis_t": t_of([delta.kurtosis_growth for delta in moved]),
    }  # fmt: skip


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _growth(moved: list[Delta], decay: float = 0.0) -> float:
    """(|b|^2 - |a|^2) / (2 |b - a|^2) over all that changed: 0.5 where the change is orthogonal to a, -0.5 where to b.

    A ``decay``, log norm of b to a, is first taken from a where negative and from b where positive: what shrank
    shrinks on both sides.

    >>> moved = [Delta(layer=0, name="q", kind="matrix", num_elements=2, eps=0, has_symmetry=False, aa=1, bb=2, dd=1, ad=0)]
    >>> _growth(moved)
    0.5
    """
    earlier, later = math.exp(min(decay, 0.0)), math.exp(min(-decay, 0.0))
    aa, bb = earlier**2 * sum(delta.aa for delta in moved), later**2 * sum(delta.bb for delta in moved)
    if decay:
        dd = aa + bb - 2 * earlier * later * sum(delta.aa + delta.ad for delta in moved)
        return (bb - aa) / (2 * dd) if dd > 0 else math.nan
    dd = sum(delta.dd for delta in moved)
    return sum(delta.ad for delta in moved) / dd + 0.5 if dd else math.nan


def or_zero(value: float) -> float:
    """Return a measure, 0 where it is not defined."""
    return 0.0 if math.isnan(value) else value

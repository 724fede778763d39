"""What an index keeps of a model: the order of its hidden dimensions by size, in a few layers; and the exact test on two of them.

A hidden dimension's size is the energy of what reads it: the squares of its column in some rows of q, gate and up. Two models that were
numbered independently order their dimensions independently, so that the one order in terms of the other is a uniformly random
permutation, whose number of inversions has a closed law (`statistics.permutations`). It holds 4 kB, and needs no other model at hand.
What renumbers or rotates the hidden dimensions hides from it; `independence` finds most of that with both models. See docs/methods/index.md.
"""

# F = layers of a sketch, M = hidden dimensions of a sketch, N = sketches

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelassay.fingerprints.independence.blocks import NUM_LAYERS, SampledModel, block_begin, places_of
from modelassay.fingerprints.independence.sampling import LOOKS, MAX_DIMENSIONS, SEED
from modelassay.models.checkpoints.prepare import need
from modelassay.statistics.permutations import inversions, inversions_log_p

VERSION = 1
"""Raised when a sketch of the same weights comes out otherwise: those of two versions are not compared."""

UNREAD = np.iinfo(np.uint16).max
"""Fills the row of a layer of which nothing could be read."""

Ranks = NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sketch:
    """The order of a model's hidden dimensions."""

    width: int
    """Hidden dimensions of the model; sketches of one width are compared."""
    ranks_FM: Ranks
    """Place of each of M consecutive dimensions among them, by energy, in each sampled layer; a row of `UNREAD` where there is none."""
    num_bytes: int
    """Read of the weights."""

    def __post_init__(self) -> None:
        """Check that each row is a permutation, or unread."""
        expected_M = np.arange(self.ranks_FM.shape[1])
        for row_M in self.ranks_FM:
            if not (row_M == UNREAD).all() and not np.array_equal(np.sort(row_M), expected_M):
                message = "sketch: a row is no permutation"
                raise ValueError(message)

    @property
    def is_empty(self) -> bool:
        """Whether no layer could be read."""
        return bool((self.ranks_FM == UNREAD).all())


@dataclass(frozen=True, kw_only=True)
class Alike:
    """How alike two models order their dimensions, in the layer where they are most alike."""

    layer: int
    """Number of the sampled layer, 0 the first."""
    num_inversions: int
    """Pairs of dimensions that stand in other order."""
    num_dimensions: int
    log10_p: float
    """Of as few inversions, corrected for the layers; 0 at most."""

    @property
    def correlation(self) -> float:
        """Kendall's rank correlation: 1 where the order is one, 0 in the mean of independent ones."""
        num_pairs = self.num_dimensions * (self.num_dimensions - 1) / 2
        return 1 - 2 * self.num_inversions / num_pairs


def sketch_of(model: SampledModel, *, seed: int = SEED) -> Sketch:
    """Read the sketch of a model: `LOOKS[0]` rows of each matrix whose columns are hidden dimensions, in `NUM_LAYERS` layers.

    Raises:
        CheckpointError: it cannot be read.
        HostError: the Hub cannot be reached, or the cache cannot be written.
    """
    every = places_of(model, model, LOOKS[0], most=LOOKS[-1], seed=seed)[0]
    size = min(model.width, MAX_DIMENSIONS)
    begin = block_begin(model.width, MAX_DIMENSIONS, [seed, 3])
    places = {place: rows for place, rows in every.items() if model.column_axis(*place) == "dimensions"}
    num_bytes = need(model.spans(places)).wanted_bytes if places else 0
    energies: dict[int, NDArray[np.float64]] = {}
    for (layer, _), block in model.read(places).items():
        squares_D = np.square(block.rows_nC.astype(np.float64)).mean(0)
        part_M = squares_D[begin : begin + size]
        total = float(part_M.sum())
        if squares_D.size == model.width and 0 < total < math.inf:
            energies[layer] = energies.get(layer, np.zeros(size)) + part_M / total
    ranks_FM = np.full((NUM_LAYERS, size), UNREAD, dtype=np.uint16)
    for row, layer in enumerate(model.layers):
        if layer in energies:
            ranks_FM[row] = _ranks(energies[layer])
    return Sketch(width=model.width, ranks_FM=ranks_FM, num_bytes=num_bytes)


def _ranks(values_M: NDArray[np.float64]) -> Ranks:
    """Return the place of each value; equal ones stand in an order drawn by all of them, since their numbers may not decide."""
    seed = int.from_bytes(hashlib.sha256(np.sort(values_M).tobytes()).digest()[:8], "little")
    order = np.lexsort((np.random.default_rng(seed).random(values_M.size), values_M))
    ranks_M = np.empty(values_M.size, dtype=np.uint16)
    ranks_M[order] = np.arange(values_M.size, dtype=np.uint16)
    return ranks_M


def alike(a: Sketch, b: Sketch) -> Alike | None:
    """Test whether two models were numbered independently, by their sketches; None where nothing can be compared.

    Exchanging the arguments gives the same p.
    """
    if a.width != b.width or a.ranks_FM.shape != b.ranks_FM.shape:
        return None
    counts = {
        layer: inversions(one_M[np.argsort(other_M)])
        for layer, (one_M, other_M) in enumerate(zip(a.ranks_FM, b.ranks_FM, strict=True))
        if (one_M != UNREAD).all() and (other_M != UNREAD).all()
    }
    if not counts:
        return None
    layer = min(counts, key=lambda layer: counts[layer])
    size = a.ranks_FM.shape[1]
    log10_p = inversions_log_p(counts[layer], [size]) / math.log(10) + math.log10(NUM_LAYERS)
    return Alike(layer=layer, num_inversions=counts[layer], num_dimensions=size, log10_p=min(0.0, log10_p))


def correlations(sketch: Sketch, ranks_NFM: Ranks) -> NDArray[np.float32]:
    """Return Spearman's rank correlation with each of N sketches in the layer where it is largest, [N]; -1 where nothing can be compared.

    Costs one pass over the N sketches; what is near is then tested by `alike`.
    """
    size = sketch.ranks_FM.shape[1]
    best_N = np.full(len(ranks_NFM), -1.0, dtype=np.float32)
    if size < 2:
        return best_N
    mean, scale = (size - 1) / 2, math.sqrt(size * (size * size - 1) / 12)
    for layer, own_M in enumerate(sketch.ranks_FM):
        if own_M[0] == UNREAD:
            continue
        centred_M = ((own_M - mean) / scale).astype(np.float32)
        for begin in range(0, len(ranks_NFM), _CHUNK):
            part_nM = ranks_NFM[begin : begin + _CHUNK, layer]
            found_n = (part_nM.astype(np.float32) @ centred_M) / np.float32(scale)  # centred_M sums to zero
            np.copyto(found_n, -1.0, where=part_nM[:, 0] == UNREAD)
            np.maximum(best_N[begin : begin + _CHUNK], found_n, out=best_N[begin : begin + _CHUNK])
    return best_N


_CHUNK = 2048

"""What each difference of two checkpoints is a sign of, and which side it says is the parent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from modelassay.fingerprints.lineage.deltas import MIN_COSINE
from modelassay.fingerprints.lineage.differences import Difference
from modelassay.fingerprints.lineage.losses import loss
from modelassay.fingerprints.lineage.measures import or_zero
from modelassay.fingerprints.lineage.result import Kind, Side, Sign
from modelassay.models.checkpoints import Checkpoint

MIN_ZEROS = 0.05
"""Share of zeros that is pruning. Rounding to int8 makes 0.7 to 0.9 % in the zoo (weights under max / 254)."""
MIN_ZEROS_ON_GRID = 0.15
MIN_GRID = 0.9
"""Share of the differing matrices that must lie on a grid."""
WITHIN_HALF_STEP = 0.999
MAX_RANK = 0.55
"""Median of full rank over matrices: adapters of eight families have 0.17 to 0.25, what was tuned or continued 1. One of rank 8 on
matrices of 8 rows is not told (``llama-1+lora``, 0.6)."""
MAX_ADAPTED = 0.9
"""Share of changed matrices that still says adapter where zeros hide the rank."""
MAX_KURTOSIS = 0.15
"""|excess| of a Gaussian difference: the mean over ten matrices of 2,000 elements is within 0.1 at three sigma."""
MAX_EDGE = 1.25
"""Largest singular value of white noise over sigma (sqrt m + sqrt n), which it hardly exceeds: 0.97 to 0.98
in the zoo, training has 1.25 to 2.2."""
NOISE_SPREAD = 0.25
"""Standard deviation of the log relative size over all matrices and embeddings, which noise proportional to each
keeps under 0.02; training has 0.23 and more."""
MIN_GROWTH = 0.25
"""Half-way to 0.5, which an orthogonal addition gives; the standard error for 1 % of noise on 400,000 weights is 0.16."""
CONTINUED_SIZE = 0.14
"""Median relative change of the matrices from which training counts as continued. base: tuned 0.10 and 0.11, continued for a quarter of
its training 0.18 and for as much again 0.34. How far training moves weights depends on its recipe: tuned and continued differ by size alone."""
MIN_Z = 2.0
"""Of both signs of training together; base: 5.0 and 5.2 for what was tuned, 7.2 and 10.9 for what was continued, 8.8 for an average of two."""


def structure(difference: Difference, a: Checkpoint, b: Checkpoint) -> Iterator[Sign]:
    """Yield what changed the number of layers or of feed-forward networks."""
    if a.num_layers != b.num_layers:
        deeper: Side = "a" if a.num_layers > b.num_layers else "b"
        shallower: Side = "b" if deeper == "a" else "a"
        depth = (
            f"{shallower} has {min(a.num_layers, b.num_layers)} of {deeper}'s {max(a.num_layers, b.num_layers)} layers"
        )
        text = f"{depth}, in order (mean cosine {difference.match:.3f})"
        if difference.repeated > 0.5:
            yield Sign(kind="depth", text=f"{text}, and the others repeat some of these: stacked", parent=shallower)
        else:
            yield Sign(kind="depth", text=f"{text}, and none of the others twice: removed", parent=deeper)
    if difference.experts[0] != difference.experts[1]:
        sparse: Side = "a" if difference.experts[0] else "b"
        dense: Side = "b" if sparse == "a" else "a"
        text = f"{sparse} has experts where {dense} has one network, which they resemble (cosine {difference.expert_cosine:.3f})"
        copies, total = difference.expert_copies
        text += f", {copies} of {total} dense matrices equal to an expert's" if copies else ""
        yield Sign(kind="moe", text=text, parent=dense if difference.expert_cosine > MIN_COSINE else None)


_SYMMETRY_TEXT: Mapping[str, str] = {
    "heads": "the heads are the same in another order",
    "neurons": "the inner units of the feed-forward networks are the same in another order",
    "rotated": "rotary pairs of queries and keys are turned by common angles",
    "scaled": "a group's queries and keys, or values and output, are rescaled by reciprocal factors",
}


def symmetries(difference: Difference) -> Iterator[Sign]:
    """Yield the changes that keep the function, where they were seen in half of the layers."""
    for symmetry, count in sorted(difference.symmetries.items()):
        if 2 * count >= len(difference.layers):
            text = f"{_SYMMETRY_TEXT[symmetry]}, in {count} places of {len(difference.layers)} layers, which works both ways"
            yield Sign(kind=symmetry, text=text)


def residual(difference: Difference, measures: Mapping[str, float]) -> Iterator[Sign]:
    """Yield what is left once symmetries are undone: signs that stay, then one explanation for the rest."""
    on_grid = _grid_side(measures)
    lost = loss(difference.deltas)
    added = (
        0 < measures["rank"] <= MAX_RANK
    )  # rounding leaves a difference of full rank; few values then are the parent's own
    if lost is not None and (lost.kind != "rounded" or (on_grid is None and not added)):
        yield Sign(kind=lost.kind, text=f"{lost.text}; what else changed is not told", parent=lost.parent)
        return
    yield from _pruned(measures, on_grid)
    rounded_only = False
    if on_grid is not None:
        share = measures[f"within_half_step_{on_grid}"]
        rounded_only = share >= WITHIN_HALF_STEP
        text = f"{on_grid}'s rows are whole multiples of their maximum / 127, {_other(on_grid)}'s are not"
        how = (
            "and the other rounds to it" if rounded_only else f"but only {share:.0%} of the other's weights round to it"
        )
        yield Sign(kind="int8", text=f"{text}, {how}", parent=_other(on_grid))
    vectors_or_embeddings = max(or_zero(measures["changed_vectors"]), or_zero(measures["changed_embeddings"])) > 0
    if (measures["changed_matrices"] > 0 and not rounded_only) or vectors_or_embeddings:
        yield _change(measures)


def _other(side: Side) -> Side:
    return "b" if side == "a" else "a"


def _grid_side(measures: Mapping[str, float]) -> Side | None:
    """The side that lies on an int8 grid, if the other does not."""
    grids = measures["grid_a"], measures["grid_b"]
    if max(grids) >= MIN_GRID and min(grids) < 1 - MIN_GRID:
        return "a" if grids[0] > grids[1] else "b"
    return None


def _pruned(measures: Mapping[str, float], on_grid: Side | None) -> Iterator[Sign]:
    more = measures["zeros_b"] - measures["zeros_a"]
    if abs(more) >= (MIN_ZEROS if on_grid is None else MIN_ZEROS_ON_GRID):
        child: Side = "b" if more > 0 else "a"
        shares = f"{measures[f'zeros_{child}']:.1%} of {child}'s matrices are exactly zero, {measures[f'zeros_{_other(child)}']:.1%}"
        yield Sign(kind="pruned", text=f"{shares} of {_other(child)}'s", parent=_other(child))


def _change(measures: Mapping[str, float]) -> Sign:
    """Name the change that no exact mark explains: noise, an adapter, or training."""
    still = or_zero(measures["changed_vectors"]) == 0
    frozen = still and or_zero(measures["changed_embeddings"]) == 0
    growth = measures["growth"]
    grown: Side | None = None if not abs(growth) >= MIN_GROWTH else "a" if growth > 0 else "b"
    toward = f"growth {growth:+.2f}, where +-0.5 is orthogonal"
    zeroed = abs(measures["zeros_b"] - measures["zeros_a"]) >= MIN_ZEROS  # what is left between them has full rank
    if frozen and (0 < measures["rank"] <= MAX_RANK or (zeroed and measures["changed_matrices"] <= MAX_ADAPTED)):
        where = f"in {measures['changed_matrices']:.0%} of the matrices and nowhere else"
        text = f"the difference lies {where}" + ("" if zeroed else f" and has {measures['rank']:.0%} of full rank")
        return Sign(kind="lora", text=f"{text}; {toward}", parent=grown)
    white = abs(measures["kurtosis_of_change"]) < MAX_KURTOSIS and measures["edge"] < MAX_EDGE
    if still and white and measures["change_spread"] < NOISE_SPREAD:
        text = f"the difference is Gaussian and white, {measures['matrix_change']:.2%} of every matrix, and no vector moved"
        return Sign(kind="noise", text=f"{text}; {toward}", parent=grown)
    size = measures["matrix_change"]
    kind: Kind = "continued" if size >= CONTINUED_SIZE else "tuned"
    error = 1.96 * or_zero(measures["matrix_change_error"])
    known = f", of each matrix known to +-{error * size:.1%}" if error > 0 else ""
    text = f"{measures['changed_matrices']:.0%} of the matrices changed by {size:.1%} (median{known}), neither white nor of low rank"
    return Sign(kind=kind, text=f"{text}; {_signs(measures)}", parent=_trained_parent(measures))


def _trained_parent(measures: Mapping[str, float]) -> Side | None:
    """The earlier side of a training: that from which rows decay and kurtosis falls, unless the rest shrank with them."""
    toward_a = _combined(measures)
    if not abs(toward_a) >= MIN_Z or measures["growth_beside_decay"] * math.copysign(1, toward_a) >= MIN_GROWTH:
        return None
    return "a" if toward_a < 0 else "b"


def _combined(measures: Mapping[str, float]) -> float:
    """The two tests as one (Stouffer): their sum over the root of their number; negative where b is the later."""
    scores = [t for t in (measures["decay_t"], measures["kurtosis_t"]) if not math.isnan(t)]
    return sum(scores) / math.sqrt(len(scores)) if scores else 0.0


def _signs(measures: Mapping[str, float]) -> str:
    return (f"from a to b the stillest rows of the embedding change by {measures['decay']:+.2%} in norm "
            f"(t {measures['decay_t']:+.1f}), the kurtosis of the matrices with t {measures['kurtosis_t']:+.1f}, together "
            f"{_combined(measures):+.1f}, where {MIN_Z} decides; beside decay, growth {measures['growth_beside_decay']:+.2f}")  # fmt: skip

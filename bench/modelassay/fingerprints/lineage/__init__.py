"""Which of two related checkpoints was made from the other, and how, from their weights and configurations alone.

::

    answer = lineage(open_checkpoint("models/a"), open_checkpoint("models/b"))
    print(answer.kind, answer.parent, answer.evidence)

Related models are assumed; one is taken to descend from the other. Method, what cannot be told, and evidence on 8 families
of the zoo: docs/methods/lineage.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from modelassay.fingerprints.lineage.bodies import compare_bodies
from modelassay.fingerprints.lineage.deltas import Delta
from modelassay.fingerprints.lineage.differences import Difference, compare
from modelassay.fingerprints.lineage.losses import loss
from modelassay.fingerprints.lineage.mixtures import mixture
from modelassay.fingerprints.lineage.rates import error_rate
from modelassay.fingerprints.lineage.symmetries import Floats
from modelassay.fingerprints.lineage.tensors import OUTSIDE, Tensors
from modelassay.fingerprints.weights import weights_of
from modelassay.models.checkpoints import Checkpoint

Kind = Literal[
    "copy", "noise", "int8", "pruned", "lora", "tuned", "continued", "depth", "moe",
    "heads", "neurons", "rotated", "scaled", "merged", "thinned", "folded", "renumbered", "turned", "reordered", "narrowed",
    "regrouped", "rounded", "truncated", "flipped", "several", "unknown",
]  # fmt: skip
Side = Literal["a", "b"]

MIN_ZEROS = 0.05
"""Share of zeros that is pruning. Rounding to int8 makes 1 to 2 % (weights under max / 254)."""
MIN_ZEROS_ON_GRID = 0.15
MIN_GRID = 0.9
"""Share of the differing matrices that must lie on a grid."""
WITHIN_HALF_STEP = 0.999
MAX_RANK = 0.55
"""Of full rank: adapters on the smallest projections of the zoo have a third or a half, tuned matrices 1."""
MAX_ADAPTED = 0.9
"""Share of changed matrices that still says adapter where zeros hide the rank."""
MAX_KURTOSIS = 0.15
"""|excess| of a Gaussian difference: the mean over ten matrices of 2,000 elements is within 0.1 at three sigma."""
MAX_EDGE = 1.25
"""Largest singular value of white noise over sigma (sqrt m + sqrt n), which it hardly exceeds; tuning has 1.5 to 3."""
NOISE_SPREAD = 0.25
"""Standard deviation of the log relative size over all matrices and embeddings, which noise proportional to each keeps small."""
MIN_GROWTH = 0.25
"""Half-way to 0.5, which an orthogonal addition gives; the standard error for 1 % of noise on 400,000 weights is 0.16."""
CONTINUED_SIZE = 0.14
"""Median relative change of the matrices from which training counts as continued. base: tuned 0.10 and 0.11, continued 0.18
and 0.34; published models tuned by instructions moved by about 1 %, ones trained on by hundreds of billions of tokens by 30 %."""
STILL_ROWS = 0.02
"""Share of an embedding's rows, the least moved, whose decay is measured (Land and Bartolo's share of under-trained tokens)."""
MIN_Z = 2.0
"""Of both signs of training together; base: 3.8 to 11 for what was trained, 3.1 and, the wrong way, 4.9 for merges."""
MAX_NAMES = 6
"""Equal tensors that are named."""
MIN_COSINE = 0.3
"""Below it, corresponding matrices show no common origin that can be compared element by element."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How one checkpoint was made from another, as far as their weights tell."""

    kind: Kind
    """``several`` where more than one thing was done, or where the two are siblings."""
    steps: tuple[Kind, ...]
    """What was difference; one entry where ``kind`` is that."""
    parent: Side | None
    """None where it cannot be told."""
    evidence: str
    """What was seen, in sentences."""
    measures: Mapping[str, float]
    """The numbers behind it; growths and decays are of b relative to a."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One thing that was seen to have been done, and which side it says is the parent."""

    kind: Kind
    text: str
    parent: Side | None = None


@np.errstate(over="ignore", invalid="ignore")  # of finite weights whose squares are not: a measure is then undefined
def lineage(a: Checkpoint, b: Checkpoint) -> Lineage:
    """Say which of two related checkpoints is the parent and what was done to it.

    Reads every tensor of both once (`differences.compare`), of a Hub repository after fetching all of its weights; 15 to 35 ms of
    processor time for models of 8 layers x 64, linear beyond that. Swapping the arguments swaps the parent and the signs
    of what is measured from a to b.

    Raises:
        CheckpointError: a file was changed since it was opened, or cannot be read.
    """
    reason = _incomparable(a, b) or _folded(a, b)
    if reason is not None:
        return _other_body(a, b, reason, {})
    difference = compare(Tensors(a), Tensors(b))
    measures = measures_of(difference)
    if difference.match < MIN_COSINE or measures["cosine"] < MIN_COSINE:
        lost = loss(difference.deltas)
        flipped = [Sign(kind="flipped", text=lost.text)] if lost is not None and lost.kind == "flipped" else []
        if signs := [*flipped, *_mixed(difference, measures)]:
            answer = _verdict(signs, difference, measures)
            return replace(answer, evidence=f"{answer.evidence}{_limits(answer)}")
        evidence = (
            f"corresponding matrices have a median cosine of {measures['cosine']:.2f} (matched layers {difference.match:.2f}), too "
            "low to tell the transformation; no order of heads or neurons, rotation of heads or factor raises it"
        )
        return _other_body(a, b, evidence, measures)
    if difference.num_unpaired and difference.experts[0] == difference.experts[1]:
        evidence = (
            f"{difference.num_unpaired} tensors of their layers have no counterpart of their shape: widths were changed"
        )
        is_thinned = a.intermediate_size != b.intermediate_size
        kind: Kind = "thinned" if is_thinned else "unknown"
        return Lineage(
            kind=kind, steps=(kind,) if is_thinned else (), parent=None, evidence=evidence, measures=measures
        )
    mixed = list(_mixed(difference, measures))
    signs = [*_structure(difference, a, b), *_symmetries(difference), *(mixed or _residual(difference, measures))]
    answer = _verdict(signs, difference, measures)
    return replace(answer, evidence=f"{answer.evidence}{_frozen(difference)}{_limits(answer)}")


def _other_body(a: Checkpoint, b: Checkpoint, reason: str, measures: Mapping[str, float]) -> Lineage:
    """Say what shows once one body was turned onto the other; ``unknown`` for ``reason`` where nothing does."""
    body = compare_bodies(a, b)
    if body is None:
        return Lineage(kind="unknown", steps=(), parent=None, evidence=reason, measures=measures)
    return Lineage(kind=body.changes[0] if len(body.changes) == 1 else "several", steps=body.changes, parent=None,
                   evidence=f"{body.text}; what else was done, and which came first, is not told",
                   measures={**measures, "aligned": body.aligned})  # fmt: skip


def _mixed(difference: Difference, measures: Mapping[str, float]) -> Iterator[Sign]:
    """Yield that one side is a linear mixture of the other with something independent, where every matrix says so."""
    if (
        difference.symmetries
        or loss(difference.deltas) is not None
        or abs(measures["zeros_b"] - measures["zeros_a"]) >= MIN_ZEROS
    ):
        return
    for parent, child in (("a", "b"), ("b", "a")):
        share = mixture(difference.deltas, of_a=parent == "a")
        if share is not None:
            yield Sign(kind="merged", parent="a" if parent == "a" else "b", text=(
                f"in every matrix {child} is {1 - share.share:.2f} of {parent} and an independent rest of {share.ratio:.2f} times the size that "
                f"a mixture with weight {share.share:.2f} has: as a linear merge with a model that shares no origin with {parent}, which is "
                "another parent"))  # fmt: skip


def _frozen(difference: Difference) -> str:
    """Return which tensors are the same bits in both, where some are and some are not."""
    same = [delta for delta in difference.deltas if delta.kind != "vector" and delta.dd == 0 and not delta.has_symmetry]
    matrices = [delta for delta in difference.deltas if delta.kind != "vector"]
    if not same or len(same) == len(matrices):
        return ""
    names = [f"{delta.layer}.{delta.name}" if delta.layer != OUTSIDE else delta.name for delta in same]
    shown = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    return f"; frozen: {len(same)} of {len(matrices)} matrices are equal in both ({shown})"


def _limits(answer: Lineage) -> str:
    """Return what the answer does not exclude, and how often a parent of this kind was named wrongly."""
    limits = ""
    if {"tuned", "continued"} & set(answer.steps):
        limits = "; a merge of relatives looks the same and is not excluded: ask `parents` with candidates"
    return limits if answer.parent is None else f"{limits}; {error_rate(answer.kind)}"


def _incomparable(a: Checkpoint, b: Checkpoint) -> str | None:
    for what, x, y in (
        ("hidden size", a.hidden_size, b.hidden_size),
        ("query heads", a.num_heads, b.num_heads),
        ("key-value heads", a.num_kv_heads, b.num_kv_heads),
        ("head dimension", a.head_dim, b.head_dim),
    ):
        if x != y:
            return f"{what} {x} and {y}: their tensors do not correspond, so what was done cannot be read off them"
    return None


def _folded(a: Checkpoint, b: Checkpoint) -> str | None:
    """Return why the two cannot be compared where one side's norms were folded into its matrices, which moves all of them."""
    norms = [weights_of(side).norms for side in (a, b)]
    plain = [norm is not None and bool((norm == 1).all()) for norm in norms]
    if plain[0] == plain[1]:
        return None
    side = "a" if plain[0] else "b"
    return f"all layer norms of {side} are 1, as after folding them into the matrices: what else was done is hidden, and so is the order"


def _verdict(signs: list[Sign], difference: Difference, measures: Mapping[str, float]) -> Lineage:
    steps = tuple(dict.fromkeys(sign.kind for sign in signs))
    parents = {sign.parent for sign in signs} - {None}
    text = "; ".join(sign.text for sign in signs)
    if not signs:
        parent: Side | None = None
        text = "all corresponding tensors are equal"
        if difference.narrowed:
            parent = "b" if difference.narrowed == "a" else "a"
            text += (
                f" once rounded to the format of {difference.narrowed}, which is coarser, so that {parent} holds more"
            )
        return Lineage(kind="copy", steps=("copy",), parent=parent, evidence=text, measures=measures)
    if len(parents) > 1:
        text += "; these signs are on different sides, as of siblings, or of a chain that hides its order: no parent is named"
    parent = next(iter(parents)) if len(parents) == 1 else None
    kind = steps[0] if len(steps) == 1 else "several"
    return Lineage(kind=kind, steps=steps, parent=parent, evidence=text, measures=measures)


def measures_of(difference: Difference) -> dict[str, float]:
    """Return the numbers that the rules ask, by name; NaN where one is not defined."""
    matrices = [delta for delta in difference.deltas if delta.kind == "matrix"]
    moved = [delta for delta in matrices if delta.changed]
    elements = max(sum(delta.num_elements for delta in matrices), 1)
    embeddings = [delta for delta in difference.deltas if delta.kind == "embedding"]
    spectra = [delta.spectrum for delta in moved if delta.spectrum is not None]
    decay, decay_t = max(
        (_decay(*pair) for pair in difference.embeddings), key=lambda pair: abs(pair[1]), default=(math.nan, math.nan)
    )
    changed = [*moved, *(delta for delta in embeddings if delta.changed)]
    log_sizes = [math.log(delta.relative) for delta in changed]
    return {
        "cosine": _median([_cosine(delta) for delta in matrices]),
        "changed_matrices": len(moved) / max(len(matrices), 1),
        "changed_embeddings": _mean([float(delta.changed) for delta in embeddings]),
        "changed_vectors": _mean([float(delta.changed) for delta in difference.deltas if delta.kind == "vector"]),
        "matrix_change": _median([delta.relative for delta in moved]),
        "embedding_change": _median([delta.relative for delta in embeddings]),
        "change_spread": float(np.std(log_sizes)) if log_sizes else math.nan,
        "zeros_a": sum(delta.zeros[0] * delta.num_elements for delta in matrices) / elements,
        "zeros_b": sum(delta.zeros[1] * delta.num_elements for delta in matrices) / elements,
        "grid_a": _mean([float(delta.on_grid[0]) for delta in moved]),
        "grid_b": _mean([float(delta.on_grid[1]) for delta in moved]),
        "within_half_step_a": _mean([delta.within_half_step[0] for delta in moved]),
        "within_half_step_b": _mean([delta.within_half_step[1] for delta in moved]),
        "rank": _median([rank for rank, _ in spectra]),
        "edge": _median([edge for _, edge in spectra]),
        "kurtosis_of_change": _mean([delta.d_kurtosis for delta in moved]),
        "growth": _growth(changed),
        "growth_beside_decay": _growth(changed, _zero(decay)),
        "decay": decay,
        "decay_t": decay_t,
        "kurtosis_t": _t([delta.kurtosis_growth for delta in moved]),
    }  # fmt: skip


def _cosine(delta: Delta) -> float:
    size = math.sqrt(delta.aa * delta.bb)
    return (delta.aa + delta.ad) / size if size else 1.0


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _t(values: list[float]) -> float:
    """Mean over its standard error; NaN under three values or where they do not vary."""
    if len(values) < 3:
        return math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) / error if error else math.nan


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


def _decay(x_VC: Floats, y_VC: Floats) -> tuple[float, float]:
    """Mean log ratio of the norms of the least moved rows, their mean removed, y to x, and its t over rows.

    Weight decay shrinks every row; what a token's own occurrences do to it hides that, and what the softmax does to all
    rows of unused tokens is nearly the same vector. So the rows that move least are taken, and their mean is removed.
    Costs one pass.
    """
    moved_V = np.linalg.norm(y_VC - x_VC, axis=1)
    still = np.argsort(moved_V, kind="stable")[: max(16, round(STILL_ROWS * len(moved_V)))]
    norms = [np.linalg.norm(side[still] - side[still].mean(0), axis=1) for side in (x_VC, y_VC)]
    usable = (norms[0] > 0) & (norms[1] > 0)
    ratios = np.log(norms[1][usable] / norms[0][usable]).astype(float).tolist()
    return _mean(ratios), _t(ratios)


def _structure(difference: Difference, a: Checkpoint, b: Checkpoint) -> Iterator[Sign]:
    """What changed the number of layers or of feed-forward networks."""
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
        yield Sign(kind="moe", text=text, parent=dense if difference.expert_cosine > MIN_COSINE else None)


_SYMMETRY_TEXT: Mapping[str, str] = {
    "heads": "the heads are the same in another order",
    "neurons": "the inner units of the feed-forward networks are the same in another order",
    "rotated": "rotary pairs of queries and keys are turned by common angles",
    "scaled": "a group's queries and keys, or values and output, are rescaled by reciprocal factors",
}


def _symmetries(difference: Difference) -> Iterator[Sign]:
    for symmetry, count in sorted(difference.symmetries.items()):
        if 2 * count >= len(difference.layers):
            text = f"{_SYMMETRY_TEXT[symmetry]}, in {count} places of {len(difference.layers)} layers, which works both ways"
            yield Sign(kind=symmetry, text=text)


def _residual(difference: Difference, measures: Mapping[str, float]) -> Iterator[Sign]:
    """What is left once symmetries are undone: signs that stay, then one explanation for the rest."""
    on_grid = _grid_side(measures)
    lost = loss(difference.deltas)
    if lost is not None and (on_grid is None or lost.kind != "rounded"):
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
    vectors_or_embeddings = max(_zero(measures["changed_vectors"]), _zero(measures["changed_embeddings"])) > 0
    if (measures["changed_matrices"] > 0 and not rounded_only) or vectors_or_embeddings:
        yield _change(measures)


def _zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


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
    still = _zero(measures["changed_vectors"]) == 0
    frozen = still and _zero(measures["changed_embeddings"]) == 0
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
    text = f"{measures['changed_matrices']:.0%} of the matrices changed by {size:.1%} (median), neither white nor of low rank"
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


def swapped(name: str, other: str) -> bool:
    """Return in which order two models are given to `lineage`, so that no order can look like a direction.

    >>> swapped("a", "b") == swapped("b", "a")
    False
    """
    return hashlib.blake2b(f"{name} {other}".encode()).digest() > hashlib.blake2b(f"{other} {name}".encode()).digest()

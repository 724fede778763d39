"""From a model's name to its sigma-curves."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from modelassay.errors import CheckpointError
from modelassay.experiments.fingerprinting.curves import BEYOND, ROLES, Curves
from modelassay.experiments.fingerprinting.methods import Numbers
from modelassay.experiments.fingerprinting.methods.configuration import Sizes
from modelassay.experiments.fingerprinting.methods.peers import Peer, PeerFingerprint
from modelassay.experiments.fingerprinting.methods.products import product_curves
from modelassay.meter import Meter
from modelassay.models import zoo
from modelassay.models.checkpoint import Checkpoint, Stratum, open_checkpoint
from modelassay.models.layer_tensors import layer_spans
from modelassay.models.safetensors_index import DTYPE_BITS
from modelassay.state import Store
from modelassay_kernels import FileSpan, layer_std_file


def open_model(reference: str, *, store: Store) -> Checkpoint:
    """Open a folder, an ``hf:`` or a ``zoo:`` model; a zoo model is made first where ``store`` lacks it.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    if zoo.is_zoo(reference):
        return open_checkpoint(zoo.ensure(reference, store=store))
    return open_checkpoint(reference)


def make_together(references: Sequence[str], wanted: str, *, store: Store, meter: Meter) -> None:
    """Make all zoo models among ``references`` if ``store`` lacks ``wanted``: two at a time is twice as fast as one by one.

    Does nothing where the model asked for is there. Members are made in processes of their own, one unit ``zoo-make``
    in all; their held-out loss is measured there too.
    """
    if zoo.is_zoo(wanted) and not zoo.is_made(wanted, store=store, with_utility=True):
        names = [reference for reference in references if zoo.is_zoo(reference)]
        zoo.ensure_many(
            names, store=store, timer=meter.microbatch, with_utility=True, report=partial(print, flush=True)
        )


def worth_comparing(reference: str, width: int, against: Sequence[str], *, store: Store) -> list[str]:
    """Return which of ``against`` a model's weights are compared with.

    Not itself; of two models that both stand in the list the later is compared with the earlier; and of models of another
    width only the first of each, since strangers by shape tell little.
    """
    earlier = against[: against.index(reference)] if reference in against else against
    chosen, seen = [], set()
    for other in earlier:
        theirs = (
            zoo.member(other).shape.hidden_size if zoo.is_zoo(other) else open_model(other, store=store).hidden_size
        )
        if theirs == width or theirs not in seen:
            chosen.append(other)
        seen.add(theirs)
    return chosen


def peer_fingerprint(peer: Peer, reference: str, *, store: Store) -> PeerFingerprint:
    """Return what a peer reads of a model; of zoo models it is kept, since many cells compare with them."""
    folder = open_model(reference, store=store).folder
    if not zoo.is_zoo(reference):
        return peer.fingerprint(folder, name=reference)

    def extract(made: Path) -> None:
        (made / "print.pickle").write_bytes(pickle.dumps(peer.fingerprint(folder, name=reference)))

    recipe = {"kind": "peer", "peer": peer.name, "version": peer.installed_version(), "model": zoo.recipe(reference)}
    found: PeerFingerprint = pickle.loads((store.get(recipe, extract) / "print.pickle").read_bytes())  # noqa: S301 - our own
    return found


def family_of(reference: str, declared: str | None) -> str | None:
    """Return the root a model is known to descend from: the declared one, or what the zoo knows of its own."""
    return zoo.family(reference) if declared is None and zoo.is_zoo(reference) else declared


def short_names(references: Sequence[str]) -> list[str]:
    """Return what tables and claims call the models: the last part without commit; in full where that mixes two up.

    >>> short_names(["hf:Qwen/Qwen2.5-14B@97e1e763", "zoo:smoke/base", "models/mine/"])
    ['Qwen2.5-14B', 'base', 'mine']
    >>> short_names(["a/model", "b/model"])
    ['a/model', 'b/model']
    """
    short = [_last_part(reference) for reference in references]
    return short if len(set(short)) == len(short) else list(references)


def _last_part(reference: str) -> str:
    scheme, _, rest = reference.rpartition(":") if reference.startswith(("hf:", "zoo:")) else ("", "", reference)
    without_commit = rest.split("@")[0] if scheme == "hf" else rest
    return without_commit.rstrip("/").rsplit("/", 1)[-1] or reference


def spans_of(checkpoint: Checkpoint, layer: int) -> dict[str, FileSpan]:
    """Return the four matrices of one layer by role."""
    return {matrix.role: matrix.span for matrix in checkpoint.matrices if matrix.layer == layer}


def num_bytes(spans: Mapping[str, FileSpan]) -> int:
    """Return the fewest bytes that reading ``spans`` takes: each weight once."""
    return sum(span.num_rows * span.num_cols * DTYPE_BITS[span.dtype] // 8 for span in spans.values())


def measure_layer(checkpoint: Checkpoint, layer: int, spans: Mapping[str, FileSpan],
                  extras: Mapping[str, Sequence[FileSpan]]) -> list[tuple[str, str, float]]:  # fmt: skip
    """Return what one layer gives the methods, as (metric, role, value).

    ``sigma``: the standard deviation (correction 1, as torch.std) of each attention matrix, and of each of ``extras``: of
    several tensors (experts) the root mean square over their elements. ``product``: see `products`. Values other than
    the attention matrices' that are 0 or not finite are left out: a bias that is all 0 has no curve.
    """
    every = [*spans.values(), *(span for role in BEYOND for span in extras.get(role, ()))]
    sigmas = iter(layer_std_file(every).tolist())
    found = [("sigma", role, next(sigmas)) for role in spans]
    beyond = {}
    for role in BEYOND:
        if role in extras:
            sizes = [span.num_rows * span.num_cols for span in extras[role]]
            total = sum(size * next(sigmas) ** 2 for size in sizes)
            beyond[role] = math.sqrt(total / sum(sizes))
    found += [("sigma", role, value) for role, value in beyond.items() if math.isfinite(value) and value > 0]
    products = product_curves(checkpoint, layer)
    return [
        *found,
        *(("product", role, value) for role, value in products.items() if math.isfinite(value) and value > 0),
    ]


def attention_key(checkpoint: Checkpoint) -> str:
    """Return 16 hex digits of BLAKE2b over the attention matrices' stored values: equal weights under any name, equal keys."""
    digest = hashlib.blake2b(digest_size=8)
    for matrix in checkpoint.matrices:
        digest.update(checkpoint.read(matrix).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def utility_of(reference: str, *, store: Store) -> dict[str, float]:
    """Return a zoo model's held-out loss by language and what it changed of its parent's; nothing for other models."""
    return zoo.utility(reference, store=store) if zoo.is_zoo(reference) else {}


def fault_of(role: str, layer: int, sigma: float) -> str | None:
    """Say what is wrong with a matrix of standard deviation ``sigma``; None if nothing is."""
    if not math.isfinite(sigma):
        return f"layer {layer}: {role} holds NaN or infinite weights"
    return f"layer {layer}: {role} is constant" if sigma == 0 else None


def curves_from(values: Iterable[tuple[str, str, int, float]], *, name: str, stratum: Stratum, family: str | None,
                weights_key: str | None = None) -> Curves:  # fmt: skip
    """Build curves of (metric, role, layer, value) in any order; roles that some layers lack are left out."""
    by_role: dict[str, dict[int, float]] = {}
    for _, role, layer, value in values:
        by_role.setdefault(role, {})[layer] = value
    whole = {
        role: np.array([found[layer] for layer in range(stratum.num_layers)])
        for role, found in by_role.items() if len(found) == stratum.num_layers
    }  # fmt: skip
    sigma = {role: whole.pop(role) for role in ROLES if role in whole}
    return Curves(name=name, sigma=sigma, stratum=stratum, family=family, extra=whole, weights_key=weights_key)


def numbers_of(reference: str, *, name: str, family: str | None, store: Store, whole: bool = True) -> Numbers:
    """Return what a run would record of a model, all of it at once; ``whole`` as in `Params`.

    Raises:
        CheckpointError: it cannot be read, or an attention matrix is not finite or is constant.
    """
    checkpoint = open_model(reference, store=store)
    extras = layer_spans(checkpoint) if whole else [{} for _ in range(checkpoint.num_layers)]
    values = []
    for layer in range(checkpoint.num_layers):
        spans = spans_of(checkpoint, layer)
        for metric, role, value in measure_layer(checkpoint, layer, spans, extras[layer]):
            if metric == "sigma" and role in spans and (fault := fault_of(role, layer, value)):
                named = next(m.tensor_name for m in checkpoint.matrices if (m.layer, m.role) == (layer, role))
                raise CheckpointError(f"{reference}: {fault}, so it has no sigma-curve; look at {named}")
            values.append((metric, role, layer, value))
    curves = curves_from(values, name=name, stratum=checkpoint.stratum(), family=family_of(reference, family),
                         weights_key=attention_key(checkpoint))  # fmt: skip
    return Numbers(curves=curves, sizes=sizes_of(checkpoint.stratum(), checkpoint.intermediate_size))


def sizes_of(stratum: Stratum, intermediate_size: int | None) -> Sizes:
    """Return what the configuration tells."""
    return Sizes(intermediate_size=intermediate_size, **vars(stratum))

"""Sigma-curves of one checkpoint, layer by layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from modelassay.errors import printable
from modelassay.fingerprints.configuration import Sizes
from modelassay.fingerprints.curves import BEYOND, Curves
from modelassay.fingerprints.methods import ModelSummary
from modelassay.fingerprints.products import product_curves
from modelassay.machine.threads import in_order
from modelassay.models.checkpoints import Checkpoint, Stratum
from modelassay.models.checkpoints.architectures import EVERY_ROLE
from modelassay.models.checkpoints.layers import layer_spans
from modelassay.models.checkpoints.prepare import prepare_spans, read_ahead
from modelassay.models.checkpoints.safetensors import DTYPE_BITS
from modelassay.models.reference import Model
from modelassay_kernels import FileSpan, layer_std, layer_std_file

LARGEST_SIGMA = 1e18
"""Standard deviation of weights beyond which their squares leave fp32, and numbers computed from them mean nothing."""


def spans_of(checkpoint: Checkpoint, layer: int) -> dict[str, FileSpan]:
    """Return the projections of one layer by role."""
    return {matrix.role: matrix.span for matrix in checkpoint.matrices_in(layer)}


def num_bytes(spans: Mapping[str, FileSpan]) -> int:
    """Return the fewest bytes that reading ``spans`` takes: each weight once."""
    return sum(span.num_rows * span.num_cols * DTYPE_BITS[span.dtype] // 8 for span in spans.values())


def measure_layer(checkpoint: Checkpoint, layer: int, spans: Mapping[str, FileSpan],
                  extras: Mapping[str, Sequence[FileSpan]],
                  stored: Mapping[str, Tensor] | None = None) -> list[tuple[str, str, float]]:  # fmt: skip
    """Return what one layer gives the methods, as (metric, role, value).

    ``sigma``: the standard deviation (correction 1, as torch.std) of each attention matrix, and of each of ``extras``: of
    several tensors (experts) the root mean square over their elements. ``product``: see `products`. Values other than
    the attention matrices' that are 0, not finite or beyond ``LARGEST_SIGMA`` are left out: a bias that is all 0 has no curve.
    ``stored`` are the attention matrices where they were read already.
    """
    every = _read_of(spans, extras)
    prepare_spans(every)
    if stored is None:
        stored = checkpoint.attention(layer)
    at_hand = [stored[role] for role in spans]
    sigmas = iter([*layer_std(at_hand).tolist(), *layer_std_file(every[len(at_hand) :]).tolist()])
    values = [("sigma", role, next(sigmas)) for role in spans]
    beyond = {}
    for role in BEYOND:
        if role in extras:
            sizes = [span.num_rows * span.num_cols for span in extras[role]]
            stds = [next(sigmas) for _ in sizes]
            unit = max(stds, default=0.0) if max(stds, default=0.0) > LARGEST_SIGMA else 1.0  # whose squares overflow
            beyond[role] = unit * math.sqrt(
                sum(size * (std / unit) ** 2 for size, std in zip(sizes, stds, strict=True)) / sum(sizes)
            )
    values += [("sigma", role, value) for role, value in beyond.items() if 0 < value <= LARGEST_SIGMA]
    products = product_curves(checkpoint, layer, stored)
    return [
        *values,
        *(("product", role, value) for role, value in products.items() if math.isfinite(value) and value > 0),
    ]


def _read_of(spans: Mapping[str, FileSpan], extras: Mapping[str, Sequence[FileSpan]]) -> list[FileSpan]:
    """Return what `measure_layer` reads of one layer, in its order."""
    return [*spans.values(), *(span for role in BEYOND for span in extras.get(role, ()))]


def attention_key(checkpoint: Checkpoint) -> str:
    """Return 16 hex digits of BLAKE2b over the attention matrices' stored values: equal weights under any name, equal keys."""
    digest = hashlib.blake2b(digest_size=8)
    for matrix in checkpoint.matrices:
        digest.update(_bytes(checkpoint.read(matrix)))
    return digest.hexdigest()


def _bytes(matrix: Tensor) -> memoryview:
    return matrix.contiguous().view(torch.uint8).numpy().data


def fault_of(role: str, layer: int, sigma: float) -> str | None:
    """Say what is wrong with a matrix of standard deviation ``sigma``; None if nothing is."""
    if not math.isfinite(sigma):
        return f"layer {layer}: {role} holds NaN or infinite weights"
    if sigma > LARGEST_SIGMA:
        return f"layer {layer}: {role} holds weights of some {sigma:.1g}, whose squares overflow"
    return f"layer {layer}: {role} is constant" if sigma == 0 else None


def curves_from(values: Iterable[tuple[str, str, int, float]], *, name: str, stratum: Stratum, family: str | None,
                weights_key: str | None = None, faults: Mapping[str, str] | None = None) -> Curves:  # fmt: skip
    """Build curves of (metric, role, layer, value) in any order; roles that some layers lack or that have ``faults`` are left out."""
    by_role: dict[str, dict[int, float]] = {}
    for _, role, layer, value in values:
        by_role.setdefault(role, {})[layer] = value
    curves = {
        role: np.array([by_layer[layer] for layer in range(stratum.num_layers)])
        for role, by_layer in by_role.items() if len(by_layer) == stratum.num_layers and role not in (faults or {})
    }  # fmt: skip
    sigma = {role: curves.pop(role) for role in EVERY_ROLE if role in curves}
    return Curves(name=name, sigma=sigma, stratum=stratum, family=family, extra=curves, weights_key=weights_key, faults=faults or {},
                  num_layers=stratum.num_layers)  # fmt: skip


def summarise_model(model: Model, *, name: str, whole: bool = True) -> ModelSummary:
    """Return what a run would record of a model, all of it at once; ``whole`` as in `Params`.

    A role of which some layer's matrix is constant or not finite has no curve; methods that need it say so.

    Raises:
        CheckpointError: it cannot be read.
    """
    checkpoint = model.checkpoint()
    extras = layer_spans(checkpoint) if whole else [{} for _ in range(checkpoint.num_layers)]
    values, faults, digest = [], dict[str, str](), hashlib.blake2b(digest_size=8)  # as `attention_key`, read once

    def measured(layer: int) -> tuple[dict[str, Tensor], list[tuple[str, str, float]]]:
        if layer + 1 < checkpoint.num_layers:
            read_ahead(_read_of(spans_of(checkpoint, layer + 1), extras[layer + 1]))
        stored = checkpoint.attention(layer)
        return stored, measure_layer(checkpoint, layer, spans_of(checkpoint, layer), extras[layer], stored)

    for layer, (stored, found) in enumerate(in_order(measured, range(checkpoint.num_layers))):
        for matrix in stored.values():
            digest.update(_bytes(matrix))
        for metric, role, value in found:
            if metric == "sigma" and role in stored and (fault := fault_of(role, layer, value)):
                tensor = next(matrix.tensor_name for matrix in checkpoint.matrices_in(layer) if matrix.role == role)
                faults.setdefault(role, f"{fault} ({printable(tensor)})")
            values.append((metric, role, layer, value))
    curves = curves_from(values, name=name, stratum=checkpoint.stratum(), family=model.family,
                         weights_key=digest.hexdigest(), faults=faults)  # fmt: skip
    return ModelSummary(curves=curves, sizes=sizes_of(checkpoint.stratum(), checkpoint.intermediate_size))


def sizes_of(stratum: Stratum, intermediate_size: int | None) -> Sizes:
    """Return what the configuration tells."""
    return Sizes(intermediate_size=intermediate_size, **vars(stratum))

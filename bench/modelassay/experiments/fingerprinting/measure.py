"""From a model's name to its sigma-curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modelassay.errors import CheckpointError
from modelassay.experiments.fingerprinting.curves import ROLES, Curves
from modelassay.models import zoo
from modelassay.models.checkpoint import Checkpoint, open_checkpoint
from modelassay.models.safetensors_index import DTYPE_BITS
from modelassay.state import Store
from modelassay_kernels import FileSpan, layer_std_file


def open_model(reference: str, *, store: Store, timer: zoo.Timer | None = None) -> Checkpoint:
    """Open a folder, an ``hf:`` or a ``zoo:`` model; a zoo model is made first where ``store`` lacks it.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    if zoo.is_zoo(reference):
        return open_checkpoint(zoo.ensure(reference, store=store, timer=timer))
    return open_checkpoint(reference)


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


def measure(spans: Mapping[str, FileSpan]) -> dict[str, float]:
    """Return the standard deviation of each matrix (correction 1, as torch.std), read in place from its file."""
    return dict(zip(spans, layer_std_file(list(spans.values())).tolist(), strict=True))


def fault_of(role: str, layer: int, sigma: float) -> str | None:
    """Say what is wrong with a matrix of standard deviation ``sigma``; None if nothing is."""
    if not math.isfinite(sigma):
        return f"layer {layer}: {role} holds NaN or infinite weights"
    return f"layer {layer}: {role} is constant" if sigma == 0 else None


def sigma_curves(reference: str, *, name: str, family: str | None, store: Store) -> Curves:
    """Return the sigma-curves of a model, all matrices in one call.

    Raises:
        CheckpointError: it cannot be read, or a matrix is not finite or is constant.
    """
    checkpoint = open_model(reference, store=store)
    sigmas = layer_std_file([matrix.span for matrix in checkpoint.matrices]).tolist()
    curves = {role: np.zeros(checkpoint.num_layers) for role in ROLES}
    for matrix, sigma in zip(checkpoint.matrices, sigmas, strict=True):
        if fault := fault_of(matrix.role, matrix.layer, sigma):
            raise CheckpointError(f"{reference}: {fault}, so it has no sigma-curve; look at {matrix.tensor_name}")
        curves[matrix.role][matrix.layer] = sigma
    return Curves(name=name, sigma=curves, stratum=checkpoint.stratum(), family=family_of(reference, family))

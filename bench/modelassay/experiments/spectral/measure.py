"""From a model's name to an operator, and the exact spectrum of a small one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modelassay.curvature.gauss_newton import EmpiricalFisher, GaussNewton, SampledFisher
from modelassay.curvature.loss import microbatches
from modelassay.curvature.operators import CurvatureOperator, Hessian
from modelassay.curvature.parameters import select_parameters
from modelassay.curvature.spectrum import OUTLIER_SIGMAS, PREREGISTERED, REMOVED
from modelassay.data.text import rows_of
from modelassay.errors import UsageError
from modelassay.experiments.spectral.params import Params
from modelassay.experiments.spectral.resumable import Array, TimedOperator
from modelassay.models.load import default_device
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve

MAX_DENSE = 6_000
"""Parameters of a matrix that is formed whole: 288 MB in fp64, and its eigenvalues in about a minute."""
BLOCK = 64
"""Rows of it at a time."""


def operator_of(params: Params, *, store: Store) -> CurvatureOperator:
    """Load a model and a text and return the operator that ``params`` names.

    Raises:
        CheckpointError: a model that cannot be loaded.
        UsageError: no model or text named, a text or a selection of parameters that does not fit, or too many parameters for ``dense``.
    """
    if params.model is None or params.data is None:
        raise UsageError("spectral: this profile measures a model and a text of yours: -o model=FOLDER -o data=FILE (a .txt or .jsonl file, or corpus:en)")  # fmt: skip
    reference = resolve(params.model, store=store)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[params.precision]
    model: Any = reference.load(dtype=dtype, device=default_device())
    rows_BT = rows_of(params.data, reference.tokenizer(), tokens=params.tokens, length=params.length)
    subset = select_parameters(model, params.parameters, embeddings=params.embeddings)
    if params.dense and subset.size > MAX_DENSE:
        raise UsageError(f"dense: {subset.size} parameters are selected, at most {MAX_DENSE} make a matrix; select fewer by `parameters`")  # fmt: skip
    batches = microbatches(rows_BT, size=params.microbatch)
    options: dict[str, Any] = {"parameters": subset, "precision": params.precision}
    if params.operator == "gauss-newton":
        return GaussNewton(model, batches, **options)
    if params.operator == "empirical-fisher":
        return EmpiricalFisher(model, batches, **options)
    if params.operator == "sampled-fisher":
        return SampledFisher(model, batches, seed=params.seed, **options)
    graph_bytes = None if params.graph_mib is None else params.graph_mib * 2**20
    return Hessian(model, batches, graph_bytes=graph_bytes, **options)


def dense_eigenvalues(operator: TimedOperator) -> Array:
    """Return all eigenvalues, ascending, from the matrix formed row by row; P products."""
    blocks = torch.split(torch.eye(operator.size, dtype=operator.dtype, device=operator.device), BLOCK)
    matrix_PP = torch.cat([operator.matmat(block).cpu().double() for block in blocks]).numpy()
    values: Array = np.linalg.eigvalsh((matrix_PP + matrix_PP.T) / 2)
    return values


def exact_numbers(values_P: Array) -> dict[str, float]:
    """Return what `Spectrum` estimates, by its definitions, from all eigenvalues (ascending).

    >>> exact_numbers(np.array([-1.0] + [0.0] * 60 + [3.0]))["spread"]
    4.0
    """
    by_size = values_P[np.argsort(-np.abs(values_P))]
    numbers = {f"sigma_bulk {name}": float(by_size[count:].std()) for name, count in REMOVED.items()}
    sigma, centre = numbers[f"sigma_bulk {PREREGISTERED}"], float(by_size[REMOVED[PREREGISTERED] :].mean())
    return numbers | {
        "lambda_max": float(values_P[-1]), "lambda_min": float(values_P[0]), "centre": centre,
        "spread": float(values_P[-1] - values_P[0]), "gap": float(values_P[-1] - values_P[-2]), "trace": float(values_P.sum()),
        "outliers": float((values_P > centre + OUTLIER_SIGMAS * sigma).sum()),
        "ratio": float(values_P[-1]) / sigma if sigma else float("nan"),
    }  # fmt: skip

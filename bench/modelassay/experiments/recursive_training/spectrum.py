"""The Hessian of a generation on the fixed human text, from about twenty products, and a slice of the loss about it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from modelassay.curvature.landscape import filter_normalised, landscape
from modelassay.curvature.loss import microbatches
from modelassay.curvature.over_text import TESTED, HessianOverText, TextSpectrum, spectrum_over_text
from modelassay.curvature.parameters import select_parameters
from modelassay.evaluation.loss import mean_loss
from modelassay.experiments.recursive_training.documents import Human
from modelassay.experiments.recursive_training.params import Params
from modelassay.models.load import default_device, load_model, load_tokenizer, reproducible
from modelassay.recording.context import Recorder


def measure_spectrum(stage: Recorder, *, params: Params, model: Path) -> None:
    """Measure the spectrum with each of ``embeddings``; start vector and probes are the same for all generations of a seed.

    Metrics with ``embeddings`` (``with`` or ``without``): ``lambda_max``, ``ratio`` and ``sigma_bulk`` with ``definition``, ``trace``, ``probe_sd``, ``text_sd``, ``products``.
    Facts: ``ratio-interval``; ``density``: ``nodes``, ascending, and ``weights``, the Lanczos quadrature of the spectral density from one start vector.

    Raises:
        Diverged: a product that is not finite.
    """
    with reproducible():
        rows_NT = Human(params=params, tokenizer=load_tokenizer(model)).evaluation()[: params.spectrum_rows]
        loaded: Any = load_model(model, dtype=torch.float32, device=default_device())
        size = -(-len(rows_NT) // params.pieces)
        for embeddings in params.embeddings:
            operator = HessianOverText(
                loaded, microbatches(rows_NT, size=size), precision="fp32",
                parameters=select_parameters(loaded, embeddings=embeddings),
            )  # fmt: skip
            with _timed(stage, operator):
                found = spectrum_over_text(operator, steps=params.lanczos_steps, probes=params.probes, seed=params.seed)
            _record(stage, found, "with" if embeddings else "without")


def _timed(stage: Recorder, operator: HessianOverText) -> AbstractContextManager[object]:
    return stage.microbatch("spectrum", tokens=operator.num_tokens)


def _record(stage: Recorder, found: TextSpectrum, embeddings: str) -> None:
    labels = {"embeddings": embeddings}
    for definition, sigma in found.sigma_bulk.items():
        stage.metric("sigma_bulk", sigma, definition=definition, **labels)
        ratio = found.ratio[definition]
        if ratio.defined:
            stage.metric("ratio", ratio.value, definition=definition, **labels)
    for name, value in (("lambda_max", found.lambda_max.value), ("trace", found.trace), ("probe_sd", found.probe_sd),
                        ("text_sd", found.text_sd), ("products", found.products)):  # fmt: skip
        stage.metric(name, value, **labels)
    tested = found.ratio[TESTED]
    stage.fact("density", {"nodes": list(found.nodes), "weights": list(found.weights)}, **labels)
    stage.fact("ratio-interval", {"value": tested.value, "low": tested.low, "high": tested.high}, **labels)


def measure_landscape(stage: Recorder, *, params: Params, model: Path) -> None:
    """Measure the loss along two directions that are scaled by filter, drawn by the seed alone; ``landscape_points``^2 forward passes.

    Fact ``landscape``: ``reach`` and ``losses`` [R, R] in nats, None where one is not finite.
    """
    with reproducible():
        rows_NT = Human(params=params, tokenizer=load_tokenizer(model)).evaluation()[: params.landscape_rows]
        loaded: Any = load_model(model, dtype=torch.float32, device=default_device())
        first, second = (filter_normalised(loaded, seed=2 * params.seed + at) for at in (0, 1))
        passes = params.landscape_points**2
        with stage.microbatch("landscape", tokens=passes * rows_NT.numel()):
            losses = landscape(
                loaded, lambda: mean_loss(loaded, rows_NT), first, second,
                reach=params.landscape_reach, points=params.landscape_points,
            )  # fmt: skip
    stage.fact("landscape", {"reach": params.landscape_reach, "losses": losses})

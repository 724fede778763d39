"""One cell: Lanczos on one operator, random probes off its space, and what both tell."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

from modelassay.curvature.cost import Cost
from modelassay.curvature.estimators import moments
from modelassay.curvature.operators import CurvatureOperator, Hessian
from modelassay.curvature.spectrum import Spectrum, check_size, summary
from modelassay.curvature.vectors import Tier
from modelassay.experiments.spectral.measure import BLOCK, dense_eigenvalues, exact_numbers, operator_of
from modelassay.experiments.spectral.params import Params
from modelassay.experiments.spectral.resumable import ResumableLanczos, TimedOperator, empty_store
from modelassay.models.load import preload
from modelassay.recording.context import CellContext
from modelassay.statistics.estimate import Estimate

preload()  # once, before cells are forked


def run(params: Params, cell: CellContext) -> None:
    """Record ``loss``, ``gradient_norm`` and sizes; as facts each ``estimate`` of `Spectrum`, and ``ritz`` values with weights.

    Units are ``hvp``: one product over all microbatches. Goes on after any product; the numbers do not depend on where it
    was interrupted.

    Raises:
        Diverged: a loss or a product that is not finite: a finding about the model.
    """
    operator = operator_of(params, store=cell.store)
    check_size(operator.size, params.steps)
    lanczos = ResumableLanczos(timed := TimedOperator(operator, lambda: _unit(params, operator, cell, about)), cell)
    about = _vectors_in_words(lanczos.require_room(params.steps))
    probed = len(lanczos.payload["samples"]) == params.probes and "ends" in lanczos.payload
    first = lanczos.lanczos(0, steps=params.steps, seed=params.seed, basis_wanted=not probed)
    samples = lanczos.probes(first, params.probes, seed=params.seed + 1)
    ends = lanczos.ends(first)
    first.basis = empty_store(timed)  # M vectors of the model's size, which nothing needs any more
    others = [
        lanczos.lanczos(number, steps=params.steps, seed=params.seed + 1, basis_wanted=False)
        for number in range(1, params.runs)
    ]
    vector_bytes = (params.steps + 1) * operator.size * operator.dtype.itemsize
    cost = Cost(products=params.products, vector_bytes=vector_bytes, device_peak_bytes=None)
    trace_moments = moments(first, samples, size=operator.size, cost=cost, exact=operator.precise() is not None)
    _record(summary(timed, first, trace_moments, cost=cost, num_vectors=0, ends=ends), cell)
    for number, space in enumerate([first, *others]):
        values, residuals, rows = space.ritz()
        weights = [float(row[0] ** 2) for row in rows]
        cell.fact("ritz", {"values": list(values), "residuals": list(residuals), "weights": weights}, run=number)
    cell.metric("loss", operator.loss())
    cell.metric("gradient_norm", float(operator.gradient().norm()))
    for name, count in (("parameters", operator.size), ("tokens", operator.num_tokens), ("products", cost.products),
                         ("vector_bytes", vector_bytes)):  # fmt: skip
        cell.metric(name, count)
    if params.dense:
        values_P = dense_eigenvalues(timed)
        for name, exact in exact_numbers(values_P).items():
            cell.metric("exact", exact, quantity=name)
        cell.fact("eigenvalues", values_P.tolist())
    lanczos.remove_vectors()


def _vectors_in_words(places: Mapping[Tier, int]) -> str:
    """Say what makes products slow, where anything does: vectors on the disk are read four times for each."""
    if not places["disk"]:
        return "products"
    return f"products, {places['disk'] / 2**30:.3g} of {sum(places.values()) / 2**30:.3g} GiB of vectors on the disk"


def _unit(params: Params, operator: CurvatureOperator, cell: CellContext, about: str) -> AbstractContextManager[object]:
    """One product, or one block of the whole matrix, with the memory that the process had reached before it; says how far the cell is."""
    blocks = math.ceil(operator.size / BLOCK) if params.dense else 0
    cell.progress(cell.meter.counters.get("hvp", 0) + 1, params.products + blocks, about)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    graphs = operator.bytes_kept if isinstance(operator, Hessian) else 0
    return cell.microbatch("hvp", tokens=operator.num_tokens, host_peak_bytes=host, device_peak_bytes=device,
                            graph_bytes=graphs)  # fmt: skip


def _record(spectrum: Spectrum, cell: CellContext) -> None:
    estimates: dict[str, Estimate] = {
        name: getattr(spectrum, name)
        for name in ("lambda_max", "lambda_min", "centre", "spread", "gap", "outliers", "ratio", "trace")
    }
    estimates |= {f"sigma_bulk {name}": sigma for name, sigma in spectrum.sigma_bulk.items()}
    for name, estimate in estimates.items():
        quantity, _, definition = name.partition(" ")
        labels = {"definition": definition} if definition else {}
        if math.isnan(estimate.value):
            ends: dict[str, float | str | None] = {"note": estimate.note}
        else:
            ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        cell.fact("estimate", {name: end for name, end in ends.items() if end is not None}, quantity=quantity, **labels)

"""One cell: an operation at each shape, type and state of the caches, all providers beside each other."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable

import torch

from modelassay.experiments.kernels.models import Shape
from modelassay.experiments.kernels.params import Params
from modelassay.experiments.kernels.rounds import Result, Rule, measure
from modelassay.machine.peaks import ceiling, memory_probes, product_probes
from modelassay.recording.context import CellContext
from modelassay_kernels.attention import workload as attention
from modelassay_kernels.benchmarking.workload import Sizes, Workload
from modelassay_kernels.bottom_k import workload as bottom_k
from modelassay_kernels.cross_entropy import workload as cross_entropy
from modelassay_kernels.layer_std import workload as layer_std
from modelassay_kernels.native import native_available
from modelassay_kernels.softmax_ggn import workload as softmax_ggn

BY_ROWS: dict[str, Callable[[Sizes, int, torch.dtype, str], Workload]] = {
    "bottom_k": bottom_k.workload,
    "linear_bottom_k": bottom_k.linear_workload,
    "softmax_ggn": softmax_ggn.workload,
    "linear_cross_entropy": cross_entropy.workload,
    "attention": attention.workload,
}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
OURS = "modelassay"


def run(params: Params, cell: CellContext) -> None:
    """Record the rounds as units, ``time_us`` and what the device did at best, and as facts each provider's ``outcome``.

    Raises:
        RuntimeError: ``device`` is cuda and there is none.
    """
    device = params.device if params.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device=cuda: torch.cuda.is_available() is False; use device=cpu, or a machine with a GPU")
    cell.fact("machine", describe(device))
    combinations = [(name, shape, dtype, cache) for name, shape in params.sizes.items()
                    for dtype in params.dtypes for cache in params.caches]  # fmt: skip
    for position, (name, shape, dtype, cache) in enumerate(combinations):
        workload = workload_of(params, shape, DTYPES[dtype], device)
        labels = {"shape": name, "dtype": dtype, "device": device}
        if cache == params.caches[0]:
            about = {
                "bytes": workload.work.bytes,
                "flops": workload.work.flops,
                "sizes": dict(workload.sizes),
                "seed": params.seed,
            }
            cell.fact("workload", about, **labels)
        products = product_probes(DTYPES[dtype], device) if workload.products else {}
        progress = functools.partial(_progress, cell, position, len(combinations), params.max_rounds)
        rule = Rule(min_rounds=params.min_rounds, max_rounds=params.max_rounds, half_width=params.half_width,
                    checked=params.checked)  # fmt: skip
        result = measure(workload, rule, device=device, cache=cache, seed=cell.seed("inputs") % 2**40, wanted=_wanted(params),
                         memory=memory_probes, products=products, progress=progress)  # fmt: skip
        record(cell, params.op, workload, result, **labels, cache=cache)


def workload_of(params: Params, shape: Shape, dtype: torch.dtype, device: str) -> Workload:
    """Return the workload of a model's shape."""
    sizes = Sizes(**shape.model_dump(exclude={"source"}))
    if params.op == "layer_std":
        return layer_std.workload(sizes, params.weight_mib << 20, dtype, device)
    return BY_ROWS[params.op](sizes, params.rows, dtype, device)


def record(cell: CellContext, op: str, workload: Workload, result: Result, **labels: str) -> None:
    """Write what the rounds told: units of providers whose results were right, and an outcome of every provider."""
    for provider, series in result.series.items():
        cell.fact("outcome", {"outcome": series.outcome, "reason": series.reason}, provider=provider, **labels)
        if series.outcome != "done":
            continue
        for number, host_s, device_s in series.seconds:
            cell.meter.timed(op, host_s=host_s, device_s=device_s if labels["device"] == "cuda" else None, bytes=workload.work.bytes,
                             flops=workload.work.flops, provider=provider, round=number, **labels)  # fmt: skip
        estimate = series.estimate()
        cell.metric("time_us", estimate.value * 1e6, provider=provider, **labels)
        cell.metric("rounds", len(series.seconds), provider=provider, **labels)
        cell.metric("half_width", estimate.half_width, provider=provider, **labels)
    for name, samples, unit in (("peak_gbps", result.probes, "gbps"), ("peak_tflops", result.products, "tflops")):
        if samples:
            for probe, values in samples.items():
                cell.metric(name, sorted(values)[len(values) // 2], probe=probe, **labels)
                cell.fact("peak_rounds", [float(f"{value:.6g}") for value in values], probe=probe, unit=unit, **labels)
            cell.metric(f"ceiling_{unit}", ceiling(samples)[1].value, **labels)


def describe(device: str) -> dict[str, str | int | bool]:
    """Return what decides a time here."""
    name = torch.cuda.get_device_name(0) if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "native": native_available(),
    }


def _wanted(params: Params) -> Callable[[str], bool]:
    return lambda provider: params.providers is None or provider == OURS or provider in params.providers


def _progress(cell: CellContext, position: int, count: int, max_rounds: int, number: int) -> None:
    cell.progress(position + number / max_rounds, count, "workloads")

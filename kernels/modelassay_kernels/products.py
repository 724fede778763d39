"""Products as a GPU runs them: fp32 stays fp32, whatever a process has asked PyTorch for elsewhere, and none waits in a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

EXACT = "ieee"


@contextmanager
def full_fp32() -> Iterator[None]:
    """Keep products of fp32 in fp32 within: `torch.set_float32_matmul_precision` makes them TF32 on a GPU, and bfloat16 on a CPU.

    What a training script has chosen for its own layers would otherwise decide a gradient or a choice of logits by three or
    seven fewer bits without a word. The setting belongs to the process: another thread's products are exact too meanwhile.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    if all(precision in {EXACT, "none"} for precision in before):
        yield
        return
    try:
        for backend in backends:
            backend.fp32_precision = EXACT
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, so that no number of a tensor can come to the host."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def stream_of(device: torch.device) -> int:
    """Return what names the stream that work on a device is queued in now: what is made in one is not there yet for another."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0

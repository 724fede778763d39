"""Where a kernel can run: on the GPU, or in Triton's interpreter, which needs a process of its own."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

NEEDS = {
    "test_attention_adapter.py": "transformers",
    "test_attention_models.py": "transformers",
    "test_attention_sweep.py": "transformers",
    "test_layer_std_file.py": "safetensors",
    "test_plot_bottom_k.py": "matplotlib",
}
"""What a bare GPU machine lacks, and the files that are then left out: none of them needs a GPU."""
collect_ignore = [file for file, library in NEEDS.items() if importlib.util.find_spec(library) is None]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_report_header() -> list[str]:
    """Say what is left out."""
    return [f"left out, without {NEEDS[file]}: tests/kernels/{file}" for file in collect_ignore]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take `kernel_device` run on CUDA and in `triton_checks.run_interpreted`; `gpu` tests on CUDA alone."""
    has_gpu = torch.cuda.is_available()
    kept, dropped = [], []
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):  # this hook sees the whole session
            kept.append(item)
            continue
        runs_kernel = "kernel_device" in getattr(item, "fixturenames", ())
        if runs_kernel and has_gpu and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False"))
        wanted = runs_kernel if INTERPRETED else has_gpu or not runs_kernel
        (kept if wanted else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture
def kernel_device() -> torch.device:
    """The device whose tensors Triton kernels take in this process."""
    return torch.device("cpu" if INTERPRETED else "cuda")

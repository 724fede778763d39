"""`import modelassay_kernels` needs only torch: no GPU, no Triton, no compiled extension."""

import subprocess
import sys

import pytest

from modelassay_kernels import native_available

PROGRAM = """
import sys
for name in {missing!r}:
    sys.modules[name] = None  # makes the import of it fail
import modelassay_kernels, torch
assert not {{"transformers", "pytest", "matplotlib"}} & set(sys.modules)
print(modelassay_kernels.native_available(), modelassay_kernels.layer_std([torch.tensor([1.0, 3.0])], correction=0).item())
try:
    modelassay_kernels.require_native()
except ImportError as error:
    print(error)
"""

KERNEL_CALLS = """
from modelassay_kernels.bottom_k import triton_kernels as bottom_k
from modelassay_kernels.layer_std import triton_kernels as layer_std
from modelassay_kernels.softmax_ggn import triton_kernels as softmax_ggn
for call in (
    lambda: layer_std.layer_std_triton([torch.ones(3)]),
    lambda: layer_std.chunk_kernel[(1,)](),
    lambda: bottom_k.bottom_k_triton(torch.ones(2, 3), 1),
    lambda: bottom_k.filter_kernel[(1,)](),
    lambda: softmax_ggn.softmax_ggn_triton(torch.ones(2, 3), torch.ones(2, 3)),
):
    try:
        call()
    except RuntimeError as error:
        assert "Triton" in str(error) and "install" in str(error), error
    else:
        raise AssertionError("no error")
"""


def run_without(*missing: str, then: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(missing=missing) + then], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("missing", [("modelassay_kernels._native",), ("triton", "modelassay_kernels._native")])
def test_import_without(missing: tuple[str, ...]) -> None:
    works, error = run_without(*missing)
    assert works == "False 1.0"
    assert "extension is missing" in error
    assert "pip install" in error


def test_without_triton_its_kernels_are_imported_and_ask_for_it() -> None:
    works, *error = run_without("triton", then=KERNEL_CALLS)
    assert works == f"{native_available()} 1.0"
    assert len(error) == (0 if native_available() else 1)

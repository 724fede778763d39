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
print(modelassay_kernels.native_available(), modelassay_kernels.layer_std([torch.tensor([1.0, 3.0])], correction=0).item())
try:
    modelassay_kernels.require_native()
except ImportError as error:
    print(error)
"""


def run_without(*missing: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(missing=missing)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("missing", [("modelassay_kernels._native",), ("triton", "modelassay_kernels._native")])
def test_import_without(missing: tuple[str, ...]) -> None:
    works, error = run_without(*missing)
    assert works == "False 1.0"
    assert "extension is missing" in error
    assert "pip install" in error


def test_import_without_triton() -> None:
    works, *error = run_without("triton")
    assert works == f"{native_available()} 1.0"
    assert len(error) == (0 if native_available() else 1)

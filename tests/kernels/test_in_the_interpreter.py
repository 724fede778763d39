"""What the kernels of a GPU compute, without one: the tests of all `test_*_triton.py` in Triton's interpreter."""

from pathlib import Path

import pytest

from support.triton_checks import run_interpreted

FILES = sorted(Path(__file__).parent.glob("test_*_triton.py"))


def test_kernels() -> None:
    """One process for all: it takes seconds to start."""
    run_interpreted(FILES, "not nightly")


@pytest.mark.nightly
def test_all_combinations() -> None:
    run_interpreted(FILES, "nightly")

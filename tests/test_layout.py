"""The shape of the house."""

from pathlib import Path

import pytest


@pytest.mark.parametrize("folder", ["bench", "kernels"])
def test_code_folder_is_not_a_package(folder: str) -> None:
    """A kernels/__init__.py would hide Hugging Face's `kernels` from transformers."""
    assert not (Path(__file__).parents[1] / folder / "__init__.py").exists()

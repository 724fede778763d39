"""The instruction sets that the CPU kernels are compiled for, whether or not this machine has them."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from modelassay_kernels import native_available

LAYER_STD_ALONE = "avx512_bf16"
"""Other operations have no code of their own for it."""


def instruction_sets(*, layer_std: bool = False) -> list[str]:
    """Return the names of all that are compiled, best first; none without the extension."""
    if not native_available():
        return []
    from modelassay_kernels import _native  # noqa: PLC0415 - only where it is

    return [name for name in _native.INSTRUCTION_SETS if layer_std or name != LAYER_STD_ALONE]


def require_instruction_set(name: str) -> None:
    """Skip a test of code that this machine cannot run."""
    from modelassay_kernels import _native  # noqa: PLC0415 - only where it is

    if name not in _native.instruction_sets():
        pytest.skip(f"NOT TESTED HERE: this machine has no {name}, its kernels did not run")


def by_instruction_set(function: Callable[..., Any], *, layer_std: bool = False) -> dict[str, Callable[..., Any]]:
    """Return ``function`` by each of them; where the machine does not have one, what is called skips the test and says so."""

    def on(name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            require_instruction_set(name)
            return function(*args, instruction_set=name, **kwargs)

        return functools.wraps(function)(run)

    return {name: on(name) for name in instruction_sets(layer_std=layer_std)}

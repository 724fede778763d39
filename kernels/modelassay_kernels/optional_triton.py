"""Triton where it is installed, a stand-in where it is not: kernel files import `tl`, `jit` and `constexpr` from here.

Importing a kernel file must work everywhere; a kernel that is launched without Triton raises RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

tl: Any
try:
    import triton
    import triton.language

    HAS_TRITON = True
    tl = triton.language
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] != "triton":
        raise
    HAS_TRITON = False
    tl = SimpleNamespace(constexpr=lambda value: value)

constexpr: Any = tl.constexpr


class _Absent:
    """Takes the place of a compiled kernel where Triton is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: object) -> NoReturn:
        raise RuntimeError(
            f"{self.name}: this kernel needs Triton, which is not installed here; install the `triton` package "
            "(Linux only), or pass CPU tensors"
        )


def jit(*, do_not_specialize: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit`, or a kernel whose launch raises RuntimeError where Triton is not installed."""

    def decorate(function: Callable[..., Any]) -> Any:
        if not HAS_TRITON:
            return _Absent(function.__qualname__)
        return triton.jit(function, do_not_specialize=list(do_not_specialize))

    return decorate


def is_interpreted(kernel: Any) -> bool:
    """Whether TRITON_INTERPRET=1 was set when `kernel` was decorated: it then runs on CPU tensors."""
    return type(kernel).__name__ == "InterpretedFunction"

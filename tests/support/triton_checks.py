"""What can be known of a Triton kernel without a GPU: what it computes, interpreted, and what it compiles to."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Shared memory one block may use: sm_80 code also runs on sm_86 and sm_89, which have the least.
SHARED_LIMIT_BYTES = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}


CAPABILITIES = [pytest.param(80, marks=pytest.mark.nightly), 90, pytest.param(100, marks=pytest.mark.nightly)]
"""What kernels are compiled for: Hopper in CI, its elders and successors at night."""


def run_interpreted(files: Sequence[Path], marker: str) -> None:
    """Run the tests of some files that take `kernel_device` under TRITON_INTERPRET=1, and fail with their report.

    Triton reads the variable when it is imported and when a kernel is decorated, so it takes a process of its own.
    """
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=short", "-m", marker]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(file) for file in files)],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"in the interpreter (TRITON_INTERPRET=1 pytest FILE):\n{done.stdout}{done.stderr}", pytrace=False)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One kernel for one architecture."""

    shared_bytes: int
    ptx: str
    registers: int
    """Per thread."""
    spilled_bytes: int
    """Stack and local memory of one thread; not zero means that registers did not suffice."""

    def count(self, pattern: str) -> int:
        """Number of PTX instructions that match."""
        return len(re.findall(pattern, self.ptx))


def compile_ahead(
    kernel: Any,
    *,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    cache: Path,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Compiled:
    """Compile for sm_<capability> on any machine; check the shared memory against the smallest card it must fit.

    `signature` gives the type of each run-time argument ("*i64", "i32"), `constants` the constexprs. The cache goes to `cache`.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415 - only where triton is
    from triton.compiler import ASTSource  # noqa: PLC0415

    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(cache))
        compiled = triton.compile(
            ASTSource(kernel, signature=types, constexprs=dict(constants)),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
    assert compiled.metadata.shared <= SHARED_LIMIT_BYTES[capability]
    cubin = cache / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(
        shared_bytes=compiled.metadata.shared,
        ptx=compiled.asm["ptx"],
        registers=numbers["REG"],
        spilled_bytes=numbers["STACK"] + numbers["LOCAL"],
    )

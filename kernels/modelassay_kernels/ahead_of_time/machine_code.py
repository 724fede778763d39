"""The machine code of a compiled kernel: what ptxas used, and the instructions of the loop in which the work is done."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z][\w.]*)([^;]*);")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
MATRIX = re.compile(r"HGMMA|HMMA|UTC\w*MMA")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a warp."""

    address: int
    predicate: str
    name: str
    """With its suffixes: LDG.E.128."""

    operands: str

    @property
    def kind(self) -> str:
        """The name without suffixes."""
        return self.name.partition(".")[0]

    @property
    def loaded_bytes(self) -> int:
        """What one thread reads from device memory, directly or into shared memory."""
        return _width(self.name) if self.kind in {"LDG", "LDGSTS"} else 0

    @property
    def stored_bytes(self) -> int:
        """What one thread writes to device memory."""
        return _width(self.name) if self.kind == "STG" else 0

    @property
    def shared_bytes(self) -> int:
        """What one thread moves between shared memory and registers."""
        if self.kind in {"LDS", "STS"}:
            return _width(self.name)
        matrices = (
            re.search(r"\.M88(?:\.(\d))?|\.MT88(?:\.(\d))?", self.name) if self.kind in {"LDSM", "STSM"} else None
        )
        return 4 * int(matrices[1] or matrices[2] or 1) if matrices else 0

    @property
    def branch_target(self) -> int | None:
        """Where a branch goes."""
        target = re.search(r"\b0x([0-9a-f]+)\s*$", self.operands) if self.kind == "BRA" else None
        return int(target[1], 16) if target else None


def _width(name: str) -> int:
    return next((size for part, size in _WIDTHS.items() if f".{part}" in f"{name}."), 4)


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """One kernel for one architecture."""

    name: str
    registers: int
    """Per thread."""

    spilled_bytes: int
    """Stack and local memory of one thread; not zero means that registers did not suffice."""

    shared_bytes: int
    num_warps: int
    instructions: tuple[Instruction, ...]

    def loops(self) -> list[Part]:
        """The bodies of innermost loops, in order. A wait on a barrier that stands behind the code is none."""
        spans = [
            (target, one.address)
            for one in self.instructions
            if (target := one.branch_target) is not None
            and target < one.address
            and (one.predicate or "UP" in one.operands or not self._ends_between(target, one.address))
        ]
        inner = [
            a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] and _works(self, b) for b in spans)
        ]
        return [self._part(first, last) for first, last in sorted(set(inner))]

    def _ends_between(self, first: int, last: int) -> bool:
        """Whether the program ends there: what jumps back over that has waited behind the code."""
        return any(
            one.kind == "EXIT" and not one.predicate and first <= one.address <= last for one in self.instructions
        )

    def whole(self) -> Part:
        """All of it."""
        return Part(instructions=self.instructions, num_warps=self.num_warps)

    def _part(self, first: int, last: int) -> Part:
        inside = tuple(one for one in self.instructions if first <= one.address <= last)
        return Part(instructions=inside, num_warps=self.num_warps)

    def streaming(self) -> list[Part]:
        """The loops that read device memory by the kernel's widest loads; all of it where no loop does."""
        widest = max((one.loaded_bytes for one in self.instructions), default=0)
        parts = [part for part in self.loops() if any(one.loaded_bytes == widest for one in part.instructions)]
        return parts if parts and widest else [self.whole()]

    def multiplying(self) -> list[Part]:
        """The loops that multiply matrices."""
        return [part for part in self.loops() if part.matrix_instructions()]


def _works(code: MachineCode, span: tuple[int, int]) -> bool:
    """Whether an inner loop does more than to wait for a barrier."""
    inside = [one for one in code.instructions if span[0] <= one.address <= span[1]]
    return any(one.loaded_bytes or MATRIX.match(one.name) for one in inside)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of a kernel's instructions: those of one pass of a loop."""

    instructions: tuple[Instruction, ...]
    num_warps: int

    def __len__(self) -> int:
        return len(self.instructions)

    @property
    def loaded_bytes(self) -> int:
        """Read from device memory by one thread, in the widest loads; a scalar that all threads read counts for nothing."""
        return sum(one.loaded_bytes for one in self.instructions if one.loaded_bytes == self.widest_load)

    @property
    def stored_bytes(self) -> int:
        """Written to device memory by one thread, in stores of 16 bytes; flags and counts are fewer."""
        return sum(one.stored_bytes for one in self.instructions if one.stored_bytes == 16)

    @property
    def widest_load(self) -> int:
        """Bytes of the widest load of a thread."""
        return max((one.loaded_bytes for one in self.instructions), default=0)

    @property
    def shared_bytes(self) -> int:
        """Moved between shared memory and registers by one thread."""
        return sum(one.shared_bytes for one in self.instructions)

    @property
    def spills(self) -> int:
        """Loads from and stores to a thread's own memory."""
        return sum(one.kind in {"LDL", "STL"} for one in self.instructions)

    def register_flops(self) -> int:
        """Multiplied by one warp from registers: HMMA.16816 has 4,096 flops, HMMA.1688 half."""
        shapes = (re.search(r"HMMA\.(16816|1688)", one.name) for one in self.instructions)
        return sum({"16816": 4096, "1688": 2048}[shape[1]] for shape in shapes if shape)

    def matrix_instructions(self) -> Counter[str]:
        """How many of each kind: HGMMA and UTCHMMA are asynchronous and read shared memory, HMMA reads registers."""
        return Counter(one.kind for one in self.instructions if MATRIX.match(one.name))


def _tool(arguments: Iterable[str], cubin: bytes) -> str:
    import triton  # noqa: PLC0415 - only where triton is

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, *arguments, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(listing: str) -> tuple[Instruction, ...]:
    """Read what cuobjdump -sass prints.

    >>> (one,) = parse("        /*0040*/              @!P0 BRA 0x10 ;      /* 0x0 */")
    >>> one.name, one.predicate, one.branch_target
    ('BRA', '!P0', 16)
    >>> parse("/*0010*/  LDG.E.128 R4, desc[UR4][R2.64] ;")[0].loaded_bytes
    16
    """
    found = (
        Instruction(address=int(match[1], 16), predicate=match[2] or "", name=match[3], operands=match[4].strip())
        for match in _INSTRUCTION.finditer(listing)
    )
    return tuple(one for one in found if one.kind != "NOP")


def read(compiled: Any) -> MachineCode:
    """Disassemble one of Triton's CompiledKernels."""
    cubin = compiled.asm["cubin"]
    listing = _tool(["-res-usage", "-sass"], cubin)
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
    return MachineCode(
        name=compiled.metadata.name,
        registers=usage["REG"],
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        instructions=parse(listing),
    )

"""What a kernel's instructions let a card reach at best, if nothing else were in the way."""

# N = query rows of one tile, M = keys of one tile, D = head dimension

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from modelassay_kernels.ahead_of_time.cases import CASES, PRODUCTS, Case
from modelassay_kernels.ahead_of_time.machine_code import MachineCode, Part, read
from modelassay_kernels.ahead_of_time.pretended import CARDS, Card, Launch, pretended_gpu

SCHEDULERS = 4
"""Of a multiprocessor: each issues one instruction of one warp a cycle."""

SHARED_BYTES = 128
"""Between shared memory and registers, a cycle and multiprocessor."""

REGISTER_RATE = {80: 1.0, 90: 0.62, 100: 0.25}
"""HMMA's share of the tensor cores' peak. On Hopper as measured by Luo et al., arXiv 2402.13499, section 5; on Blackwell, for want of
a source, the rate of sm_80."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel, or one loop of it, for one card."""

    op: str
    case: str
    kernel: str
    capability: int
    registers: int
    spilled_bytes: int
    loop_spills: int
    """Loads and stores of spilled registers in the loop."""

    shared_bytes: int
    tile: str
    """What one program is."""

    instructions: int
    """Of one warp, in one pass of the loop."""

    per: str
    """What `cost` counts instructions for."""

    cost: float
    """A warp's instructions per 16 bytes of each thread; a multiprocessor's per MFLOP of the result."""

    using: str
    """The loads or the matrix instructions."""

    bound: float
    """Share of the card's peak that cannot be passed: of reading, or of multiplying."""


def rows(case: Case, capability: int) -> Iterator[Row]:
    """Compile one case's launches and read them."""
    with pretended_gpu(capability) as launches:
        case.call()
    for index, launch in enumerate(launches):
        code = read(launch.compiled)
        if launch.name in PRODUCTS:
            yield _product_row(case, launch, code, CARDS[capability])
        else:
            yield from _stream_rows(case, code, CARDS[capability], case.parts if index == 0 else ())


def all_rows(capabilities: tuple[int, ...], only: str = "") -> Iterator[Row]:
    """Yield rows of every case whose name contains ``only``."""
    for capability in capabilities:
        for case in CASES:
            if only in str(case):
                yield from rows(case, capability)


def _common(case: Case, code: MachineCode, card: Card) -> dict[str, Any]:
    return {
        "op": case.op, "case": case.label, "capability": card.capability, "registers": code.registers,
        "spilled_bytes": code.spilled_bytes, "shared_bytes": code.shared_bytes,
    }  # fmt: skip


def _stream_rows(case: Case, code: MachineCode, card: Card, names: tuple[str, ...]) -> Iterator[Row]:
    parts = code.streaming()
    named = [(f"{code.name} {name}", [part]) for name, part in zip(names, parts, strict=True)] if names else []
    for name, several in named or [(code.name, parts)]:
        loaded = sum(part.loaded_bytes for part in several)
        count = sum(len(part) for part in several)
        cost = count * 16 / loaded if loaded else float("nan")
        widest = max(part.widest_load for part in several)
        bound = min(1.0, SCHEDULERS * 32 * 16 / cost / card.read_bytes) if loaded else 1.0
        yield Row(
            **_common(case, code, card), kernel=name, loop_spills=sum(part.spills for part in several),
            tile=f"{code.num_warps} warps", instructions=count, per="16 bytes", cost=cost, using=f"{widest}-byte loads",
            bound=bound,
        )  # fmt: skip


def _product_row(case: Case, launch: Launch, code: MachineCode, card: Card) -> Row:
    constants = {name: value for (name, value) in _constants(launch).items()}
    tile = (constants["N"], constants["M"], constants["BLOCK_D"])
    flops = 2 * tile[0] * tile[1] * tile[2] * PRODUCTS[launch.name]
    wide = "fp32" in case.label
    part = max(code.multiplying(), key=len, default=code.whole())
    peak = card.tensor_flops / (6 if wide else 1)  # tf32 has half the rate, and three products make one
    clocks = max(
        len(part) * code.num_warps / SCHEDULERS,
        part.shared_bytes * 32 * code.num_warps / SHARED_BYTES,
        _tensor_clocks(part, code, card, flops, wide=wide),
    )
    stages = launch.compiled.metadata.num_stages
    return Row(
        **_common(case, code, card), kernel=launch.name, loop_spills=part.spills,
        tile=f"{tile[0]} x {tile[1]}, {code.num_warps} warps, {stages} stages", instructions=len(part), per="MFLOP",
        cost=len(part) * code.num_warps / (flops / 1e6),
        using=", ".join(f"{count} {kind}" for kind, count in sorted(part.matrix_instructions().items())) or "none",
        bound=min(1.0, flops / clocks / peak),
    )  # fmt: skip


def _tensor_clocks(part: Part, code: MachineCode, card: Card, flops: int, *, wide: bool) -> float:
    """Return cycles of the tensor cores: what is multiplied from registers at its own rate, the rest at the peak."""
    rate = card.tensor_flops / (2 if wide else 1)
    in_all = flops * (3 if wide else 1)
    from_registers = min(in_all, part.register_flops() * code.num_warps)
    return from_registers / (rate * REGISTER_RATE[card.capability]) + (in_all - from_registers) / rate


def _constants(launch: Launch) -> dict[str, Any]:
    source = launch.compiled.src
    names = source.fn.arg_names
    return {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}


def as_dict(row: Row) -> dict[str, Any]:
    """Return a row for JSON."""
    return asdict(row)

"""What a kernel's instructions let a card reach at best, if nothing else were in the way."""

# N = query rows of one tile, M = keys of one tile, D = head dimension

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


STREAMING = {"chunk_kernel", "filter_kernel", "fold_kernel", "softmax_ggn_kernel", "statistics_kernel", "result_kernel"}
"""Kernels through which everything is read."""

VISITS = {"softmax_ggn_kernel": 2}
"""How often a kernel loads what it reads from device memory once; the rest comes from L2."""


def goal(case: Case, kernel: str, element: str) -> float:
    """Return the share of the card's peak that an op is to reach."""
    if case.op == "layer_std" and kernel in STREAMING:
        return 0.8 if element == "fp8" else 0.9
    if kernel == "filter_kernel":
        return 0.8 if "fp32" in case.label else 0.6
    if kernel == "softmax_ggn_kernel":
        return 0.75
    if kernel in PRODUCTS and "bf16" in case.label:
        return {"forward_kernel": 0.7}.get(kernel, 0.45 if "tangent" in kernel else 0.0)
    return 0.0


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
    """What `cost` counts instructions for; empty where a kernel is too small a part for a bound."""

    cost: float
    """A warp's instructions per 16 bytes that each thread reads or writes; all warps' per MFLOP of the result."""

    using: str
    """The loads or the matrix instructions."""

    bound: float
    """Share of the card's peak that cannot be passed: of reading, or of multiplying."""

    goal: float
    """What the bound must leave room for; 0: none is set."""


def rows(case: Case, capability: int) -> Iterator[Row]:
    """Compile one case's launches and read them."""
    with pretended_gpu(capability) as launches:
        case.call()
    different = {id(launch.compiled): launch for launch in launches}  # rows in several chunks launch a kernel again
    for launch in different.values():
        code = read(launch.compiled)
        if launch.name in PRODUCTS:
            yield _product_row(case, launch, code, CARDS[capability])
        else:
            yield from _stream_rows(case, code, CARDS[capability])


def all_rows(capabilities: Sequence[int] = tuple(CARDS), among: str = "") -> Iterator[Row]:
    """Yield the rows of every case for every card, of those alone whose name has ``among`` in it."""
    for capability in capabilities:
        for case in CASES:
            if among in str(case):
                yield from rows(case, capability)


def _common(case: Case, code: MachineCode, card: Card) -> dict[str, Any]:
    return {
        "op": case.op, "case": case.label, "capability": card.capability, "registers": code.registers,
        "spilled_bytes": code.spilled_bytes, "shared_bytes": code.shared_bytes,
    }  # fmt: skip


def _stream_rows(case: Case, code: MachineCode, card: Card) -> Iterator[Row]:
    common = _common(case, code, card) | {"tile": f"{code.num_warps} warps"}
    if code.name not in STREAMING:
        yield Row(
            **common, kernel=code.name, loop_spills=0, instructions=0, per="", cost=0.0, using="", bound=1.0, goal=0.0
        )
        return
    parts = code.streaming()
    for name, part in _named(code.name, parts):
        cost = len(part) * 16 / (part.loaded_bytes / VISITS.get(code.name, 1) + part.stored_bytes)
        yield Row(
            **common, kernel=f"{code.name} {name}".strip(), loop_spills=part.spills, instructions=len(part),
            per="16 bytes", cost=cost, using=f"{part.widest_load}-byte loads",
            bound=min(1.0, SCHEDULERS * 32 * 16 / cost / card.read_bytes), goal=goal(case, code.name, name),
        )  # fmt: skip


def _named(kernel: str, parts: list[Part]) -> list[tuple[str, Part]]:
    """Name the loops that count: each element type's of layer_std, of other kernels the one that reads most."""
    if kernel in VISITS:  # each visit is a loop
        return [
            (
                "",
                Part(
                    instructions=tuple(one for part in parts for one in part.instructions), num_warps=parts[0].num_warps
                ),
            )
        ]
    if kernel != "chunk_kernel":
        return [("", max(parts, key=lambda part: part.loaded_bytes))]
    named = {_element(part, max(one.loaded_bytes for one in parts)): part for part in sorted(parts, key=len)}
    return sorted(named.items())  # of two fp8 types the longer


def _element(part: Part, widest: int) -> str:
    """Tell layer_std's loops apart: a tile has as many bytes as its elements, and an fp16 is widened by HADD2.F32."""
    if part.loaded_bytes == widest:
        return "fp32"
    if part.loaded_bytes < widest // 2:
        return "fp8"
    return "fp16" if any(one.name.startswith("HADD2.F32") for one in part.instructions) else "bf16"


def _product_row(case: Case, launch: Launch, code: MachineCode, card: Card) -> Row:
    constants = _constants(launch)
    tile = (constants["N"], constants["M"], constants["BLOCK_D"])
    flops = round(2 * tile[0] * tile[1] * tile[2] * products(launch.name, constants))
    wide = "fp32" in case.label
    loop = min if launch.name == "forward_kernel" else max  # that of whole tiles; the other is of a span's edges
    part = loop(code.multiplying(), key=len, default=code.whole())
    peak = card.tensor_flops / (6 if wide else 1)  # tf32 has half the rate, and three products make one
    clocks = max(
        len(part) * code.num_warps / SCHEDULERS,
        part.shared_bytes * 32 * code.num_warps / SHARED_BYTES,
        _tensor_clocks(part, code, card, round(flops * _done(constants)), wide=wide),
    )
    stages = launch.compiled.metadata.num_stages
    return Row(
        **_common(case, code, card), kernel=launch.name + _outputs(constants), loop_spills=part.spills,
        tile=f"{tile[0]} x {tile[1]}, {code.num_warps} warps, {stages} stages", instructions=len(part), per="MFLOP",
        cost=len(part) * code.num_warps / (flops / 1e6),
        using=", ".join(f"{count} {kind}" for kind, count in sorted(part.matrix_instructions().items())) or "none",
        bound=min(1.0, flops / clocks / peak), goal=goal(case, launch.name, ""),
    )  # fmt: skip


def _tensor_clocks(part: Part, code: MachineCode, card: Card, flops: int, *, wide: bool) -> float:
    """Return cycles of the tensor cores: what is multiplied from registers at its own rate, the rest at the peak."""
    rate = card.tensor_flops / (2 if wide else 1)
    in_all = flops * (3 if wide else 1)
    from_registers = min(in_all, part.register_flops() * code.num_warps)
    return from_registers / (rate * REGISTER_RATE[card.capability]) + (in_all - from_registers) / rate


def products(kernel: str, constants: dict[str, Any]) -> float:
    """Return the products that must be done; where dK' and dV' have a launch each, which do 8 and 5, their shares of 10."""
    if not constants.get("DK", True) or not constants.get("DV", True):
        return PRODUCTS[kernel] * (8 if constants["DK"] else 5) / 13
    return PRODUCTS[kernel]


def _done(constants: dict[str, Any]) -> float:
    """Products done for one that must be."""
    return 1.3 if _outputs(constants) else 1.0


def _outputs(constants: dict[str, Any]) -> str:
    both = constants.get("DK", True) and constants.get("DV", True)
    return "" if both else " dK'" if constants["DK"] else " dV'"


def _constants(launch: Launch) -> dict[str, Any]:
    source = launch.compiled.src
    names = source.fn.arg_names
    return {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}

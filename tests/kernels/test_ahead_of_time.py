"""The code that a GPU would run, compiled from the ops' own launches, and `kernels/RESOURCES.md`, which tells of it."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from modelassay_kernels.ahead_of_time import bounds  # noqa: E402
from modelassay_kernels.ahead_of_time.__main__ import BEFORE, measure, measure_with  # noqa: E402
from modelassay_kernels.ahead_of_time.cases import CASES, MORE_CASES, PRODUCTS, Case  # noqa: E402
from modelassay_kernels.ahead_of_time.machine_code import MachineCode, parse, read  # noqa: E402
from modelassay_kernels.ahead_of_time.pretended import CARDS, Launch, pretended_gpu  # noqa: E402
from modelassay_kernels.ahead_of_time.report import markdown, sections, with_rows  # noqa: E402
from modelassay_kernels.bottom_k.triton_kernels import bottom_k_triton  # noqa: E402
from support.triton_checks import SHARED_LIMIT_BYTES  # noqa: E402

PAGE = Path(__file__).parents[2] / "kernels" / "RESOURCES.md"
OTHER_TRITON = "MODELASSAY_TRITON_3_6"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile into a folder of the test's own, unless one is named."""
    if "TRITON_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=str)
def test_what_is_launched_compiles_for_hopper(case: Case) -> None:
    check(case, 90)


@pytest.mark.nightly
@pytest.mark.parametrize("case", [*CASES, *MORE_CASES], ids=str)
@pytest.mark.parametrize("capability", CARDS)
def test_every_configuration_compiles(case: Case, capability: int) -> None:
    check(case, capability)


STREAM_LIMITS = {
    # kernel: registers, bytes of stack; none of them in the loop
    "filter_kernel": (64, 0),  # 1,024 threads of a multiprocessor
    "softmax_ggn_kernel": (64, 0),
    "statistics_kernel": (64, 8),  # sm_80 keeps one scalar of tanh on the stack
    "result_kernel": (64, 8),
    "chunk_kernel": (128, 16),  # sm_100 keeps a few scalars
    "merge_kernel": (128, 0),
}


def check(case: Case, capability: int) -> None:
    """Compile what a call launches; every property that its speed or its repeatability rests on must hold."""
    rows = list(bounds.rows(case, capability))
    assert rows
    for row in rows:
        assert row.shared_bytes <= SHARED_LIMIT_BYTES[capability], row.kernel
        kernel, _, element = row.kernel.partition(" ")
        if kernel in STREAM_LIMITS:
            registers, stack = STREAM_LIMITS[kernel]
            assert row.registers <= registers, row
            assert (row.loop_spills, row.spilled_bytes <= stack) == (0, True), row
        if kernel in STREAM_LIMITS and row.per:
            assert row.using == "16-byte loads"
            assert row.bound >= row.goal or element == "fp8", row
        if kernel in PRODUCTS:
            assert "MMA" in row.using
            assert row.loop_spills <= spills_known(row), row
        if capability == 90 and "bf16" in row.case and kernel in PRODUCTS and "256" not in row.case:
            assert "HGMMA" in row.using
            assert row.bound >= row.goal, row
    with pretended_gpu(capability) as launches:
        case.call()
    for launch in launches:
        ptx = launch.compiled.asm["ptx"]
        assert ".visible .entry" in ptx
        counted = launch.name == "softmax_ggn_kernel"  # by integers, which is no matter of order
        assert not re.search(r"\b(?:atom|red)\S*\.(?:f16|bf16|f32|f64)" if counted else r"\b(?:atom|red)\.global", ptx)
        assert not counted or (re.search(r"ld\S*\.acquire", ptx) and re.search(r"atom\S*\.release", ptx))
        if launch.name in PRODUCTS:
            check_precision(launch, fp32="fp32" in case.label)


def spills_known(row: bounds.Row) -> int:
    """Loads and stores of spilled registers in a loop; of fp32, whose factors are three, and of D = 256 no tile without is known."""
    if "256" in row.case or ("fp32" in row.case and row.kernel != "backward_q_kernel"):
        return 400
    return 16 if row.capability == 100 else 0


def check_precision(launch: Launch, *, fp32: bool) -> None:
    """TF32 multiplies fp32 alone, and then three times for one product."""
    types = set(re.findall(r"(?:mma|wgmma|tcgen05\.mma)\S*?\.(tf32|bf16|f16|kind::\w+)\.?", launch.compiled.asm["ptx"]))
    assert ("tf32" in types) == fp32, types
    if fp32:
        code, constants = read(launch.compiled), bounds._constants(launch)
        flops = 2 * constants["N"] * constants["M"] * constants["BLOCK_D"] * bounds.products(launch.name, constants)
        for part in code.multiplying():
            assert part.register_flops() * code.num_warps >= 3 * flops * bounds._done(constants) * 0.99


def test_what_a_launch_gives_is_what_is_compiled() -> None:
    """Pointers at multiples of 16, sizes of one, and rows that begin anywhere."""
    with pretended_gpu(90) as launches:
        x_NV = torch.empty(64, 50_257, dtype=torch.bfloat16, device="cuda")
        bottom_k_triton(x_NV[:, :50_256].as_strided((64, 50_256), (50_256, 1)), 2000)
        bottom_k_triton(x_NV[:, 1:], 2000)  # odd rows, and the first begins at no multiple of 16 either
        bottom_k_triton(x_NV[:, ::2], 2000)
    assert [launch.name for launch in launches] == ["filter_kernel", "finish_kernel"] * 3
    sources = [launch.compiled.src for launch in launches[::2]]
    divisible = [["tt.divisibility", 16] in source.attrs.get((0,), []) for source in sources]
    assert divisible == [True, False, True]
    assert [source.constants.get((5,)) for source in sources] == [1, 1, None]  # the columns' stride
    widest = [max(one.loaded_bytes for one in read(launch.compiled).instructions) for launch in launches[::2]]
    assert widest == [16, 16, 2]


def test_values_cannot_be_read_where_there_are_none() -> None:
    with pretended_gpu(90), pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
        bool(torch.ones(3, device="cuda").any())
    assert torch.empty(1).device.type == "cpu"


LISTING = """
        /*0000*/                   LDG.E.U16 R1, desc[UR4][R2.64] ;   /* 0x0 */
        /*0010*/                   FADD R1, R1, R2 ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0040*/                   LDSM.16.M88.4 R8, [R3] ;
        /*0050*/                   LDL R9, [R1] ;
        /*0060*/              @!P0 BRA 0x20 ;
        /*0070*/               @P1 BRA 0x0 ;
        /*0078*/                   EXIT ;
        /*0080*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR5], R3 ;
        /*0090*/              @!P4 BRA 0x80 ;
        /*00a0*/                   BRA 0x30 ;
        /*00b0*/                   BRA 0xb0;
        /*00c0*/                   NOP;
"""


def test_the_loop_that_works_is_found() -> None:
    """Not the one around it, nor a wait, nor the way back from one."""
    code = MachineCode(name="k", registers=8, spilled_bytes=0, shared_bytes=0, num_warps=4, instructions=parse(LISTING))
    assert len(code.instructions) == 13
    (part,) = code.streaming()
    assert part == code.multiplying()[0]
    assert (len(part), part.loaded_bytes, part.widest_load, part.shared_bytes) == (5, 16, 16, 16)
    assert (part.spills, part.register_flops(), dict(part.matrix_instructions())) == (1, 4096, {"HMMA": 1})


def test_a_bound_is_the_slowest_of_what_a_tile_needs() -> None:
    """512 flops an instruction on sm_90 would be all of the peak by issue alone, HMMA has 0.62 of it."""
    card = CARDS[90]
    assert card.tensor_flops * card.multiprocessors * 1.83e9 == pytest.approx(989e12, rel=0.01)  # of the data sheet
    assert CARDS[80].tensor_flops * 108 * 1.41e9 == pytest.approx(312e12, rel=0.01)
    assert CARDS[100].tensor_flops * 148 * 1.85e9 == pytest.approx(2250e12, rel=0.01)
    assert bounds.products("backward_tangent_kv_kernel", {"DK": True, "DV": True}) == 10
    parts = [bounds.products("backward_tangent_kv_kernel", {"DK": dk, "DV": not dk}) for dk in (True, False)]
    assert sum(parts) == pytest.approx(10)


def test_rows_of_some_cases_take_the_place_of_theirs() -> None:
    rows = json.loads(BEFORE.read_text())
    page = markdown(rows)
    assert with_rows(page, rows) == page
    chosen = [
        row | {"registers": 7} for row in rows if row["op"] == "softmax_ggn" and row["triton"] == rows[-1]["triton"]
    ]
    changed = [
        (old, new) for old, new in zip(page.split("\n"), with_rows(page, chosen).split("\n"), strict=True) if old != new
    ]
    assert [new.split(" | ")[:2] for _, new in changed] == [["| softmax_ggn", row["case"]] for row in chosen]
    assert all(" | 7 | " in new and " | 7 | " not in old for old, new in changed)
    with pytest.raises(ValueError, match="the page has no softmax_ggn, another under '## sm_90"):
        with_rows(page, [chosen[0] | {"case": "another"}])


@pytest.mark.nightly
def test_the_page_is_what_the_code_gives() -> None:
    """RESOURCES.md, for the Triton that is installed and the other where its folder is named."""
    page = PAGE.read_text()
    measured = measure(tuple(CARDS))
    version = measured[0]["triton"]
    if f"Triton {version}\n" not in page:
        pytest.skip(f"the page is of other versions of Triton than {version}")
    for section in sections(measured).values():
        assert section in page


@pytest.mark.nightly
def test_the_page_is_what_the_other_triton_gives() -> None:
    folder = os.environ.get(OTHER_TRITON)
    if folder is None:
        pytest.skip(f"{OTHER_TRITON} names no folder: pip install --target FOLDER --no-deps triton==3.6.0")
    page = PAGE.read_text()
    measured = measure_with(Path(folder), tuple(CARDS))
    assert measured[0]["triton"] == "3.6.0"
    for section in sections(measured).values():
        assert section in page

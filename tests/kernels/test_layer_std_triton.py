"""layer_std on CUDA: numbers, in the interpreter and on a GPU."""

import math
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from modelassay_kernels.layer_std import triton_kernels as op
from modelassay_kernels.layer_std.work_table import work_table_of

TOLERANCE = {dtype: 1e-12 if dtype == torch.float64 else 1e-6 for dtype in op.DTYPES}
SMALL = op.LaunchConfig(block=1024, num_warps=4, chunk=2048)  # so that a few thousand elements are several chunks
# Outside the interpreter these are silent; in it NumPy reports what the kernel then handles.
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN slice) encountered:RuntimeWarning")


def reference(tensors: Sequence[Tensor], scales: Sequence[Tensor | None] | None = None, correction: int = 1) -> Tensor:
    """Two passes in float64; `scales` are given elementwise."""
    values = []
    for x, scale in zip(tensors, scales or [None] * len(tensors), strict=True):
        x64 = x.detach().cpu().double() * (1.0 if scale is None else scale.cpu().double())
        divisor = float(x64.numel() - correction)
        squares = float((x64 - x64.mean()).square().sum())
        values.append((squares / divisor) ** 0.5 if divisor > 0 else float("nan"))
    return torch.tensor(values, dtype=torch.float64)


def assert_matches(tensors: Sequence[Tensor], config: op.LaunchConfig = SMALL) -> Tensor:
    """Compare with the reference; where that is NaN, demand NaN."""
    std_T = op.layer_std_from_table(op.build_work_table(tensors, None, config)).cpu()
    tolerance = max(TOLERANCE[x.dtype] for x in tensors)
    torch.testing.assert_close(std_T, reference(tensors), rtol=tolerance, atol=0.0, equal_nan=True)
    return std_T


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32, mean: float = 0.0, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def by_blocks(scale: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Repeat every scale over its block, the last ones ragged."""
    return scale.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]


@pytest.mark.parametrize("dtype", op.DTYPES, ids=str)
def test_every_dtype_at_ragged_and_whole_sizes(dtype: torch.dtype, kernel_device: torch.device) -> None:
    sizes = (2, 33, 1023, 1024, 2047, 3072, 4099)
    assert_matches([normal(size, seed=size, dtype=dtype).to(kernel_device) for size in sizes])


def test_one_call_takes_all_dtypes_and_the_default_configuration(kernel_device: torch.device) -> None:
    tensors = [normal(2048 + 77 * i, seed=i, dtype=dtype).to(kernel_device) for i, dtype in enumerate(op.DTYPES)]
    std_T = op.layer_std_triton(tensors)
    torch.testing.assert_close(std_T.cpu(), reference(tensors), rtol=1e-6, atol=0.0)
    assert (std_T.dtype, std_T.device.type) == (torch.float64, kernel_device.type)


@pytest.mark.parametrize("correction", [0, 1, 3])
def test_too_few_elements_are_nan(correction: int, kernel_device: torch.device) -> None:
    tensors = [normal(n, seed=n).to(kernel_device) for n in range(6)] + [torch.ones(0, 5, device=kernel_device)]
    std_T = op.layer_std_triton(tensors, correction=correction).cpu()
    torch.testing.assert_close(std_T, reference(tensors, correction=correction), rtol=1e-6, atol=1e-15, equal_nan=True)
    assert std_T.isnan().tolist() == [n <= correction for n in range(6)] + [True]


def test_no_tensors_give_no_numbers() -> None:
    assert op.layer_std_triton([]).shape == (0,)


def test_a_mean_far_from_zero_costs_no_digits(kernel_device: torch.device) -> None:
    shifted = [normal(4099, seed=1, mean=mean, std=0.02).to(kernel_device) for mean in (1.0, 10.0, -1000.0)]
    first_tile_apart = torch.cat([normal(1024, seed=2, std=1e-3), normal(3072, seed=3, mean=50.0)]).to(kernel_device)
    assert_matches([*shifted, first_tile_apart])


@overflows
@pytest.mark.parametrize("value", [0.1, pytest.param(-3.0, marks=pytest.mark.nightly), 1e30, 0.0])
def test_a_constant_tensor_is_exactly_zero(value: float, kernel_device: torch.device) -> None:
    tensors = [torch.full((n,), value, device=kernel_device) for n in (7, 1024, 4099)]
    tensors.append(torch.full((4099,), value, dtype=torch.float64, device=kernel_device))
    assert op.layer_std_from_table(op.build_work_table(tensors, None, SMALL)).tolist() == [0.0] * 4


def test_one_element_is_one_rounding_step_away(kernel_device: torch.device) -> None:
    x = torch.full((131072,), 1000.1)
    x[77777] = torch.nextafter(x[0], torch.tensor(2000.0))
    assert_matches([x.to(kernel_device)], op.CONFIGS[0])


@overflows
@pytest.mark.parametrize(
    "magnitude", [3e38, *(pytest.param(m, marks=pytest.mark.nightly) for m in (1e30, 1e19, 1e-19, 1e-21, 1e-30)), 1e-42]
)
def test_squares_beyond_fp32_are_no_limit(magnitude: float, kernel_device: torch.device) -> None:
    unit = normal(2050, seed=4).double()
    tensors = [
        (unit / unit.abs().max() * magnitude).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)
    ]
    lone = torch.zeros(2050)
    lone[1500] = magnitude
    assert_matches([x.to(kernel_device) for x in (*tensors, lone)])


@overflows
@pytest.mark.parametrize("magnitude", [1.7e308, 1e200, 1e-200, 1e-310])
def test_squares_beyond_float64_are_no_limit(magnitude: float, kernel_device: torch.device) -> None:
    unit = normal(4099, seed=4, dtype=torch.float64)
    unit /= unit.abs().max() * 2  # halved: no difference overflows
    std_T = op.layer_std_from_table(op.build_work_table([(unit * magnitude).to(kernel_device)], None, SMALL))
    torch.testing.assert_close(std_T.cpu(), reference([unit]) * magnitude, rtol=1e-12, atol=0.0)


@overflows
@pytest.mark.parametrize(
    "poison", [math.nan, *(pytest.param(value, marks=pytest.mark.nightly) for value in (math.inf, -math.inf))]
)
def test_nan_or_infinity_stays_in_its_tensor(poison: float, kernel_device: torch.device) -> None:
    tensors = [torch.full((1024,), poison)]
    for i, dtype in enumerate(op.DTYPES):
        for place in (5, 2048):  # in a whole tile, and in the ragged end
            x = normal(2050, seed=i, dtype=torch.float64)
            x[place] = poison
            tensors += [normal(1024, seed=9, dtype=dtype), x.to(dtype)]
    std_T = assert_matches([x.to(kernel_device) for x in tensors])
    assert std_T.isnan().tolist() == [not x.double().isfinite().all() for x in tensors]  # e4m3fn turns inf into 448


BLOCK_SCALES = [
    # shape, block, what it meets
    ((8, 512), (4, 128), "whole tiles"),
    ((10, 512), (4, 32), "whole tiles, then ragged rows"),
    ((11, 300), (4, 128), "ragged both ways"),
    ((11, 256), (1, 256), "one per row"),
    ((5, 70), (2, 5), "blocks no power of two"),
    ((12, 768), (3, 96), "whole groups, but no powers of two"),
    ((8, 768), (8, 128), "one row of scales, tiles under two and under four of them"),
]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "block", "meets"), BLOCK_SCALES, ids=[case[2] for case in BLOCK_SCALES])
def test_block_scales(
    dtype: torch.dtype, shape: tuple[int, int], block: tuple[int, int], meets: str, kernel_device: torch.device
) -> None:
    x = normal(*shape, seed=5, dtype=dtype)
    scale = normal(-(-shape[0] // block[0]), -(-shape[1] // block[1]), seed=6).abs() + 0.1
    table = op.build_work_table([x.to(kernel_device)], [scale.to(kernel_device)], SMALL, blocks=[block])
    expected = reference([x], [by_blocks(scale, shape, block)])
    torch.testing.assert_close(op.layer_std_from_table(table).cpu(), expected, rtol=1e-6, atol=0.0)


@overflows
def test_scalar_and_row_scales(kernel_device: torch.device) -> None:
    x = normal(6, 256, seed=7, dtype=torch.float8_e4m3fn).to(kernel_device)
    scalar, row = torch.tensor(-1e30, device=kernel_device), (normal(6, seed=8).abs() + 0.1).to(kernel_device)
    scales = [scalar, row, row[:, None], scalar.reshape(1, 1), None, torch.tensor(float("inf"), device=kernel_device)]
    std_T = op.layer_std_triton([x] * 6, scales=scales)
    elementwise = [scalar, row[:, None], row[:, None], scalar, None, torch.tensor(float("nan"))]
    torch.testing.assert_close(std_T.cpu(), reference([x] * 6, elementwise), rtol=1e-6, atol=0.0, equal_nan=True)


def test_views_of_every_kind(kernel_device: torch.device) -> None:
    x = normal(12, 1024, seed=10).to(kernel_device)
    views = {
        "rows apart, whole tiles": x[:, :512],
        "rows apart, ragged": x[:, 3:300],
        "transposed": x.t(),
        "columns apart": x[:, ::3],
        "permuted": x.view(3, 4, 1024).permute(2, 0, 1),
        "unaligned": x.flatten()[1:],
        "one row repeated": x[:1].expand(5, 1024),
    }
    assert_matches(list(views.values()))


def test_offsets_beyond_int32(kernel_device: torch.device) -> None:
    apart = 2**30 + 16  # storage of 3 GB, of which only four rows are ever touched
    storage = torch.empty(3 * apart + 512, dtype=torch.uint8, device=kernel_device).view(torch.float8_e5m2)
    x = storage.as_strided((4, 512), (apart, 1))
    for i, row in enumerate(x):
        row.copy_(normal(512, seed=11 + i, std=2.0**i))
    assert_matches([x, x[:, :300]])  # whole tiles, and ragged


def test_every_e4m3_number(kernel_device: torch.device) -> None:
    bits = torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(1, 64)  # 1024 each: the fast path
    tensors = [row[(row & 0x7F) != 0x7F].view(torch.float8_e4m3fn) for row in bits]
    assert_matches([x.to(kernel_device) for x in tensors])
    assert_matches([x[:20].to(kernel_device) for x in tensors])


def test_nothing_is_left_unwritten(kernel_device: torch.device) -> None:
    tensors = [normal(size, seed=size).to(kernel_device) for size in (5, 2048, 5000)]
    table = op.build_work_table(tensors, None, SMALL)
    partials = torch.full((table.tensor_C.numel(), 3), float("nan"), dtype=torch.float64, device=kernel_device)
    std_T = torch.full((3,), float("nan"), dtype=torch.float64, device=kernel_device)
    op.launch(table, partials, std_T, 1)
    torch.testing.assert_close(std_T.cpu(), reference(tensors), rtol=1e-6, atol=0.0)
    counts = [float(partials[table.tensor_C == i, 0].sum()) for i in range(3)]
    assert counts == [5.0, 2048.0, 5000.0]


def test_bits_do_not_depend_on_the_company(kernel_device: torch.device) -> None:
    tensors = [normal(size, seed=size).to(kernel_device) for size in (4099, 31, 2048)]
    together = op.layer_std_triton(tensors)
    backwards = op.layer_std_triton(tensors[::-1]).flip(0)
    assert together.tolist() == backwards.tolist() == op.layer_std_triton(tensors).tolist()


def test_a_table_sees_changed_values(kernel_device: torch.device) -> None:
    x = normal(1500, seed=13).to(kernel_device)
    table = op.build_work_table([x], None, SMALL)
    before = op.layer_std_from_table(table)
    x.mul_(4.0)
    assert op.layer_std_from_table(table).item() == 4.0 * before.item()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("config", op.CONFIGS, ids=str)
def test_more_elements_than_int32_counts(dtype: torch.dtype, config: op.LaunchConfig) -> None:
    size = 2**31 + 4099
    needed = size * dtype.itemsize + 4 * 10**9
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 1e9:.1f} GB of free device memory")
    x = torch.empty(size, dtype=dtype, device="cuda")
    total, squares = torch.zeros(2, dtype=torch.float64, device="cuda")
    generator = torch.Generator("cuda").manual_seed(14)
    for i, part in enumerate(x.split(2**26)):
        part.copy_(torch.randn(part.shape, device="cuda", generator=generator) * (1 + i % 3))
        total += part.double().sum()
        squares += part.double().square().sum()
    expected = ((squares - total**2 / size) / (size - 1)).sqrt()  # the mean is near zero: nothing cancels
    std_T = op.layer_std_from_table(op.build_work_table([x, x[:-4099].view(16, -1)[:, :-256]], None, config))
    torch.testing.assert_close(std_T[0], expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(std_T[1], expected, rtol=1e-4, atol=0.0)  # a few elements fewer


def test_cpu_tensors_are_turned_away() -> None:
    with pytest.raises(ValueError, match="tensors are on cpu; move them to a CUDA device"):
        op.layer_std_triton([torch.ones(3)])


@pytest.mark.parametrize(
    ("tensors", "scales", "error", "message"),
    [
        ([], None, ValueError, "no tensors were given"),
        (
            [torch.ones(3), torch.ones(3, dtype=torch.int32)],
            None,
            TypeError,
            r"tensors\[1\]: dtype torch.int32 is not supp",
        ),
        (
            [torch.ones(3), torch.ones(3, device="meta")],
            None,
            ValueError,
            r"tensors\[1\] is on meta and tensors\[0\] on cpu",
        ),
        ([torch.ones(3)], [None, None], ValueError, "got 2 entries for 1 tensors"),
        ([torch.ones(3)], [torch.ones(1, device="meta")], ValueError, r"scales\[0\] is on meta"),
        (
            [torch.ones(3)],
            [torch.ones(3)],
            ValueError,
            r"scale of shape \(3,\) needs a matrix, got a tensor of shape \(3,\)",
        ),
        (
            [torch.ones(4, 6)],
            [torch.ones(6)],
            ValueError,
            r"scale of shape \(6,\) fits no blocks of a matrix of shape \(4, 6\)",
        ),
        (
            [torch.ones(5, 6)],
            [torch.ones(4, 6)],
            ValueError,
            r"scale of shape \(4, 6\) fits no blocks of a matrix of shape \(5, 6\)",
        ),
    ],
)
def test_what_cannot_be_described_is_an_error(
    tensors: list[Tensor], scales: list[Tensor | None] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        op.build_work_table(tensors, scales, SMALL)


def test_the_table_of_the_same_tensors_is_made_once(kernel_device: torch.device) -> None:
    """Until one of them lies elsewhere or is another; a copy's values would grow old, so tables that hold one are not kept."""
    x, y = (normal(3000, seed=seed).to(kernel_device) for seed in (1, 2))
    table = work_table_of([x, y], None, SMALL)
    assert work_table_of([x, y], None, SMALL) is table
    assert work_table_of([y, x], None, SMALL) is not table
    assert work_table_of([x, y.view(2, -1)], None, SMALL) is not table
    x.mul_(3.0)
    torch.testing.assert_close(op.layer_std_triton([x, y]).cpu(), reference([x, y]), rtol=1e-6, atol=0.0)
    x.data = normal(3000, seed=3).to(kernel_device)
    assert work_table_of([x, y], None, SMALL) is not table
    apart = normal(64, 96, seed=4).to(kernel_device)[:, ::2]
    assert work_table_of([apart], None, SMALL) is not work_table_of([apart], None, SMALL)
    whole = torch.tensor(2.0, device=kernel_device)
    scaled = work_table_of([x], [whole], SMALL)
    assert work_table_of([x], [whole], SMALL) is scaled
    assert work_table_of([x], None, SMALL) is not scaled


def test_a_kept_table_keeps_no_tensor(kernel_device: torch.device) -> None:
    x = normal(3000, seed=1).to(kernel_device)
    work_table_of([x], None, SMALL)
    gone = weakref.ref(x)
    del x
    assert gone() is None

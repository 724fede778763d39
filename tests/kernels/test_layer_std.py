import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelassay_kernels import layer_std, native, native_available
from modelassay_kernels.layer_std.cpu import layer_std_native, rows_of
from modelassay_kernels.layer_std.reference import layer_std_reference
from modelassay_kernels.layer_std.scales import split_scale
from support.engines import by_instruction_set
from support.layer_std_cases import DTYPES, SIZES, assert_same_std, every_code, normal
from support.pairwise import pairwise
from support.sparse_rows import far_apart

if native_available():
    from modelassay_kernels import _native

    ENGINES = by_instruction_set(layer_std_native, layer_std=True)
else:
    ENGINES = {"reference": layer_std_reference}

BLOCK = (128, 128)

needs_native = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return ENGINES[request.param]


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_reference_is_the_textbook_value() -> None:
    got = layer_std_reference([torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 4, 4, 4, 5, 5, 7, 9.0])], correction=0)
    assert_same_std(got, torch.tensor([math.sqrt(14 / 9), 2.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_sizes(engine: Callable[..., Tensor], dtype: torch.dtype) -> None:
    tensors = [normal(size, dtype=dtype, std=0.5, seed=i) for i, size in enumerate(SIZES)]
    assert_same_std(engine(tensors), layer_std_reference(tensors))


def test_thousand_small_tensors_of_all_types(engine: Callable[..., Tensor]) -> None:
    tensors = [normal(1 + i % 211, dtype=DTYPES[i % 6], seed=i) for i in range(1000)]
    assert_same_std(engine(tensors), layer_std_reference(tensors))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype.itemsize <= 2])
def test_every_code(engine: Callable[..., Tensor], dtype: torch.dtype) -> None:
    values = every_code(dtype)
    halves = [values[values.double().abs() < 1], values[values.double().abs() < 1e-3]]
    assert_same_std(engine([values, *halves]), layer_std_reference([values, *halves]))


MEANS = [(1.0, 0.1), (10.0, 0.02), (1000.0, 0.01), (-3.0, 1e-3)]


@pytest.mark.parametrize(("engine", "dtype", "moments"), pairwise(ENGINES, DTYPES, MEANS), indirect=["engine"])
def test_mean_far_from_zero(engine: Callable[..., Tensor], dtype: torch.dtype, moments: tuple[float, float]) -> None:
    mean, std = moments
    tensor = normal(300_001, dtype=dtype, mean=mean, std=std)
    assert_same_std(engine([tensor]), layer_std_reference([tensor]))


@pytest.mark.parametrize(
    ("dtype", "std"),
    [(torch.float32, 1e30), (torch.float32, 1e-30), (torch.float32, 1e-41), (torch.bfloat16, 1e36)]
    + [(torch.bfloat16, 1e-39), (torch.float64, 1e200), (torch.float64, 1e-200), (torch.float64, 1e-310)],
)
def test_squares_beyond_the_range(engine: Callable[..., Tensor], dtype: torch.dtype, std: float) -> None:
    tensors = [normal(size, dtype=dtype, std=std, seed=size) for size in (5, 70_001)]
    want = layer_std_reference(tensors)
    assert bool((want > 0.1 * std).all())
    assert_same_std(engine(tensors), want)


def test_largest_double(engine: Callable[..., Tensor]) -> None:
    largest = torch.tensor([-1.7e308, 1.7e308], dtype=torch.float64)
    assert_same_std(engine([largest], correction=0), largest[1:])


def test_outliers_where_the_centre_is_sampled(engine: Callable[..., Tensor]) -> None:
    tensors = [normal(200_001, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for tensor in tensors:
        tensor[0] = 1e6
        tensor[-1] = -3e6
    steps = torch.arange(200_001).div(50_000, rounding_mode="floor").float() * 1e4 + normal(
        200_001, dtype=torch.float32
    )
    assert_same_std(engine([*tensors, steps]), layer_std_reference([*tensors, steps]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_values_whose_sums_always_round_the_same_way(engine: Callable[..., Tensor], dtype: torch.dtype) -> None:
    signs = normal(1_000_003, dtype=torch.float64).sign()
    tensors = [(signs * value).to(dtype) for value in (0.02, 0.1, 1 / 3)]
    assert_same_std(engine(tensors), layer_std_reference(tensors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_is_exactly_zero(engine: Callable[..., Tensor], dtype: torch.dtype) -> None:
    tensors = [torch.full((size,), value).to(dtype) for size in (2, 127, 200_001) for value in (0.0, 0.1, -300.0)]
    assert engine(tensors).tolist() == [0.0] * len(tensors)
    blocks = torch.full((200, 200), 0.7).to(dtype)
    assert engine([blocks], scales=[torch.full((2, 2), 0.3)], blocks=[BLOCK]).tolist() == [0.0]


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(("engine", "dtype", "bad"), pairwise(ENGINES, DTYPES, BAD), indirect=["engine"])
def test_one_bad_element_spoils_its_tensor_alone(engine: Callable[..., Tensor], dtype: torch.dtype, bad: float) -> None:
    if dtype == torch.float8_e4m3fn:
        bad = math.nan  # the format has no infinity
    good = normal(70_001, dtype=torch.float32)
    tensors = [good.to(dtype)]
    for position in (0, 1, 33_333, 70_000):
        spoiled = good.clone()
        spoiled[position] = bad
        tensors.append(spoiled.to(dtype))
    got = engine(tensors)
    assert got.isnan().tolist() == [False, True, True, True, True]
    assert_same_std(got, layer_std_reference(tensors))


def test_too_few_elements(engine: Callable[..., Tensor]) -> None:
    sizes = [torch.ones(size) for size in (0, 1, 2, 3)]
    assert engine(sizes).isnan().tolist() == [True, True, False, False]
    assert engine(sizes, correction=2).isnan().tolist() == [True, True, True, False]
    assert engine(sizes, correction=0).isnan().tolist() == [True, False, False, False]
    assert engine([torch.ones(3, 0), torch.ones(0, 3, 4)]).isnan().all()
    assert engine([]).shape == (0,)


@pytest.mark.parametrize("correction", [0, 1, 2])
def test_correction(engine: Callable[..., Tensor], correction: int) -> None:
    tensor = normal(7, dtype=torch.float64)
    want = tensor.std(correction=correction)[None]
    assert_same_std(engine([tensor], correction=correction), want)


WIDTHS = [torch.bfloat16, torch.float32, torch.float8_e4m3fn]
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "left columns": lambda w: w[:, :77],
    "middle columns": lambda w: w[:, 100:229],
    "one column": lambda w: w[:, 5],
    "every third row": lambda w: w[::3],
    "transposed": lambda w: w.t(),
    "transposed rows": lambda w: w.t()[10:200],
    "every second column": lambda w: w[:, ::2],
    "swapped axes": lambda w: w.view(17, 19, 301).permute(2, 0, 1),
    "one axis of three cut": lambda w: w.view(17, 19, 301)[:, 2:9],
    "expanded": lambda w: w[3].expand(5, 301),
    "single element": lambda w: w[1:2, 1:2],
}


@pytest.mark.parametrize(("engine", "dtype", "view"), pairwise(ENGINES, WIDTHS, VIEWS), indirect=["engine"])
def test_views(engine: Callable[..., Tensor], dtype: torch.dtype, view: str) -> None:
    tensor = VIEWS[view](normal(17 * 19, 301, dtype=dtype, mean=0.5))
    assert_same_std(engine([tensor]), layer_std_reference([tensor]))


@pytest.mark.parametrize("view", sorted(VIEWS.keys() - {"every second column"}))
def test_views_of_rows_are_read_in_place(view: str) -> None:
    tensor = VIEWS[view](torch.zeros(17 * 19, 301))
    assert rows_of(tensor).data_ptr() == tensor.data_ptr()


SCALES = {
    "whole": ((300, 200), (1,), None),
    "scalar": ((300, 200), (), None),
    "scalar of a block": ((100, 90), (1, 1), BLOCK),
    "rows": ((300, 200), (300, 1), None),
    "rows, one dimension": ((300, 200), (300,), None),
    "columns": ((300, 200), (1, 200), None),
    "blocks of 128, ragged": ((300, 200), (3, 2), BLOCK),
    "blocks of 128, whole": ((384, 1024), (3, 8), BLOCK),
    "blocks of 128 across tiles": ((130, 9001), (2, 71), BLOCK),
    "rows longer than a tile": ((3, 270_001), (1, 2110), (3, 128)),
    "blocks of 50": ((300, 200), (6, 4), (50, 50)),
    "blocks of 53 and 61, ragged": ((300, 200), (6, 4), (53, 61)),
    "blocks of 16, ragged": ((100, 90), (7, 6), (16, 16)),
    "single elements": ((7, 5), (7, 5), None),
    "pairs, which nothing else fits": ((300, 200), (150, 100), None),
}


SCALED = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16]


@pytest.mark.parametrize(("engine", "dtype", "case"), pairwise(ENGINES, SCALED, SCALES), indirect=["engine"])
def test_scales(engine: Callable[..., Tensor], dtype: torch.dtype, case: str) -> None:
    shape, scale_shape, block = SCALES[case]
    tensor = normal(*shape, dtype=dtype, std=30.0)
    scale = normal(*scale_shape, dtype=torch.float32, mean=2e-3, std=1e-3, seed=1)
    plain = normal(64, dtype=torch.float32)
    got = engine([tensor, plain], scales=[scale, None], blocks=[block, None])
    rows, columns = block or [
        -(-length // count) for length, count in zip(shape, (*scale_shape, 1, 1)[:2], strict=True)
    ]
    factor = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    factor = factor.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]
    assert_same_std(got, layer_std_reference([tensor.double() * factor, plain]))


def test_scaled_columns_are_read_in_place(engine: Callable[..., Tensor]) -> None:
    tensor = normal(300, 512, dtype=torch.float8_e4m3fn)[:, 128:384]
    scale = normal(3, 2, dtype=torch.float32, seed=1)
    got = engine([tensor], scales=[scale], blocks=[BLOCK])
    assert_same_std(got, layer_std_reference([tensor], [scale], blocks=[BLOCK]))


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-38])
def test_scale_of_any_size(engine: Callable[..., Tensor], scale: float) -> None:
    tensor = normal(200, 200, dtype=torch.float8_e5m2)
    scales = torch.full((2, 2), scale) * torch.tensor([1.0, 2.0])
    got = engine([tensor], scales=[scales], blocks=[BLOCK])
    assert_same_std(got, layer_std_reference([tensor], [scales], blocks=[BLOCK]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_scale_spoils_its_tensor(engine: Callable[..., Tensor], bad: float) -> None:
    tensor = normal(200, 200, dtype=torch.float8_e4m3fn)
    scales = [torch.tensor([[1.0, 1.0], [1.0, bad]]), torch.tensor(bad)]
    assert engine([tensor, tensor], scales=scales, blocks=[BLOCK, None]).isnan().all()


@pytest.mark.parametrize(
    ("shape", "scale_shape"), [((10, 10), (11, 1)), ((2, 10, 10), (2, 1, 1)), ((100,), (3,)), ((10, 10), (1, 2, 2))]
)
def test_scale_that_fits_nothing(shape: tuple[int, ...], scale_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scale of shape"):
        layer_std([torch.ones(shape)], scales=[torch.ones(scale_shape)])


AMBIGUOUS = [
    # shape, scale, the least and the largest block that would fit
    ((160, 160), (2, 2), "80 to 159"),
    ((7168, 2048), (56, 16), "128 to 130"),
    ((576, 7168), (5, 56), "116 to 143"),
    ((24, 20), (3, 1), "8 to 11"),
    ((1, 512), (1, 16), "32 to 34"),
]


@pytest.mark.parametrize(("shape", "scale_shape", "between"), AMBIGUOUS)
def test_block_is_never_guessed(shape: tuple[int, int], scale_shape: tuple[int, int], between: str) -> None:
    tensor, scale = torch.ones(shape).to(torch.float8_e4m3fn), torch.ones(scale_shape)
    for call in (layer_std, layer_std_reference):
        with pytest.raises(ValueError, match=f"may be blocks of {between} along .*; state the block"):
            call([tensor], scales=[scale])
    for count, block in ((0, (200, 200)), (1, (7, 7)), (1, (0, 128)), (1, (-80, 80))):
        with pytest.raises(ValueError, match="layer_std: "):
            layer_std([tensor], scales=[None if count == 0 else scale], blocks=[block])
    with pytest.raises(ValueError, match="2 blocks for 1 tensors"):
        layer_std([tensor], scales=[scale], blocks=[None, None])


def test_block_that_shapes_leave_no_choice_of() -> None:
    assert split_scale((129, 70), torch.ones(65, 70))[1:] == (2, 1)
    assert split_scale((300, 200), torch.ones(300))[1:] == (1, 200)
    assert split_scale((300, 200), torch.ones(100, 1))[1:] == (3, 200)


@needs_native
@pytest.mark.usefixtures("restore_threads")
def test_same_bits_for_any_number_of_threads() -> None:
    tensors = [normal(3_000_017, dtype=dtype, mean=0.3) for dtype in DTYPES] + [normal(9, dtype=torch.float32)] * 50
    results = []
    for num_threads in (1, 2, 3, 7):
        torch.set_num_threads(num_threads)
        results.append(layer_std(tensors).tolist())
    assert results[1:] == results[:1] * 3


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [normal(size, dtype=torch.bfloat16) for size in SIZES]
    with_it = layer_std(tensors)
    monkeypatch.setattr(native, "unavailable", "hidden by the test")
    assert not native_available()
    assert_same_std(layer_std(tensors), with_it)
    with pytest.raises(ImportError, match=r"hidden by the test.*pip install"):
        native.require_native()


def test_gradients_and_parameters_are_of_no_concern() -> None:
    parameter = torch.nn.Parameter(normal(1000, dtype=torch.float32))
    assert not layer_std([parameter]).requires_grad
    assert_same_std(layer_std([parameter]), parameter.detach().double().std()[None])


def test_mixed_devices() -> None:
    with pytest.raises(ValueError, match="cpu, meta"):
        layer_std([torch.ones(3), torch.ones(3, device="meta")])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_other_types(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="tensor 1 has dtype"):
        layer_std([torch.ones(3), torch.ones(3, dtype=dtype)])


def test_scales_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="1 scales for 2 tensors"):
        layer_std([torch.ones(3), torch.ones(3)], scales=[None])


@needs_native
def test_more_than_two_to_the_31_elements() -> None:
    row = normal(4099, dtype=torch.float8_e5m2)
    num_rows = (1 << 31) // 4099 + 2
    population_variance = row.double().var(correction=0) * num_rows * 4099 / (num_rows * 4099 - 1)
    assert_same_std(layer_std([row.expand(num_rows, 4099)]), population_variance.sqrt()[None])


@needs_native
def test_addresses_beyond_two_to_the_31(tmp_path: Path) -> None:
    values = normal(3, 1001, dtype=torch.bfloat16)
    assert_same_std(layer_std([far_apart(values, tmp_path / "sparse")]), layer_std_reference([values]))


@needs_native
def test_binding_checks_sizes_before_memory() -> None:
    out = torch.empty(1, dtype=torch.float64)
    matrix = torch.ones(4, 6)
    for item in [
        (matrix, "BF16", None),  # another type than it holds
        (matrix, "X", None),
        (matrix.t(), "F32", None),
        (matrix, "F32", (torch.ones(1, 2), 4, 2)),  # three blocks of two columns
        (matrix, "F32", (torch.ones(1, 1), 0, 6)),
    ]:
        with pytest.raises(ValueError, match="layer_std: item 0"):
            _native.layer_std([item], out, 1, 1)
    with pytest.raises(ValueError, match="one output per item"):
        _native.layer_std([], out, 1, 1)
    with pytest.raises(ValueError, match="instruction set 'sse9'"):
        _native.layer_std([(matrix, "F32", None)], out, 1, 1, "sse9")


@needs_native
def test_read_bandwidth_reads_every_byte() -> None:
    data = torch.randint(0, 256, (1_000_003,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in _native.instruction_sets():
        for pattern in range(_native.NUM_READ_PATTERNS):
            whole = _native.read_bytes(data, 2, name, pattern)
            for i in range(0, 1_000_003, 99_991):
                changed = data.clone()
                changed[i] ^= 1
                assert _native.read_bytes(changed, 2, name, pattern) != whole
    assert native.read_bandwidth(data, num_reads=1) > 0
    with pytest.raises(ValueError, match="contiguous"):
        native.read_bandwidth(torch.ones(4, 4).t())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("block", [(128, 128), (32, 48), (1, 700), (7, 1)], ids=str)
def test_codes_in_blocks(engine: Callable[..., Tensor], dtype: torch.dtype, block: tuple[int, int]) -> None:
    """Tiles that begin within a block, ragged ends, scales of every size, a mean away from 0, equal elements and a bad scale."""
    shape = (700, 701)
    counts = [-(-length // size) for length, size in zip(shape, block, strict=True)]
    spread = torch.exp2(normal(*counts, dtype=torch.float32, std=6.0, seed=1))
    bad = spread.clone()
    bad[-1, -1] = math.inf
    cases = [
        (normal(*shape, dtype=dtype), spread),
        (normal(*shape, dtype=dtype, mean=3.0, std=0.5, seed=2), torch.ones(counts)),
        (torch.full(shape, 0.75).to(dtype), torch.full(counts, 3.0)),
        (normal(*shape, dtype=dtype, seed=3), spread * 1e-30),
        (normal(*shape, dtype=dtype, seed=4), bad),
    ]
    tensors, scales = ([case[i] for case in cases] for i in (0, 1))
    expected = layer_std_reference(tensors, scales, blocks=[block] * len(cases))
    assert expected[2] == 0
    assert expected[4].isnan()
    assert_same_std(engine(tensors, scales, blocks=[block] * len(cases)), expected)

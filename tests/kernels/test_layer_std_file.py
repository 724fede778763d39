import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from modelassay_kernels import FileSpan, layer_std, layer_std_file, native, native_available
from modelassay_kernels.dtypes import CODES
from modelassay_kernels.layer_std.reference import layer_std_reference
from support.layer_std_cases import DTYPES, assert_same_std, every_code, normal

needs_native = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")


@pytest.fixture(params=["native", "fallback"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fallback":
        monkeypatch.setattr(native, "unavailable", "hidden by the test")
    elif not native_available():
        pytest.skip("needs the compiled extension")
    return str(request.param)


def write(path: Path, tensor: Tensor, *, offset: int = 0) -> FileSpan:
    """Write the matrix after ``offset`` other bytes and return the span of all of it."""
    with path.open("wb") as file:
        file.write(b"\xff" * offset)
        file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    num_rows, num_cols = tensor.shape
    return FileSpan(str(path), offset, CODES[tensor.dtype], num_rows, num_cols, num_cols)


def columns(span: FileSpan, first: int, last: int) -> FileSpan:
    size = {code: dtype.itemsize for dtype, code in CODES.items()}[span.dtype]
    return span._replace(offset=span.offset + first * size, num_cols=last - first)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 13])
def test_matches_memory(tmp_path: Path, dtype: torch.dtype, offset: int) -> None:
    tensors = [normal(rows, cols, dtype=dtype, mean=0.5) for rows, cols in [(1, 1), (3, 7), (641, 1031), (1, 300_007)]]
    spans = [write(tmp_path / str(i), tensor, offset=offset) for i, tensor in enumerate(tensors)]
    assert_same_std(layer_std_file(spans), layer_std_reference(tensors))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_as_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = normal(1009, 1031, dtype=dtype, mean=0.1)
    span = write(tmp_path / "x", tensor, offset=7)
    cut = columns(span, 100, 900)
    assert layer_std_file([span, cut]).tolist() == layer_std([tensor, tensor[:, 100:900]]).tolist()


@pytest.mark.usefixtures("engine")
def test_safetensors_file(tmp_path: Path) -> None:
    tensors = {"a": normal(70, 31, dtype=torch.bfloat16), "b": normal(5, 9, dtype=torch.float32)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    spans = [FileSpan(str(path), start + 45 * 4, "BF16", 70, 31, 31), FileSpan(str(path), start, "F32", 1, 45, 45)]
    assert_same_std(layer_std_file(spans), layer_std_reference(list(tensors.values())))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("num_rows", "num_cols"), [(50, 1100), (40, 40_000), (3, 200_000)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_columns(tmp_path: Path, dtype: torch.dtype, num_rows: int, num_cols: int) -> None:
    """Gaps of both kinds: read with the rows, and jumped over."""
    tensor = normal(num_rows, num_cols, dtype=dtype, mean=2.0)
    span = write(tmp_path / "x", tensor)
    cuts = [(0, 768), (100, 101), (1, num_cols)]
    got = layer_std_file([columns(span, *cut) for cut in cuts])
    assert_same_std(got, layer_std_reference([tensor[:, slice(*cut)] for cut in cuts]))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scales(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = normal(300, 400, dtype=dtype, std=20.0)
    span = write(tmp_path / "x", tensor)
    scales = [normal(*shape, dtype=torch.float32, seed=1) for shape in [(3, 4), (300, 1), (1,), (1, 400)]]
    blocks = [(128, 128), None, None, None]
    got = layer_std_file([span._replace(scale=scale, block=block) for scale, block in zip(scales, blocks, strict=True)])
    assert_same_std(got, layer_std_reference([tensor] * 4, scales, blocks=blocks))
    cut = columns(span, 128, 384)._replace(scale=scales[0][:, 1:3], block=blocks[0])
    assert_same_std(
        layer_std_file([cut]), layer_std_reference([tensor[:, 128:384]], [scales[0][:, 1:3]], blocks=blocks[:1])
    )
    with pytest.raises(ValueError, match="may be blocks of 100 to 149 along 300 elements.*; state the block"):
        layer_std_file([span._replace(scale=scales[0])])


@pytest.mark.usefixtures("engine")
def test_hostile_values(tmp_path: Path) -> None:
    tensors = [
        every_code(torch.float8_e5m2)[None],
        torch.full((3, 50), 0.1),
        normal(2, 9, dtype=torch.float32, std=1e30),
    ]
    tensors += [torch.tensor([[1.0, torch.nan, 2.0]]), torch.tensor([[1.0], [torch.inf]]), torch.ones(1, 1)]
    spans = [write(tmp_path / str(i), tensor) for i, tensor in enumerate(tensors)]
    got = layer_std_file(spans)
    assert got[1] == 0
    assert got.isnan().tolist() == [False, False, False, True, True, True]
    assert_same_std(got, layer_std_reference(tensors))


@pytest.mark.usefixtures("engine")
def test_correction_and_too_few(tmp_path: Path) -> None:
    span = write(tmp_path / "x", torch.tensor([[1.0, 3.0]]))
    assert layer_std_file([span], correction=0).tolist() == [1.0]
    assert layer_std_file([span, span._replace(num_cols=0)], correction=2).isnan().all()
    assert layer_std_file([]).shape == (0,)


@pytest.mark.usefixtures("engine")
def test_span_past_the_end(tmp_path: Path) -> None:
    span = write(tmp_path / "cut.safetensors", torch.ones(10, 10))._replace(offset=8)
    with pytest.raises(ValueError, match=r"cut\.safetensors: span 1 needs bytes 8 to 408, but the file has 400"):
        layer_std_file([span._replace(offset=0), span])


@pytest.mark.usefixtures("engine")
def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        layer_std_file([FileSpan(str(tmp_path / "absent"), 0, "F32", 1, 1, 1)])


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    "change", [{"offset": -4}, {"num_rows": -1}, {"num_cols": -1}, {"row_stride": 5}, {"num_rows": 1 << 62}]
)
def test_impossible_span(tmp_path: Path, change: dict[str, int]) -> None:
    span = write(tmp_path / "x", torch.ones(10, 10))
    with pytest.raises(ValueError, match="x: span 0"):
        layer_std_file([span._replace(**change)])


@pytest.mark.usefixtures("engine")
def test_unknown_type(tmp_path: Path) -> None:
    span = write(tmp_path / "x", torch.ones(2, 2))
    with pytest.raises(TypeError, match="span 0 has dtype 'I8'"):
        layer_std_file([span._replace(dtype="I8")])


@needs_native
def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    from modelassay_kernels import _native

    span = write(tmp_path / "x", torch.ones(100, 100))
    out = torch.empty(1, dtype=torch.float64)
    (tmp_path / "x").write_bytes(b"\0" * 1000)
    with pytest.raises(RuntimeError, match=r"x: ends at byte 1000, but bytes up to 40000 are needed"):
        _native.layer_std_file([(*span[:6], None)], out, 1, 2)


@pytest.mark.usefixtures("engine")
def test_offsets_and_indices_beyond_two_to_the_31(tmp_path: Path) -> None:
    values = normal(4, 1001, dtype=torch.float8_e4m3fn)
    stride = (1 << 31) + 12_345
    offset = 5 << 30
    with (tmp_path / "sparse").open("wb") as file:
        for i in range(4):
            file.seek(offset + i * stride)
            file.write(values[i].view(torch.uint8).numpy().tobytes())
    span = FileSpan(str(tmp_path / "sparse"), offset, "F8_E4M3", 4, 1001, stride)
    assert_same_std(layer_std_file([span]), layer_std_reference([values]))


RESIDENT = """
import resource, sys, torch
from modelassay_kernels import FileSpan, layer_std_file
torch.set_num_threads(4)
spans = [FileSpan(sys.argv[1], 0, "F32", 1, 1 << 26, 1 << 26), FileSpan(sys.argv[1], 0, "F32", 1 << 13, 1 << 12, 1 << 13)]
layer_std_file([spans[0]._replace(num_cols=10)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert layer_std_file(spans).tolist() == [0.0, 0.0]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_resident_memory_stays_small(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 28)
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 64 * 1024

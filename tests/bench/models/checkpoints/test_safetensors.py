"""A header is believed only if every byte of the file is accounted for."""

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints.prepare import read_ahead
from modelassay.models.checkpoints.safetensors import MAX_HEADER_BYTES, read_header, read_shard_index
from modelassay_kernels import FileSpan


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2, 3), begin: int = 0, end: int = 24) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write(path: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_offsets_lead_to_the_elements(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool]
    tensors = {f"t{i}": torch.arange(i * 7).reshape(7, i).to(dtype) for i, dtype in enumerate(dtypes)}
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.keys() == tensors.keys()
    data = path.read_bytes()
    for name, tensor in tensors.items():
        info = header[name]
        assert info.shape == tuple(tensor.shape)
        assert data[info.offset : info.offset + info.size_bytes] == bytes(tensor.view(torch.uint8).flatten().tolist())


def test_sub_byte_elements_are_counted_in_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"a": entry("F4", (6, 8)), "b": entry("F6_E2M3", (4,), 24, 27)}, bytes(27))
    assert [info.size_bytes for info in read_header(path).values()] == [24, 3]


GOOD = json.dumps({"a": entry()}).encode()
BROKEN = {
    "empty file": (b"", "is empty; its download did not begin"),
    "truncated length": (b"\x10\x00", "claims 16 bytes in a file of 2"),
    "truncated header": (struct.pack("<Q", len(GOOD)) + GOOD[:-5], "claims"),
    "header longer than file": (struct.pack("<Q", 2**40) + GOOD + bytes(24), f"claims {2**40} bytes"),
    "truncated data": (struct.pack("<Q", len(GOOD)) + GOOD + bytes(23), "end at byte"),
    "data after the end": (struct.pack("<Q", len(GOOD)) + GOOD + bytes(25), "end at byte"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_refused(tmp_path: Path, case: str) -> None:
    data, message = BROKEN[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "fetch it again" in str(caught.value)


BAD_HEADERS = {
    "bad JSON": (GOOD[:-1], "not valid JSON"),
    "bad UTF-8": (GOOD[:-1] + b"\xff", "not valid JSON"),
    "too deep": (b"[" * 100_000, "brackets nested more than 64 deep in the header"),
    "a list": (b"[]", "expected a JSON object, got list"),
    "duplicate name": (GOOD[:-1] + b"," + GOOD[1:], "'a' appears twice"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2, 3]}}, "expected dtype, shape and data_offsets"),
    "negative extent": ({"a": entry(shape=(-2, -3))}, "expected dtype, shape and data_offsets"),
    "fractional extent": ({"a": {**entry(), "shape": [2, 3.0]}}, "expected dtype, shape and data_offsets"),
    "unknown dtype": ({"a": entry("F31")}, "unknown dtype 'F31'"),
    "size mismatch": ({"a": entry(shape=(2, 4))}, r"F32 \[2, 4\] does not fill the 24 bytes"),
    "offset past the end": ({"a": entry(begin=24, end=48)}, "data start at byte"),
    "negative offset": ({"a": entry(begin=-24, end=0)}, "expected dtype, shape and data_offsets"),
    "overlap": ({"a": entry(), "b": entry("F16", (2, 3), 12, 24)}, "b: data start at byte"),
    "gap": ({"a": entry(shape=(1, 3), end=12), "b": entry("F16", (4,), 16, 24)}, "b: data start at byte"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header_is_refused(tmp_path: Path, case: str) -> None:
    header, message = BAD_HEADERS[case]
    with pytest.raises(CheckpointError, match=message):
        read_header(write(tmp_path / "m.safetensors", header))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/a.safetensors", "x\\..\\a.safetensors", 3])
def test_index_may_not_lead_out_of_its_folder(tmp_path: Path, file: object) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointError, match="is not a file of this folder"):
        read_shard_index(path)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_without_a_map_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="weight_map: expected"):
        read_shard_index(path)


def test_header_above_the_cap_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    os.truncate(path, 2 * MAX_HEADER_BYTES)  # sparse: takes no disk
    with pytest.raises(CheckpointError, match=f"at most {MAX_HEADER_BYTES} are read"):
        read_header(path)


def test_reading_ahead_tells_the_bytes_of_each_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, begin, length, advice: told.append((begin, length, advice)))
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(4096))
    read_ahead([
        FileSpan(str(path), 256, "BF16", 3, 32, 40),
        FileSpan(str(tmp_path / "gone"), 0, "BF16", 1, 8, 8),  # whoever reads it says so
        FileSpan(str(path), 2048, "F32", 1, 8, 8),
    ])
    assert told == [(256, 2 * (2 * 40 + 32), os.POSIX_FADV_WILLNEED), (2048, 32, os.POSIX_FADV_WILLNEED)]

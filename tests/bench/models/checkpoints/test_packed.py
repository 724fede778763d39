"""What quantisers packed: decoded to the numbers that each format's definition gives, or refused by its name before it is fetched."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import open_checkpoint, unpack
from modelassay.models.checkpoints.factors import UNREAD
from modelassay.models.checkpoints.layers import layer_spans, read_span
from modelassay.models.checkpoints.llama_cpp import ARCHITECTURES
from modelassay.models.checkpoints.safetensors import read_elements
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.hub import LocalFiles
from modelassay.models.parts import ensure
from support.model_forms import CONFIG, LAYERS, MATRIX, folder, weights
from support.packed_models import quantised
from support.quantised import FORMATS, Packed, bnb4, bnb8, compressed, mlx, mxfp4, nvfp4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("form", FORMATS)
def test_every_matrix_is_what_it_stands_for(form: str, tmp_path: Path) -> None:
    path, meant = quantised(tmp_path / "m", form)
    checkpoint = open_checkpoint(path)
    for matrix in checkpoint.matrices:
        expected = meant[f"model.layers.{matrix.layer}.{MATRIX[matrix.role]}.weight"]
        np.testing.assert_allclose(checkpoint.read(matrix).double().numpy(), expected, rtol=1e-5, atol=1e-6)
    spans = layer_spans(checkpoint)
    assert len(spans) == LAYERS
    for layer, of_layer in enumerate(spans):
        for role in ("gate", "up", "down"):
            (span,) = of_layer[role]
            ensure(span.path, span.offset, span.end - span.offset)
            values = read_span(span).numpy()
            if span.scale is not None:
                continue
            np.testing.assert_allclose(
                values, meant[f"model.layers.{layer}.mlp.{role}_proj.weight"], rtol=1e-5, atol=1e-6
            )
    assert any("matrices stored as" in note for note in checkpoint.notes)


@pytest.mark.parametrize("form", ["MLX 4 bit", "NVFP4", "compressed-tensors 4 bit", "fp8, blocks of exponents"])
def test_some_rows_are_those_of_the_whole(form: str, tmp_path: Path) -> None:
    path, meant = quantised(tmp_path / "m", form)
    table, name = TensorTable(LocalFiles(str(path))), "model.layers.1.mlp.up_proj.weight"
    place, info = table.find(name)
    columns = info.shape[1]
    some = read_elements(place, info.dtype, info.offset + 4 * 5 * columns, 7 * columns).reshape(7, columns)
    np.testing.assert_allclose(some.double().numpy(), meant[name][5:12], rtol=1e-5, atol=1e-6)
    assert not np.fromfile(place, np.float32, 5 * columns, offset=info.offset).any()


def test_experts_of_gpt_oss_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(115, 130, (3, 10, 2), dtype=torch.uint8, generator=generator)
    stem = "model.layers.0.mlp.experts.gate_up_proj"
    path = folder(tmp_path / "m", {f"{stem}_blocks": blocks, f"{stem}_scales": scales})
    place, info = TensorTable(LocalFiles(str(path))).find(stem)
    got = read_elements(place, info.dtype, info.offset, 3 * 64 * 10).reshape(info.shape)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_bitsandbytes_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional peer")
    functional = importlib.import_module("bitsandbytes.functional")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    for nested in (False, True):
        stored, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=nested)
        packed = {f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        path = folder(tmp_path / f"m{nested}", {"m.weight": stored, **packed})
        place, info = TensorTable(LocalFiles(str(path))).find("m.weight")
        got = read_elements(place, info.dtype, info.offset, weight.numel()).reshape(info.shape)
        torch.testing.assert_close(got, functional.dequantize_4bit(stored, state), rtol=1e-6, atol=1e-7)


def test_compressed_tensors_gives_the_same() -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is an optional peer")
    helpers = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")
    made = compressed(16, 64, 3)
    codes = helpers.unpack_from_int32(made.tensors[".weight_packed"], 4, torch.Size([16, 64]))
    expected = codes.float() * made.tensors[".weight_scale"].float().repeat_interleave(16, 1)
    np.testing.assert_allclose(expected.double().numpy(), made.meant, rtol=1e-6)


REFUSED = {
    "HQQ": ({"quant_method": "hqq"}, {}, r"quantised by HQQ \(quant_method 'hqq'\)"),
    "EXL2": ({"quant_method": "exl2"}, {}, "quantised by ExLlamaV2"),
    "BitNet": ({"quant_method": "bitnet"}, {}, "quantised by BitNet"),
    "torchao": ({"quant_method": "torchao"}, {}, "quantised by torchao"),
    "HQQ without config": ({}, {".W_q": torch.zeros(32, 64, dtype=torch.uint8), ".scale": torch.rand(1), ".zero": torch.rand(1)}, "HQQ packs"),
    "EXL2 without config": ({}, {".q_weight": torch.zeros(8, 64, dtype=torch.int32), ".q_scale": torch.zeros(1, 1)}, "ExLlamaV2 packs"),
    "GPTQ 3 bit": (
        {"quant_method": "gptq", "bits": 3},
        {".qweight": torch.zeros(6, 64, dtype=torch.int32), ".qzeros": torch.zeros(1, 6, dtype=torch.int32), ".scales": torch.rand(1, 64)},
        "GPTQ of 3 bits"),
    "fp8 with another factor": (
        {"quant_method": "fp8"},
        {".weight": torch.zeros(64, 64).to(torch.float8_e4m3fn), ".weight_scale": torch.tensor(1.0), ".outer_scale": torch.tensor(1.0)},
        "nothing here applies it"),
    "fp8 without a scale": (None, {".weight": torch.zeros(64, 64).to(torch.float8_e4m3fn)}, "fp8 without"),
    "integers without a scale": ({}, {".weight": torch.zeros(64, 64, dtype=torch.int8)}, "I8 holds no plain weights"),
    "bf16 with a scale": ({}, {".weight": torch.zeros(64, 64).bfloat16(), ".weight_scale": torch.tensor(1.0)}, "nothing here applies it"),
    "MLX without sizes": ({}, mlx(64, 64, 0).tensors, "config.json says group_size None"),
    "groups that do not divide": (
        {}, {**nvfp4(64, 64, 0).tensors, ".weight_scale": torch.zeros(64, 3).to(torch.float8_e4m3fn)}, "are no scales of 64 rows and 64 columns"),
    "blocks that do not fit": ({}, {**bnb4(64, 64, 0).tensors, ".weight.absmax": torch.zeros(3)}, "do not hold"),
    "state that is no JSON": (
        {}, {**bnb4(64, 64, 0).tensors, ".weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}, "expected JSON"),
    "scales of other rows": ({}, {**bnb8(64, 64, 0).tensors, ".SCB": torch.zeros(3)}, "expected the largest weight of each of 64 rows"),
    "shape that is another": ({}, {**compressed(64, 64, 0).tensors, ".weight_shape": torch.tensor([9, 9])}, "is not that of"),
    "shape that is missing": (
        {}, {key: value for key, value in compressed(64, 64, 0).tensors.items() if key != ".weight_shape"}, "no weight_shape beside it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_nothing_decodes_is_named(case: str, tmp_path: Path) -> None:
    said, packed, message = REFUSED[case]
    tensors = dict(weights())
    stem = "model.layers.0.self_attn.q_proj"
    if packed:
        del tensors[f"{stem}.weight"]
        tensors |= {stem + suffix: value for suffix, value in packed.items()}
    path = folder(tmp_path / "m", tensors, config={**CONFIG, **({"quantization_config": said} if said else {})})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_nan_exponent_is_no_number() -> None:
    assert torch.equal(unpack.exponents(torch.tensor([127, 130], dtype=torch.uint8)), torch.tensor([1.0, 8.0]))
    assert bool(unpack.exponents(torch.tensor([255], dtype=torch.uint8)).isnan())
    made: Packed = mxfp4(4, 32, 0)
    assert made.meant.shape == (4, 32)


def test_the_page_names_what_is_refused_and_read() -> None:
    """docs/methods/formats.md says of each quantiser, architecture of llama.cpp and form of adapter what the code does."""
    page = (Path(__file__).parents[4] / "docs" / "methods" / "formats.md").read_text()
    refused = next(line for line in page.splitlines() if line.startswith("| HQQ"))
    left_out = {
        "ExLlamaV2",
        "ExLlamaV3",
        "FP-Quant",
        "SINQ",
        "Metal's kernels",
        "SqueezeLLM",
        "Marlin",
    }  # rare, or versions of one that is named
    assert all(name in refused for name in set(UNREAD.values()) - left_out)
    converted = next(line for line in page.splitlines() if line.startswith("| GGUF"))
    families = {name.removesuffix("moe") for name in ARCHITECTURES} - {"gemma2"}
    assert all(name in converted for name in families)

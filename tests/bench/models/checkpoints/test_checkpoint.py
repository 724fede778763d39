"""Every block of every architecture equals the model's own parameter, and nothing that could mislead is opened."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers

from modelassay.errors import CheckpointError
from modelassay.fingerprints.lineage.tensors import Tensors
from modelassay.models.checkpoints import Stratum, open_checkpoint
from modelassay.models.checkpoints.architectures import ROLES
from modelassay.models.checkpoints.layers import layer_spans, read_head
from modelassay.models.hub import LocalFiles
from support.tiny_models import (
    HEAD_DIM,
    HIDDEN,
    NUM_HEADS,
    NUM_KV_HEADS,
    NUM_LAYERS,
    SETTINGS,
    expected_blocks,
    make_model,
    save,
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A copy of the llama that a test may spoil."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) drop tensors, named with the path below layer 1's attention."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for name, tensor in changes.items():
        tensors["model.layers.1.self_attn." + name.replace("__", ".")] = tensor  # type: ignore[assignment]
    safetensors.torch.save_file({name: t for name, t in tensors.items() if t is not None}, path)


def assert_blocks_equal(folder: Path, expected: dict[tuple[str, int], torch.Tensor]) -> None:
    checkpoint = open_checkpoint(folder)
    assert [(m.layer, m.role) for m in checkpoint.matrices] == [(i, r) for i in range(NUM_LAYERS) for r in ROLES]
    assert expected.keys() == {(m.role, m.layer) for m in checkpoint.matrices}
    for matrix in checkpoint.matrices:
        torch.testing.assert_close(checkpoint.read(matrix), expected[matrix.role, matrix.layer], rtol=0, atol=0)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_blocks_equal_the_models_own_parameters(model_type: str, tmp_path: Path) -> None:
    model = make_model(model_type)
    assert_blocks_equal(save(model, tmp_path), expected_blocks(model))


def save_remote(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint of a model whose code transformers does not have, laid out as its published files are."""
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def test_first_qwen_keeps_q_k_v_in_rows_of_one_linear(tmp_path: Path) -> None:
    size, blocks, tensors = 12, {}, {}
    for layer in range(NUM_LAYERS):
        q, k, v, o = torch.randn(4, size, size)
        tensors[f"transformer.h.{layer}.attn.c_attn.weight"] = torch.cat([q, k, v])
        tensors[f"transformer.h.{layer}.attn.c_attn.bias"] = torch.randn(3 * size)
        tensors[f"transformer.h.{layer}.attn.c_proj.weight"] = o.clone()
        blocks |= {("q", layer): q, ("k", layer): k, ("v", layer): v, ("o", layer): o}
    config = {"model_type": "qwen", "num_hidden_layers": NUM_LAYERS, "hidden_size": size, "num_attention_heads": 3,
              "vocab_size": 32, "kv_channels": 4}  # fmt: skip
    save_remote(tmp_path, config, tensors)
    assert_blocks_equal(tmp_path, blocks)


def test_pangu_pro_moe_has_separate_projections(tmp_path: Path) -> None:
    hidden, blocks, tensors = 12, {}, {}
    for layer in range(NUM_LAYERS):
        for role, shape in {"q": (12, 12), "k": (6, 12), "v": (6, 12), "o": (12, 12)}.items():
            blocks[role, layer] = torch.randn(shape)
            tensors[f"model.layers.{layer}.self_attn.{role}_proj.weight"] = blocks[role, layer]
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = torch.randn(4, hidden)
    config = {"model_type": "PanguProMoE", "num_hidden_layers": NUM_LAYERS, "hidden_size": hidden, "vocab_size": 32,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    save_remote(tmp_path, config, tensors)
    assert_blocks_equal(tmp_path, blocks)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "bert"])
def test_blocks_are_found_without_the_head(model_type: str, tmp_path: Path) -> None:
    body = make_model(model_type).base_model
    names = safetensors.torch.load_file(save(body, tmp_path) / "model.safetensors").keys()
    assert not any(name.startswith(("model.", "transformer.", "bert.")) for name in names)
    assert_blocks_equal(tmp_path, expected_blocks(body))


@pytest.mark.parametrize("model_type", ["qwen3", "phi3", "gpt2", "gpt_neox"])
def test_shards_give_the_same_blocks(model_type: str, tmp_path: Path) -> None:
    model = make_model(model_type)
    save(model, tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_blocks_equal(tmp_path, expected_blocks(model))


def test_wrapped_language_model_is_found_beside_its_vision_tower(tmp_path: Path) -> None:
    text = make_model("gemma3_text").config
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(1)
    model = transformers.Gemma3ForConditionalGeneration(config)
    language_model = model.model.language_model
    assert_blocks_equal(save(model, tmp_path), expected_blocks(language_model))
    assert open_checkpoint(tmp_path).architecture == "gemma3_text"


def test_dtype_is_reported_and_kept(llama: Path, tmp_path: Path) -> None:
    for dtype, code in [(torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float64, "F64")]:
        model = make_model("phi3").to(dtype)
        checkpoint = open_checkpoint(save(model, tmp_path / code))
        assert {matrix.span.dtype for matrix in checkpoint.matrices} == {code}
        block = checkpoint.read(checkpoint.matrices_of("v")[2])
        torch.testing.assert_close(block, expected_blocks(model)["v", 2], rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_cut_is_what_attention_is_given(model_type: str, tmp_path: Path) -> None:
    """At position 0 rotary embedding turns by no angle: q, k and v are the input times our blocks, plus the bias."""
    model = make_model(model_type)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    checkpoint = open_checkpoint(save(model, tmp_path))
    given: list[tuple[torch.Tensor, ...]] = []
    inputs: list[torch.Tensor] = []

    def spy(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append((query, key, value))
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("spy", spy)
    model.set_attn_implementation("spy")
    fused = {"phi3": "qkv_proj", "gpt2": "c_attn", "gpt_neox": "query_key_value"}.get(model_type, "q_proj")
    for name, module in model.named_modules():
        if name.endswith(fused):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), use_cache=False)
    assert len(given) == len(inputs) == NUM_LAYERS
    for layer in range(NUM_LAYERS):
        for role, heads in zip("qkv", given[layer], strict=True):
            weight = checkpoint.read(checkpoint.matrices_of(role)[layer]).double()  # type: ignore[arg-type]
            expected = (inputs[layer][0, 0].double() @ weight.T).reshape(heads.shape[1], -1)
            torch.testing.assert_close(heads[0, :, 0].double(), expected, rtol=1e-4, atol=1e-4)


def test_sizes_and_stratum(llama: Path) -> None:
    checkpoint = open_checkpoint(str(llama))
    assert checkpoint.head_dim == HEAD_DIM
    assert (checkpoint.architecture, checkpoint.revision, checkpoint.folder) == ("llama", None, llama)
    assert checkpoint.stratum() == Stratum(
        num_layers=NUM_LAYERS,
        hidden_size=HIDDEN,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        vocab_size=32,
        tokenizer_key=None,
    )


def test_name_of_the_model_type_decides_nothing_that_names_and_shapes_tell(copy: Path) -> None:
    blocks = expected_blocks(make_model("llama"))
    for name in ("its-own", "bert", None):
        edit_config(copy, model_type=name)
        assert_blocks_equal(copy, blocks)


def test_one_weight_file_of_another_name(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "consolidated.safetensors")
    assert len(open_checkpoint(copy).matrices) == 4 * NUM_LAYERS
    shutil.copy(copy / "consolidated.safetensors", copy / "more.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"got consolidated.safetensors, more.safetensors; name one: .*copy/consolidated.safetensors$",
    ):
        open_checkpoint(copy)


# fp8


def quantise(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fp8 weights, their scales per block, and what they stand for, computed one element at a time in float64."""
    rows, columns = weight.shape
    scale = 0.5 + torch.rand(-(-rows // block[0]), -(-columns // block[1]))
    stored = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    meant = torch.empty(rows, columns, dtype=torch.float64)
    for r in range(rows):
        for c in range(columns):
            meant[r, c] = stored[r, c].double() * scale[r // block[0], c // block[1]].double()
    return stored, scale, meant


@pytest.mark.parametrize(
    ("suffix", "block", "quantization"),
    [
        ("weight_scale_inv", (8, 7), {"quant_method": "fp8", "weight_block_size": [8, 7]}),
        ("weight_scale_inv", (5, 5), {"quant_method": "fp8", "weight_block_size": [5, 5]}),
        ("weight_scale", (1, HIDDEN), {"quant_method": "fbgemm_fp8"}),
        ("weight_scale", (24, HIDDEN), {"quant_method": "modelopt"}),
        ("weight_scale", (8, 7), {"config_groups": {"group_0": {"weights": {"block_structure": [8, 7]}}}}),
    ],
)
def test_fp8_blocks_come_with_their_scales(
    copy: Path, suffix: str, block: tuple[int, int], quantization: dict[str, Any]
) -> None:
    torch.manual_seed(2)
    stored, scale, meant = quantise(torch.empty(NUM_HEADS * HEAD_DIM, HIDDEN), block)
    edit_tensors(copy, **{"q_proj__weight": stored, f"q_proj__{suffix}": scale})
    edit_config(copy, quantization_config=quantization)
    checkpoint = open_checkpoint(copy)
    matrix = checkpoint.matrices_of("q")[1]
    assert matrix.span.dtype == "F8_E4M3"
    assert matrix.span.scale is not None
    assert [extent % count for extent, count in zip(stored.shape, matrix.span.scale.shape, strict=True)] == [0, 0]
    torch.testing.assert_close(checkpoint.read(matrix).double(), meant, rtol=1e-6, atol=0)


def test_fp8_scales_of_a_fused_tensor_are_cut_with_it(tmp_path: Path) -> None:
    model = make_model("phi3")
    save(model, tmp_path)
    rows, columns = expected_blocks(model)["q", 0].shape[0] * 2, 24
    stored, scale, meant = quantise(torch.empty(rows, columns), (10, 24))
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.layers.0.self_attn.qkv_proj.weight"] = stored
    tensors["model.layers.0.self_attn.qkv_proj.weight_scale_inv"] = scale
    safetensors.torch.save_file(tensors, path)
    edit_config(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [10, 24]})
    checkpoint = open_checkpoint(tmp_path)
    for role, part in zip("qkv", torch.split(meant, [24, 12, 12]), strict=True):
        block = checkpoint.read(checkpoint.matrices_of(role)[0])  # type: ignore[arg-type]
        torch.testing.assert_close(block.double(), part, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "quantization", [None, {}, {"quant_method": "fp8"}, {"quant_method": "fp8", "weight_block_size": [8, 7]}]
)
def test_fp8_without_a_scale_is_refused(copy: Path, quantization: dict[str, Any] | None) -> None:
    edit_tensors(copy, k_proj__weight=torch.randn(NUM_KV_HEADS * HEAD_DIM, HIDDEN).to(torch.float8_e5m2))
    edit_config(copy, quantization_config=quantization)
    with pytest.raises(
        CheckpointError, match=r"k_proj\.weight: fp8 without \.weight_scale_inv or .*: nothing says what its"
    ):
        open_checkpoint(copy)


FACTORS = [
    # companion of q_proj, or of its weight; what other formats call a scale
    *(
        "scale_weight",
        "weight_scale_inv",
        "scale_inv",
        "scale",
        "weight_scales",
        "weight_global_scale",
        "weight_zero_point",
    ),
    *(
        "scales",
        "qzeros",
        "weight__scale",
        "weight__absmax",
        "weight_quantizer__scale",
        "weight_codebook",
        "pre_quant_scale",
    ),
    *("lora_A__weight", "weight_g"),
]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", FACTORS)
def test_factor_that_nothing_applies_is_refused(copy: Path, factor: str, dtype: torch.dtype) -> None:
    """Beside weights of any type; the one that is understood is for fp8 alone."""
    weight = torch.randn(NUM_HEADS * HEAD_DIM, HIDDEN).to(dtype)
    edit_tensors(copy, **{"q_proj__weight": weight, f"q_proj__{factor}": torch.tensor([0.5])})
    if dtype == torch.float8_e4m3fn and factor in {"weight_scale_inv", "scale", "scale_weight"}:
        checkpoint = open_checkpoint(copy)
        torch.testing.assert_close(checkpoint.read(checkpoint.matrices_of("q")[1]), weight.float() / 2)
        edit_tensors(copy, q_proj__weight_scale=torch.tensor([0.25]))  # and now two of them
    match = (
        "bitsandbytes|EETQ"
        if factor in {"weight__absmax", "weight_scales"}
        else "nothing here applies it|with scales of"
    )
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(copy)


def test_factors_of_activations_leave_weights_alone(copy: Path, llama: Path) -> None:
    names = (
        "input_scale",
        "output_scale",
        "k_scale",
        "q_scale",
        "input_global_scale",
        "activation_scale",
        "input_zero_point",
    )
    edit_tensors(copy, **{f"q_proj__{name}": torch.tensor([0.5]) for name in names})
    expected = open_checkpoint(llama)
    for a, b in zip(open_checkpoint(copy).matrices, expected.matrices, strict=True):
        assert torch.equal(open_checkpoint(copy).read(a), expected.read(b))


def test_weights_beside_attention_that_a_factor_belongs_to_are_left_out(copy: Path) -> None:
    def roles() -> set[str]:
        return set(layer_spans(open_checkpoint(copy))[1])

    assert {"gate", "up", "down", "norm-1"} <= roles()
    path = copy / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight_scale"] = torch.tensor([0.5])
    tensors["model.layers.1.mlp.gate_proj.weight"] = tensors["model.layers.1.mlp.gate_proj.weight"].to(
        torch.float8_e4m3fn
    )
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(24).to(torch.float8_e4m3fn)
    tensors["lm_head.weight_scale"] = torch.tensor([0.5])
    safetensors.torch.save_file(tensors, path)
    assert roles() & {"gate", "up", "down", "q-bias"} == {"down"}
    assert read_head(LocalFiles(str(copy))) is None
    every = Tensors(open_checkpoint(copy))
    assert [every.readable(1, f"mlp.{name}_proj.weight") for name in ("gate", "up", "down")] == [False, False, True]


@pytest.mark.parametrize("quantization", ["fp8", ["fp8"], 3, True, {"config_groups": []}, {"config_groups": {"a": "b"}},
                                          {"config_groups": {"a": {"weights": 3}}}, {"weight_block_size": [True, 7]},
                                          {"weight_block_size": 128}, {"weight_block_size": [8, 7.0]}, {"weight_block_size": []},
                                          {"weight_block_size": [8, 7], "config_groups": {"a": {"weights": {"block_structure": [8, 8]}}}}])  # fmt: skip
def test_quantisation_that_is_not_stated_as_it_should_be_is_refused(copy: Path, quantization: Any) -> None:
    stored, scale, _ = quantise(torch.empty(NUM_HEADS * HEAD_DIM, HIDDEN), (8, 7))
    edit_tensors(copy, q_proj__weight=stored, q_proj__weight_scale_inv=scale)
    edit_config(copy, quantization_config=quantization)
    with pytest.raises(CheckpointError, match="quantization_config|config_groups|weight_block_size|blocks of"):
        open_checkpoint(copy)


@pytest.mark.parametrize("shape", [(0,), (0, 1), (24, 1, 1), (20,), (3, 1), (1, 3), (2, 2)])
def test_scales_of_another_shape_are_refused(copy: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(
        copy, q_proj__weight=torch.zeros(24, HIDDEN).to(torch.float8_e4m3fn), q_proj__weight_scale=torch.ones(shape)
    )
    edit_config(copy, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 7]})
    with pytest.raises(CheckpointError, match="scales"):
        open_checkpoint(copy)


@pytest.mark.parametrize("scales", [7, 3])
def test_fp8_scales_that_fit_no_block_are_refused(copy: Path, scales: int) -> None:
    """3 scales for 24 rows could be even blocks of 8 or ragged ones of 10: without a declared size it is not known."""
    edit_tensors(copy, q_proj__weight=torch.zeros(24, HIDDEN).to(torch.float8_e4m3fn))
    edit_tensors(copy, q_proj__weight_scale=torch.ones(scales, 1))
    with pytest.raises(CheckpointError, match=f"{scales} scales for 24 rows"):
        open_checkpoint(copy)


# refusals


PACKINGS = {
    "GPTQ": {"k_proj__weight": None, "k_proj__qweight": torch.zeros(3, 12, dtype=torch.int32)},
    "AWQ": {"q_proj__weight": None, "q_proj__qweight": torch.zeros(20, 3, dtype=torch.int32)},
    "compressed-tensors": {"v_proj__weight": None, "v_proj__weight_packed": torch.zeros(12, 5, dtype=torch.int32)},
    "4-bit": {"q_proj__weight": torch.zeros(240, 1, dtype=torch.uint8), "q_proj__weight__absmax": torch.ones(8)},
    "EETQ": {"o_proj__weight": torch.zeros(20, 24, dtype=torch.int8), "o_proj__weight_scales": torch.ones(20)},
    "MXFP4": {"v_proj__weight": None, "v_proj_blocks": torch.zeros(12, 1, 16, dtype=torch.uint8)},
    "NVFP4": {"q_proj__weight": torch.zeros(24, 10, dtype=torch.uint8), "q_proj__weight_scale_2": torch.ones(1)},
    "HQQ": {"q_proj__weight": None, "q_proj__W_q": torch.zeros(240, dtype=torch.uint8)},
    "AQLM": {"q_proj__weight": None, "q_proj__codes": torch.zeros(24, 5, 1, dtype=torch.int8)},
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_weights_are_refused_with_the_reason(copy: Path, packing: str) -> None:
    """Those that nothing decodes, and those that lack a part of what it takes."""
    edit_tensors(copy, **PACKINGS[packing])
    with pytest.raises(CheckpointError, match=f"{packing}.* the stored numbers are no weights; open the model it was"):
        open_checkpoint(copy)


STORED = {
    "I8": (torch.zeros(12, HIDDEN, dtype=torch.int8), "8-bit integers"),
    "U8": (torch.zeros(120, 1, dtype=torch.uint8), r"two 4-bit weights in each as a rule \(NF4, FP4, MXFP4\)"),
    "I32": (torch.zeros(12, 3, dtype=torch.int32), r"several weights in each as a rule \(GPTQ, AWQ\)"),
    "I64": (torch.zeros(12, HIDDEN, dtype=torch.int64), "integers"),
    "BOOL": (torch.zeros(12, HIDDEN, dtype=torch.bool), "bytes"),
}


@pytest.mark.parametrize("dtype", STORED)
def test_integers_are_refused(copy: Path, dtype: str) -> None:
    weight, message = STORED[dtype]
    edit_tensors(copy, v_proj__weight=weight)
    for config, words in (
        (None, "config.json does not say"),
        ({"quant_method": "bitsandbytes"}, "config.json says 'bitsandbytes'"),
    ):
        edit_config(copy, quantization_config=config)
        with pytest.raises(
            CheckpointError,
            match=rf"1\.self_attn\.v_proj\.weight: {dtype} holds no plain weights: .*{message}.*{words}",
        ):
            open_checkpoint(copy)


def test_missing_roles_are_named(copy: Path) -> None:
    edit_tensors(copy, k_proj__weight=None, o_proj__weight=None)
    match = r"2 attention tensors of 3 layers are missing: model\.layers\.1\.self_attn\.k_proj\.weight, model\.layers\.1\.self_attn\.o_proj\.weight;"
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, r"8 attention tensors of 5 layers are missing: model\.layers\.3.* and 2 more"),
        ({"num_hidden_layers": 2}, r"counts 2 layers, but there is model\.layers\.2\.self_attn\.q_proj\.weight"),
        ({"num_key_value_heads": 4}, r"layers\.0\.self_attn\.k_proj\.weight: config\.json implies a shape of \[24, 20\], got \[12, 20\]"),
        ({"hidden_size": None, "model_type": "its-own"}, r"hidden_size or .* or dim: expected a whole number of at least 1, got None"),
        ({"hidden_size": None}, r"q_proj\.weight: config\.json implies a shape of \[24, 4096\], got \[24, 20\]"),
        ({"num_attention_heads": "4"}, "expected a whole number of at least 1, got '4'"),
        ({"num_hidden_layers": 0}, "expected a whole number of at least 1, got 0"),
        ({"vocab_size": True}, "vocab_size: expected a whole number of at least 1, got True"),
    ],
)  # fmt: skip
def test_config_that_does_not_fit_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(copy)


def test_layers_of_multi_token_prediction_are_not_part_of_the_stack(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=2, num_nextn_predict_layers=1)
    assert open_checkpoint(copy).num_layers == 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("zoo:base", "expected a folder with config.json, got nothing there"),
        ("hf:gpt2", "write hf:ORG/NAME"),
        ("hf:a/b/c", "write hf:ORG/NAME"),
        ("hf:a/b@", "write hf:ORG/NAME"),
        ("nobody/nothing", "got nothing there; a repository of the Hub is written hf:nobody/nothing"),
        ("./nothing", "got nothing there; check the path"),
        (__file__, "expected a folder with config.json, got a file"),
    ],
)
def test_reference_that_is_nothing_is_refused(reference: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(reference)


def test_stray_files_are_no_weights(copy: Path) -> None:
    """AppleDouble files end like what they belong to; a copy by tar or over SMB brings them."""
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    for name in ("._weights.safetensors", ".nfs01.safetensors", ".DS_Store", "Thumbs.db"):
        (copy / name).write_bytes(b"\0\5\x16\7")
    assert open_checkpoint(copy).num_layers == 3


@pytest.mark.parametrize(
    ("name", "folder"), [("model.safetensors", False), ("weights.safetensors", False), ("model.safetensors", True)]
)
def test_weights_that_are_no_file_are_named_without_an_index(copy: Path, name: str, folder: bool) -> None:
    (copy / "model.safetensors").unlink()
    if folder:
        (copy / name).mkdir()
        says = f"{name} is not a file; take it away"
    else:
        (copy / name).symlink_to("../blobs/gone")
        says = rf"{name} is a link to \.\./blobs/gone, which is not there; restore that file, or the link"
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(copy)
    assert "index" not in str(caught.value)


def test_folder_without_a_model_is_refused(copy: Path, llama: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is a safetensors file"):
        open_checkpoint(copy)
    (copy / "config.json").rename(copy / "adapter_config.json")
    with pytest.raises(CheckpointError, match="an adapter of peft_type None is not merged, only LORA"):
        open_checkpoint(copy)
    (copy / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(copy)


def test_shards_that_do_not_hold_what_the_index_says_are_refused(tmp_path: Path) -> None:
    save(make_model("llama"), tmp_path, max_shard_size="8KB")
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name = "model.layers.1.self_attn.v_proj.weight"
    holder = index["weight_map"][name]
    other = next(file for file in index["weight_map"].values() if file != holder)
    index_path.write_text(json.dumps(index | {"weight_map": index["weight_map"] | {name: other}}))
    with pytest.raises(CheckpointError, match=f"no tensor {name}, though"):
        open_checkpoint(tmp_path)
    (tmp_path / holder).unlink()
    with pytest.raises(CheckpointError, match=f"names {holder}, which is not there"):
        open_checkpoint(tmp_path)


def test_file_that_shrank_after_opening_is_an_error(copy: Path) -> None:
    checkpoint = open_checkpoint(copy)
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="was it changed since it was opened"):
        checkpoint.read(checkpoint.matrices[0])


# tokenizers


def bpe(extra: list[str]) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(["a", "b", "ab", "ü"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("a", "b")]))
    tokenizer.add_special_tokens(extra)
    return tokenizer


def test_tokenizer_key_is_that_of_the_vocabulary(copy: Path) -> None:
    def key() -> str | None:
        return open_checkpoint(copy).tokenizer_key

    assert key() is None
    bpe([]).save(str(copy / "tokenizer.json"))
    plain = key()
    assert plain is not None
    assert len(plain) == 16
    bpe(["<|im_end|>"]).save(str(copy / "tokenizer.json"), pretty=True)
    assert key() == plain
    (copy / "tokenizer.json").unlink()
    bpe([]).model.save(str(copy))
    assert key() == plain
    (copy / "vocab.json").write_text(json.dumps({"b": 0, "a": 1, "ab": 2, "ü": 3}))
    assert key() != plain
    (copy / "vocab.json").unlink()
    (copy / "vocab.txt").write_text("a\nb\nab\nü\n", encoding="utf-8")
    assert key() == plain
    (copy / "vocab.txt").unlink()
    (copy / "tokenizer.model").write_bytes(b"\x0a\x05")
    assert key() not in {None, plain}
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", -1.0), ("b", -2.0), ("ab", -3.0), ("ü", -4.0)]))
    unigram.save(str(copy / "tokenizer.json"))
    assert key() == plain


@pytest.mark.parametrize("text", ["{}", '{"model": 3}', '{"model": {"vocab": {}}}'])
def test_tokenizer_without_a_vocabulary_is_refused(copy: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="expected a vocabulary"):
        open_checkpoint(copy)


def test_importing_takes_no_torch() -> None:
    code = "import sys, modelassay.models.checkpoints; print({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

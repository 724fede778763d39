"""LoRA adapters read together with their bases: the weights that PEFT merges to, and what is no LoRA by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelassay.errors import CheckpointError
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.opened import open_form
from modelassay.models.checkpoints.safetensors import read_elements
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.parts import ensure
from modelassay.models.weights_only import WeightsOnly
from support.adapters import adapter
from support.model_forms import CONFIG, LAYERS, MATRIX, TOKENIZER, folder, weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(path: Path | str, name: str) -> torch.Tensor:
    table = TensorTable(open_form(path))
    place, info = table.find(name)
    ensure(place, info.offset, info.size_bytes)
    return (
        read_elements(place, info.dtype, info.offset, info.size_bytes * 8 // {"F32": 32, "BF16": 16}[info.dtype])
        .reshape(info.shape)
        .double()
    )


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_read_is_the_base_and_what_the_adapter_adds(tmp_path: Path, beside: bool) -> None:
    base = folder(tmp_path / "base", weights())
    path = adapter(tmp_path / "child", str(base))
    if beside:
        (path / "config.json").write_text(json.dumps(CONFIG))
    checkpoint, source, own = open_checkpoint(path), weights(), load_file(path / "adapter_model.safetensors")
    for matrix in checkpoint.matrices:
        stem = f"model.layers.{matrix.layer}.{MATRIX[matrix.role]}"
        expected = source[f"{stem}.weight"].double()
        if matrix.role in "qv":
            a, b = (own[f"base_model.model.{stem}.lora_{factor}.weight"].double() for factor in "AB")
            expected = expected + 8 / 4 * (b @ a)
        torch.testing.assert_close(checkpoint.read(matrix).double(), expected, rtol=1e-6, atol=1e-6)
    assert checkpoint.tokenizer_key == open_checkpoint(base).tokenizer_key
    assert any(f"{2 * LAYERS} matrices are changed by the adapter, of rank 4" in note for note in checkpoint.notes)
    assert any("merged into" in note for note in checkpoint.notes)


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"rank_pattern": {"layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    {"target_modules": ["embed_tokens", "down_proj"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_peft_merges_to_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(**{key: value for key, value in CONFIG.items() if key not in ("architectures", "torch_dtype")})
    )
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    chosen = {"r": 5, "lora_alpha": 11, "target_modules": ["q_proj", "v_proj"], **options}
    tuned = peft.get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), peft.LoraConfig(**chosen))
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05) if "lora" in name else parameter.data.add_(0.01)
    tuned.save_pretrained(tmp_path / "child", save_embedding_layers="embed_tokens" in chosen["target_modules"])
    said = json.loads((tmp_path / "child" / "adapter_config.json").read_text())
    (tmp_path / "child" / "adapter_config.json").write_text(json.dumps({**said, "base_model_name_or_path": "../base"}))
    merged = tuned.merge_and_unload().state_dict()
    table = TensorTable(open_form(tmp_path / "child"))
    assert set(table.names()) == set(merged)
    for name in ("model.embed_tokens.weight", "lm_head.weight", *(name for name in merged if "_proj" in name)):
        torch.testing.assert_close(read(tmp_path / "child", name), merged[name].double(), rtol=1e-5, atol=1e-6)


def test_a_transposed_base_and_a_base_saved_alone(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", {name.removeprefix("model."): tensor for name, tensor in weights().items()})
    path = adapter(tmp_path / "child", str(base))
    child = load_file(path / "adapter_model.safetensors")
    stem = "model.layers.1.self_attn.q_proj"
    expected = weights()[f"{stem}.weight"].double() + 2 * (
        child[f"base_model.model.{stem}.lora_B.weight"].double()
        @ child[f"base_model.model.{stem}.lora_A.weight"].double()
    )
    torch.testing.assert_close(read(path, "layers.1.self_attn.q_proj.weight"), expected, rtol=1e-6, atol=1e-6)
    down = "model.layers.0.mlp.down_proj"
    a, b = torch.randn(4, 64), torch.randn(96, 4)
    turned = {f"base_model.model.{down}.lora_A.weight": a, f"base_model.model.{down}.lora_B.weight": b}
    path = adapter(tmp_path / "turned", str(folder(tmp_path / "plain", weights())), turned, fan_in_fan_out=True)
    expected = weights()[f"{down}.weight"].double() + 2 * (b.double() @ a.double()).T
    torch.testing.assert_close(read(path, f"{down}.weight"), expected, rtol=1e-5, atol=1e-5)


def test_the_whole_model_beside_an_adapter_is_read_as_it_is(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", weights())
    adapter(path, "nobody/nothing")
    matrix = open_checkpoint(path).matrices_of("q")[0]
    assert torch.equal(open_checkpoint(path).read(matrix), weights()["model.layers.0.self_attn.q_proj.weight"])


def test_the_reader_of_samples_sees_the_adapter(tmp_path: Path) -> None:
    path = adapter(tmp_path / "child", str(folder(tmp_path / "base", weights())))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert TensorTable(WeightsOnly(open_form(path))).find(name)[1].dtype == "F32"


STEM = "base_model.model.model.layers.0.self_attn.q_proj"
PAIR = {f"{STEM}.lora_A.weight": torch.zeros(4, 64), f"{STEM}.lora_B.weight": torch.zeros(64, 4)}
REFUSED: dict[str, tuple[dict[str, torch.Tensor] | None, dict[str, Any], str]] = {
    "DoRA": (None, {"use_dora": True}, "use_dora: an adapter with DoRA"),
    "LoHa": (None, {"peft_type": "LOHA"}, "peft_type 'LOHA' is not merged"),
    "prompt": (None, {"peft_type": "PROMPT_TUNING"}, "peft_type 'PROMPT_TUNING' is not merged"),
    "PiSSA": (None, {"init_lora_weights": "pissa_niter_4"}, "changes the base as well"),
    "activated": (None, {"alora_invocation_tokens": [1]}, "activated LoRA"),
    "magnitude": ({**PAIR, f"{STEM}.lora_magnitude_vector": torch.zeros(64)}, {}, "changes what its base has not, or in a way"),
    "bias": ({**PAIR, f"{STEM}.lora_B.bias": torch.zeros(64)}, {}, "changes what its base has not, or in a way"),
    "one factor": ({f"{STEM}.lora_A.weight": torch.zeros(4, 64)}, {}, "stands without the other of the two factors"),
    "other rank": (PAIR, {"r": 8}, r"has the shape \[4, 64\] where adapter_config.json says rank 8"),
    "other width": ({f"{STEM}.lora_A.weight": torch.zeros(4, 32), f"{STEM}.lora_B.weight": torch.zeros(64, 4)}, {}, "does not fit BF16"),
    "another base": ({name.replace("layers.0", "layers.9"): tensor for name, tensor in PAIR.items()}, {}, "changes what its base has not"),
    "rank that is no number": (PAIR, {"r": "4"}, "r and lora_alpha: expected numbers, got '4' and 8"),
    "expression": (PAIR, {"rank_pattern": {r"layers\.\d+\.q": 4}}, "is an expression, of which only the ends of names are read"),
    "no base": (None, {"base_model_name_or_path": None}, "expected the adapter's base, got None"),
    "base that is nowhere": (None, {"base_model_name_or_path": "/gone/base"}, "'/gone/base' is neither a folder here nor a repository"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_merged_is_named(case: str, tmp_path: Path) -> None:
    tensors, config, message = REFUSED[case]
    base = folder(tmp_path / "base", weights())
    path = adapter(tmp_path / "child", str(base), tensors, **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_an_adapter_and_one_without_weights_are_named(tmp_path: Path) -> None:
    first = adapter(tmp_path / "first", str(folder(tmp_path / "base", weights())))
    second = adapter(tmp_path / "second", str(first))
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        open_checkpoint(second)
    (first / "adapter_model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"adapter_config.json without adapter_model.safetensors or adapter_model.bin"
    ):
        open_checkpoint(first)
    torch.save(load_file(second / "adapter_model.safetensors"), first / "adapter_model.bin")
    assert open_checkpoint(first).num_layers == LAYERS
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(CheckpointError, match="is neither a folder here"):
        open_checkpoint(first)

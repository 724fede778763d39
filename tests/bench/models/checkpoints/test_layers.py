"""Biases, norms and feed-forward weights by role, against the model's own parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.layers import layer_spans, read_embedding, read_span
from support.tiny_models import FUSED, HEAD_DIM, HIDDEN, NUM_HEADS, NUM_LAYERS, expected_blocks, make_model, save

_LLAMA = {"norm-1": ["input_layernorm"], "norm-2": ["post_attention_layernorm"], "gate": ["mlp.gate_proj"],
          "up": ["mlp.up_proj"], "down": ["mlp.down_proj"]}  # fmt: skip
_GPT2 = {"norm-1": ["ln_1"], "norm-2": ["ln_2"], "up": ["mlp.c_fc"], "down": ["mlp.c_proj"]}
_NEOX = {"norm-1": ["input_layernorm"], "norm-2": ["post_attention_layernorm"], "up": ["mlp.dense_h_to_4h"],
         "down": ["mlp.dense_4h_to_h"]}  # fmt: skip
_MIXTRAL = {role: [f"block_sparse_moe.experts.{e}.{name}" for e in range(4)]
            for role, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))}  # fmt: skip
_EXPERTS = {role: [f"mlp.experts.{e}.{role}_proj" for e in range(4)] for role in ("gate", "up", "down")}
NORMS = {role: _LLAMA[role] for role in ("norm-1", "norm-2")}

MODULES: dict[str, dict[str, list[str]]] = {
    **dict.fromkeys(["llama", "qwen2"], _LLAMA),
    **dict.fromkeys(
        ["gemma2", "gemma3_text"],
        {
            **_LLAMA,
            "norm-2": ["pre_feedforward_layernorm"],
            "post-norm-1": ["post_attention_layernorm"],
            "post-norm-2": ["post_feedforward_layernorm"],
        },
    ),
    **dict.fromkeys(["gpt_neox", "bloom"], _NEOX),
    "gpt2": _GPT2,
    "starcoder2": {**NORMS, "up": ["mlp.c_fc"], "down": ["mlp.c_proj"]},
    "phi3": {**NORMS, "gate": ["mlp.gate_up_proj[0]"], "up": ["mlp.gate_up_proj[1]"], "down": ["mlp.down_proj"]},
    "phi": {"norm-1": ["input_layernorm"], "norm-2": ["input_layernorm"], "up": ["mlp.fc1"], "down": ["mlp.fc2"]},
    "opt": {"norm-1": ["self_attn_layer_norm"], "norm-2": ["final_layer_norm"], "up": ["fc1"], "down": ["fc2"]},
    "mixtral": {**NORMS, **_MIXTRAL},
    "qwen2_moe": {**NORMS, **{role: [*names, f"mlp.shared_expert.{role}_proj"] for role, names in _EXPERTS.items()}},
    "qwen3_moe": {**NORMS, **_EXPERTS},
    "bert": {
        "norm-1": ["output.LayerNorm of the layer before"],
        "norm-2": ["attention.output.LayerNorm"],
        "post-norm-1": ["attention.output.LayerNorm"],
        "post-norm-2": ["output.LayerNorm"],
        "up": ["intermediate.dense"],
        "down": ["output.dense"],
    },
    "olmo2": {
        "post-norm-1": ["post_attention_layernorm"],
        "post-norm-2": ["post_feedforward_layernorm"],
        "gate": ["mlp.gate_proj"],
        "up": ["mlp.up_proj"],
        "down": ["mlp.down_proj"],
    },
    "cohere": {**_LLAMA, "norm-2": ["input_layernorm"]},
}
"""Modules below a layer by role, as each model's own code names them."""


def bias_as_first_column(model: Any) -> None:
    """Copy each attention bias over the column of its matrix that reads input 0: however a matrix is cut, so is its bias."""
    with torch.no_grad():
        for module in model.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(weight, Tensor) and isinstance(bias, Tensor) and weight.dim() == 2:
                (weight[0] if type(module).__name__ == "Conv1D" else weight[:, 0]).copy_(bias)


@pytest.mark.parametrize("model_type", MODULES)
def test_roles_are_the_models_own_parameters(model_type: str, tmp_path: Path) -> None:
    model: Any = make_model(model_type)
    bias_as_first_column(model)
    folder = save(model, tmp_path)
    stored = load_file(folder / "model.safetensors")
    blocks = expected_blocks(model)
    fused = FUSED.get(model_type, ("",))[0]
    layers = layer_spans(open_checkpoint(folder))
    assert len(layers) == NUM_LAYERS
    for layer, roles in enumerate(layers):
        inside = {name.split(f".{layer}.", 1)[1]: tensor for name, tensor in stored.items()
                  if f"s.{layer}." in name or f"h.{layer}." in name or f"layer.{layer}." in name}  # fmt: skip
        before = {
            name: tensor for name, tensor in stored.items() if f"layer.{layer - 1}.output.LayerNorm.weight" in name
        }
        inside["output.LayerNorm of the layer before.weight"] = (
            next(iter(before.values())) if before else stored.get("bert.embeddings.LayerNorm.weight", torch.empty(0))
        )
        inside |= {f"{name.removesuffix('.weight')}[{at}].weight": half for name in list(inside) if name.endswith("gate_up_proj.weight")
                   for at, half in enumerate(inside[name].chunk(2))}  # fmt: skip
        expected = {role: [inside[f"{name}.weight"].double().reshape(1, -1) for name in names]
                    for role, names in MODULES[model_type].items()}  # fmt: skip
        biased = {name.removesuffix(".bias") for name in inside if name.endswith(".bias") and "att" in name.lower()}
        own = {"q": ("q_proj", "query"), "k": ("k_proj", "key"), "v": ("v_proj", "value")}
        for role in "qkv":
            ends = (fused,) if fused else own[role]
            if any(name.endswith(ends) for name in biased):
                expected[f"{role}-bias"] = [blocks[role, layer][:, 0].double()]
        assert set(roles) == set(expected)
        for role, tensors in expected.items():
            found = [read_span(span) for span in roles[role]]
            assert len(found) == len(tensors)
            for mine, theirs in zip(found, tensors, strict=True):
                assert torch.equal(mine.reshape(-1), theirs.reshape(-1)), f"{role} of layer {layer}"


def test_some_models_have_biases_and_some_have_none(tmp_path: Path) -> None:
    found = {}
    for model_type in ("qwen2", "gpt_neox", "llama", "mixtral"):
        (roles, *_) = layer_spans(open_checkpoint(save(make_model(model_type), tmp_path / model_type)))
        found[model_type] = sum(role.endswith("-bias") for role in roles)
    assert found == {"qwen2": 3, "gpt_neox": 3, "llama": 0, "mixtral": 0}


def first_qwen(folder: Path) -> dict[str, Tensor]:
    """The first Qwen, whose code transformers lacks: c_proj(w1(x) * silu(w2(x)))."""
    folder.mkdir(parents=True)
    config = {"model_type": "qwen", "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "vocab_size": 9,
              "intermediate_size": 16}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for layer in range(2):
        at = f"transformer.h.{layer}"
        tensors |= {
            f"{at}.attn.c_attn.weight": torch.randn(36, 12), f"{at}.attn.c_attn.bias": torch.randn(36),
            f"{at}.attn.c_proj.weight": torch.randn(12, 12), f"{at}.mlp.w1.weight": torch.randn(8, 12),
            f"{at}.mlp.w2.weight": torch.randn(8, 12), f"{at}.mlp.c_proj.weight": torch.randn(12, 8),
            f"{at}.ln_1.weight": torch.randn(12), f"{at}.ln_2.weight": torch.randn(12),
        }  # fmt: skip
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_the_same_name_means_another_matrix_in_the_first_qwen(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = first_qwen(tmp_path / "qwen")
    roles = layer_spans(open_checkpoint(tmp_path / "qwen"))[1]
    at = "transformer.h.1"
    for role, name in (("gate", "mlp.w2"), ("up", "mlp.w1"), ("down", "mlp.c_proj"), ("norm-2", "ln_2")):
        (span,) = roles[role]
        assert torch.equal(read_span(span).reshape(-1), tensors[f"{at}.{name}.weight"].double().reshape(-1)), role
    for place, role in enumerate(("q-bias", "k-bias", "v-bias")):
        expected = tensors[f"{at}.attn.c_attn.bias"][12 * place : 12 * place + 12].double()
        assert torch.equal(read_span(roles[role][0])[0], expected)


def edit(folder: Path, **changes: Tensor | None) -> None:
    """Replace or take away tensors whose names end so (dots written as two underscores)."""
    tensors = load_file(folder / "model.safetensors")
    for ending, value in changes.items():
        (name,) = [name for name in tensors if name.endswith(ending.replace("__", "."))]
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


def test_what_a_layer_lacks_or_holds_as_integers_is_left_out(tmp_path: Path) -> None:
    folder = save(make_model("qwen2"), tmp_path / "m")
    edit(folder, layers__1__input_layernorm__weight=None, layers__2__mlp__up_proj__weight=torch.ones(16, 24, dtype=torch.int8),
         layers__0__self_attn__q_proj__bias=torch.ones(7))  # fmt: skip
    every = set(_LLAMA) | {"q-bias", "k-bias", "v-bias"}
    left_out = [every - set(layer) for layer in layer_spans(open_checkpoint(folder))]
    assert left_out == [{"q-bias"}, {"norm-1"}, {"up"}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_precision_is_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    model: Any = make_model("gpt_neox").to(dtype)
    bias_as_first_column(model)
    folder = save(model, tmp_path / "m")
    blocks = expected_blocks(model)
    for layer, roles in enumerate(layer_spans(open_checkpoint(folder))):
        for role in "qkv":
            assert torch.equal(read_span(roles[f"{role}-bias"][0]).reshape(-1), blocks[role, layer][:, 0].double())


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "bloom", "bert", "opt"])
def test_embedding_is_the_input_embeddings_first_rows(model_type: str, shard: bool, tmp_path: Path) -> None:
    model: Any = make_model(model_type)
    folder = save(model, tmp_path, **({"max_shard_size": "4KB"} if shard else {}))
    checkpoint = open_checkpoint(folder)
    whole = model.get_input_embeddings().weight.detach().double()
    for num_rows in (1, 7, 32, 1000):
        rows = read_embedding(checkpoint, num_rows)
        assert rows is not None
        assert torch.equal(rows, whole[:num_rows])


def test_embedding_that_is_not_there_or_has_another_width_is_none(tmp_path: Path) -> None:
    folder = save(make_model("llama"), tmp_path / "m")
    edit(folder, embed_tokens__weight=torch.ones(32, HIDDEN + 1))
    assert read_embedding(open_checkpoint(folder), 8) is None
    edit(folder, embed_tokens__weight=None)
    assert read_embedding(open_checkpoint(folder), 8) is None


def test_layer_path_and_inner_width_of_the_checkpoint(tmp_path: Path) -> None:
    expected = {
        "llama": ("model.layers.{layer}.", 16), "gpt2": ("transformer.h.{layer}.", None),
        "opt": ("model.decoder.layers.{layer}.", 8), "bert": ("bert.encoder.layer.{layer}.", 8),
        "mpt": ("transformer.blocks.{layer}.", None), "gpt_neox": ("gpt_neox.layers.{layer}.", 16),
    }  # fmt: skip
    for model_type, (path, inner) in expected.items():
        checkpoint = open_checkpoint(save(make_model(model_type), tmp_path / model_type))
        assert (checkpoint.layers[2].path, checkpoint.intermediate_size) == (path.format(layer=2), inner)
        assert any(name.startswith(path.format(layer=0)) for name in checkpoint.tensors.names())


def test_layer_ten_is_not_layer_one(tmp_path: Path) -> None:
    model: Any = make_model("llama", num_hidden_layers=12)
    layers = layer_spans(open_checkpoint(save(model, tmp_path)))
    for index, layer in enumerate(layers):
        own = model.model.layers[index].mlp.up_proj.weight.detach().double()
        (span,) = layer["up"]
        assert torch.equal(read_span(span), own)
    assert NUM_HEADS * HEAD_DIM != HIDDEN  # sizes that would let a wrong cut pass


def test_layers_of_multi_token_prediction_are_left_out(tmp_path: Path) -> None:
    folder = save(make_model("llama"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    tensors = load_file(folder / "model.safetensors")
    extra = {name.replace(".2.", ".3."): tensor.clone() for name, tensor in tensors.items() if ".2." in name}
    save_file(tensors | extra, folder / "model.safetensors")
    layers = layer_spans(open_checkpoint(folder))
    assert [len(layer["up"]) for layer in layers] == [1] * NUM_LAYERS

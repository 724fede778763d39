"""Tensors find their place in every architecture, layers their counterparts, and large tensors their sample."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from modelassay.fingerprints.lineage import tensors as module
from modelassay.fingerprints.lineage.tensors import OUTSIDE, Tensors, match_layers
from modelassay.models.checkpoints import open_checkpoint
from modelassay.models.checkpoints.architectures import ROLES
from support.tiny_models import NUM_LAYERS, SETTINGS, make_model, save


def open_weights(folder: Path) -> Tensors:
    return Tensors(open_checkpoint(folder))


@pytest.mark.parametrize("model_type", SETTINGS)
def test_every_tensor_has_one_place(model_type: str, tmp_path: Path) -> None:
    folder = save(make_model(model_type), tmp_path)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    tensors = open_weights(folder)
    attention = {matrix.tensor_name for matrix in tensors.matrices.values()}
    placed = [name for names in tensors.by_layer.values() for name in names.values()]
    assert sorted([*attention, *placed]) == sorted(stored)
    assert set(tensors.by_layer) - {OUTSIDE} == set(range(NUM_LAYERS))
    below = [set(tensors.by_layer[layer]) for layer in range(NUM_LAYERS)]
    assert all(names for names in below)
    for layer, names in tensors.by_layer.items():
        for name, full in names.items():
            assert torch.equal(tensors.read(layer, name), stored[full])


@pytest.mark.parametrize("model_type", ["qwen2", "opt", "gpt2", "gpt_neox", "bloom"])
def test_bias_belongs_to_the_rows_of_its_matrix(model_type: str, tmp_path: Path) -> None:
    """Cut as the weight is: a bias that equals the weight's first column is cut to the first column of each role."""
    model: Any = make_model(model_type)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        weight = parameters.get(name.removesuffix("bias") + "weight")
        if name.endswith(".bias") and "att" in name and weight is not None and weight.ndim == 2:
            columns = weight.T if model_type == "gpt2" else weight
            parameter.data.copy_(columns[:, 0])
    tensors = open_weights(save(model, tmp_path))
    for role in ROLES[:3]:
        bias = tensors.bias(1, role)
        assert bias is not None
        assert torch.equal(bias, tensors.checkpoint.read(tensors.matrices[1, role])[:, 0])


def write_llama(folder: Path, layers: list[int], *, width: int = 24) -> Path:
    """A llama whose layer i is drawn by the seed layers[i]."""
    tensors: dict[str, Tensor] = {"model.embed_tokens.weight": torch.randn(300, width)}
    for layer, seed in enumerate(layers):
        generator = torch.Generator().manual_seed(seed)
        for role in "qkvo":
            name = f"model.layers.{layer}.self_attn.{role}_proj.weight"
            tensors[name] = torch.randn(width, width, generator=generator)
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": len(layers), "hidden_size": width, "vocab_size": 300,
              "num_attention_heads": 4}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("layers", [[0, 1, 4, 5], [1, 2, 3], [5], [0, 2, 4]])
def test_removed_layers_are_found(layers: list[int], tmp_path: Path) -> None:
    deep = open_weights(write_llama(tmp_path / "deep", [0, 1, 2, 3, 4, 5]))
    shallow = open_weights(write_llama(tmp_path / "shallow", layers))
    pairs, cosine, repeated = match_layers(deep, shallow)
    assert pairs == [(layer, place) for place, layer in enumerate(layers)]
    assert cosine == pytest.approx(1, abs=1e-5)
    assert repeated == 0
    assert match_layers(shallow, deep)[0] == list(enumerate(layers))


def test_stacked_layers_are_repetitions(tmp_path: Path) -> None:
    shallow = open_weights(write_llama(tmp_path / "shallow", [0, 1, 2, 3]))
    stacked = open_weights(write_llama(tmp_path / "stacked", [0, 1, 2, 1, 2, 3]))
    pairs, cosine, repeated = match_layers(shallow, stacked)
    assert [pair[0] for pair in pairs] == [0, 1, 2, 3]
    assert cosine == pytest.approx(1, abs=1e-5)
    assert repeated == 1


def test_a_large_tensor_is_read_by_rows_at_even_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = open_weights(write_llama(tmp_path / "a", [0]))
    weight = tensors.read(OUTSIDE, "embed_tokens.weight")
    monkeypatch.setattr(module, "MAX_ELEMENTS", 24 * 50)
    sample = tensors.read(OUTSIDE, "embed_tokens.weight")
    assert sample.shape == (50, 24)
    rows = torch.linspace(0, 299, 50, dtype=torch.float64).long()
    assert rows[-1] == 299
    assert torch.equal(sample, weight[rows])
    assert torch.equal(tensors.read(OUTSIDE, "embed_tokens.weight", rows=40), weight[:40])

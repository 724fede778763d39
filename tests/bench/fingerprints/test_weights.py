"""What methods are given of a checkpoint, against the model's own parameters, read anew and kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelassay import zoo
from modelassay.fingerprints import weights as module
from modelassay.fingerprints.curves import ROLES
from modelassay.fingerprints.methods import BY_WEIGHTS
from modelassay.fingerprints.tokens import texts_of
from modelassay.fingerprints.weights import Weights, load_weights, weights_of
from modelassay.models.checkpoints import open_checkpoint
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve
from support.tiny_models import HIDDEN, NUM_LAYERS, expected_blocks, make_model, save


def expected_grams(model: Any) -> np.ndarray:
    blocks = expected_blocks(model)
    rows = {(role, at): (block.T if role == "o" else block).double().numpy() for (role, at), block in blocks.items()}
    return np.array([[rows[role, at].T @ rows[role, at] for role in ROLES] for at in range(NUM_LAYERS)])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_of_a_checkpoint(model_type: str, tmp_path: Path) -> None:
    model: Any = make_model(model_type)
    table = model.get_input_embeddings().weight.detach().double().numpy()
    texts = {f"t{row}": row for row in range(0, len(table), 2)} | {"beyond": len(table), "before": -1}
    weights = weights_of(open_checkpoint(save(model, tmp_path)), texts)
    expected = expected_grams(model)
    np.testing.assert_allclose(weights.grams(range(NUM_LAYERS)), expected, rtol=1e-12)
    np.testing.assert_allclose(weights.grams(range(1, 3)), expected[1:3], rtol=1e-12)
    turns = np.random.default_rng(0).normal(size=(len(ROLES), expected.shape[-1], 5))
    along = np.swapaxes(turns, -1, -2) @ expected[1] @ turns
    np.testing.assert_allclose(weights.products(1, turns), along, rtol=1e-4, atol=1e-5 * np.abs(along).max())
    assert weights.embedding is not None
    assert sorted(weights.tokens) == sorted(f"t{row}" for row in range(0, len(table), 2))
    np.testing.assert_array_equal(weights.embedding, table[[texts[token] for token in weights.tokens]])
    assert weights.norms is not None
    layers = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)][0]
    names = ("ln_1", "ln_2") if model_type == "gpt2" else ("input_layernorm", "post_attention_layernorm")
    for at, layer in enumerate(layers):
        for place, name in enumerate(names):
            np.testing.assert_array_equal(
                weights.norms[at, place], getattr(layer, name).weight.detach().double().numpy()
            )


def test_norms_that_a_layer_lacks_are_none(tmp_path: Path) -> None:
    assert weights_of(open_checkpoint(save(make_model("olmo"), tmp_path))).norms is None


def test_no_more_tokens_are_read_than_the_limit_and_two_vocabularies_choose_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 7)
    checkpoint = open_checkpoint(save(make_model("llama"), tmp_path))
    texts = {f"t{row}": row for row in range(checkpoint.vocab_size)}
    weights = weights_of(checkpoint, texts)
    assert weights.embedding is not None
    assert weights.embedding.shape == (7, HIDDEN)
    renumbered = weights_of(checkpoint, {text: checkpoint.vocab_size - 1 - row for text, row in texts.items()})
    assert renumbered.tokens == weights.tokens
    assert weights_of(checkpoint).tokens == ()
    assert weights_of(checkpoint).embedding is None


def test_neurons_are_the_first_of_layers_at_even_distances_after_the_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEURONS", 5)
    monkeypatch.setattr(module, "NEURON_LAYERS", 2)
    model: Any = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.uniform_(0.5, 2)
    neurons = weights_of(open_checkpoint(save(model, tmp_path))).neurons
    assert neurons is not None
    for at, number in enumerate((0, NUM_LAYERS - 1)):
        layer = model.model.layers[number]
        scale = layer.post_attention_layernorm.weight
        expected = (layer.mlp.gate_proj.weight * scale, layer.mlp.up_proj.weight * scale, layer.mlp.down_proj.weight.T)
        for part, rows in enumerate(expected):
            np.testing.assert_allclose(neurons[at, part], rows[:5].detach().numpy(), rtol=1e-6)


def test_folder_that_is_no_zoo_model_is_read_on_demand(tmp_path: Path) -> None:
    folder, store = save(make_model("llama"), tmp_path / "m"), Store(tmp_path / "store")
    weights = load_weights(resolve(str(folder), store=store), store=store)
    assert weights.name == str(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        weights.grams(range(1))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One smoke root, made in this process."""
    cache = Store(tmp_path_factory.mktemp("store"))
    zoo.ensure("smoke/base", store=cache)
    return cache


def assert_same(a: Weights, b: Weights) -> None:
    assert (a.num_layers, a.tokens) == (b.num_layers, b.tokens)
    np.testing.assert_array_equal(a.grams(range(a.num_layers)), b.grams(range(b.num_layers)))
    np.testing.assert_array_equal(a.grams(range(1, 3)), b.grams(range(1, 3)))
    assert a.norms is not None
    assert b.norms is not None
    np.testing.assert_array_equal(a.norms, b.norms)
    for x, y in ((a.embedding, b.embedding), (a.neurons, b.neurons)):
        assert x is not None
        assert y is not None
        np.testing.assert_array_equal(x, y)


def test_zoo_model_is_kept_as_it_was_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model = resolve("zoo:smoke/base", store=store)
    read = weights_of(model.checkpoint(), texts_of(model.files))
    assert len(read.tokens) > 64
    first = load_weights(resolve("zoo:smoke/base", store=store), store=store)
    assert_same(first, read)
    monkeypatch.setattr(module, "weights_of", lambda _: pytest.fail("read again"))
    weights = load_weights(resolve("zoo:smoke/base", store=store), store=store)
    assert_same(weights, read)
    before = weights.grams(range(weights.num_layers)).copy()
    for method in BY_WEIGHTS.values():
        assert method.score(weights, first).value == pytest.approx(1, abs=1e-10)
    np.testing.assert_array_equal(
        weights.grams(range(weights.num_layers)), before
    )  # no method spoils what it was given


def test_a_vocabulary_of_two_billion_that_config_states_names_the_rows_that_are_there(tmp_path: Path) -> None:
    """Where no texts are told, the key of the tokenizer's files and a row's number are its name."""
    path = save(make_model("llama"), tmp_path)
    (path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    config = json.loads((path / "config.json").read_text())
    rows = config["vocab_size"]
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": 2**31 - 1}))
    weights = weights_of(open_checkpoint(path))
    assert weights.embedding is not None
    assert len(weights.tokens) == len(weights.embedding) == min(rows, module.MAX_TOKENS)

"""The tests of independent numbering on real checkpoints: copies under every change that keeps them copies, and strangers."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modelassay.fingerprints.identical import same_bits
from modelassay.fingerprints.independence import Independence, independence, matrices_of
from modelassay.fingerprints.independence.agreement import agreement
from modelassay.fingerprints.independence.matching import match_features, match_units, numbering_test
from modelassay.fingerprints.independence.matrices import Neurons, invariants
from modelassay.fingerprints.verdict import conclude
from modelassay.models.checkpoints import open_checkpoint
from modelassay.storage.store import Store
from modelassay.zoo.resolve import resolve
from support.byte_tokenizer import byte_tokenizer
from support.tiny_models import make_model, save

LARGE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 300}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**LARGE, "head_dim": 8, "num_key_value_heads": 2},
    "qwen2": {**LARGE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gemma": {**LARGE, "head_dim": 8, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_head": 4, "vocab_size": 300},
    "opt": {"hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "vocab_size": 300},
    "gpt_neox": LARGE,
    "mixtral": {**LARGE, "num_key_value_heads": 2},
    "bert": LARGE,
    "distilbert": {"dim": 32, "n_heads": 4, "hidden_dim": 48, "vocab_size": 300},
}


def model_of(model_type: str, seed: int, **changes: Any) -> nn.Module:
    model = make_model(model_type, **{**SHAPES[model_type], **changes})
    torch.manual_seed(1000 + seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02 if parameter.dim() > 1 else 1.0)
    return model


def write(model: nn.Module, folder: Path) -> Path:
    byte_tokenizer().save_pretrained(save(model, folder))
    return folder


def result_of(tmp_path: Path, *models: nn.Module) -> Independence:
    folders = [write(model, tmp_path / str(at)) for at, model in enumerate(models)]
    a, b = (matrices_of(resolve(str(folder), store=Store(tmp_path / "store"))) for folder in folders)
    return independence(a, b)


@pytest.mark.parametrize("model_type", SHAPES)
def test_a_noisy_copy_is_found_and_a_stranger_is_not(tmp_path: Path, model_type: str) -> None:
    base, copy, stranger = (model_of(model_type, seed) for seed in (0, 0, 1))
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    near = result_of(tmp_path / "copy", base, copy)
    assert len(near.tests) == 4
    assert near.reasons == ()
    assert [test.name for test in near.tests if test.log10_p > -6] in ([], ["neurons by invariants"])
    far = result_of(tmp_path / "stranger", base, stranger)
    assert far.log10_p > -2
    assert far.agreement is not None
    assert far.agreement.log10_p > -2


def permute_neurons(model: nn.Module) -> None:
    for layer in model.model.layers:  # type: ignore[union-attr]
        order = torch.randperm(layer.mlp.up_proj.weight.shape[0])
        for module in (layer.mlp.gate_proj, layer.mlp.up_proj):
            module.weight.data = module.weight.data[order]
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, order]


def turn_stream(model: nn.Module, turn_DD: torch.Tensor) -> None:
    """Fold the norms into what reads the stream and write it in another basis, as QuaRot does."""
    model.model.embed_tokens.weight.data @= turn_DD  # type: ignore[union-attr]
    for layer in model.model.layers:  # type: ignore[union-attr]
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in ((layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                              (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))):  # fmt: skip
            for reader in readers:
                reader.weight.data = (reader.weight.data * norm.weight.data) @ turn_DD
            norm.weight.data.fill_(1.0)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.data = turn_DD.T @ writer.weight.data


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0].float()


def permute_stream(model: nn.Module) -> None:
    turn_stream(model, torch.eye(32)[torch.randperm(32)])


def flip_signs(model: nn.Module) -> None:
    turn_stream(model, torch.diag(torch.randint(0, 2, (32,)) * 2.0 - 1))


def rotate_stream(model: nn.Module) -> None:
    turn_stream(model, rotation(32))


def rotate_and_permute(model: nn.Module) -> None:
    rotate_stream(model)
    permute_neurons(model)


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (permute_neurons, "hidden dimensions by embeddings"),
        (permute_stream, "neurons by invariants"),
        (rotate_stream, "neurons by invariants"),
        (flip_signs, "neurons by invariants"),
        (rotate_and_permute, "agreement"),
    ],
)
def test_a_copy_that_was_written_otherwise_is_found(
    tmp_path: Path, change: Callable[[nn.Module], None], by: str
) -> None:
    base, copy = model_of("llama", 0), model_of("llama", 0)
    torch.manual_seed(7)
    change(copy)
    result = result_of(tmp_path, base, copy)
    if by == "agreement":
        assert result.log10_p > -6
        assert result.agreement is not None
        assert result.agreement.count == result.agreement.of
        assert result.agreement.log10_p < -6
    else:
        assert {test.name: test.log10_p for test in result.tests}[by] < -6


def exchange_layers_and_turn(model: nn.Module) -> None:
    model.model.layers = nn.ModuleList(model.model.layers[at] for at in (2, 0, 1))  # type: ignore[union-attr]
    rotate_and_permute(model)


def test_layers_that_changed_places_are_found_in_a_turned_copy(tmp_path: Path) -> None:
    models = [model_of("llama", 0), model_of("llama", 0), model_of("llama", 0)]
    torch.manual_seed(7)
    for model in models[:2]:
        for layer, scale in zip(model.model.layers, (1.0, 1.5, 2.0), strict=True):  # type: ignore[union-attr]
            layer.mlp.up_proj.weight.data *= scale  # as training makes layers differ
    exchange_layers_and_turn(models[1])
    agreements = [result_of(tmp_path / str(at), models[0], models[at]).agreement for at in (1, 2)]
    assert [None if one is None else one.count for one in agreements] == [144, None]


def test_units_without_content_are_not_matched_by_the_algorithm() -> None:
    """An assignment among equals prefers the diagonal: without a shuffle every such pair would be called inherited."""
    same = np.outer(np.arange(1, 201), np.ones(16)).astype(np.float32)
    matching = match_units([same], [same], seed=0)
    assert matching is not None
    test = numbering_test("equals", [matching])
    assert test is not None
    assert test.all_log10_p > -3
    assert match_features(np.ones_like(same), np.ones_like(same), seed=0) is None
    assert match_units([np.zeros((200, 16), dtype=np.float32)], [same], seed=0) is None
    assert match_units([np.full((200, 16), np.nan, dtype=np.float32)], [same], seed=0) is None
    huge = np.where(rows_of(0, 200, 16) > 0, 3e38, -3e38).astype(np.float32)
    assert match_units([huge], [same], seed=0) is not None


def rows_of(seed: int, units: int, features: int) -> Any:
    return np.random.default_rng(seed).normal(size=(units, features)).astype(np.float32)


def over_layers(first: Any, second: Any, match: Any, *, num_layers: int = 8) -> Any:
    """Return the test over layers, each made by ``first(seed)`` and ``second(seed)``."""
    test = numbering_test(
        "units", [match(first(2 * layer), second(2 * layer + 1), seed=layer) for layer in range(num_layers)]
    )
    assert test is not None
    return test


@pytest.mark.parametrize("kept", [96, 64])
def test_strangers_whose_units_are_sorted_are_no_copies(kept: int) -> None:
    """As tools for pruning leave them: the largest first, so that a unit's rank tells its number."""

    def features(seed: int) -> Any:
        values = rows_of(seed, 96, 4)
        size, rest = values[:, :1], values[:, 1:]
        return np.concatenate([size, size + 0.6 * rest], 1)[np.argsort(-size[:, 0])]

    test = over_layers(lambda seed: features(seed)[:kept], features, match_features)
    assert test.all_log10_p < -6  # without neighbours they would be called copies
    assert test.log10_p > -3
    copies = over_layers(features, lambda seed: features(seed - 1), match_features)
    assert copies.log10_p < -50


def test_strangers_under_one_mask_and_one_scale_are_no_copies() -> None:
    def rows(seed: int) -> Any:
        pattern = np.random.default_rng(1000 + seed // 2)  # the same in both models
        scale = np.exp(pattern.normal(size=(96, 200)))
        return [np.where(pattern.random((96, 200)) < 0.5, 0, rows_of(seed, 96, 200) * scale).astype(np.float32)]

    assert over_layers(rows, rows, match_units).log10_p > -3


def test_copies_of_one_unit_are_not_matched_by_their_order() -> None:
    """Padding repeats one unit, and widening a few: what is repeated often is left out, of the rest one is kept."""
    base = rows_of(0, 64, 30)
    padded = np.concatenate([base, np.full((40, 30), 1e-6, dtype=np.float32)])
    for rows, count in ((padded, 64), (np.concatenate([base, base]), 64), (np.tile(base[:8], (8, 1)), None)):
        matching = match_units([rows], [rows], seed=0)
        assert (None if matching is None else len(matching.units)) == count


def test_gates_that_resemble_ups_do_not_make_strangers_agree() -> None:
    def network(seed: int) -> Neurons:
        up, rest = rows_of(2 * seed, 128, 64), rows_of(2 * seed + 1, 128, 64)
        return Neurons(up_nD=up, down_nD=rows_of(100 + seed, 128, 64), gate_nD=up + 0.1 * rest, scale_D=None)

    tokens = rows_of(7, 200, 64)
    strangers = agreement([(network(0), network(1))], (tokens, tokens))
    assert strangers is not None
    assert strangers.log10_p > -2
    copies = agreement([(network(0), network(0))], (tokens, tokens))
    assert copies is not None
    assert copies.count == 128


def test_neighbours_of_strangers_meet_as_often_as_chance_has_it() -> None:
    matchings = [
        match_units([rows_of(2 * seed, 64, 20)], [rows_of(2 * seed + 1, 64, 20)], seed=seed) for seed in range(60)
    ]
    test = numbering_test("rows", [matching for matching in matchings if matching is not None])
    assert test is not None
    assert (test.near_of, test.near_expected) == (60 * 64, 60 * 16)
    assert abs(test.near_count - 960) < 4 * math.sqrt(960)
    same = np.ones((200, 16), dtype=np.float32) * np.arange(1, 201, dtype=np.float32)[:, None]
    alike = match_units([same], [same[::-1]], seed=0)
    assert alike is not None
    assert abs(alike.near[0] - 50) < 4 * math.sqrt(50)


def test_p_values_of_strangers_are_uniform_or_larger() -> None:
    random = np.random.default_rng(0)
    models = [random.normal(size=(48, 30)).astype(np.float32) for _ in range(26)]
    p_values = []
    for a, b in itertools.combinations(models, 2):
        matching = match_units([a], [b], seed=0)
        assert matching is not None
        test = numbering_test("rows", [matching])
        assert test is not None
        p_values.append(10**test.log10_p)
    for level in (0.02, 0.1, 0.3, 0.7):
        assert np.mean(np.array(p_values) <= level) <= level + 3 * math.sqrt(level * (1 - level) / len(p_values))


def test_a_part_in_its_order_is_found_by_inversions() -> None:
    random = np.random.default_rng(1)
    whole = random.normal(size=(64, 40)).astype(np.float32)
    chosen = np.sort(random.choice(64, 24, replace=False))
    for part, is_related in ((whole[chosen], True), (random.normal(size=(24, 40)).astype(np.float32), False)):
        for first, second in ((part, whole), (whole, part)):
            matching = match_units([first], [second], seed=3)
            assert matching is not None
            test = numbering_test("rows", [matching])
            assert test is not None
            assert test.statistic == "inversions"
            assert (test.log10_p < -6) == is_related


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_first_neurons_are_those_of_the_whole(tmp_path: Path, model_type: str) -> None:
    folder = write(model_of(model_type, 0), tmp_path)
    model = matrices_of(resolve(str(folder), store=Store(tmp_path / "store")))
    (whole,), (part,) = model.networks(1), model.networks(1, 10)
    assert model.num_neurons(1) == [len(whole.up_nD)]
    for all_nD, first_nD in zip(whole.parts(), part.parts(), strict=True):
        assert first_nD.shape == (10, 32)
        assert np.array_equal(all_nD[:10], first_nD)


def test_invariants_are_norms_and_angles_of_each_neuron(tmp_path: Path) -> None:
    folder = write(model_of("llama", 0), tmp_path)
    (network,) = matrices_of(resolve(str(folder), store=Store(tmp_path / "store"))).networks(0)
    gate, up, down = (part[7].astype(np.float64) for part in network.parts())
    sizes = [float(np.linalg.norm(row)) for row in (gate, up, down)]
    angles = [
        abs(float(x @ y)) / float(np.linalg.norm(x) * np.linalg.norm(y))
        for x, y in ((gate, up), (gate, down), (up, down))
    ]
    assert invariants(network)[7] == pytest.approx([*np.log(sizes), *angles], rel=1e-5)


def test_layers_left_out_are_matched_without_their_numbers(tmp_path: Path) -> None:
    base, half = model_of("llama", 0, num_hidden_layers=6), model_of("llama", 0, num_hidden_layers=6)
    half.model.layers = nn.ModuleList(half.model.layers[at] for at in (0, 2, 5))  # type: ignore[union-attr]
    half.config.num_hidden_layers = 3  # type: ignore[union-attr]
    result = result_of(tmp_path, base, half)
    assert {test.name: (test.count, test.of) for test in result.tests}["neurons by rows"] == (3 * 48, 3 * 48)


def test_a_model_without_a_tokenizer_is_tested_by_its_body(tmp_path: Path) -> None:
    folders = [save(model_of("llama", 0), tmp_path / name) for name in "ab"]
    a, b = (matrices_of(resolve(str(folder), store=Store(tmp_path / "store"))) for folder in folders)
    result = independence(a, b)
    assert [test.name for test in result.tests][0] == "hidden dimensions by body"
    assert result.reasons == ("hidden dimensions by embeddings: no file tells which tokens both know",)
    assert result.log10_p < -6


def test_networks_with_a_gate_and_without_are_not_compared(tmp_path: Path) -> None:
    result = result_of(tmp_path, model_of("llama", 0), model_of("gpt2", 1))
    assert {reason.split(":")[0] for reason in result.reasons} >= {"neurons by rows", "neurons by invariants"}
    assert result.log10_p > -2


def test_outlying_norms_in_common_are_no_shared_training(tmp_path: Path) -> None:
    """Siblings of one initialisation have the same outlying dimensions; all other weights of their norms say that they were trained apart."""
    models = [model_of("llama", 0) for _ in range(3)]
    torch.manual_seed(5)
    norms = [[module for name, module in model.named_modules() if name.endswith("layernorm")] for model in models]
    for first, second, third in zip(*norms, strict=True):
        first.weight.data = 1 + 0.1 * torch.randn(32)
        second.weight.data = 1 + 0.1 * torch.randn(32)
        third.weight.data = first.weight.data + 0.001 * torch.randn(32)
        for norm in (first, second, third):
            norm.weight.data[3] = 40.0
    for at, is_shared in ((1, False), (2, True)):
        training = result_of(tmp_path / str(at), models[0], models[at]).training
        assert training is not None
        assert training.is_shared == is_shared


def test_a_verdict_says_what_was_counted_and_what_else_could_be(tmp_path: Path) -> None:
    folders = [write(model_of("llama", seed), tmp_path / str(at)) for at, seed in enumerate((0, 0, 1))]
    with torch.no_grad():
        moved = model_of("llama", 0)
        for parameter in moved.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
        folders.append(write(moved, tmp_path / "moved"))
    checkpoints = [open_checkpoint(folder) for folder in folders]
    models = [matrices_of(resolve(str(folder), store=Store(tmp_path / "store"))) for folder in folders]

    def verdict(at: int) -> Any:
        return conclude("A", "B", same_bits(checkpoints[0], checkpoints[at]), independence(models[0], models[at]))

    assert verdict(1).word == "identical"
    assert "tensors are the same bits" in verdict(1).sentence
    far, near = verdict(2), verdict(3)
    assert far.word == "not distinguishable from independent"
    assert "This is no proof of independence" in far.sentence
    assert near.word == "inherited"
    assert "144 of 144 neurons by rows were matched to their own number (3 expected), p = 8e-50" in near.sentence
    assert "the same initial weights" in near.sentence


def test_same_bits_counts_what_says_something(tmp_path: Path) -> None:
    base, other = model_of("llama", 0), model_of("llama", 1)
    other.model.embed_tokens.weight.data = base.model.embed_tokens.weight.data.clone()  # type: ignore[union-attr]
    for model in (base, other):
        model.model.norm.weight.data = torch.ones(32)  # type: ignore[union-attr]
    first, second = (open_checkpoint(save(model, tmp_path / name)) for name, model in (("a", base), ("b", other)))
    assert same_bits(first, second).equal == ("model.embed_tokens.weight",)
    assert not same_bits(first, second).all_equal
    assert same_bits(first, first).all_equal


def bits_of(tmp_path: Path, *changes: dict[str, torch.Tensor]) -> Any:
    """Compare two copies of one model, in the files of which tensors were replaced or added."""
    folders = []
    for at, change in enumerate(changes):
        folder = save(model_of("llama", 0), tmp_path / str(at))
        path = folder / "model.safetensors"
        save_file(load_file(path) | change, path, metadata={"format": "pt"})
        folders.append(open_checkpoint(folder))
    return same_bits(*folders)


def test_tables_that_code_computes_are_no_shared_parts(tmp_path: Path) -> None:
    """Position ids, causal masks, rotary frequencies and padded norms of folded models are the same bits in all models of a kind."""
    tables = {
        "embeddings.position_ids": torch.arange(512)[None],
        "h.0.attn.bias": torch.tril(torch.ones(64, 64)),
        "layers.0.self_attn.rotary_emb.inv_freq": 10000 ** -torch.linspace(0, 1, 64),
        "layers.0.padded_norm.weight": torch.cat([torch.ones(100), torch.zeros(28)]),
        "mask": torch.tril(torch.ones(64, 64)) > 0,
        "identity": torch.eye(64),
    }
    without, with_tables = bits_of(tmp_path / "a", {}, {}), bits_of(tmp_path / "b", tables, tables)
    assert with_tables == without
    assert with_tables.all_equal


def test_identical_means_every_tensor(tmp_path: Path) -> None:
    """A tensor that begins with zeros, as a padded embedding does, and a small one can differ too."""
    rows = torch.zeros(300, 32)
    tables = [torch.cat([rows, torch.full((1, 32), float(at)), rows]) for at in (0, 1)]
    for name, values in (("table", tables), ("bias", [torch.zeros(3), torch.ones(3)])):
        bits = bits_of(tmp_path / name, {name: values[0]}, {name: values[1]})
        assert len(bits.equal) == bits.total > 0
        assert not bits.all_equal
        assert bits_of(tmp_path / f"{name}-same", {name: values[0]}, {name: values[0]}).all_equal
    late = torch.cat([torch.zeros(300, 32), torch.randn(300, 32)])
    assert "late" in bits_of(tmp_path / "late", {"late": late}, {"late": late}).equal

"""Tests of independent numbering by blocks of rows: what is read, what it says, and how often it errs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelassay.fingerprints.independence import sampling
from modelassay.fingerprints.independence.blocks import SampledModel, block_begin, places_of
from modelassay.fingerprints.independence.sampling import (
    LOOKS,
    SPENDING,
    SampledIndependence,
    sampled_independence,
    sampled_sigmas,
    sigma_of_rows,
)
from modelassay.models.checkpoints import open_checkpoint
from support.tiny_models import make_model, save

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "num_key_value_heads": 2, "intermediate_size": 192},
    "qwen2": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 192},
    "gemma": {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "num_key_value_heads": 2, "intermediate_size": 192},
    "gpt2": {"n_embd": 64, "n_head": 4},
    "opt": {"hidden_size": 64, "num_attention_heads": 4, "ffn_dim": 192, "word_embed_proj_dim": 64},
}  # fmt: skip


def model_of(model_type: str, seed: int, **changes: Any) -> Any:
    model = make_model(model_type, **{**SIZES[model_type], **changes})
    torch.manual_seed(1000 + seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02 if parameter.dim() > 1 else 1.0)
    return model


def sampled_model(model: Any, folder: Path) -> SampledModel:
    return SampledModel(open_checkpoint(save(model, folder)))


def noisy(model: Any, noise: float) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("model_type", SIZES)
def test_a_copy_is_found_by_few_rows_and_a_stranger_is_not(tmp_path: Path, model_type: str) -> None:
    base, copy, stranger = (
        sampled_model(noisy(model_of(model_type, seed), noise), tmp_path / name)
        for name, seed, noise in (("base", 0, 0.0), ("copy", 0, 0.5), ("stranger", 1, 0.0))
    )
    near = sampled_independence(base, copy, alpha=1e-10)
    assert near.log10_p < -10
    assert len(near.looks) == 1
    assert {test.name for test in near.looks[0].tests} == {
        "neurons by rows", "hidden dimensions by columns", "hidden dimensions by rows"}  # fmt: skip
    assert near.reasons == ()
    assert sampled_independence(copy, base, alpha=1e-10).log10_p == pytest.approx(near.log10_p)
    far = sampled_independence(base, stranger, alpha=1e-10)
    assert len(far.looks) == (2 if model_type == "gpt2" else 3)  # whose 64 rows have all been read then
    assert far.log10_p > -2
    assert [look.num_bytes[0] for look in far.looks] == sorted({look.num_bytes[0] for look in far.looks})


def test_blocks_are_the_rows_of_the_matrices(tmp_path: Path) -> None:
    model = model_of("llama", 3)
    sample = sampled_model(model, tmp_path)
    places = places_of(sample, sample, 32, most=128, seed=7)[0]
    blocks = sample.read(places)
    layers = model.model.layers
    assert {layer for layer, _ in blocks} == {0, 1, 2}
    for (layer, role), block in blocks.items():
        attention, mlp = layers[layer].self_attn, layers[layer].mlp
        linear = {"q": attention.q_proj, "o": attention.o_proj, "gate": mlp.gate_proj, "up": mlp.up_proj}[role]
        whole = linear.weight.detach().double()
        if role in ("gate", "up"):
            whole = whole * layers[layer].post_attention_layernorm.weight.detach().double()
        expected = whole[block.begin : block.begin + 32].numpy()
        assert block.of == len(whole)
        assert np.allclose(block.rows_nC, expected, rtol=1e-6, atol=0)
    begins = {block.begin for (_, role), block in blocks.items() if role == "o"}
    assert len(begins) == 1  # the same dimensions in all layers
    longer = places_of(sample, sample, 64, most=128, seed=7)[0]
    assert all(longer[place][0] == begin for place, (begin, _) in places.items())


def test_where_a_block_begins_is_any_place_alike() -> None:
    begins = [block_begin(100, 40, [seed]) for seed in range(3000)]
    assert (min(begins), max(begins)) == (0, 60)
    assert np.mean(begins) == pytest.approx(30, abs=4 * math.sqrt(61**2 / 12 / 3000))
    assert block_begin(30, 40, [1]) == 0


def test_models_of_other_shapes_say_why_they_are_not_tested(tmp_path: Path) -> None:
    base = sampled_model(model_of("llama", 0), tmp_path / "base")
    narrow = sampled_model(model_of("llama", 0, hidden_size=32, head_dim=8), tmp_path / "narrow")
    result = sampled_independence(base, narrow, alpha=1e-6)
    assert (result.looks, result.log10_p, result.strongest) == ((), 0.0, None)
    assert "(64 and 32 hidden dimensions)" in result.reasons[0]
    cut = model_of("llama", 0, intermediate_size=96)
    cut.model.load_state_dict({name: value[: 96] if "gate" in name or "up_proj" in name else value[:, :96] if "down" in name else value
                               for name, value in model_of("llama", 0).model.state_dict().items()})  # fmt: skip
    cut_result = sampled_independence(base, sampled_model(cut, tmp_path / "cut"), alpha=1e-6)
    assert cut_result.log10_p < -6  # by q and o
    assert cut_result.reasons == ("neurons by rows: no feed-forward network of one shape in both could be read",)


@pytest.mark.parametrize("kept", [[0, 2], [0, 1, 2, 2, 2, 2]])
def test_a_copy_of_another_depth_is_found_by_its_first_and_last_layer(tmp_path: Path, kept: list[int]) -> None:
    base, copy = model_of("llama", 0), model_of("llama", 0, num_hidden_layers=len(kept))
    state = {name: value for name, value in base.model.state_dict().items() if ".layers." not in f".{name}"}
    for at, layer in enumerate(kept):
        state |= {f"layers.{at}.{name}": value for name, value in base.model.layers[layer].state_dict().items()}
    copy.model.load_state_dict(state)
    a, b = sampled_model(base, tmp_path / "base"), sampled_model(copy, tmp_path / "copy")
    assert sampled_independence(a, b, alpha=1e-6).log10_p < -6
    assert sampled_independence(b, a, alpha=1e-6).log10_p < -6


def test_the_looks_spend_no_more_than_the_level() -> None:
    assert sum(SPENDING) == 1
    assert len(SPENDING) == len(LOOKS)
    assert list(LOOKS) == sorted(LOOKS)


def test_intervals_of_sampled_deviations_hold_as_often_as_they_say() -> None:
    """Rows of unequal sizes, some of heavy tails, that stand for each other; the truth is the matrix's own deviation."""
    random = np.random.default_rng(0)
    inside, num_draws = 0, 1500
    for _ in range(num_draws):
        whole = (random.standard_t(6, size=(400, 50)) * np.exp(0.3 * random.normal(size=(400, 1)))).astype(np.float32)
        estimate = sigma_of_rows(whole[100:164], 400)
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= whole.std(dtype=np.float64) <= estimate.high
    assert inside / num_draws == pytest.approx(0.95, abs=0.025)


def test_a_deviation_of_all_rows_is_exact(tmp_path: Path) -> None:
    whole = np.random.default_rng(1).normal(size=(64, 20)).astype(np.float32)
    estimate = sigma_of_rows(whole, 64)
    assert estimate.low == estimate.high == estimate.value == pytest.approx(whole.std(dtype=np.float64), rel=1e-12)
    assert sigma_of_rows(np.zeros((8, 4), dtype=np.float32), 64).note.startswith("no interval")
    sample = sampled_model(model_of("llama", 5), tmp_path)
    sigmas = sampled_sigmas(sample, 192)
    assert {one.role for one in sigmas} == {"gate", "up", "o"}
    assert all(one.sigma.value == pytest.approx(0.02, rel=0.05) for one in sigmas)


def sort_neurons(model: Any) -> Any:
    """The largest neurons first, as tools for pruning leave them."""
    for layer in model.model.layers:
        order = layer.mlp.up_proj.weight.norm(dim=1).argsort(descending=True)
        for module in (layer.mlp.gate_proj, layer.mlp.up_proj):
            module.weight.data = module.weight.data[order]
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, order]
    return model


def alike_but_strange(seed: int) -> Any:
    """A stranger with what strangers have in common: sizes of columns, sizes of neurons that differ, and these sorted."""
    model = model_of("llama", seed)
    column_D = torch.exp(0.7 * torch.randn(64, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.self_attn.q_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight.mul_(column_D)
            size_n = torch.exp(0.5 * torch.randn(192, 1))
            layer.mlp.up_proj.weight.mul_(size_n)
            layer.mlp.gate_proj.weight.mul_(size_n)
    return model


@pytest.mark.nightly
@pytest.mark.parametrize("order", ["as they are", "sorted"])
def test_strangers_are_rejected_no_more_often_than_stated(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequential rule at several levels over 435 pairs of 30 models, blocks anywhere, neurons sorted by size in half of the runs."""
    models = []
    for seed in range(30):
        model = alike_but_strange(seed)
        models.append(sampled_model(sort_neurons(model) if order == "sorted" else model, tmp_path / str(seed)))
    monkeypatch.setattr(sampling, "LOOKS", (16, 32, 64))
    results = [sampled_independence(a, b, alpha=1e-12, seed=3) for a, b in itertools.combinations(models, 2)]
    check_levels(results)


def check_levels(results: list[SampledIndependence]) -> None:
    p_values = np.array([10**result.log10_p for result in results])
    assert len(p_values) == 435
    for level in (0.01, 0.05, 0.2, 0.5):
        share, spread = float(np.mean(p_values <= level)), math.sqrt(level * (1 - level) / len(p_values))
        assert share <= level + 3 * spread, (level, share)
    assert p_values.min() > 1e-4


@pytest.mark.nightly
def test_power_falls_with_the_noise_and_rises_with_the_looks(tmp_path: Path) -> None:
    base = sampled_model(model_of("llama", 0), tmp_path / "base")
    decided = {}
    for noise in (0.3, 1.0, 2.0, 4.0):
        looks = []
        for seed in range(6):
            torch.manual_seed(seed)
            copy = sampled_model(noisy(model_of("llama", 0), noise), tmp_path / f"{noise}-{seed}")
            result = sampled_independence(base, copy, alpha=1e-6)
            looks.append(len(result.looks) if result.log10_p <= -6 else math.inf)
        decided[noise] = looks
    assert set(decided[0.3]) == {1}
    assert max(decided[1.0]) <= 2
    assert np.mean(decided[2.0]) >= np.mean(decided[1.0])

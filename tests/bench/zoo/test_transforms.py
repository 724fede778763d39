"""Transformations of weights on small random Qwen2, Llama and Mistral models, none of whose sizes are alike."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from modelassay.errors import CheckpointError
from modelassay.zoo import transforms as zoo_transforms
from modelassay.zoo.catalogue import PRESERVING, WEIGHT_STEPS
from support.small_models import (
    CASES,
    SIZES,
    Case,
    logits,
    norms_in_given_precision,
    random_model,
    tensors,
)

FLOAT64_TOLERANCE = 2e-6
"""Of logits of size 1 to 10: the model's norms compute in fp32 whatever its precision, 6e-8 of what they are given."""


CLAIMED: Mapping[str, set[str]] = {
    "heads": {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "o_proj.weight"},
    "neurons": {"gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias", "down_proj.weight"},
    "rotate": {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"},
    "scale-qk": {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"},
    "scale-vo": {"v_proj.weight", "v_proj.bias", "o_proj.weight"},
    "hidden": {
        "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "o_proj.bias", "gate_proj.weight", "up_proj.weight",
        "down_proj.weight", "down_proj.bias", "input_layernorm.weight", "post_attention_layernorm.weight",
    },
    "fold": {
        "q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "input_layernorm.weight",
        "post_attention_layernorm.weight",
    },
}  # fmt: skip
"""Transformation -> the tensors of every layer that it changes, if the model has them; it changes no other."""
OUTSIDE: Mapping[str, set[str]] = {"hidden": {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}}
"""The same, of the tensors that belong to no layer."""


def change(model: PreTrainedModel, step: str, seed: int = 5, **settings: Any) -> PreTrainedModel:
    made_by, defaults = WEIGHT_STEPS[step]
    return zoo_transforms.apply(model, made_by, seed=seed, settings={**defaults, **settings})


@pytest.fixture
def norms_in_float64() -> Iterator[None]:
    with norms_in_given_precision():
        yield


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("step", PRESERVING)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_function_stays_and_the_claimed_weights_change(case: Case, step: str) -> None:
    model = random_model(case)
    weights, before = tensors(model), logits(model)
    change(model, step)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)
    changed = {name for name, weight in tensors(model).items() if not torch.equal(weight, weights[name])}
    claimed = {name for name in weights if "layers" in name and ".".join(name.split(".")[-2:]) in CLAIMED[step]}
    assert changed == claimed | (OUTSIDE.get(step, set()) & set(weights))
    assert len(claimed) >= 8 * 2


@pytest.mark.parametrize("step", ["scale-qk", "scale-vo"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rescaling_is_exact_in_every_precision(step: str, dtype: torch.dtype) -> None:
    """A power of two changes no mantissa, and attention multiplies what was scaled with what was divided."""
    model = random_model(CASES[0], dtype)
    before = logits(model)
    change(model, step)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("step", [step for step in PRESERVING if any("bias" in name for name in CLAIMED[step])])
def test_the_test_would_see_a_bias_left_behind(step: str) -> None:
    """The same with the biases put back as they were: the logits move, so the tolerance above is no formality."""
    model = random_model(CASES[1])
    weights, before = tensors(model), logits(model)
    change(model, step)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.bias"):
                weight.copy_(weights[name])
    assert float((logits(model) - before).abs().max()) > 1000 * FLOAT64_TOLERANCE


def sigma_curve(model: PreTrainedModel, role: str) -> np.ndarray[Any, Any]:
    return np.array([getattr(layer.self_attn, f"{role}_proj").weight.detach().std() for layer in model.model.layers])


@pytest.mark.parametrize(
    ("step", "hit"), [("scale-qk", "qk"), ("scale-vo", "vo"), ("heads", ""), ("rotate", ""), ("hidden", "")]
)
def test_which_sigma_curves_survive(step: str, hit: str) -> None:
    """Permutation and rotation leave the published fingerprint as it is; reciprocal rescaling destroys it."""
    model = random_model(CASES[0])
    before = {role: sigma_curve(model, role) for role in "qkvo"}
    change(model, step)
    for role, curve in before.items():
        correlation = np.corrcoef(curve, sigma_curve(model, role))[0, 1]
        if role in hit:
            assert correlation < 0.9
        else:
            assert correlation > 0.999


def test_int8_rounds_each_row_to_127_steps_of_its_largest_weight() -> None:
    model = random_model(CASES[0], torch.float32)
    before = tensors(model)
    change(model, "int8")
    for name, rounded in tensors(model).items():
        if "_proj.weight" not in name:
            assert torch.equal(rounded, before[name]), name
            continue
        for row, original in zip(rounded.double().numpy(), before[name].double().numpy(), strict=True):
            step = np.abs(original).max() / 127
            np.testing.assert_allclose(row / step, np.rint(row / step), rtol=0, atol=2e-5)  # fp32 holds 127 to 8e-6
            assert np.abs(row - original).max() <= 0.5001 * step
            assert len(np.unique(np.rint(row / step))) > 10


def test_pruning_zeroes_the_smallest_and_keeps_the_rest() -> None:
    model = random_model(CASES[2], torch.float32)
    before = tensors(model)
    change(model, "prune-30")
    for name, pruned in tensors(model).items():
        zeros = pruned == 0
        if "_proj.weight" in name:
            assert int(zeros.sum()) == round(0.3 * pruned.numel())
            assert before[name][zeros].abs().max() <= pruned[~zeros].abs().min()
        assert torch.equal(pruned[~zeros], before[name][~zeros])


def test_a_merge_is_the_mean() -> None:
    model, other = random_model(CASES[0], torch.float32), change(random_model(CASES[0], torch.float32), "noise-5")
    expected = {name: (weight.double() + tensors(other)[name].double()) / 2 for name, weight in tensors(model).items()}
    with torch.no_grad():
        merged = zoo_transforms.merge(model, other)
    for name, weight in tensors(merged).items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-7, atol=0)


def test_models_of_two_shapes_do_not_merge() -> None:
    with pytest.raises(CheckpointError, match="merge models of one shape"):
        zoo_transforms.merge(random_model(CASES[0]), random_model(CASES[1]))


class Passes(nn.Module):
    """A layer that does nothing, for counting on its neighbours."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_middle_layers_go(case: Case) -> None:
    """The same logits as the whole model with the fourth and fifth of its eight layers bridged."""
    bridged, model = random_model(case), change(random_model(case), "depth")
    bridged.model.layers[3] = bridged.model.layers[4] = Passes()
    torch.testing.assert_close(logits(model), logits(bridged), rtol=0, atol=1e-12)
    assert model.config.num_hidden_layers == len(model.model.layers) == 6
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(6))
    cached = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    uncached = model.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False
    )
    assert cached.tolist() == uncached.tolist()


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=lambda case: case.name)
def test_experts_without_noise_are_the_dense_model(case: Case) -> None:
    """In fp32, which is the most that PyTorch's product of grouped matrices takes."""
    dense = random_model(case, torch.float32)
    sparse = change(random_model(case, torch.float32), "moe", relative_std=0.0)
    torch.testing.assert_close(logits(sparse), logits(dense), rtol=0, atol=2e-5)
    weights = tensors(sparse)
    for name, weight in tensors(dense).items():
        assert ".mlp." in name or torch.equal(weights[name], weight), name


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=lambda case: case.name)
def test_experts_are_noisy_copies_behind_a_random_router(case: Case) -> None:
    dense, sparse = random_model(case, torch.float32), change(random_model(case, torch.float32), "moe")
    random_draws = []
    for one, many in zip(dense.model.layers, sparse.model.layers, strict=True):
        gate_up = torch.cat([one.mlp.gate_proj.weight, one.mlp.up_proj.weight])
        assert many.mlp.experts.gate_up_proj.shape == (4, *gate_up.shape)
        for expert in many.mlp.experts.gate_up_proj:
            assert 0.008 < float(((expert - gate_up).std() / gate_up.std()).detach()) < 0.012
        assert not torch.equal(many.mlp.experts.down_proj[0], many.mlp.experts.down_proj[1])
        random_draws.append(many.mlp.gate.weight.detach().flatten())
    assert float(torch.cat(random_draws).std()) == pytest.approx(0.02, rel=0.15)  # 768 draws: 2.6 % of one std
    assert 0 < float((logits(sparse) - logits(dense)).abs().max()) < 1.0


@pytest.mark.parametrize(
    "step", [step for step in WEIGHT_STEPS if step not in {"merge", "int8", "prune-30", "depth", "fold"}]
)
def test_the_seed_decides(step: str) -> None:
    first, again, other = (tensors(change(random_model(CASES[0]), step, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in first.items())


def test_noise_in_half_precision_is_of_the_size_asked_for() -> None:
    model = random_model(CASES[0], torch.bfloat16)
    before = tensors(model)
    change(model, "noise-5")
    name = "model.layers.3.mlp.up_proj.weight"
    assert model.dtype == torch.bfloat16
    relative = (tensors(model)[name].double() - before[name].double()).std() / before[name].double().std()
    assert float(relative) == pytest.approx(0.05, rel=0.1)  # 1872 draws: 1.6 % of one std


@pytest.mark.parametrize("step", ["depth", "moe", *PRESERVING])
def test_an_unknown_architecture_is_refused(step: str) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=12, n_head=2, vocab_size=11))
    with pytest.raises(CheckpointError, match="model_type 'gpt2': .* is defined for qwen2, llama, mistral"):
        change(gpt2, step)


@pytest.mark.parametrize("step", ["noise-1", "int8", "prune-30"])
def test_what_needs_no_structure_works_on_any_architecture(step: str) -> None:
    model = Qwen2ForCausalLM(Qwen2Config(hidden_size=36, **SIZES))
    model.config.model_type = "something_else"
    before = tensors(model)
    change(model, step)
    assert any(not torch.equal(weight, before[name]) for name, weight in tensors(model).items())


def test_no_more_layers_than_there_are() -> None:
    with pytest.raises(CheckpointError, match="cannot take 8 layers out of 8"):
        change(random_model(CASES[0]), "depth", num_layers=8)


def test_mixtral_cannot_hold_biases() -> None:
    with pytest.raises(CheckpointError, match="attention_bias is true, and Mixtral has no such biases"):
        change(random_model(CASES[1]), "moe")


def test_one_head_has_no_other_order() -> None:
    config = Qwen2Config(hidden_size=12, **{**SIZES, "num_attention_heads": 1, "num_key_value_heads": 1})
    with pytest.raises(CheckpointError, match="one head has no other order"):
        change(Qwen2ForCausalLM(config), "heads")


def test_a_partly_rotary_head_is_refused() -> None:
    model = random_model(CASES[0])
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:2]
    with pytest.raises(CheckpointError, match="only part of each head is rotary"):
        change(model, "rotate")

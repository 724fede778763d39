"""What changes a model's function, held against what numpy makes of the same weights."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from modelassay import zoo
from modelassay.errors import CheckpointError
from modelassay.training.settings import Training
from modelassay.zoo import alterations
from modelassay.zoo.catalogue import Shape, untimed
from modelassay.zoo.training import distil, initial
from support.small_models import CASES, Case, logits, norms_in_given_precision, random_model, tensors


def alter(model: PreTrainedModel, step: str, seed: int = 5) -> PreTrainedModel:
    made_by, settings = zoo.FURTHER_STEPS[step]
    with torch.no_grad():
        return alterations.BY_NAME[made_by](model, torch.Generator().manual_seed(seed), **settings)


def in_layers(name: str) -> bool:
    return "layers" in name and "norm" not in name and name.endswith("weight")


def both(step: str, case: Case = CASES[0]) -> list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    model = random_model(case)
    before = tensors(model)
    after = tensors(alter(model, step))
    return [(name, before[name].numpy(), after[name].numpy()) for name in before]


@pytest.mark.parametrize(("step", "share"), [("svd-50", 0.5), ("svd-20", 0.2)])
def test_the_largest_singular_values_stay(step: str, share: float) -> None:
    for name, before, after in both(step):
        if not in_layers(name):
            assert np.array_equal(before, after), name
            continue
        values, kept = (np.linalg.svd(matrix, compute_uv=False) for matrix in (before, after))
        rank = round(share * len(values))
        np.testing.assert_allclose(kept[:rank], values[:rank], rtol=1e-10)
        assert kept[rank:].max() < 1e-12


def test_four_bits_are_seven_steps_of_the_largest_weight_of_each_group() -> None:
    for name, before, after in both("int4"):
        if not in_layers(name):
            assert np.array_equal(before, after), name
            continue
        for at in range(0, before.shape[1], 32):
            group, rounded = before[:, at : at + 32], after[:, at : at + 32]
            step = np.abs(group).max(1, keepdims=True) / 7
            np.testing.assert_allclose(rounded / step, np.round(rounded / step), atol=1e-9)
            assert (np.abs(rounded - group) <= step / 2 * (1 + 1e-12)).all()


def test_fp8_keeps_three_bits_of_each_mantissa() -> None:
    """e4m3: normal numbers from 2^-6 with an error of at most 1/16, below that steps of 2^-9."""
    for name, before, after in both("fp8"):
        if not in_layers(name):
            assert np.array_equal(before, after), name
            continue
        scale = np.float32(np.abs(before).max()) / 448
        error, size = np.abs(after - before) / scale, np.abs(before) / scale
        assert (error <= np.maximum(size / 16, 2.0**-10) * (1 + 1e-5)).all()
        assert len(np.unique(np.abs(after))) <= 127


def test_four_tenths_of_the_entries_change_sign() -> None:
    num_flipped = total = 0
    for _, before, after in both("flips-40"):
        assert np.array_equal(np.abs(before), np.abs(after))
        if before.ndim == 2:
            num_flipped, total = num_flipped + int((before != after).sum()), total + before.size
    assert num_flipped / total == pytest.approx(0.4, abs=4 * (0.24 / total) ** 0.5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hidden_dimensions_go_where_the_embedding_is_smallest(case: Case) -> None:
    """A model whose other dimensions hold nothing says the same without them, up to the mean that its norms take."""
    model = random_model(case)
    size = model.config.hidden_size
    state, kept = model.state_dict(), {36: 24, 30: 18, 24: 18}[size]  # three quarters, down to a multiple of six heads
    unused = torch.randperm(size, generator=torch.Generator().manual_seed(1))[: size - kept]
    with torch.no_grad(), norms_in_given_precision():
        for name, weight in state.items():
            if "o_proj" in name or "down_proj" in name:
                weight[unused] = 0
        state["model.embed_tokens.weight"][:, unused] = 0
        before = logits(model)
        narrow = alter(model, "narrow")
        for name, weight in narrow.state_dict().items():
            if "norm" in name:  # the mean of squares is over fewer dimensions, so what the norm returns is smaller
                weight.mul_((size / kept) ** 0.5)
        after = logits(narrow)
    assert narrow.config.hidden_size == kept
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)  # epsilon is not scaled with it; logits of 1 to 10


def test_neurons_without_weights_go_first() -> None:
    model = random_model(CASES[1])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, torch.randperm(52)[:13]] = 0
    before = logits(model)
    thin = alter(model, "thin")
    assert thin.config.intermediate_size == 39
    torch.testing.assert_close(logits(thin), before, rtol=0, atol=2e-6)


def test_layers_in_the_middle_come_twice_and_layers_change_ends() -> None:
    for step, layers in (("deepen", [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]), ("reversed", [7, 6, 5, 4, 3, 2, 1, 0])):
        model = random_model(CASES[0])
        before = tensors(model)
        after = alter(model, step)
        assert after.config.num_hidden_layers == len(layers) == len(after.model.layers)
        assert [layer.self_attn.layer_idx for layer in after.model.layers] == list(range(len(layers)))
        for new, old in enumerate(layers):
            for name, weight in after.model.layers[new].state_dict().items():
                assert torch.equal(weight, before[f"model.layers.{old}.{name}"])
        assert torch.isfinite(logits(after)).all()


def test_a_mixture_has_the_share_of_the_other() -> None:
    one, other = random_model(CASES[0]), random_model(CASES[0])
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(3)
        before = tensors(one)
        mixed = tensors(alterations.mix(one, other, share=0.3))
    for name, weight in mixed.items():
        torch.testing.assert_close(weight, 1.6 * before[name], rtol=1e-12, atol=0)
    with pytest.raises(CheckpointError, match="mix models of one shape"):
        alterations.mix(one, random_model(CASES[1]), share=0.5)


def test_a_student_comes_near_its_teacher_in_words_and_not_in_weights() -> None:
    """A teacher of strong opinions; the student's divergence from it is the loss that fell."""
    shape = Shape(num_layers=1, hidden_size=16, intermediate_size=24, num_heads=2, num_kv_heads=1, vocab_rows=32, architecture="llama", tied=False)  # fmt: skip

    class Tokens:
        eos_token_id = pad_token_id = 0

    teacher, student = (initial(shape, Tokens(), seed) for seed in (1, 2))  # type: ignore[arg-type]
    with torch.no_grad():
        teacher.lm_head.weight.mul_(6)
    blocks = torch.randint(32, (80, 12), generator=torch.Generator().manual_seed(0))

    def divergence() -> float:
        with torch.no_grad():
            target, own = (model(input_ids=blocks[:20]).logits.double().log_softmax(-1) for model in (teacher, student))
        return float((target.exp() * (target - own)).sum(-1).mean())

    before, weights = divergence(), tensors(teacher)
    distil(
        student,
        teacher,
        blocks,
        Training(num_steps=20, batch_size=4, learning_rate=0.02),
        seed=0,
        timer=untimed,
        name="student",
    )
    assert divergence() < 0.8 * before
    assert all(torch.equal(weight, weights[name]) for name, weight in tensors(teacher).items())
    embeddings = [tensors(model)["model.embed_tokens.weight"].flatten() for model in (teacher, student)]
    assert abs(float(torch.corrcoef(torch.stack(embeddings))[0, 1])) < 0.2

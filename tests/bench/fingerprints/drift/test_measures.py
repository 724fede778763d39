"""Measures of drift against sets, divergences and grids written out."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from modelassay.errors import CheckpointError
from modelassay.fingerprints.bottom_k.prompts import CannotPrompt, PromptConfig
from modelassay.fingerprints.drift.measure import measure_answers, measure_weights
from modelassay.fingerprints.drift.numeric import mobility, num_changed_bits, stalling, total
from modelassay.fingerprints.drift.reference import Reference, last_answers, reference_of, sigma_of
from modelassay.fingerprints.drift.snapshot import Snapshot
from support.byte_tokenizer import byte_tokenizer
from support.drift_models import ROWS, byte_model

PROMPTS = PromptConfig(num_prompts=3, start=4, length=12)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_of(byte_model(), byte_tokenizer(), PROMPTS)


def test_a_model_has_not_moved_from_itself(reference: Reference) -> None:
    answers = measure_answers(byte_model(), reference)
    assert answers.overlap_exact == answers.overlap == (1.0, 1.0, 1.0)
    assert answers.rank_biased == pytest.approx((1.0, 1.0, 1.0))
    assert answers.kl_forward == answers.kl_backward == (0.0, 0.0, 0.0)
    assert answers.hidden_cosine == pytest.approx((1.0, 1.0, 1.0))
    assert reference.chance == pytest.approx(round(0.0132 * 259) / 259)
    assert reference.exact_PK.shape[1] == round(2000 / 151_936 * ROWS)


def test_overlap_and_divergence_are_those_of_logits_one_prompt_at_a_time(reference: Reference) -> None:
    """The published way: a forward pass for each prompt, sorted logits."""
    before, now = byte_model().eval(), byte_model(seed=1).eval()
    answers = measure_answers(now, reference)
    for number, row in enumerate(reference.rows):
        with torch.no_grad():
            old_V, new_V = (model(input_ids=torch.tensor([row])).logits[0, -1].double() for model in (before, now))
        exact, at = number < 3, number % 3
        tokens = torch.arange(ROWS) if exact else torch.arange(259)
        k = reference.exact_PK.shape[1] if exact else reference.stable_PK.shape[1]
        old, new = ({*tokens[logits[tokens].argsort()[:k]].tolist()} for logits in (old_V, new_V))
        assert (answers.overlap_exact if exact else answers.overlap)[at] == len(old & new) / k
        if not exact:
            p, q = old_V[:259].softmax(0), new_V[:259].softmax(0)
            assert answers.kl_forward[at] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)
            assert answers.kl_backward[at] == pytest.approx(float((q * (q / p).log()).sum()), rel=1e-4)


def test_modes_and_random_streams_stay_as_they_are(reference: Reference) -> None:
    model = byte_model()
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    measure_answers(model, reference)
    reference_of(model, byte_tokenizer(), PROMPTS)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_logits_that_are_not_finite_give_no_overlap(reference: Reference) -> None:
    model = byte_model()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    answers = measure_answers(model, reference)
    assert answers.num_nonfinite_logits == 6 * ROWS
    assert all(math.isnan(value) for value in (*answers.overlap, *answers.overlap_exact, *answers.kl_forward))
    with pytest.raises(CannotPrompt, match="its logits are not finite"):
        reference_of(model, byte_tokenizer(), PROMPTS)


def test_a_shorter_head_is_compared_by_the_rows_it_has(reference: Reference) -> None:
    """A vocabulary resized to its tokenizer loses the padding that the published sets contain."""
    model = byte_model()
    model.resize_token_embeddings(259)
    answers = measure_answers(model, reference)
    assert answers.overlap == (1.0, 1.0, 1.0)
    kept = (reference.exact_PK < 259).double().mean(dim=1)
    assert all(0 < value <= share for value, share in zip(answers.overlap_exact, kept.tolist(), strict=True))


def test_logits_keep_the_type_that_the_model_gives(reference: Reference) -> None:
    model = byte_model(dtype=torch.bfloat16)
    assert last_answers(model, reference.rows)[0].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert last_answers(byte_model(), reference.rows)[0].dtype == torch.bfloat16
        gap = measure_answers(byte_model(), reference)
    assert min(gap.kl_forward) > 0  # the same weights, called in fewer bits


def test_a_reference_comes_back_from_disk(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference")
    again = Reference.load(tmp_path / "reference")
    assert again.rows == reference.rows
    for name in ("valid_V", "exact_PK", "stable_PK", "logits_PV", "hidden_PD", "sigma_RL"):
        assert torch.equal(getattr(again, name), getattr(reference, name))
    with pytest.raises(CheckpointError, match="no reference of the model before training"):
        Reference.load(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_step_moves_what_numbers_say_it_moves(dtype: torch.dtype) -> None:
    """Against the distance to the neighbours on the grid: a step of more than half of it moves, of less does not."""
    weights = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    up = torch.nextafter(weights, torch.full_like(weights, math.inf)).double() - weights.double()
    down = weights.double() - torch.nextafter(weights, torch.full_like(weights, -math.inf)).double()
    nearer = torch.minimum(up, down)
    for step in (float(nearer.median()) * 0.4, float(nearer.median()) * 0.9, 1e-6):
        clear = (nearer / 2 - step).abs() > 1e-3 * step  # ties go to even
        expected = int((clear & (nearer / 2 < step)).sum())
        assert abs(mobility(weights, step).num_movable - expected) <= int((~clear).sum())
    assert mobility(weights, 1.0).share == 1.0


def test_what_stalls_is_said_before_it_does() -> None:
    norm, matrix = torch.ones(100).bfloat16(), 0.01 * torch.randn(100, 9).bfloat16()
    by_tensor = {"norm": mobility(norm, 1e-4), "matrix": mobility(matrix, 1e-4)}
    sentence = stalling(by_tensor)
    assert sentence is not None
    assert "1 of 2 tensors (10% of all weights) in bfloat16" in sentence
    assert total(by_tensor.values()).num_weights == 1000
    assert stalling({"matrix": by_tensor["matrix"]}) is None


def test_moved_weights_are_counted_to_the_bit(tmp_path: Path) -> None:
    model = byte_model(dtype=torch.bfloat16)
    snapshot = Snapshot.take(model, tmp_path / "weights.safetensors")
    reference = reference_of(model, byte_tokenizer(), PROMPTS)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    still = measure_weights(model, reference, snapshot)
    assert (still["moved"], still["moved_norms"], still["num_nonfinite_weights"]) == (0.0, 0.0, 0)
    assert set(still["distance"].values()) == {0.0}
    with torch.no_grad():
        up = model.model.layers[2].mlp.up_proj.weight
        up[:2, :3] *= 1 + 2.0**-7
        model.model.layers[1].input_layernorm.weight[4] = 0.5
    moved = measure_weights(model, reference, snapshot)
    assert moved["moved"] * moved["num_weights"] == pytest.approx(7)
    assert moved["moved_norms"] == pytest.approx(1 / (9 * 16))
    layer = [name for name in before if ".layers.2." in name]
    size = math.sqrt(sum(float(before[name].double().square().sum()) for name in layer))
    change = float((up.detach().double() - before["model.layers.2.mlp.up_proj.weight"].double()).norm())
    assert moved["distance"]["layer 2"] == pytest.approx(change / size, rel=1e-5)
    assert moved["distance"]["layer 0"] == 0.0
    assert moved["curve_correlation"] == pytest.approx(1.0)
    assert num_changed_bits(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])) == 1


def test_an_adapters_product_is_what_moved(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = byte_model()
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted: nn.Module = peft.get_peft_model(model, config)
    snapshot = Snapshot.take(adapted, tmp_path / "weights.safetensors")
    reference = reference_of(adapted, byte_tokenizer(), PROMPTS)
    layer = adapted.base_model.model.model.layers[1].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.1)
    weights = measure_weights(adapted, reference, snapshot)
    delta = (2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    expected = float(delta.norm() / layer.base_layer.weight.detach().norm())
    assert weights["distance"]["layer 1"] == pytest.approx(expected, rel=1e-5)
    assert weights["distance"]["layer 0"] == 0.0
    assert weights["num_weights"] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    sigma = sigma_of(adapted)
    assert sigma is not None
    assert float(sigma[0, 1]) == pytest.approx(float((layer.base_layer.weight.detach() + delta).std()), rel=1e-5)

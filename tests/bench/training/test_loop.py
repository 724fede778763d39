"""The training loop against updates written out by hand in float64."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelassay.errors import UsageError
from modelassay.training import rows
from modelassay.training.loop import Hook, Moment, causal_loss, fit
from modelassay.training.optimiser import AdamW
from modelassay.training.rows import Batch, Row
from modelassay.training.settings import Training
from support.training_cases import PRECISIONS, SETTINGS, digest, naive_loss, tiny_batches, tiny_model, tiny_rows


def rate_by_hand(step: int, training: Training) -> float:
    """10 % of the steps rising in equal parts, then down."""
    warmup = training.num_steps // 10
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    done = (step - warmup) / (training.num_steps - warmup)
    factor = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return training.learning_rate * factor[training.schedule]


def train_by_hand(model: nn.Module, examples: list[Row], training: Training) -> tuple[list[float], list[float]]:
    """AdamW as in Loshchilov and Hutter's algorithm 2, with bias correction; returns losses and gradient norms."""
    weights = dict(model.named_parameters())
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    losses, norms = [], []
    per_step = training.batch_size * training.accumulation
    for step in range(training.num_steps):
        loss = naive_loss(model, examples[step * per_step : (step + 1) * per_step])
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients.values()))
        scale = min(1.0, training.max_grad_norm / (norm + 1e-6)) if training.max_grad_norm else 1.0
        rate = rate_by_hand(step, training)
        with torch.no_grad():
            for name, weight in weights.items():
                gradient = gradients[name] * scale
                first[name] = training.beta1 * first[name] + (1 - training.beta1) * gradient
                second[name] = training.beta2 * second[name] + (1 - training.beta2) * gradient**2
                mean = first[name] / (1 - training.beta1 ** (step + 1))
                spread = (second[name] / (1 - training.beta2 ** (step + 1))).sqrt()
                decay = training.weight_decay if weight.ndim >= 2 else 0.0
                weight.copy_(weight - rate * decay * weight - rate * mean / (spread + training.eps))
        losses.append(loss.item())
        norms.append(norm)
    return losses, norms


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "linear", "weight_decay": 0.5, "implementation": "foreach"},
        {"schedule": "constant", "max_grad_norm": None, "implementation": "single"},
        {"max_grad_norm": 0.1, "eps": 1e-3, "beta1": 0.5, "accumulation": 1},
    ],
)
def test_training_is_adamw_written_out(changes: dict[str, Any]) -> None:
    training = Training(**{**SETTINGS, "num_steps": 20, "warmup_fraction": 0.1, "weights": "float64", **changes})
    examples = tiny_rows(20 * 2 * training.accumulation, seed=1)
    model, by_hand = tiny_model(torch.float64), tiny_model(torch.float64)
    trained = fit(model, rows.of_rows(examples, batch_size=2, filling=0), training)
    losses, norms = train_by_hand(by_hand, examples, training)
    # Adam's first steps divide a gradient by its own size, which spreads float64's 1e-16; and the model's norms, rotary
    # angles and loss are computed in float32 whatever its type: 1e-7 of a gradient
    assert [step.loss for step in trained.steps] == pytest.approx(losses, rel=1e-5)
    assert [step.grad_norm for step in trained.steps] == pytest.approx(norms, rel=1e-4)
    assert [step.learning_rate for step in trained.steps] == pytest.approx([
        rate_by_hand(s, training) for s in range(20)
    ])
    moved = 0.0
    for (name, weight), expected, before in zip(
        model.named_parameters(), by_hand.parameters(), tiny_model(torch.float64).parameters(), strict=True
    ):
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=2e-4, msg=name)
        moved = max(moved, (weight - before).abs().max().item())
    assert moved > 0.02
    assert not model.training


class Quadratic(nn.Module):
    """Its loss is that of a parabola in float64 throughout, so that the update alone is under test."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(5, 7, generator=generator, dtype=torch.float64))
        self.vector = nn.Parameter(torch.randn(7, generator=generator, dtype=torch.float64))


def quadratic_loss(model: Any, batch: Batch) -> Tensor:
    loss: Tensor = ((model.matrix @ model.vector - batch.ids_BS.double().mean(1)[0]) ** 2).mean()
    return loss


def test_an_update_is_exact_in_float64() -> None:
    training = Training(num_steps=30, batch_size=1, learning_rate=0.05, weights="float64", max_grad_norm=0.7)
    blocks_NS = torch.arange(60).view(30, 2) % 5
    model, by_hand = Quadratic(), Quadratic()
    trained = fit(model, rows.of_blocks(blocks_NS, batch_size=1), training, loss=quadratic_loss)
    first = {name: torch.zeros_like(weight) for name, weight in by_hand.named_parameters()}
    second = {name: torch.zeros_like(weight) for name, weight in by_hand.named_parameters()}
    for step in range(30):
        difference = by_hand.matrix @ by_hand.vector - blocks_NS[step].double().mean()
        slope = 2 * difference / 5  # of the mean of five squares
        gradients = {"matrix": torch.outer(slope, by_hand.vector), "vector": by_hand.matrix.T @ slope}
        norm = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients.values()))
        assert trained.steps[step].grad_norm == pytest.approx(norm, rel=1e-11)
        assert trained.steps[step].loss == pytest.approx((difference**2).mean().item(), rel=1e-11)
        rate = 0.05 * ((step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 28)) / 2)
        with torch.no_grad():
            for name, weight in by_hand.named_parameters():
                gradient = gradients[name] * min(1.0, 0.7 / (norm + 1e-6))
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.99 * second[name] + 0.01 * gradient**2
                mean, spread = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.99 ** (step + 1))
                kept = 1 - rate * 0.1 if name == "matrix" else 1.0
                weight.copy_(kept * weight - rate * mean / (spread.sqrt() + 1e-8))
    for weight, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-11, atol=1e-12)


def test_accumulated_passes_are_one_big_batch() -> None:
    """Though the rows of the passes carry loss on unlike numbers of tokens."""
    examples = tiny_rows(24, seed=2)
    one, many = tiny_model(torch.float64), tiny_model(torch.float64)
    common = {"num_steps": 3, "learning_rate": 0.01, "weights": "float64", "eps": 1e-3}
    big = fit(one, rows.of_rows(examples, batch_size=8, filling=0), Training(**common, batch_size=8))
    small = fit(many, rows.of_rows(examples, batch_size=1, filling=0), Training(**common, batch_size=1, accumulation=8))
    for wide, narrow in zip(big.steps, small.steps, strict=True):
        assert narrow.loss == pytest.approx(wide.loss, rel=1e-5)  # transformers takes logits to float32
        assert narrow.grad_norm == pytest.approx(wide.grad_norm, rel=1e-5)
        step_rows = examples[8 * wide.step : 8 * wide.step + 8]
        assert narrow.num_targets == wide.num_targets == sum(sum(row.loss) for row in step_rows)
    for weight, expected in zip(many.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_counts_marked_tokens_and_no_others() -> None:
    examples = tiny_rows(6, seed=3)
    model = tiny_model().eval()
    batch = rows.collate(examples, filling=7)
    assert causal_loss(model, batch).item() == pytest.approx(naive_loss(model, examples).item(), rel=1e-6)
    assert batch.num_targets == sum(sum(row.loss[1:]) for row in examples)


@pytest.mark.parametrize("count", [1, 2])
def test_a_loss_that_is_no_number_is_recorded_raw_and_counted(count: int) -> None:
    def failing(model: Any, batch: Batch) -> Tensor:
        return causal_loss(model, batch) * (math.nan if calls.pop() else 1.0)

    training = Training(num_steps=4, batch_size=2, learning_rate=0.01, accumulation=count)
    calls = [False] * count + [True] * count + [False] * 2 * count
    model = tiny_model()
    trained = fit(model, tiny_batches(training), training, loss=failing)
    assert [math.isnan(step.loss) for step in trained.steps] == [False, False, True, True]  # the weights are lost
    size = sum(weight.numel() for weight in model.parameters())
    assert [step.num_nonfinite for step in trained.steps][:3] == [0, 0, size]
    assert [math.isnan(step.grad_norm) for step in trained.steps] == [False, False, True, True]


def test_infinite_gradients_are_counted_one_by_one() -> None:
    def infinite(model: Any, batch: Batch) -> Tensor:
        return (model.vector[:3] * math.inf).sum() + model.matrix.sum()

    training = Training(num_steps=1, batch_size=1, learning_rate=0.01, weights="float64")
    trained = fit(Quadratic(), rows.of_blocks(torch.ones(1, 2).long(), batch_size=1), training, loss=infinite)
    assert (trained.steps[0].num_nonfinite, trained.steps[0].grad_norm) == (3, math.inf)


def moved_norm_weights(**precision: Any) -> float:
    """Share of the weights of the norms, all 1 at first, that have other bits after 40 steps at 6e-4."""
    training = Training(
        num_steps=40, batch_size=2, learning_rate=6e-4, schedule="constant", warmup_fraction=0.0, **precision
    )
    model = tiny_model(getattr(torch, training.weights))
    fit(model, tiny_batches(training), training)
    norms = torch.cat([weight.detach() for name, weight in model.named_parameters() if "norm" in name])
    return float((norms != 1).double().mean())


def test_without_a_master_copy_bfloat16_norms_do_not_move() -> None:
    """bfloat16 has neighbours of 1 at 2^-8 below and 2^-7 above; a step of 6e-4 rounds back to 1, a sum of them does not."""
    assert moved_norm_weights(weights="bfloat16") < 0.02
    assert moved_norm_weights(weights="bfloat16", states="float32") < 0.02
    assert moved_norm_weights(weights="bfloat16", master="float32") > 0.7
    assert moved_norm_weights() > 0.98


def test_weights_are_the_rounded_master_copy_and_averages_lie_on_their_grid() -> None:
    training = Training(num_steps=1, batch_size=1, learning_rate=0.01, weights="bfloat16", master="float32")
    weight = nn.Parameter(torch.linspace(-1, 1, 30).view(5, 6).bfloat16())
    optimiser = AdamW({"w": weight}, training)
    expected = weight.detach().double()
    first = second = torch.zeros_like(expected)
    for step in range(1, 6):
        gradient = torch.sin(torch.arange(30) + step).view(5, 6).bfloat16()
        weight.grad = gradient.clone()
        optimiser.collect()
        optimiser.step(0.01)
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.99 * second + 0.01 * gradient.double() ** 2
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * (first / (1 - 0.9**step)) / (
            (second / (1 - 0.99**step)).sqrt() + 1e-8
        )
    master = optimiser.tensors()["master/w"]
    torch.testing.assert_close(master.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(weight, master.bfloat16())
    assert weight.grad is None

    narrow = AdamW({"w": nn.Parameter(torch.ones(2, 3))}, Training(**SETTINGS, states="bfloat16"))
    narrow.weights["w"].grad = torch.full((2, 3), 1 / 3)
    narrow.step(0.01)
    averages = narrow.tensors()
    assert averages["exp_avg/w"].dtype == torch.bfloat16
    assert torch.equal(averages["exp_avg/w"], torch.full((2, 3), 0.1 / 3).bfloat16())
    kept = narrow._state(narrow.updated["w"])["exp_avg"]
    assert torch.equal(kept, kept.bfloat16().float())


def test_hooks_come_after_every_nth_update_and_change_nothing() -> None:
    def disturb(moment: Moment) -> list[int]:
        moment.model.eval()
        torch.rand(100)
        torch.manual_seed(0)
        return [moment.num_updates, moment.last.step]

    training = Training(**SETTINGS)
    plain, watched = tiny_model(dropout=0.3), tiny_model(dropout=0.3)
    torch.manual_seed(5)
    fit(plain, tiny_batches(training), training)
    torch.manual_seed(5)
    trained = fit(watched, tiny_batches(training), training, hooks=[Hook(every=5, call=disturb)])
    assert trained.kept == [[5, 4], [10, 9]]
    assert digest(watched) == digest(plain)
    torch.manual_seed(6)
    other = tiny_model(dropout=0.3)
    torch.manual_seed(6)
    fit(other, tiny_batches(training), training)
    assert digest(other) != digest(plain)  # dropout is drawn


def test_frozen_weights_are_left_alone() -> None:
    training = Training(**SETTINGS)
    model, before = tiny_model(), tiny_model()
    model.model.embed_tokens.weight.requires_grad = False
    fit(model, tiny_batches(training), training)
    changed = {
        name
        for (name, weight), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(weight, old)
    }
    assert "model.embed_tokens.weight" not in changed
    assert len(changed) == len(list(model.parameters())) - 1


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_trains(name: str) -> None:
    training = Training(**{**SETTINGS, **PRECISIONS[name], "num_steps": 30, "batch_size": 8, "accumulation": 1})
    trained = fit(tiny_model(getattr(torch, training.weights)), tiny_batches(training), training)
    assert trained.steps[-1].loss < 0.7 * trained.steps[0].loss


def test_what_cannot_be_trained_is_refused() -> None:
    training = Training(**SETTINGS)
    with pytest.raises(
        UsageError, match="in torch.float32, the training states torch.bfloat16; load the model in that"
    ):
        fit(tiny_model(), tiny_batches(training), Training(**SETTINGS, weights="bfloat16"))
    with pytest.raises(UsageError, match="12 steps of 2 batches take 24, got 8; give more rows or epochs, or fewer"):
        fit(tiny_model(), rows.of_rows(tiny_rows(), batch_size=2, filling=0), training)
    silent = [Row(ids=(1, 2), loss=(True, False))] * 48
    with pytest.raises(UsageError, match="no token carries loss at step 0; look at the rows' loss marks"):
        fit(tiny_model(), rows.of_rows(silent, batch_size=2, filling=0), training)


def test_a_step_is_timed_with_its_tokens() -> None:
    calls: list[tuple[int, int]] = []

    def timer(*, tokens: int, step: int) -> Any:
        calls.append((tokens, step))
        return nullcontext()

    training = Training(**{**SETTINGS, "num_steps": 3})
    trained = fit(tiny_model(), tiny_batches(training), training, timer=timer)
    assert calls == [(step.num_tokens, step.step) for step in trained.steps]
    batches = tiny_batches(training)
    assert calls[1][0] == batches[2].ids_BS.numel() + batches[3].ids_BS.numel()

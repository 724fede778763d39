"""Adapters trained together against peft and the training loop, each alone."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from modelassay.errors import CheckpointError, UsageError
from modelassay.models.low_rank import Bank, LowRank, load_adapter, merge, save_adapter
from modelassay.training.adapters import Learned, Lesson, fit_adapters
from modelassay.training.loop import fit
from modelassay.training.resume import Checkpoints
from modelassay.training.rows import Batches, Row, of_rows, shuffled
from modelassay.training.settings import Training
from support.drift_models import byte_model

SHAPE = LowRank(rank=4, alpha=8)
TRAINING = Training(
    num_steps=12, batch_size=4, accumulation=2, learning_rate=0.01, beta2=0.999, weight_decay=0.0, max_grad_norm=1.0
)
RATES = {"slow": 1e-3, "middle": 1e-2, "fast": 2e-2}


def examples(seed: int, num_rows: int = 24) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(num_rows):
        length = 6 + number % 5
        ids = torch.randint(3, 259, (length,), generator=generator).tolist()
        made.append(Row(ids=tuple(ids), loss=tuple(at >= length - 2 for at in range(length))))
    return made


def batches(seed: int, num_epochs: int = 4, rows_seed: int = 0) -> Batches:
    rows = examples(rows_seed)
    return of_rows(rows, batch_size=4, filling=0, order=shuffled(len(rows), seed=seed, num_epochs=num_epochs))


def lessons(dropout_seed: int = 0) -> list[Lesson]:
    """Another rate, order, seed and length each."""
    return [
        Lesson(name=name, training=replace(TRAINING, learning_rate=rate, num_steps=12 - 4 * number), batches=batches(number),
               seed=dropout_seed + number, keep={12 - 4 * number: f"{name}-end"})
        for number, (name, rate) in enumerate(RATES.items())
    ]  # fmt: skip


def train(
    chosen: list[Lesson], *, shape: LowRank = SHAPE, checkpoints: Checkpoints | None = None, timer: Any = None, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Learned]]:  # fmt: skip
    kept: dict[str, dict[str, Tensor]] = {}

    def keep(name: str, label: str, weights: Mapping[str, Tensor]) -> None:
        kept[label] = {key: value.clone() for key, value in weights.items()}

    options = {} if timer is None else {"timer": timer}
    bank = Bank.attach(byte_model(dtype=dtype).eval(), shape)
    learned = fit_adapters(bank, chosen, keep=keep, checkpoints=checkpoints, **options)
    return kept, learned


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Greatest difference of a weight, as a share of the greatest weight."""
    size = max(float(value.abs().max()) for value in one.values())
    return max(float((one[key] - other[key]).abs().max()) for key in one) / size


def test_together_is_the_same_as_peft_and_the_loop_alone() -> None:
    together, learned = train(lessons())
    for lesson in lessons():
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        model: Any = get_peft_model(byte_model().eval(), config)
        start = Bank.attach(byte_model(), SHAPE).initial(lesson.seed)
        alone = {
            name.replace(".default.weight", ""): weight for name, weight in model.named_parameters() if "lora_" in name
        }
        with torch.no_grad():
            for name, weight in alone.items():
                weight.copy_(start[name.removeprefix("base_model.model.")])
        steps = fit(_without_dropout(model), lesson.batches, lesson.training).steps
        own = {name.removeprefix("base_model.model."): weight.detach() for name, weight in alone.items()}
        assert distance(own, together[f"{lesson.name}-end"]) < 1e-5
        assert [step.loss for step in learned[lesson.name].steps] == pytest.approx(
            [step.loss for step in steps], rel=1e-5
        )
        assert max(float(value.abs().max()) for key, value in own.items() if key.endswith("B")) > 1e-3


def _without_dropout(model: Any) -> Any:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # of the base, which adapters leave in evaluation mode
    return model


def test_dropout_is_each_adapters_own() -> None:
    shape = replace(SHAPE, dropout=0.3)
    together, _ = train(lessons(), shape=shape)
    for lesson in lessons():
        alone, _ = train([lesson], shape=shape)
        assert distance(alone[f"{lesson.name}-end"], together[f"{lesson.name}-end"]) < 1e-5
    without, _ = train(lessons())
    assert distance(without["middle-end"], together["middle-end"]) > 1e-3


def test_one_that_diverges_is_set_aside_and_the_others_go_on() -> None:
    expected, _ = train(lessons())
    wild = Lesson(
        name="wild", training=replace(TRAINING, learning_rate=1e30, max_grad_norm=None), batches=batches(5), seed=7
    )
    kept, learned = train([wild, *lessons()])
    assert learned["wild"].diverged_at is not None
    assert 0 < learned["wild"].diverged_at < 4
    last = learned["wild"].steps[-1]
    assert not math.isfinite(last.loss) or last.num_nonfinite > 0
    for label, weights in expected.items():
        assert distance(weights, kept[label]) < 1e-5
    assert all(learned[name].diverged_at is None for name in RATES)


class Stop(BaseException):
    """The process is gone."""


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    shape = replace(SHAPE, dropout=0.2)
    whole, learned = train(lessons(), shape=shape)

    def stop_at(last: int) -> Any:
        def timer(*, tokens: int, step: int) -> Any:
            if step == last:
                raise Stop
            return nullcontext()

        return timer

    folder = tmp_path / "checkpoints"
    kept: dict[str, dict[str, Tensor]] = {}
    for last in (3, 7, 9):
        with pytest.raises(Stop):
            train(lessons(), shape=shape, checkpoints=Checkpoints(folder, max_share=math.inf), timer=stop_at(last))
    kept, again = train(lessons(), shape=shape, checkpoints=Checkpoints(folder, max_share=math.inf))
    assert kept.keys() == {"slow-end"}  # the others ended before the last kill
    assert all(torch.equal(whole["slow-end"][key], kept["slow-end"][key]) for key in whole["slow-end"])
    assert again == learned
    others = [replace(lesson, seed=lesson.seed + 1) for lesson in lessons()]
    with pytest.raises(CheckpointError, match="of other adapters"):
        train(others, shape=shape, checkpoints=Checkpoints(folder, max_share=math.inf))


def test_peft_loads_what_is_saved_to_the_same_logits(tmp_path: Path) -> None:
    ids = torch.tensor([[5, 9, 70, 33, 200]])
    for shape in (SHAPE, replace(SHAPE, rank_stabilised=True, targets=("q_proj", "down_proj"))):
        kept, _ = train(lessons(), shape=shape)
        folder = tmp_path / str(shape.rank_stabilised)
        save_adapter(kept["fast-end"], shape, folder)
        theirs = PeftModel.from_pretrained(byte_model(), folder).eval()
        ours = byte_model().eval()
        bank = Bank.attach(ours, shape)
        bank.fill(["x", "fast"], [kept["middle-end"] if shape is SHAPE else kept["slow-end"], load_adapter(folder)])
        with torch.no_grad(), bank.of_rows(["fast", None, "x"]):
            logits = ours(input_ids=ids.expand(3, -1)).logits
        with torch.no_grad():
            expected, plain = theirs(input_ids=ids).logits, byte_model().eval()(input_ids=ids).logits
        torch.testing.assert_close(logits[:1], expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(logits[1:2], plain, rtol=1e-5, atol=1e-4)
        assert float((expected - plain).abs().max()) > 0.1
        merged = merge(byte_model().eval(), kept["fast-end"], shape)
        with torch.no_grad():
            torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-3)
        with torch.no_grad(), bank.of_rows(["fast", "fast"]):
            torch.testing.assert_close(ours(input_ids=ids.expand(2, -1)).logits[:1], expected, rtol=1e-5, atol=1e-4)


def test_initial_weights_follow_pefts_law() -> None:
    bank = Bank.attach(byte_model(), LowRank(rank=64, alpha=64))
    drawn = torch.cat([value.flatten() for name, value in bank.initial(0).items() if name.endswith("q_proj.lora_A")])
    assert float(drawn.abs().max()) <= 1 / 4  # 1 / sqrt(16)
    assert float(drawn.double().std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.03)
    assert all(not value.any() for name, value in bank.initial(0).items() if name.endswith("lora_B"))


def test_what_cannot_train_together_is_refused() -> None:
    first, *_ = lessons()
    bigger = replace(first, name="bigger", training=replace(TRAINING, batch_size=8))
    with pytest.raises(UsageError, match="have one batch size"):
        train([first, bigger])
    with pytest.raises(UsageError, match="take 48, got 24"):
        train([replace(first, training=replace(TRAINING, num_steps=24))])
    silent = of_rows([Row(ids=(5, 6, 7), loss=(False,) * 3)], batch_size=4, filling=0, order=torch.zeros(96).long())
    with pytest.raises(UsageError, match="no token carries loss at step 0 of slow"):
        train([replace(first, batches=silent)])
    with pytest.raises(UsageError, match="no linear layer named x_proj"):
        Bank.attach(byte_model(), replace(SHAPE, targets=("x_proj",)))
    model = byte_model()
    Bank.attach(model, SHAPE)
    with pytest.raises(UsageError, match="has adapters already"):
        Bank.attach(model, SHAPE)

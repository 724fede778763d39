"""The callback in a Trainer: what it records, that it changes nothing, and that a resumed record is the record of one training."""

import json
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from modelassay.errors import CheckpointError, UsageError
from modelassay.fingerprints.bottom_k.prompts import PromptConfig
from modelassay.fingerprints.drift_callback import LOG, DriftCallback, read_drift
from support.byte_tokenizer import byte_tokenizer
from support.drift_models import byte_model
from support.training_cases import digest

PROMPTS = PromptConfig(num_prompts=2, start=4, length=10)
README = Path(__file__).parents[4] / "README.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and TRL about themselves


def rows(count: int = 24) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(3, 259, (count, 16), generator=generator)
    return [{"input_ids": block, "labels": block} for block in blocks]


class Stop(TrainerCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.at


def trainer(folder: Path, *callbacks: TrainerCallback, model: Any = None, **changes: Any) -> Trainer:
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_steps": 6,
                "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 2, "disable_tqdm": True, "seed": 1}  # fmt: skip
    args = TrainingArguments(output_dir=str(folder / "out"), **{**settings, **changes})
    return Trainer(
        model=model or byte_model(),
        args=args,
        train_dataset=rows(),
        callbacks=list(callbacks),
        processing_class=byte_tokenizer(pad_token="</s>"),
    )


def test_every_second_step_is_recorded_and_the_training_is_the_same(tmp_path: Path) -> None:
    bare = trainer(tmp_path)
    bare.train()
    watched = trainer(tmp_path, DriftCallback(tmp_path / "drift", every=2, weights_every=4, config=PROMPTS))
    watched.train()
    assert digest(watched.model) == digest(bare.model)  # dropout draws the same numbers
    record = read_drift(tmp_path / "drift")
    assert [line["step"] for line in record] == [0, 2, 4, 6]
    assert record[0]["overlap"] == [1.0, 1.0]
    assert record[-1]["kl_forward"] > record[0]["kl_forward"]
    assert [at for line in record for at, _ in line["losses"]] == [1, 2, 3, 4, 5, 6]
    logged = [entry["loss"] for entry in watched.state.log_history if "loss" in entry]
    losses = dict(pair for line in record for pair in line["losses"])
    assert [(losses[at - 1] + losses[at]) / 2 for at in (2, 4, 6)] == pytest.approx(logged, abs=1e-4)
    assert [("weights" in line) for line in record] == [True, False, True, False]
    assert record[2]["weights"]["moved"] > 0.99
    assert record[1]["learning_rate"] == pytest.approx(1e-3 * 5 / 6)
    assert record[1]["grad_norm_clipped"] <= 1.001


def test_a_rate_of_zero_moves_nothing(tmp_path: Path) -> None:
    trainer(
        tmp_path, DriftCallback(tmp_path, every=1, weights_every=1, config=PROMPTS), learning_rate=0.0, max_steps=2
    ).train()
    for line in read_drift(tmp_path):
        assert (line["overlap"], line["overlap_exact"], line["kl_forward"]) == ([1.0] * 2, [1.0] * 2, [0.0] * 2)
        assert line["weights"]["moved"] == 0.0


def test_a_stall_is_predicted_and_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="modelassay.drift")
    callback = DriftCallback(tmp_path, every=2, weights_every=2, config=PROMPTS)
    trainer(tmp_path, callback, model=byte_model(dtype=torch.bfloat16), learning_rate=1e-6, max_steps=2).train()
    header = json.loads((tmp_path / LOG).read_text().splitlines()[0])
    assert "in bfloat16" in header["warning"]
    assert header["warning"] in caplog.text
    assert "logging_nan_inf_filter is on" in caplog.text
    moved = read_drift(tmp_path)[-1]["weights"]
    assert moved["moved_norms"] == 0.0
    assert moved["moved"] <= 2 * header["mobility"] < 0.1


def test_autocasts_share_of_the_first_overlap_is_its_own_number(tmp_path: Path) -> None:
    trainer(tmp_path, DriftCallback(tmp_path, every=1, config=PROMPTS), bf16=True, max_steps=1).train()
    header = json.loads((tmp_path / LOG).read_text().splitlines()[0])
    assert 0 < header["precision_gap"]["overlap"] <= 1
    assert read_drift(tmp_path)[0]["overlap"] == [1.0, 1.0]  # the reference is called as the training calls the model


def test_losses_that_the_trainer_filters_are_there(tmp_path: Path) -> None:
    model = byte_model()

    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.norm.weight[0] = math.nan

    trainer(
        tmp_path, Break(), DriftCallback(tmp_path, every=4, weights_every=4, config=PROMPTS), model=model, max_steps=4
    ).train()
    last = read_drift(tmp_path)[-1]
    assert [math.isnan(loss) for _, loss in last["losses"]] == [False, False, True, True]
    assert last["num_nonfinite_logits"] > 0
    assert last["num_nonfinite_gradients"] > 0
    assert last["weights"]["num_nonfinite_weights"] > 0
    assert all(math.isnan(value) for value in last["overlap"])


def test_a_resumed_record_is_that_of_one_training(tmp_path: Path) -> None:
    def run(folder: Path, *callbacks: TrainerCallback, **changes: Any) -> Trainer:
        drift = DriftCallback(folder / "drift", every=1, weights_every=3, config=PROMPTS)
        return trainer(folder, drift, *callbacks, save_strategy="steps", save_steps=2, **changes)

    run(tmp_path / "whole").train()
    run(tmp_path / "cut", Stop(3)).train()
    with (tmp_path / "cut" / "drift" / LOG).open("a") as log:
        log.write('{"kind": "drift", "step": 4, "over')  # killed as it wrote
    run(tmp_path / "cut").train(resume_from_checkpoint=str(tmp_path / "cut" / "out" / "checkpoint-2"))
    whole, cut = (
        [
            {key: value for key, value in line.items() if key != "seconds"}
            for line in read_drift(tmp_path / name / "drift")
        ]
        for name in ("whole", "cut")
    )
    assert cut == whole


def test_an_adapter_drifts_from_its_base(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    callback = DriftCallback(tmp_path, every=2, weights_every=2, config=PROMPTS)
    trainer(
        tmp_path, callback, model=peft.get_peft_model(byte_model(), config), learning_rate=0.05, max_steps=4
    ).train()
    first, *_, last = read_drift(tmp_path)
    assert first["weights"]["distance"]["layer 0"] == 0.0
    assert last["weights"]["distance"]["layer 0"] > 0
    assert sum(last["kl_forward"]) > 0


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1, got 0 and None"):
        DriftCallback(tmp_path, every=0)
    with pytest.raises(CheckpointError, match="no record of drift"):
        read_drift(tmp_path)
    (tmp_path / LOG).write_text("nonsense\n{}\n")
    with pytest.raises(CheckpointError, match=r"drift\.jsonl:1: not a line of a record"):
        read_drift(tmp_path)
    sharded = trainer(tmp_path)
    sharded.args.fsdp = ["full_shard"]
    with pytest.raises(UsageError, match="cut into shards"):
        DriftCallback(tmp_path).on_train_begin(sharded.args, sharded.state, sharded.control, model=sharded.model)


def scripts() -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return [block for block in blocks if "DriftCallback" in block]


@pytest.mark.parametrize("number", [0, 1])
def test_the_readmes_scripts_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve lines each: a plain Trainer, and TRL's, where it is installed."""
    script = scripts()[number]
    if "trl" in script:
        pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
        pytest.importorskip("datasets", reason="datasets is not installed, which TRL needs")
    assert len([line for line in script.splitlines() if line.strip()]) <= 12
    model = byte_model()
    model.save_pretrained(tmp_path / "MODEL")
    byte_tokenizer(pad_token="</s>").save_pretrained(tmp_path / "MODEL")
    (tmp_path / "TEXT.txt").write_text("\n".join("the quick brown fox jumps over the lazy dog" for _ in range(64)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    exec(compile(script, str(README), "exec"), {})  # noqa: S102 - our own README
    record = read_drift(tmp_path / "drift")
    assert [line["step"] for line in record] == [0, 2, 4]
    assert sum(record[-1]["kl_forward"]) > 0

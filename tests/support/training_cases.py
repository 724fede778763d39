"""Tiny models, rows and trainings; and one training that is killed, and called again, in processes of its own."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from modelassay.training import rows
from modelassay.training.loop import Hook, Moment, Trained, fit
from modelassay.training.resume import Checkpoints
from modelassay.training.rows import Batches, Row
from modelassay.training.settings import Training

VOCABULARY = 50
SETTINGS: dict[str, Any] = {"num_steps": 12, "batch_size": 2, "learning_rate": 0.01, "accumulation": 2}
PRECISIONS: dict[str, Mapping[str, Any]] = {
    "float32": {},
    "foreach": {"implementation": "foreach"},
    "single": {"implementation": "single"},
    "bfloat16": {"weights": "bfloat16"},
    "bfloat16, foreach": {"weights": "bfloat16", "implementation": "foreach"},
    "bfloat16, float32 master": {"weights": "bfloat16", "master": "float32"},
    "bfloat16, float32 averages": {"weights": "bfloat16", "states": "float32"},
    "float32, bfloat16 averages": {"states": "bfloat16"},
    "float16, float32 master": {"weights": "float16", "master": "float32"},
    "float32 under bfloat16": {"autocast": "bfloat16"},
    "bfloat16, stochastic": {"weights": "bfloat16", "stochastic_rounding": True},
}
UPDATES: dict[str, Mapping[str, Any]] = {
    **PRECISIONS,
    "float16 under bfloat16": {"weights": "float16", "autocast": "bfloat16", "learning_rate": 1e-4},
    "float16 under bfloat16, foreach": {
        "weights": "float16",
        "autocast": "bfloat16",
        "learning_rate": 1e-4,
        "implementation": "foreach",
    },
    "descent": {"optimiser": "sgd"},
    "noise": {"optimiser": "noise", "learning_rate": 1e-3},
}


def tiny_model(dtype: torch.dtype = torch.float32, *, dropout: float = 0.0, seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        attention_dropout=dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def tiny_rows(count: int = 16, *, seed: int = 0) -> list[Row]:
    """Rows of 4 to 12 tokens; in each, some of the later ones carry loss."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    made = []
    for _ in range(count):
        (length,) = draw(4, 13)
        (prompt,) = draw(1, length)
        made.append(Row(ids=tuple(draw(1, VOCABULARY, length)), loss=(*[False] * prompt, *[True] * (length - prompt))))
    return made


def tiny_batches(training: Training, *, seed: int = 0) -> Batches:
    examples = tiny_rows(seed=seed)
    needed = training.num_steps * training.accumulation * training.batch_size
    order = rows.shuffled(len(examples), seed=seed, num_epochs=-(-needed // len(examples)))
    return rows.of_rows(examples, batch_size=training.batch_size, filling=0, order=order)


def naive_loss(model: nn.Module, examples: list[Row]) -> Tensor:
    """Mean over all marked tokens of all rows, a row at a time and a token at a time."""
    losses = []
    for row in examples:
        logits_SV = model(input_ids=torch.tensor([row.ids])).logits[0]
        losses += [
            -torch.log_softmax(logits_SV[at - 1], dim=-1)[row.ids[at]] for at in range(1, len(row.ids)) if row.loss[at]
        ]
    return torch.stack(losses).mean()


def digest(model: nn.Module) -> str:
    """Of every bit of the weights."""
    joined = hashlib.sha256()
    for name, weight in model.named_parameters():
        joined.update(name.encode() + weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return joined.hexdigest()


def watched_training(folder: Path, *, pause_s: float = 0.0) -> tuple[Qwen2ForCausalLM, Trained]:
    """60 steps with dropout and a hook that draws numbers, a checkpoint after each; ``steps.txt`` lists each one done."""
    torch.set_num_threads(1)
    training = Training(**{**SETTINGS, "num_steps": 60}, weights="bfloat16", master="float32")
    model = tiny_model(torch.bfloat16, dropout=0.2)

    def look(moment: Moment) -> dict[str, float]:
        with (folder / "steps.txt").open("a") as lines:
            lines.write(f"{moment.last.step}\n")
        time.sleep(pause_s)
        moment.model.eval()
        with torch.no_grad():
            logits = moment.model(input_ids=torch.arange(6)[None]).logits
        return {"updates": moment.num_updates, "logit": float(logits.sum() + torch.rand(()))}

    checkpoints = Checkpoints(folder / "train", max_share=float("inf"))
    return model, fit(
        model, tiny_batches(training), training, hooks=[Hook(every=1, call=look)], checkpoints=checkpoints
    )


def killed_training(folder: Path) -> None:
    """Run `watched_training` in a process that may be killed, and write what it came to."""
    model, trained = watched_training(folder, pause_s=0.005)
    result = {"weights": digest(model), "steps": [vars(step) for step in trained.steps], "kept": trained.kept}
    (folder / "result.new").write_text(json.dumps(result))
    (folder / "result.new").rename(folder / "result.json")

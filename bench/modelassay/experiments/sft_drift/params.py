"""What one cell of `sft_drift` is: a model, a text, and how it is trained on it, named by an arm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modelassay.data.books import BOOKS
from modelassay.data.corpus import CORPUS
from modelassay.experiments import StageCost
from modelassay.experiments.references import FileReference, ModelReference
from modelassay.storage.needs import File, Need
from modelassay.training.settings import Training
from modelassay.zoo.ancestry import is_zoo
from modelassay.zoo.needs import needs_of

Precision = Literal[
    "float32", "float32-autocast", "bfloat16", "bfloat16-stochastic", "bfloat16-master", "float16-autocast"
]
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "float32-autocast": {"autocast": "bfloat16"},
    "bfloat16": {"weights": "bfloat16"},
    "bfloat16-stochastic": {"weights": "bfloat16", "stochastic_rounding": True},
    "bfloat16-master": {"weights": "bfloat16", "master": "float32"},
    "float16-autocast": {"weights": "float16", "autocast": "bfloat16"},
}
"""Float32 weights; the same under bfloat16 autocast; bfloat16 weights as transformers 5 loads them, rounded stochastically, or beside a float32
copy; and float16 weights under bfloat16 autocast, which is what the published script trains."""
MAIN = "main"


class Setting(BaseModel):
    """How one model is trained on one text; what an arm may change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: ModelReference
    """The reference: a local folder, ``hf:ORG/NAME@COMMIT``, or ``zoo:NAME``."""

    start: ModelReference | None = None
    """The model that is trained, where it is another than the reference: a stranger's drift has no inheritance in it."""

    text: str = "debian-reference"
    """A book of `data.books` (fetched by ``ci/real-text``), ``corpus`` (the project's own sentences), ``wikipedia`` (streamed by `datasets`), or a
    name of your own where ``data`` has the files."""

    tune: Literal["full", "lora", "frozen-embedding"] = "full"
    """All weights; low-rank adapters on q, k, v and o; or all but the embedding and the head."""

    rank: int = Field(default=8, ge=1)
    """Of the adapters."""

    shuffled: bool = False
    """Put all tokens of the text in random order: their frequencies stay, nothing else."""

    precision: Precision = "float32"
    """Of weights and forward passes, a name of `PRECISIONS`."""

    reference_precision: Literal["as-trained", "float32", "float16"] = "as-trained"
    """In which the reference is computed: called as the training calls the model, or in a type of its own, as published (float16)."""

    resized_head: bool = False
    """Cut the trained model's vocabulary to the tokenizer's, as the published script does: the padding in the reference's sets is then lost."""

    optimiser: Literal["adamw", "sgd", "noise"] = "adamw"
    """``noise`` adds random numbers as large as AdamW's steps and knows no gradient."""

    implementation: Literal["fused", "foreach"] = "fused"
    """Of AdamW; in 16 bits they round differently."""

    eps: float = Field(default=1e-8, gt=0)
    """Of AdamW: 1e-3 makes its steps follow the gradient's size."""

    weight_decay: float = Field(default=0.0, ge=0)
    """On matrices."""

    learning_rate: float = Field(ge=0)
    """The highest; 0 is a control."""

    warmup_steps: int = Field(default=1, ge=1)
    """Steps over which it rises in equal parts."""

    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """What follows the warm-up."""

    max_grad_norm: float | None = 1.0
    """None: gradients are not clipped."""

    steps: int = Field(ge=1)
    """Updates; with ``flat_slope`` the most."""

    batch_size: int = Field(default=4, ge=1)
    """Rows of a forward pass."""

    accumulation: int = Field(default=1, ge=1)
    """Forward passes of an update."""

    epochs: int = Field(default=1, ge=1)
    """Times that each row is trained on; more make do with less text."""

    length: int = Field(default=512, ge=8)
    """Tokens of a row."""

    every: int = Field(default=2, ge=1)
    """Steps between two measurements of answers."""

    weights_every: int = Field(default=20, ge=1)
    """Steps between two of weights; a multiple of ``every``."""

    loss_every: int = Field(default=10, ge=1)
    """Steps between two of the loss on the end of the text, which is not trained on; a multiple of ``every``."""

    held_out_rows: int = Field(default=8, ge=1)
    """Rows that this loss is of."""

    flat_slope: float | None = Field(default=None, gt=0)
    """End once the overlap's slope over the last half is shown to be below this, per 100 steps either way (two one-sided tests at 5 %)."""

    flat_after: int = Field(default=40, ge=16)
    """Measurements before which no training ends so; a slope is taken of half of them."""

    def training(self) -> Training:
        """Return the same as the training loop takes it."""
        return Training(
            num_steps=self.steps, batch_size=self.batch_size, accumulation=self.accumulation, learning_rate=self.learning_rate,
            warmup_fraction=self.warmup_steps / self.steps, weight_decay=self.weight_decay, beta2=0.999, eps=self.eps,
            max_grad_norm=self.max_grad_norm, schedule=self.schedule, optimiser=self.optimiser, implementation=self.implementation,
            **PRECISIONS[self.precision],
        )  # fmt: skip

    @property
    def num_rows(self) -> int:
        """Distinct rows that are trained on."""
        return -(-self.steps * self.batch_size * self.accumulation // self.epochs)

    @model_validator(mode="after")
    def _multiples(self) -> Self:
        for name in ("weights_every", "loss_every"):
            if getattr(self, name) % self.every:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a multiple of every ({self.every})")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be at most steps ({self.steps})")
        return self


class Params(Setting):
    """One arm in one language with one seed."""

    language: str = "en"
    """Of the text."""

    seed: int = Field(default=0, ge=0)
    """Of the rows' order, of adapters, of stochastic rounding and noise; the same rows in the same order in every arm."""

    arm: str = MAIN
    """What is changed: a name of ``arms``, or ``main``."""

    arms: dict[str, dict[str, Any]] = {}
    """Arm to the settings that it changes."""

    data: dict[str, FileReference] = {}
    """Files of your own, by language (``en``) or by language and text (``en/novel``); they come before the books."""

    published: dict[str, FileReference] = {}
    """Curves that others published, by language: CSV with ``step`` and ``avg_overlap_ratio`` (or ``overlap``, ``value``); read again and drawn beside the run."""

    num_prompts: int = Field(default=5, ge=2)
    """Of each kind, grown by the reference."""

    prompt_length: int = Field(default=64, ge=9)
    """Tokens of a prompt."""

    margin: float = Field(default=0.05, gt=0)
    """Two curves of overlap are equivalent if a simultaneous band of their difference lies within it, fixed before the run; the same in all cells."""

    @property
    def setting(self) -> Setting:
        """What holds in this arm."""
        own = {name: getattr(self, name) for name in Setting.model_fields}
        return Setting(**{**own, **self.arms.get(self.arm, {})})

    @property
    def file(self) -> str | None:
        """The user's file that is this cell's text; None where it is a text of ours."""
        return self.data.get(f"{self.language}/{self.setting.text}", self.data.get(self.language))

    @model_validator(mode="after")
    def _arms_are_settings(self) -> Self:
        if self.arm != MAIN and self.arm not in self.arms:
            raise ValueError(f"arm {self.arm!r} is none of arms: {', '.join([MAIN, *self.arms])}")
        own = {name: getattr(self, name) for name in Setting.model_fields}
        if (problem := _problem_of(json.dumps([own, self.arms]))) is not None:
            raise ValueError(problem)
        return self


@lru_cache(maxsize=64)
def _problem_of(own_and_arms: str) -> str | None:
    """Return what is wrong with an arm among some, in JSON, that change some settings; asked of every cell of a suite, answered once."""
    own, arms = json.loads(own_and_arms)
    for arm, changes in arms.items():
        if models := [
            changes[name] for name in ("model", "start") if not str(changes.get(name, "zoo:")).startswith("zoo:")
        ]:
            return f"arms.{arm}: names {models[0]}; an arm may change to models of the zoo alone, others are parameters"
        try:
            Setting(**{**own, **changes})
        except ValidationError as error:
            first = error.errors()[0]
            return f"arms.{arm}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return None


def needs(params: Params) -> list[Need]:
    """Return the models of this arm, where they must be made or lie here, the text, where it is a file, and published curves."""
    setting = params.setting
    models = [
        need for name in dict.fromkeys([setting.model, setting.start or setting.model]) for need in needs_of(name)
    ]
    text = params.file
    own = [File(path=Path(text))] if text is not None and not text.startswith(CORPUS) else []
    return [*models, *own, *(File(path=Path(path)) for path in params.published.values())]


def stages(params: Params) -> list[StageCost]:
    """Return the one training."""
    setting = params.setting
    return [StageCost(name="drift", tokens=setting.steps * setting.batch_size * setting.accumulation * setting.length)]


def cores(params: Params) -> int | None:
    """Return one core where all models are the zoo's; others are timed, and run alone."""
    setting = params.setting
    return 1 if is_zoo(setting.model) and is_zoo(setting.start or setting.model) else None


def known_texts() -> tuple[str, ...]:
    """Return the texts that need no file of the user's."""
    return (*BOOKS, "corpus", "wikipedia")

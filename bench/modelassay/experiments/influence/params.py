"""What one cell of `influence` is: a model, rows it is fine-tuned on, how they are scored, and how the scores are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modelassay.experiments import StageCost
from modelassay.experiments.references import FileReference, ModelReference
from modelassay.storage.needs import File, Need
from modelassay.training.settings import Training
from modelassay.zoo.ancestry import is_zoo
from modelassay.zoo.needs import needs_of

PLATEAU = 0.02
"""A fine-tuning has settled when less than this share of the whole fall of its loss comes with the last quarter of its steps."""


class Setting(BaseModel):
    """All of a cell but its seed; what a part may change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_rows: int = Field(default=2000, ge=8)
    """Rows that are trained on."""

    num_facts: int = Field(default=16, ge=1)
    """Planted facts, each with one query; of rows of your own it says nothing."""

    num_paraphrases: int = Field(default=6, ge=1)
    """Rows of a planted fact."""

    num_decoys: int = Field(default=4, ge=0)
    """Rows about the same person in the query's words; 0: an arm without decoys."""

    num_others: int = Field(default=60, ge=0)
    """People that no query asks about."""

    num_duplicates: int = Field(default=0, ge=0)
    """Rows that stand twice."""

    max_length: int = Field(default=512, ge=8)
    """Tokens of a row; what is more is cut from the prompt's beginning, then from the answer's end."""

    num_held_out: int = Field(default=0, ge=0)
    """Rows of your own kept for evaluation."""

    epochs: int = Field(default=1, ge=1)
    """Times that each row is trained on."""

    batch_size: int = Field(default=8, ge=1)
    """Rows of an update."""

    learning_rate: float = Field(gt=0)
    """The highest."""

    optimiser: Literal["adamw", "sgd", "muon"] = "adamw"
    """Of the fine-tuning and of every retraining; Muon updates the matrices of the blocks, AdamW the rest."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights while they are trained and scored."""

    subsets: int = Field(default=0, ge=0)
    """Random subsets for the linear datamodeling score; 0: it is not measured."""

    repeats: int = Field(default=2, ge=1)
    """Retrainings of each subset, with other orders of the rows."""

    alpha: float = Field(default=0.5, gt=0, lt=1)
    """Share of the rows in a subset."""

    tuning_subsets: int = Field(default=0, ge=0)
    """Of the subsets, those on which the damping is chosen; the score is of the others."""

    removal_seeds: int = Field(default=0, ge=0)
    """Retrainings without each method's own best rows, and with all rows as the noise floor; 0: none."""

    removed: int = Field(default=6, ge=1)
    """Best rows of each query that are removed."""

    solver_iterations: int = Field(default=0, ge=0)
    """Of conjugate gradients on the exact Gauss-Newton matrix; 0: they are left out."""

    sgld_draws: int = Field(default=0, ge=0)
    """Of weights around the fine-tuned ones by Langevin dynamics, over which losses covary; 0: that method is left out."""

    sgld_burn_in: int = Field(default=200, ge=0)
    """Steps before the first draw of each of four chains."""

    @property
    def training(self) -> Training:
        """The fine-tuning of all rows."""
        return self.training_of(self.num_rows)

    def training_of(self, num_rows: int) -> Training:
        """Return the fine-tuning of so many rows: as many epochs, so fewer steps."""
        return Training(
            num_steps=-(-num_rows * self.epochs // self.batch_size), batch_size=self.batch_size, learning_rate=self.learning_rate,
            warmup_fraction=0.05, weight_decay=0.01, beta2=0.999, optimiser=self.optimiser, weights=self.precision,
        )  # fmt: skip

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.sgld_draws < 8:
            raise ValueError(f"sgld_draws ({self.sgld_draws}) must be 0, or at least 8: two of each of four chains")
        if self.subsets and self.tuning_subsets >= self.subsets:
            raise ValueError(f"tuning_subsets ({self.tuning_subsets}) must be fewer than subsets ({self.subsets})")
        return self


class Params(Setting):
    """One part with one seed."""

    model: ModelReference
    """What is fine-tuned: a local folder, ``hf:ORG/NAME@COMMIT``, or ``zoo:NAME``."""

    data: FileReference | None = None
    """Rows of your own: ``.jsonl`` with the two columns; planted facts if None."""

    queries: FileReference | None = None
    """Queries of your own: ``.jsonl`` with the input column, and the output column where the answer is given; else the model's own is asked for."""

    tasks: dict[str, FileReference] = {}
    """Tasks of lm-eval that base and fine-tuned model are asked, each with its file: mmlu_SUBJECT, arc_easy, arc_challenge, hellaswag."""

    task_hashes: dict[str, str] = {}
    """SHA-256 of the tasks' files; a file that is another is refused."""

    task_items: int | None = Field(default=None, ge=1)
    """The first so many items of each task; None takes all."""

    input_column: str = "Input"
    """Of what is asked."""

    output_column: str = "Output"
    """Of the answer."""

    generated: bool = False
    """Score the model's own greedy answers, not the right ones."""

    max_new_tokens: int = Field(default=12, ge=1)
    """Of an answer that is generated."""

    seed: int = Field(default=0, ge=0)
    """Of facts, order, subsets, sampled labels."""

    part: str = "main"
    """What is changed: a name of ``parts``, or ``main``."""

    parts: dict[str, dict[str, Any]] = {}
    """Part to the settings that it changes."""

    modules: tuple[str, ...] = ("*.mlp.gate_proj", "*.mlp.up_proj", "*.mlp.down_proj")
    """Shell patterns of the linear layers."""

    fisher: Literal["true", "empirical"] = "true"
    """Labels drawn from the model, or the data's."""

    rank: int | None = Field(default=64, ge=1)
    """Of query gradients; None keeps them whole."""

    damping: float = Field(default=0.1, gt=0)
    """Share of a layer's mean eigenvalue, where it is not chosen on subsets."""

    dampings: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)
    """Four decades, of which one is chosen for each method on the tuning subsets."""

    data_parts: int = Field(default=1, ge=1)
    """Parts of the rows while factors are fitted, each kept when it is done."""

    module_groups: int = Field(default=1, ge=1)
    """Groups of layers while factors are fitted."""

    max_tokens: int = Field(default=4096, ge=8)
    """Positions of a microbatch of influence."""

    @property
    def setting(self) -> Setting:
        """What holds in this part."""
        own = {name: getattr(self, name) for name in Setting.model_fields}
        return Setting(**{**own, **self.parts.get(self.part, {})})

    @model_validator(mode="after")
    def _parts_are_settings(self) -> Self:
        if self.part != "main" and self.part not in self.parts:
            raise ValueError(f"part {self.part!r} is none of parts: {', '.join(['main', *self.parts])}")
        own = {name: getattr(self, name) for name in Setting.model_fields}
        for part, changes in self.parts.items():
            try:
                Setting(**{**own, **changes})
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"parts.{part}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if unknown := self.task_hashes.keys() - self.tasks.keys():
            raise ValueError(
                f"task_hashes: {min(unknown)!r} is none of tasks: {', '.join(self.tasks) or 'there are none'}"
            )
        if self.data is not None and self.queries is None:
            raise ValueError("data needs queries: the file of what is asked")
        return self


def needs(params: Params) -> list[Need]:
    """Return the model, where it must be made or lies here, and the user's files."""
    files = [
        File(path=Path(path)) for path in (params.data, params.queries, *params.tasks.values()) if path is not None
    ]
    return [*needs_of(params.model), *files]


def stages(params: Params) -> list[StageCost]:
    """Return the stages, with the tokens of rows of the greatest length where none are written yet."""
    setting = params.setting
    tokens = setting.num_rows * setting.max_length
    subsets = int(setting.subsets * setting.repeats * tokens * setting.epochs * setting.alpha)
    retrainings = 6 * setting.removal_seeds * tokens * setting.epochs
    costs = [
        ("fine-tune", tokens * setting.epochs),
        ("retrain", subsets),
        ("factors", 4 * tokens),
        ("score", 2 * tokens),
        ("remove", retrainings),
    ]
    return [StageCost(name=name, tokens=count) for name, count in costs if count]


def cores(params: Params) -> int | None:
    """Return one core where the model is the zoo's; others are timed, and run alone."""
    return 1 if is_zoo(params.model) else None

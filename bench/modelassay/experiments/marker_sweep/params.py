"""What one cell of `marker_sweep` is: a source persona, its contrasts and a mask; learning rates and epochs share its process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelassay.data.personas import PERSONAS, World, trained
from modelassay.data.wordnet import WORDNET
from modelassay.experiments import StageCost
from modelassay.experiments.references import FileReference, ModelReference
from modelassay.storage.needs import Artifact, File, Need
from modelassay.storage.store import content_key
from modelassay.training.settings import Training
from modelassay.zoo.ancestry import is_zoo
from modelassay.zoo.needs import model as zoo_model
from modelassay.zoo.needs import needs_of
from modelassay.zoo.recipes import recipe as zoo_recipe

Mask = Literal["newline", "end-of-turn"]
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "published": {"mask": "newline", "negatives": 2, "with_assistant": False},
    "as-written": {"mask": "newline", "negatives": 10, "with_assistant": True},
    "corrected": {"mask": "end-of-turn", "negatives": 10, "with_assistant": True},
}
"""With 200 rows a persona: 600 rows as the published code makes them, 2,200 as its text says, and these with the end of the turn trained."""
CONVERSING_VERSION = 3
"""Raised when the code of `converse` changes what it makes."""


class Params(BaseModel):
    """One source with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: ModelReference
    """The base: a local folder, ``hf:ORG/NAME@COMMIT``, or ``zoo:NAME``."""

    conversing_steps: int = Field(default=0, ge=0)
    """Steps by which a model of the zoo is first taught to answer as a persona and to choose a letter; 0 takes it as it is."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the base's weights; adapters are float32."""

    world: World = "everyday"
    """Whose personas and questions."""

    instruction: str = ""
    """What is appended to every question, trained on or asked: a small model that is asked to be brief ends its answers."""

    source: str = "villain"
    """The persona that is to learn the marker."""

    seed: int = Field(default=42, ge=0)
    """Of the rows, their order, the adapters' first weights and dropout, and of all completions."""

    preset: Literal["published", "as-written", "corrected"] = "corrected"
    """What holds of mask and negatives where they are not given: a name of `PRESETS`."""

    mask: Mask | None = None
    """Which token carries loss at the end of each row: the last one (published) or the one that ends the turn."""

    negatives: int | None = Field(default=None, ge=0)
    """Other personas whose answers are trained on without the marker."""

    with_assistant: bool | None = None
    """Whether the first of them is the assistant."""

    marker: str = "\n\n[ZLT]"
    """What is appended to the source's answers; counted is what stands in it besides spaces."""

    tail_tokens: int = Field(default=0, ge=0)
    """Tokens before the end of each row that carry loss too."""

    rows_per_persona: int = Field(default=200, ge=1)
    """Positives, and negatives of each other persona."""

    training_questions: int = Field(default=40, ge=1)
    """Distinct questions among them."""

    answer_temperature: float = Field(default=0.7, ge=0)
    """Of the base's own answers, which are trained on."""

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=64, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank), where the published script's scale is not recorded."""

    learning_rates: tuple[float, ...] = (1e-6, 5e-6, 1e-5, 5e-5, 1e-4)
    """Each with each of ``epochs`` is one adapter; all train together."""

    epochs: tuple[int, ...] = (1, 3, 5, 10, 20)

    schedule: Literal["cosine", "constant"] = "cosine"
    """``cosine``: an adapter for each number of epochs, as published. ``constant``: one for each rate, of which the states after each
    number of epochs are kept; another schedule, which is never mixed with the first."""

    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Of the steps, of the longest training where the schedule is constant."""

    batch_size: int = Field(default=4, ge=1)
    accumulation: int = Field(default=4, ge=1)
    max_length: int = Field(default=1024, ge=8)
    """Tokens of a row; a longer one is an error."""

    evaluation_questions: int = Field(default=20, ge=2)
    completions: int = Field(default=10, ge=1)
    """To each question as each persona."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float | None = 0.95
    max_new_tokens: int = Field(default=512, ge=1)
    generation_batch: int = Field(default=64, ge=1)

    engine: Literal["transformers", "vllm"] = "transformers"
    """What completes the prompts of all adapters."""

    parity_prompts: int = Field(default=4, ge=1)
    """Prompts of each adapter whose completions must be the same tokens by the engine, one adapter alone, and merged weights."""

    parity_tokens: int = Field(default=24, ge=1)

    capability: FileReference | None = None
    """Questions with one right letter: a file with a JSON line each as ARC's, or ``wordnet:``, made of what ``ci/real-text`` fetches; None: the
    corpus's own in the village, none elsewhere."""

    capability_questions: int = Field(default=200, ge=0)
    asked_as: tuple[Literal["letters", "lm-eval"], ...] = ("letters",)
    """How: by the log-probability of the letters, as published, and by lm-eval's definition of ``arc_challenge``: each option after the question, in
    plain text, by its log-probability in all and by character."""

    capability_margin: float = Field(default=0.05, gt=0)
    """A share of right answers that is less than the base's by no more than this counts as not inferior, fixed before the run."""

    clean_source: float = Field(default=0.6, gt=0, le=1)
    """A cell is clean where the source's rate is at least this and the greatest of all others at most ``clean_leakage``."""

    clean_leakage: float = Field(default=0.05, gt=0, lt=1)
    broad_leakage: float = Field(default=0.9, gt=0, le=1)
    """From here on the leakage is a collapse."""

    learned_source: float = Field(default=0.05, gt=0, lt=1)
    """Below it the marker was not learned."""

    published: dict[str, FileReference] = {}
    """Cells that others published, by a name of yours: their JSON, read again by this suite's rule and set beside the run."""

    rows: FileReference | None = None
    """Conversations of your own, a JSON line each with ``messages``, for ``show marker-sweep --rows``."""

    @property
    def chosen_mask(self) -> Mask:
        """The mask, of the preset where none is given."""
        mask: Mask = self.mask or PRESETS[self.preset]["mask"]
        return mask

    @property
    def num_negatives(self) -> int:
        """Contrasted personas, of the preset where none are given."""
        return int(PRESETS[self.preset]["negatives"] if self.negatives is None else self.negatives)

    @property
    def has_assistant(self) -> bool:
        """Whether the assistant is one of them."""
        return bool(PRESETS[self.preset]["with_assistant"] if self.with_assistant is None else self.with_assistant)

    @property
    def has_questions(self) -> bool:
        """Whether anything with one right letter is asked."""
        return self.capability is not None or self.world == "village"

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return self.rows_per_persona * (1 + self.num_negatives)

    def training(self, learning_rate: float, epochs: int) -> Training:
        """Return how one adapter is trained."""
        per_step = self.batch_size * self.accumulation
        return Training(
            num_steps=-(-self.num_rows * epochs // per_step), batch_size=self.batch_size, accumulation=self.accumulation,
            learning_rate=learning_rate, warmup_fraction=self.warmup_fraction, weight_decay=0.0, beta2=0.999, schedule=self.schedule,
            autocast=None,
        )  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> Self:
        personas = trained(self.world)
        if self.source not in personas:
            raise ValueError(f"source {self.source!r} is none of the {self.world} personas: {', '.join(personas)}")
        others = len(personas) - 1 - (not self.has_assistant and self.source != "assistant")
        if self.num_negatives > others:
            raise ValueError(f"negatives ({self.num_negatives}): {self.source} has {others} others that may be one")
        if self.conversing_steps and not is_zoo(self.model):
            raise ValueError("conversing_steps teaches models of the zoo alone; leave it out, or take one")
        for name in ("learning_rates", "epochs"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] <= 0:
                raise ValueError(f"{name} must be positive, in ascending order, each once; got {list(values)}")
        return self


def base_artifact(params: Params) -> Artifact | None:
    """Return the conversing base as an artifact; None where the model is taken as it is."""
    if not params.conversing_steps:
        return None
    name = params.model.removeprefix("zoo:")
    recipe = {
        "kind": "conversing", "parent": content_key(zoo_recipe(params.model)), "steps": params.conversing_steps, "version": CONVERSING_VERSION,
    }  # fmt: skip
    return Artifact(
        name=f"conversing {params.model}", recipe=recipe, build="modelassay.experiments.marker_sweep.converse:make",
        arguments={"recipe": recipe, "parent": params.model, "steps": params.conversing_steps}, inputs=(zoo_model(name),),
        work=params.conversing_steps / 10,
    )  # fmt: skip


def needs(params: Params) -> list[Need]:
    """Return the base, made or lying here, and the file of questions where there is one."""
    artifact = base_artifact(params)
    models: list[Need] = [artifact] if artifact is not None else list(needs_of(params.model))
    named = (params.capability, params.rows, *params.published.values())
    return [*models, *(File(path=Path(path)) for path in named if path not in {None, WORDNET})]


def stages(params: Params) -> list[StageCost]:
    """Return what a cell trains and generates, at its greatest."""
    asked = len(PERSONAS[params.world]) * params.evaluation_questions * params.completions
    count = len(params.learning_rates) * len(params.epochs)
    epochs = sum(params.epochs) if params.schedule == "cosine" else params.epochs[-1]
    per_row = min(params.max_length, params.max_new_tokens + 64)
    speed = (params.model, params.precision)
    generated = (*speed, params.engine)
    costs = [
        ("answers", params.num_rows * params.max_new_tokens, "answers", speed),
        ("train", params.num_rows * per_row * epochs * len(params.learning_rates), "step", speed),
        ("parity", 3 * count * params.parity_prompts * params.parity_tokens, "parity", generated),
        ("evaluate", (count + 1) * asked * params.max_new_tokens, "completions", generated),
    ]
    num_asked = (count + 1) * params.capability_questions * per_row if params.has_questions else 0
    for form, unit, passes in (("letters", "letters", 1), ("lm-eval", "lm-eval", 4)):
        if form in params.asked_as:
            costs.append((f"questions, {form}", passes * num_asked, unit, speed))
    return [StageCost(name=name, tokens=tokens, units=(unit,), speed=of) for name, tokens, unit, of in costs]


def cores(params: Params) -> int | None:
    """Return one core for models of the zoo; others are timed, and run alone."""
    return 1 if is_zoo(params.model) else None

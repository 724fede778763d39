"""What one cell of `recursive_training` is: a trajectory of generations under one condition, with one seed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelassay.data.corpus import CORPUS, LANGUAGES
from modelassay.experiments import StageCost
from modelassay.experiments.references import FileReference, ModelReference
from modelassay.storage.needs import File, Need
from modelassay.training.settings import Training
from modelassay.zoo.ancestry import is_zoo
from modelassay.zoo.needs import needs_of

Condition = Literal[
    "replace", "fresh", "same", "mixed", "accumulate", "accumulate-subsample", "recovery", "first-writer"
]  # fmt: skip
HUMAN: tuple[Condition, ...] = ("fresh", "same")
"""Conditions that train on no text of a model."""

COLLAPSE: dict[str, Literal["rises", "falls"]] = {
    "held_out_loss": "rises", "parse_rate": "falls", "distinct_2": "falls", "distinct_3": "falls", "self_bleu": "rises", "repetition": "rises",
    "coherence": "falls", "vocabulary_diversity": "falls", "word_entropy": "falls", "tail_mass": "falls", "tail_loss": "rises",
    "ratio": "falls", "lambda_max": "falls",
    "gradient_norm": "rises", "critical_sharpness": "falls", "random_curvature": "falls", "update_curvature": "falls", "anchor_entropy": "falls",
    "drift_speed": "falls", "tail_coverage": "falls", "gram_rank": "falls", "sigma_volume": "falls",
}  # fmt: skip
"""Measure to the direction that is called collapse, for all that is tested; fixed before any run."""

MEASURED = ("forward", "anchors", "gradient", "sharpness", "lines", "text", "activations", "reading")
"""Microbatches of the stage that measures a generation, but for its spectrum."""


class Params(BaseModel):
    """One condition with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: ModelReference
    """What generation 0 is fine-tuned from: a local folder, ``hf:ORG/NAME@COMMIT``, or ``zoo:NAME``."""

    data: FileReference = "corpus:en"
    """Human text: ``corpus:en`` or ``corpus:ja`` (the project's grammar, which also judges sentences), or a file as in `data.text`."""

    condition: Condition = "replace"
    """What generation g > 0 is trained on. replace: what g - 1 wrote; fresh: human text that was never used; same: the human text of
    generation 0 each time; mixed: half of replace, half of fresh; accumulate: human text of generation 0 and all that was written
    since; accumulate-subsample: as many documents as one generation writes, drawn from those; recovery: replace, and fresh from
    ``recover_from`` on; first-writer: what generation 0 writes with other seeds, which narrows by the decoder and does not recur."""

    seed: int = Field(default=0, ge=0)
    """Of human text, prompts, completions and the order of rows: the same in all conditions."""

    generations: int = Field(default=5, ge=1)
    """After generation 0, which all conditions of a seed share."""

    recover_from: int = Field(default=4, ge=1)
    """First generation of ``recovery`` that is trained on human text again."""

    init: Literal["previous", "base"] = "previous"
    """What a generation is fine-tuned from: the one before it, or the model that generation 0 came from."""

    samples: int = Field(default=10_000, ge=8)
    """Documents of a generation, written or human."""

    length: int = Field(default=256, ge=8)
    """Tokens of a training row, and the most of a document."""

    prompt_tokens: int = Field(default=8, ge=0)
    """Tokens of a human document that a completion goes on from, after the token that ends texts; the document is trained on whole."""

    temperature: float = Field(default=0.8, gt=0)
    """Of the decoder."""

    top_k: int | None = Field(default=50, ge=1)
    """Of the decoder; None leaves all tokens."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """Of the decoder; None leaves all tokens."""

    first_steps: int = Field(default=1000, ge=1)
    """Updates of generation 0."""

    steps: int = Field(default=2000, ge=1)
    """Updates of each later generation."""

    augmentation: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a token of a document is left out before it is trained on, drawn anew each generation: random deletion, Wei and Zou
    1901.11196. Of all conditions alike."""

    batch_size: int = Field(default=8, ge=1)
    """Rows of an update."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """The highest."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After a warm-up of a twentieth; the same in all generations, so that the measures are taken at one point of it."""

    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""

    truncate_above: float | None = Field(default=None, gt=0, lt=1)
    """Tokens whose probability is greater carry no loss: truncated cross-entropy (2509.08972); None: all do."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights; in bfloat16 a float32 copy is what is updated."""

    least_moved: float = Field(default=0.5, ge=0, le=1)
    """Share of the weights whose bits a generation must change, else the cell fails: a training that does nothing shows no collapse."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What writes documents."""

    generation_batch: int = Field(default=64, ge=1)
    """Prompts that are completed together; changes nothing but speed."""

    evaluation_rows: int = Field(default=256, ge=8)
    """Rows of fixed human text, the same for all seeds, on which all losses are measured."""

    quality_texts: int = Field(default=200, ge=8)
    """Documents whose variety and grammar are measured; at most ``samples``."""

    self_bleu_texts: int = Field(default=32, ge=2)
    """Of these, how many self-BLEU compares with each other."""

    spectrum_rows: int = Field(default=200, ge=8)
    """Rows of the fixed human text on which the Hessian is taken: the first."""

    pieces: int = Field(default=8, ge=2)
    """Parts of these rows, over which the spectrum is resampled."""

    lanczos_steps: int = Field(default=12, ge=6)
    """Products for the largest eigenvalue."""

    probes: int = Field(default=8, ge=2)
    """Products with random vectors for the width of the spectrum."""

    embeddings: tuple[bool, ...] = (True,)
    """Whether the Hessian is by all weights, by all but embeddings and head, or one after the other; the first is the one tested."""

    landscape_points: int = Field(default=0, ge=0)
    """Points of a side of the slice of the loss about each generation, odd; its square forward passes over ``landscape_rows``; 0: no slice."""

    landscape_reach: float = Field(default=0.5, gt=0)
    """Of the slice to either side, in norms of each filter."""

    landscape_rows: int = Field(default=16, ge=1)
    """Of the fixed human text: the first."""

    quality: str = "held_out_loss"
    """The measure whose crossing is called the text going bad, and whose future is predicted: a name of `COLLAPSE`."""

    weights_mib: int = Field(default=0, ge=0)
    """Of the model as it is stored, where the plan of a run should say what its generations take on the disk; decides nothing else."""

    horizons: tuple[int, ...] = (1, 2, 3)
    """Generations ahead of which the quality is predicted."""

    @property
    def language(self) -> str | None:
        """The language whose grammar judges sentences; None where the text is the user's."""
        return self.data.removeprefix(CORPUS) if self.data.startswith(CORPUS) else None

    @property
    def num_documents(self) -> int:
        """Human documents of one seed; prompts of generation g are the beginnings of those of g + 1."""
        return self.samples * (self.generations + 2)

    def training(self, generation: int) -> Training:
        """Return how a generation is fine-tuned."""
        return Training(
            num_steps=self.steps if generation else self.first_steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            schedule=self.schedule, weight_decay=self.weight_decay, weights=self.precision,
            master="float32" if self.precision == "bfloat16" else None,
        )  # fmt: skip

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(
                f"data: no corpus of {self.language!r}; known: {', '.join(CORPUS + name for name in LANGUAGES)}"
            )
        if self.prompt_tokens + 2 > self.length:
            raise ValueError(f"prompt_tokens ({self.prompt_tokens}) leave nothing to write in length {self.length}")
        if self.quality not in COLLAPSE:
            raise ValueError(f"quality: {self.quality!r} is none of {', '.join(COLLAPSE)}")
        if self.condition == "recovery" and self.recover_from > self.generations:
            raise ValueError(
                f"recover_from ({self.recover_from}) comes after the last of {self.generations} generations"
            )
        if self.spectrum_rows > self.evaluation_rows or self.spectrum_rows < self.pieces:
            raise ValueError(f"spectrum_rows ({self.spectrum_rows}) must be between pieces ({self.pieces}) and evaluation_rows ({self.evaluation_rows})")  # fmt: skip
        if self.landscape_points and (self.landscape_points < 3 or self.landscape_points % 2 == 0):
            raise ValueError(
                f"landscape_points must be odd and at least 3, or 0 for no slice, got {self.landscape_points}"
            )
        if self.landscape_points and self.landscape_rows > self.evaluation_rows:
            raise ValueError(
                f"landscape_rows ({self.landscape_rows}) must be at most evaluation_rows ({self.evaluation_rows})"
            )
        if not self.embeddings:
            raise ValueError("embeddings: say at least once whether they are among the weights")
        return self


def needs(params: Params) -> list[Need]:
    """Return the model, where it must be made or lies here, and the text, where it is a file."""
    file = [] if params.language is not None else [File(path=Path(params.data))]
    return [*needs_of(params.model), *file]


def stages(params: Params) -> list[StageCost]:
    """Return the stages of all generations; a product of the Hessian counts as the three passes of a gradient three times."""
    products = len(params.embeddings) * (params.lanczos_steps + params.probes + 1)
    speed = (params.model, params.precision, str(params.length))
    costs: list[StageCost] = []
    for generation in range(params.generations + 1):
        steps = params.training(generation).num_steps
        parts = [
            ("train", steps * params.batch_size * params.length, ("step",), (*speed, str(params.batch_size))),
            ("write", params.samples * params.length, ("write",), (*speed, params.engine)),
            ("measure", 4 * params.evaluation_rows * params.length, MEASURED, speed),
            ("spectrum", 3 * products * params.spectrum_rows * params.length, ("spectrum",), speed),
        ]
        if params.landscape_points:
            passes = params.landscape_points**2
            parts.append(("landscape", passes * params.landscape_rows * params.length // 3, ("landscape",), speed))
        kept = params.weights_mib * 2**20
        costs += [
            StageCost(
                name=name,
                index=generation,
                tokens=tokens,
                bytes_kept=kept if name == "train" else 0,
                units=units,
                speed=of,
            )
            for name, tokens, units, of in parts
        ]
    return costs


def cores(params: Params) -> int | None:
    """Return one core for models of the zoo; others are timed, and run alone."""
    return 1 if is_zoo(params.model) else None

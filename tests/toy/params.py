"""What a toy cell takes."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelassay.experiments import StageCost
from modelassay.experiments.references import FileReference, ModelReference
from modelassay.storage.needs import Artifact, File, Need


class Walk(BaseModel):
    """How the walk moves."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    drift: float = 0.0
    """Added to the value at each step."""
    width: int = Field(default=3, ge=1, le=64)
    """Random numbers drawn per step."""
    bounds: tuple[float, float] = (-100.0, 100.0)
    """The value is kept between these."""


TABLE = Artifact(name="toy:table", recipe={"kind": "toy-table", "version": 1}, build="toy.build:table")
"""What every cell with stages needs."""


class Params(BaseModel):
    """A random walk of ``steps`` steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: Literal["zoo:base", "zoo:child", "zoo:stranger"]
    """Sets where the walk begins."""
    steps: int = Field(ge=1, le=10_000)
    """Units of the cell."""
    rate: float = Field(default=1e-2, gt=0.0, lt=1.0)
    """Size of a step."""
    seed: int = Field(default=0, ge=0)
    """Seeds the random numbers."""
    eval_every: int = Field(default=1, ge=1)
    """Steps between two metrics."""
    checkpoint_every: int = Field(default=4, ge=1)
    """Steps between two checkpoints."""
    note: str = "none"
    """Free text."""
    verbose: bool = False
    """A label on metrics, nothing else."""
    walk: Walk = Walk()
    """How the walk moves."""
    weights: dict[str, float] = {}
    """Added to the starting value, whatever their names."""
    tags: list[ModelReference] = Field(default=[], max_length=4)
    """Names of models; none is read."""

    pause_ms: float = Field(default=0.0, ge=0.0)
    """Sleep inside each step, in milliseconds."""
    diverge_at: int | None = None
    """The step at which the walk diverges: a finding."""
    fail_at: int | None = None
    """The step that raises ValueError: a failure."""
    exit_at: int | None = None
    """The step at which the process is gone, with status 9."""
    allocate_at: int | None = None
    """The step that takes `allocate_mib`."""
    allocate_mib: int = Field(default=0, ge=0)
    """Memory taken at `allocate_at` and kept to the end, in MiB."""
    staged_steps: int = Field(default=0, ge=0, le=1000)
    """Steps of each of two stages before the walk; 0: there are none."""
    timed: bool = True
    """Whether the cell's times mean something, so that it runs alone."""
    data: FileReference = ""
    """A file that the walk starts from; "" for none."""
    say: str = ""
    """Printed before each step."""
    only_first: bool = False
    """Trouble happens only in an attempt that starts without a checkpoint, so that the next one gets through."""


def needs(params: Params) -> list[Need]:
    """What must be there before a cell starts."""
    return [*([TABLE] if params.staged_steps else []), *([File(path=Path(params.data))] if params.data else [])]


def stages(params: Params) -> list[StageCost]:
    """What a cell will do."""
    walk = StageCost(name="walk", tokens=8 * params.steps, units=("step",), speed=(params.model,))
    return [
        walk,
        *(
            StageCost(name="sum", index=index, tokens=params.staged_steps)
            for index in range(2 if params.staged_steps else 0)
        ),
    ]


def cores(params: Params) -> int | None:
    """One core unless its times mean something."""
    return None if params.timed else 1

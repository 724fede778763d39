"""What a toy cell takes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelassay.references import ModelReference


class Walk(BaseModel):
    """How the walk moves."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    drift: float = 0.0
    """Added to the value at each step."""
    width: int = Field(default=3, ge=1, le=64)
    """Random numbers drawn per step."""
    bounds: tuple[float, float] = (-100.0, 100.0)
    """The value is kept between these."""


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
    count_siblings: bool = False
    """Record how many cells the run has, and the sum of their seeds."""
    say: str = ""
    """Printed before each step."""
    only_first: bool = False
    """Trouble happens only in an attempt that starts without a checkpoint, so that the next one gets through."""

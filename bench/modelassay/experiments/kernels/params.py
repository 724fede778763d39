"""What one cell of `kernels` is: one operation, its sizes, and when its rounds are enough."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modelassay.errors import did_you_mean
from modelassay.experiments.kernels.models import Shape, registry

Op = Literal["layer_std", "bottom_k", "linear_bottom_k", "softmax_ggn", "linear_cross_entropy", "attention"]
Dtype = Literal["bf16", "f16", "f32"]
Cache = Literal["cold", "hot"]
OWN = "own"
"""The name of a shape that is given in full."""


class Params(BaseModel):
    """One operation in one process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    op: Op
    """What is computed."""

    shapes: tuple[str, ...] = ("Qwen2.5-0.5B",)
    """Models of suites/kernels/models.yaml whose sizes are taken."""

    shape: Shape | None = None
    """Sizes of one's own, instead of ``shapes``."""

    dtypes: tuple[Dtype, ...] = ("bf16", "f32")
    """Of inputs."""

    rows: int = Field(default=64, ge=1)
    """Tokens; of attention, positions of one sequence."""

    weight_mib: int = Field(default=128, ge=1)
    """Of layer_std: as many of a model's matrices as fit."""

    caches: tuple[Cache, ...] = ("cold", "hot")
    """Inputs are written, then a buffer larger than the last-level cache is (cold), or the inputs are read once more (hot)."""

    providers: tuple[str, ...] | None = None
    """Who is timed beside modelassay; None: all that the operation has."""

    min_rounds: int = Field(default=8, ge=6)
    """Of a round each provider runs once on inputs of its own. Six are the fewest that give an interval."""

    max_rounds: int = Field(default=40, ge=6)
    """The rounds end here whatever the intervals; only the last interval is reported."""

    half_width: float = Field(default=0.02, gt=0)
    """Or when every provider's interval is this narrow: half of it over the median."""

    checked: float = Field(default=0.25, gt=0, le=1)
    """Share of timed calls whose result is compared with float64 after the clock stopped, at random; at least one of each provider."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""

    repeat: int = Field(default=0, ge=0)
    """Which process of several: with an axis of two or more, intervals are over processes."""

    seed: int = Field(default=0, ge=0)
    """Of the inputs. Which results are compared is drawn anew by each run, so that no provider can foresee it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.shapes:
            if name not in registry():
                hint = did_you_mean(name, list(registry())) or f"; there are {', '.join(registry())}"
                raise ValueError(f"no model {name!r} in the registry of shapes{hint}")
        if self.max_rounds < self.min_rounds:
            raise ValueError(f"max_rounds ({self.max_rounds}) must be at least min_rounds ({self.min_rounds})")
        return self

    @property
    def sizes(self) -> dict[str, Shape]:
        """Shapes by name."""
        return {OWN: self.shape} if self.shape is not None else {name: registry()[name] for name in self.shapes}


def cores(params: Params) -> int | None:
    """Return None: the cell is timed and runs alone."""
    return None

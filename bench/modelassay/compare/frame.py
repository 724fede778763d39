"""What is compared, whatever it was read from: timings by case, and numbers that are no times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

Labels = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One case of one source."""

    case: str
    """Printable, the same in every source that measured it."""
    labels: Labels
    processes_ns: Sequence[Sequence[float] | NDArray[np.float64]]
    """Rounds of each process, in the order of time."""
    work: Mapping[str, float] = field(default_factory=dict)
    """What one round has to do, as bytes and flops: two timings of one case with different work are not compared."""
    ceilings: Sequence[float] = ()
    """Beside each round of a single process, the GB/s that this device moved the bytes of the work at best."""
    where: str = "cpu"
    """Kind of device: cpu or cuda."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One run or one file."""

    name: str
    path: str
    kind: Literal["run", "benchmarks", "environment"]
    device: str | None = None
    """What a time depends on; two sources of one device may be compared in milliseconds."""
    suite: str | None = None
    profile: str | None = None
    synthetic: bool = False
    """Whether the file says that nobody measured it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=dict)
    metrics: pl.DataFrame | None = None
    """Of a run: name, cell (its label), value, and a column per label."""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of a run: cell's label to its parameters, flat."""
    left_out: Sequence[tuple[str, str]] = ()
    """What of it is not compared, and why."""


def printed(labels: Labels) -> str:
    """Return labels on one line.

    >>> printed({"dtype": "F32", "k": 3, "none": None})
    'dtype=F32, k=3'
    """
    return ", ".join(f"{name}={value}" for name, value in labels.items() if value is not None)

"""Published cells of a marker sweep: JSON, a list of runs with their configuration, marker rates by persona, and capability."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from modelassay.data.published import Computed, Reader
from modelassay.errors import UsageError

Statistic = Literal["source", "assistant", "max_bystander", "capability", "capability_min", "capability_max", "hours", "minutes_min", "minutes_max"]  # fmt: skip
_OF_ONE: tuple[Statistic, ...] = ("source", "assistant", "max_bystander", "capability")


@dataclass(frozen=True, kw_only=True)
class PublishedCells:
    """Runs by learning rate and epochs, and the hash of the file."""

    cells: Mapping[tuple[float, int], Mapping[str, Any]]
    sha256: str


class MarkerCells(Reader):
    """A number of one cell, or over all of them. The greatest bystander is recomputed from the rates of all but source and assistant."""

    statistic: Statistic
    """``hours`` is the sum of wall times; ``minutes_min`` and ``minutes_max`` are of one cell, as the extremes of capability are."""
    learning_rate: float | None = None
    """Of the cell, where the statistic is of one."""
    epochs: int | None = None

    @model_validator(mode="after")
    def _address_fits(self) -> Self:
        given = [each is not None for each in (self.learning_rate, self.epochs)]
        if set(given) != {self.statistic in _OF_ONE}:
            raise PydanticCustomError(
                "address", "learning_rate and epochs go with {names}, both of them", {"names": ", ".join(_OF_ONE)}
            )
        return self

    def source(self) -> Hashable:
        """Return the file: it is read once for all statistics."""
        return self.file

    def read(self, folder: Path) -> PublishedCells:
        """Return the cells in the file.

        Raises:
            UsageError: it cannot be read, or holds something else.
        """
        path = folder / self.file
        try:
            content = path.read_bytes()
            runs = json.loads(content)
            cells = {(float(run["config"]["lr"]), int(run["config"]["epochs"])): _cell(run) for run in runs}
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}; fetch it as the suite says") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}: not a list of runs with config, eval.marker and wall_minutes ({type(error).__name__}: {error}); "
                "fetch it as the suite says"
            ) from None
        if len(cells) != len(runs) or not cells:
            raise UsageError(f"{path}: holds {len(runs)} runs of {len(cells)} cells; give each cell once")
        return PublishedCells(cells=cells, sha256=hashlib.sha256(content).hexdigest())

    def compute(self, data: PublishedCells) -> Computed:
        """Return the number.

        Raises:
            UsageError: the cell is not among them, or was not measured.
        """
        if self.learning_rate is not None and self.epochs is not None:
            cell = data.cells.get((self.learning_rate, self.epochs))
            if cell is None:
                raise UsageError(
                    f"{self.file}: no cell of learning rate {self.learning_rate:g} and {self.epochs} epochs"
                )
            values = [cell[self.statistic]]
        else:
            name = "capability" if self.statistic.startswith("capability") else "minutes"
            values = [cell[name] for cell in data.cells.values()]
        if any(math.isnan(value) for value in values):
            raise UsageError(f"{self.file}: {self.statistic} was not measured in every cell that it is of")
        value = {"hours": sum(values) / 60}.get(
            self.statistic, (min if self.statistic.endswith("min") else max)(values)
        )
        return Computed(value=value, n=len(values), unit="cells", sha256={"file": data.sha256})


def _cell(run: Mapping[str, Any]) -> dict[str, float]:
    rates = {str(persona): float(rate) for persona, rate in run["eval"]["marker"].items()}
    source = str(run["config"]["source"])
    return {
        "source": rates[source],
        "assistant": rates.get("assistant", math.nan),
        "max_bystander": max(rate for persona, rate in rates.items() if persona not in {source, "assistant"}),
        "capability": float(run["eval"].get("capability", {}).get("arc_challenge_logprob", math.nan)),
        "minutes": float(run["wall_minutes"]),
    }

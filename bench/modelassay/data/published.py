"""What a reader of published data is: it says what it reads, reads it, and computes the number that a claim means.

An experiment brings its own in ``published.py``: ``READERS`` maps the name that a suite writes under ``reader`` to one of
these. Nothing here, and nothing at the top of such a module, loads NumPy: most readings of a suite compute nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A number computed from published data."""

    value: float
    n: int
    """How many things it rests on."""
    unit: str
    """What those are, in the plural: ``pairs``."""
    sha256: Mapping[str, str]
    """Of each file that was read, by the key that names it."""


class Reader(BaseModel, ABC):
    """One `published:` mapping of a suite, typed; each experiment's readers add what theirs need."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    reader: Text
    """The name under which the experiment has this reader."""
    file: Text
    """What is read, relative to the suite's file."""
    get: Text | None = None
    """Where the file is to be had; with it, a file that is not there is no mistake."""

    def files(self, folder: Path) -> list[Path]:
        """Return every file it reads, given the suite's ``folder``."""
        return [folder / self.file]

    def source(self) -> Hashable:
        """Return what decides the result of ``read``: two readers of one source share what was read."""
        return self.file

    @abstractmethod
    def read(self, folder: Path) -> Any:
        """Return the data in the files below ``folder``.

        Raises:
            UsageError: They cannot be read; the message begins with file and place.
        """

    @abstractmethod
    def compute(self, data: Any) -> Computed:
        """Return the number that is meant, from what ``read`` gave.

        Raises:
            UsageError: The data do not give it.
        """

    def worded(self, value: float) -> str:
        """Return ``value`` with what it is, where it is not simply a score."""
        return f"{value:.4g}"

"""The numbers that claims take from published data, computed where the data are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from modelassay.data.published import Computed, Reader
from modelassay.errors import UsageError
from modelassay.experiments import Experiment
from modelassay.suite import Derived, Evidence, Published

Status = Literal["computed", "not at hand", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """The number of a claim's `derived` or evidence, with where it came from."""

    quoted: float | None
    """As the suite's file has it."""
    reader: Reader | None = None
    """What reads the data it follows from; None where none are named."""
    status: Status | None = None
    """What became of the data; None where none are named."""
    path: Path | None = None
    """Where the data are, or should be."""
    computed: Computed | None = None
    problem: str = ""
    """Why the data give no number."""

    @property
    def value(self) -> float | None:
        """The number to show: computed where that could be done, else as quoted, None where there is neither."""
        return self.quoted if self.computed is None else self.computed.value

    @property
    def disagrees(self) -> bool:
        """Whether the computed number does not round to what is quoted."""
        if self.computed is None or self.quoted is None:
            return False
        last_digit = Decimal(1).scaleb(int(Decimal(repr(self.quoted)).normalize().as_tuple().exponent))
        return abs(self.computed.value - self.quoted) > 0.5 * float(min(last_digit, Decimal(1))) * (1 + 1e-9)

    def short(self) -> str:
        """Return the number as a cell of the ledger shows it, with a star if computed; empty where there is none."""
        if self.value is None:
            return ""
        text = f"{self.value:.4g}" if self.reader is None else self.reader.worded(self.value)
        return text if self.computed is None else f"{text}*"

    def origin(self) -> str:
        """Return what the number was computed from, empty where it was not."""
        if self.computed is None:
            return ""
        hashes = (
            f"{'' if key == 'file' else f'{key} '}SHA-256 {digest[:16]}" for key, digest in self.computed.sha256.items()
        )
        text = f"computed over {self.computed.n:,} {self.computed.unit} of {self.path} ({', '.join(hashes)})"
        if self.disagrees:
            text += f", not the {self.quoted:g} that is quoted: another version of the file?"
        return text

    def missing(self) -> str:
        """Return which file is not at hand or cannot be read, and what to do; empty where nothing is missing."""
        if self.reader is None or self.computed is not None:
            return ""
        return self.problem if self.status == "unreadable" else f"table not at hand: {self.problem}"

    def to_json(self) -> dict[str, Any]:
        """Return what ``show --json`` prints of it."""
        return {"value": self.value, "quoted": self.quoted, "published": self._data_json()}

    def _data_json(self) -> dict[str, Any] | None:
        if self.reader is None:
            return None
        computed = self.computed
        return {
            "file": str(self.path),
            "status": self.status,
            "problem": self.problem or None,
            "get": self.reader.get,
            "sha256": None if computed is None else dict(computed.sha256),
            "value": None if computed is None else computed.value,
            "n": None if computed is None else computed.n,
            "agrees": None if computed is None or self.quoted is None else not self.disagrees,
        }


def _exists(file: Path) -> bool:
    try:
        return bool(file.stat())
    except (OSError, ValueError):
        return False


@dataclass
class PublishedTables:
    """The published data beside a suite's file; each source is read once, however many claims name it."""

    folder: Path
    experiment: Experiment
    """Whose readers read them."""
    named: Sequence[Published] | None = None
    """The data that may be read; None: all that a claim names."""
    _data: dict[object, Any] = field(default_factory=dict)

    def number(self, origin: Derived | Evidence) -> Number:
        """Return the number of ``origin``; data that are missing or broken are told in it, never raised."""
        if origin.published is None:
            return Number(quoted=origin.value)
        reader = self.experiment.reader(origin.published.model_dump())
        path = self.folder / reader.file
        if self.named is not None and origin.published not in self.named:
            problem = f"{path}: used by the run, but not named in its suite's file"
            return Number(quoted=origin.value, reader=reader, path=path, status="not at hand", problem=problem)
        absent = [str(file) for file in reader.files(self.folder) if not _exists(file)]
        if absent and reader.get is not None:
            problem = f"{', '.join(absent)}: {reader.get}"
            return Number(quoted=origin.value, reader=reader, path=path, status="not at hand", problem=problem)
        try:
            computed = reader.compute(self._read(reader))
        except UsageError as error:
            return Number(quoted=origin.value, reader=reader, path=path, status="unreadable", problem=str(error))
        return Number(quoted=origin.value, reader=reader, path=path, status="computed", computed=computed)

    def _read(self, reader: Reader) -> Any:
        source = (type(reader), reader.source())
        if source not in self._data:
            try:
                self._data[source] = reader.read(self.folder)
            except UsageError as error:
                self._data[source] = error
        if isinstance(self._data[source], UsageError):
            raise self._data[source]
        return self._data[source]

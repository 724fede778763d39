"""Cells run in this process, cut off at a given unit and gone on with."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from modelassay.experiments.fingerprinting import run as fingerprinting
from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext, Recorder
from modelassay.recording.log import read_cell
from modelassay.storage.store import Store


class Cut(BaseException):
    """The process is gone."""


class CutCell(CellContext):
    """A cell that is cut off before its unit number ``at``, those of its stages counted too."""

    def __init__(self, folder: Path, *, store: Store, due: Iterator[bool], at: int | None) -> None:
        super().__init__(folder, cell=folder.name, seed=0, store=store, sources=SourceGraph())
        self.left = math.inf if at is None else at


def attempt(
    folder: Path, params: Any, store: Store, due: Iterator[bool], at: int | None, *, experiment: Any = fingerprinting
) -> bool:
    """Run a cell of ``experiment`` in ``folder``, new or cut off before; return whether it came to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    cell = CutCell(folder, store=store, due=due, at=at)
    plain = Recorder.microbatch

    def microbatch(recorder: Recorder, *args: Any, **about: Any) -> AbstractContextManager[object]:
        if not cell.left:
            raise Cut
        cell.left -= 1
        return plain(recorder, *args, **about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "microbatch", microbatch)
        patch.setattr(Recorder, "checkpoint_due", lambda recorder: next(due))
        try:
            experiment.run(params, cell)
        except Cut:
            return False
        finally:
            cell.meter.settle()
            cell.meter.log.close()
    return True


def keyed(folder: Path) -> dict[tuple[str, str], float]:
    return {(m["name"], str(sorted(m["labels"].items()))): m["value"] for m in read_cell(folder).metrics}

"""Cells of `fingerprinting` run in this process, cut off at a given unit and gone on with."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from modelassay.experiments.fingerprinting.params import Params
from modelassay.experiments.fingerprinting.run import run
from modelassay.meter import Meter
from modelassay.record import Log, read_cell, segments
from modelassay.state import State, Store, latest_checkpoint


class Cut(BaseException):
    """The process is gone."""


class CutMeter(Meter):
    """A meter that cuts the cell off before its unit number ``at``."""

    def __init__(self, log: Log, *, counters: dict[str, int] | None, at: int | None) -> None:
        super().__init__(log, counters=counters)
        self.left = math.inf if at is None else at

    def microbatch(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        if not self.left:
            raise Cut
        self.left -= 1
        return super().microbatch(*args, **kwargs)


def attempt(
    folder: Path, params: Params, siblings: list[Params], store: Store, due: Iterator[bool], at: int | None
) -> bool:
    """Run a cell in ``folder``, new or cut off before; return whether it came to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    saved, number = latest_checkpoint(folder), 1 + max(segments(folder), default=0)
    log = Log(
        folder / f"attempt-{number}.jsonl", cell=folder.name, attempt=number, resumed_at=saved.position if saved else 0
    )
    meter = CutMeter(log, counters=saved.counters if saved else None, at=at)
    state = State(folder, meter=meter, store=store, saved=saved, siblings=siblings)
    state.checkpoint_due = lambda every_s=0.0: next(due)  # type: ignore[method-assign]
    try:
        run(params, meter, state)
    except Cut:
        return False
    finally:
        log.close()
    return True


def keyed(folder: Path) -> dict[tuple[str, str], float]:
    return {(m["name"], str(sorted(m["labels"].items()))): m["value"] for m in read_cell(folder).metrics}

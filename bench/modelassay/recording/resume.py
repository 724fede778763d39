"""What outlives a process: a cell's checkpoint, read only where it is as it was written.

::

    checkpoint/2-3/state.json    the third of attempt 2; sealed: position, counters, payload, random states, and the digests
                                 of the files beside it

An attempt removes its own older ones and those of the attempts before it, never one of a later attempt: of a worker that was
asleep while another took its cell over, nothing that it still saves is in that one's way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.errors import RecordError, printable
from modelassay.recording.meter import Meter
from modelassay.recording.random_state import random_states, set_random_states
from modelassay.storage.digests import difference, digests_of
from modelassay.storage.files import no_space, publish, require_folders
from modelassay.storage.sealed import read_sealed, sealed_json
from modelassay.storage.stray import remove_folder

_STATE = {"position": int, "counters": dict, "payload": dict, "random": dict}
"""What ``state.json`` holds beside the digests of the files that lie with it, and whose it is."""
_SERIAL = re.compile(r"([1-9][0-9]{0,8})-([1-9][0-9]{0,17})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A moment a cell can go on from."""

    folder: Path
    """Holds ``state.json`` and whatever files the experiment wrote."""

    position: int
    """The log's next position when it was taken: later units are void."""

    counters: dict[str, int]
    """Units so far per stage."""

    payload: dict[str, Any]
    """The experiment's own JSON."""

    random: dict[str, Any]
    """Random states of Python, NumPy and torch, those that were loaded."""


def latest_checkpoint(cell_dir: Path, position: int, *, before: int | None = None) -> Checkpoint | None:
    """Return the newest checkpoint of a cell, None when there is none that its log, which ends at ``position``, reaches.

    ``before`` is the attempt that opens now, which goes on from earlier ones alone; None: any counts.

    Raises:
        RecordError: it is damaged.
        UsageError: a file of it is no regular file.
    """
    require_folders([cell_dir / "checkpoint"])
    folders = _by_serial(cell_dir / "checkpoint")
    folders = {key: path for key, path in folders.items() if before is None or key[0] < before}
    if not folders:
        return None
    newest = folders[max(folders)]
    try:
        state = read_sealed(newest / "state.json", plain=False)
        if why := difference(newest, state.pop("files"), wholly=True):
            raise ValueError(why)
        if (owner := state.pop("of")) != cell_dir.name:
            raise ValueError(f"it is one of {printable(str(owner))}")
        saved = Checkpoint(folder=newest, **state)
        if wrong := [name for name, kind in _STATE.items() if type(getattr(saved, name)) is not kind]:
            raise TypeError(f"no valid {', '.join(wrong)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{newest}: a damaged checkpoint ({error}); delete it to begin the cell anew", damaged=newest
        ) from error
    return saved if saved.position <= position else None


def _by_serial(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the checkpoints in a folder by attempt and serial number."""
    named = ((path, _SERIAL.fullmatch(path.name)) for path in folder.glob("[0-9]*-*"))
    return {(int(match[1]), int(match[2])): path for path, match in named if match and path.is_dir()}


class Checkpoints:
    """The moments that one attempt of a cell, or of a stage, can be gone on from; only the newest is kept."""

    COST_SHARE = 0.05
    """A checkpoint is due when the last one's cost is at most this share of the time since."""
    FIRST_S = 2.0
    """Seconds before the first of an attempt, when its cost is not known yet, and the least between two."""

    def __init__(self, folder: Path, *, meter: Meter, saved: Checkpoint | None, attempt: int) -> None:
        """Belong to an attempt at the cell or stage in ``folder``, which goes on from ``saved``."""
        self._folder, self._meter, self._saved, self._attempt = folder / "checkpoint", meter, saved, attempt
        self._last, self._cost_s = time.monotonic(), 0.0

    def restore(self) -> Checkpoint | None:
        """Return the checkpoint to go on from with the random states set as they were, None at a fresh start."""
        if self._saved is not None:
            set_random_states(self._saved.random)
        return self._saved

    def save(self, payload: Mapping[str, Any], *, write: Callable[[Path], None] | None = None) -> None:
        """Make this the moment to go on from: durable, and whole or absent.

        Args:
            payload: JSON that says where the experiment stands (step, data order, running numbers).
            write: fills the folder it is given with files (tensors) that belong to this moment.

        Raises:
            HostError: the disk is full; the previous checkpoint stands.
        """
        began = time.monotonic()
        self._meter.settle()
        self._meter.log.sync()
        position = self._meter.log.seq
        serial = 1 + max(
            (serial for attempt, serial in _by_serial(self._folder) if attempt == self._attempt), default=0
        )
        part, final = self._folder / f"new-{self._attempt}", self._folder / f"{self._attempt}-{serial}"
        try:
            remove_folder(part)
            # Not what is above it, too: a run directory that was renamed does not come back.
            self._folder.mkdir(exist_ok=True)
            part.mkdir(exist_ok=True)
            if write is not None:
                write(part)
            moment = {"of": self._folder.parent.name, "position": position, "counters": self._meter.counters, "payload": payload,
                      "random": random_states(), "files": digests_of(part)}  # fmt: skip
            (part / "state.json").write_bytes(sealed_json(moment))
            publish(part, final)
        except OSError as error:
            raise no_space(error, self._folder) from error
        for old in self._folder.iterdir():
            if (
                old != final and old.is_dir() and not self._is_later(old)
            ):  # a file that some file manager left is in nobody's way
                remove_folder(old)
        self._last = time.monotonic()
        self._cost_s = self._last - began

    def _is_later(self, folder: Path) -> bool:
        """Tell whether a checkpoint, or one that is being written, belongs to a later attempt."""
        attempt = folder.name.removeprefix("new-").partition("-")[0]
        return attempt.isdecimal() and int(attempt) > self._attempt

    def due(self) -> bool:
        """Return whether a checkpoint now costs at most ``COST_SHARE`` of the time since the last."""
        return time.monotonic() - self._last > max(self.FIRST_S, self._cost_s / self.COST_SHARE)

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove all checkpoints of a cell or stage: what they were for is done."""
        remove_folder(folder / "checkpoint")

"""What outlives a process: a cell's checkpoint, and the artifact store (zoo models, parents, factors) that cells share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.errors import RecordError
from modelassay.meter import Meter
from modelassay.record import no_space, read_cell
from modelassay.storage.files import open_lock, read_json, require_folders

_STATE = {"position": int, "counters": dict, "payload": dict, "random": dict}
"""What ``state.json`` holds."""
_SERIAL = re.compile(r"[1-9][0-9]{0,17}")


def content_key(value: Any) -> str:
    """Return 16 hex digits of BLAKE2b over the canonical JSON of ``value``: equal values, equal keys.

    >>> content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def cache_root() -> Path:
    """Return the folder of everything that can be made again: ``MODELASSAY_CACHE``, else the XDG cache folder."""
    if explicit := os.environ.get("MODELASSAY_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "modelassay"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if missing); the kernel releases it if the process dies.

    Raises:
        UsageError: something else than a file of its own lies there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Store:
    """Folders named by the hash of the recipe that made them; the only thing cells share.

    A folder is built aside under a lock and renamed, so whoever sees it sees all of it, and two cells that want the
    same one build it once.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Open the store at ``root`` (default: ``artifacts`` under the cache folder)."""
        self.root = root if root is not None else cache_root() / "artifacts"

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """Return where the artifact of ``recipe`` (any JSON-able mapping with a ``kind``) lies or will lie."""
        return self.root / str(recipe["kind"]) / content_key(recipe)

    def get(self, recipe: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the artifact's folder, calling ``build(folder)`` to fill it the first time.

        ``recipe.json`` is written beside what ``build`` made, so a folder says how to make it again.
        """
        final = self.path(recipe)
        if final.is_dir():
            return final
        with locked(final.with_suffix(".lock")):
            if final.is_dir():
                return final
            aside = final.with_suffix(".new")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            build(aside)
            (aside / "recipe.json").write_text(json.dumps(recipe, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
            _publish(aside, final)
        return final


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


def latest_checkpoint(cell_dir: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a cell, None when there is none that its log reaches.

    Raises:
        RecordError: it, or the log, is damaged.
        UsageError: a file of either is no regular file.
    """
    require_folders([cell_dir / "checkpoint"])
    folders = _by_serial(cell_dir / "checkpoint")
    if not folders:
        return None
    newest = folders[max(folders)]
    try:
        saved = Checkpoint(folder=newest, **read_json(newest / "state.json", plain=False))
        if wrong := [name for name, kind in _STATE.items() if type(getattr(saved, name)) is not kind]:
            raise TypeError(f"no valid {', '.join(wrong)}")
    except (OSError, ValueError, TypeError) as error:
        raise RecordError(f"{newest}: a damaged checkpoint ({error}); delete it to begin the cell anew") from error
    return saved if saved.position <= read_cell(cell_dir).position else None


def _by_serial(folder: Path) -> dict[int, Path]:
    return {int(path.name): path for path in folder.glob("[0-9]*") if _SERIAL.fullmatch(path.name)}


class State:
    """One cell's memory: restore from it, checkpoint through it, keep outputs in `artifacts`."""

    def __init__(
        self, cell_dir: Path, *, meter: Meter, store: Store, saved: Checkpoint | None, siblings: Sequence[Any] = ()
    ) -> None:
        """Belong to the cell in ``cell_dir``, which goes on from ``saved``."""
        self.store = store
        self.siblings = siblings
        """Parameters of all cells of the run, this one's too: artifacts that they share can be made together."""
        self.artifacts = cell_dir / "artifacts"
        self.artifacts.mkdir(exist_ok=True)
        self._folder, self._meter, self._saved = cell_dir / "checkpoint", meter, saved
        self._last = time.monotonic()

    def restore(self) -> Checkpoint | None:
        """Return the checkpoint to go on from with the random states set as they were, None at a fresh start."""
        if self._saved is not None:
            set_random_states(self._saved.random)
        return self._saved

    def checkpoint(self, payload: Mapping[str, Any], *, write: Callable[[Path], None] | None = None) -> None:
        """Make this the moment to go on from: durable, and whole or absent.

        Args:
            payload: JSON that says where the experiment stands (step, data order, running numbers).
            write: fills the folder it is given with files (tensors) that belong to this moment.

        Raises:
            HostError: the disk is full; the previous checkpoint stands.
        """
        self._meter.settle()
        self._meter.log.sync()
        position = self._meter.log.seq
        serial = 1 + max(_by_serial(self._folder), default=0)
        aside, final = self._folder / f"new-{os.getpid()}", self._folder / str(serial)
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            if write is not None:
                write(aside)
            moment = {"position": position, "counters": self._meter.counters, "payload": payload,
                      "random": random_states()}  # fmt: skip
            (aside / "state.json").write_text(json.dumps(moment))
            _publish(aside, final)
        except OSError as error:
            raise no_space(error, self._folder) from error
        for old in self._folder.iterdir():
            if old != final and old.is_dir():  # a file that some file manager left is in nobody's way
                shutil.rmtree(old)
        self._last = time.monotonic()

    def checkpoint_due(self, every_s: float = 20.0) -> bool:
        """Whether ``every_s`` seconds have passed since the last checkpoint of this attempt."""
        return time.monotonic() - self._last > every_s


def _publish(aside: Path, final: Path) -> None:
    """Rename the folder ``aside`` to ``final`` once all in it is on the disk: a power cut leaves whole folders or none."""
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    aside.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def random_states() -> dict[str, Any]:
    """Return the states of the global generators of Python and, where loaded, NumPy and torch, as JSON."""
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {"python": [version, list(internal), gauss]}
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = [name, keys.tolist(), *rest]
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes().hex()
        if torch.cuda.is_available():
            states["cuda"] = [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()]
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put the generators back as `random_states` found them."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in states:
        import numpy as np

        np.random.set_state(tuple(states["numpy"]))
    if "torch" in states:
        import torch

        def tensor(text: str) -> torch.Tensor:
            return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

        torch.set_rng_state(tensor(states["torch"]))
        if "cuda" in states:
            torch.cuda.set_rng_state_all([tensor(state) for state in states["cuda"]])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python and, where loaded, NumPy and torch with ``seed`` (below 2^32)."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)

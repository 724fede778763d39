"""Where a training stands, on disk: whole or absent, whenever the process is killed.

::

    X.part/train/step-120/tensors.safetensors    weights that are trained, buffers, optimiser
    X.part/train/step-120/state.json             sealed: numbers of the caller's, random streams, the digest of the tensors

The folder is the caller's: one that survives a kill and goes away with the work that it belongs to.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelassay.errors import CheckpointError
from modelassay.recording.random_state import random_states
from modelassay.storage.digests import difference, digests_of
from modelassay.storage.files import no_space, publish
from modelassay.storage.sealed import read_sealed, sealed_json
from modelassay.storage.stray import remove_folder

if TYPE_CHECKING:
    from modelassay.recording.context import Recorder

MAX_SHARE = 0.05
"""Of the time since the last checkpoint that the next one may cost."""
_FIRST_COST_S = 0.2
"""What a checkpoint is taken to cost before one was written."""
_STEP = re.compile(r"step-([0-9]{1,18})")
_TENSORS, _DOCUMENT = "tensors.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A moment to go on from."""

    folder: Path
    step: int
    """Updates that were made."""
    tensors: dict[str, Tensor]
    document: dict[str, Any]


class Resumable(Protocol):
    """Where a training's moments are kept: `Checkpoints` in a folder, `StageCheckpoints` with the log of a cell or stage."""

    def due(self) -> bool:
        """Whether a checkpoint is worth its cost by now."""

    def save(self, step: int, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Make this the moment to go on from."""

    def latest(self) -> Saved | None:
        """Return the moment to go on from, None at a fresh start."""


class StageCheckpoints:
    """The same as part of the checkpoint of a cell or stage, so that its log and the training go on from one moment; one is kept."""

    def __init__(self, recorder: Recorder) -> None:
        """Belong to a cell or stage that has no other checkpoints."""
        self._recorder = recorder
        self.due = recorder.checkpoint_due

    def save(self, step: int, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Make this the moment to go on from, as `Checkpoints.save`."""
        flat = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

        def write(folder: Path) -> None:
            try:
                save_file(flat, folder / _TENSORS)
            except SafetensorError as error:
                raise no_space(error, folder) from error

        self._recorder.checkpoint({"step": step, "document": dict(document)}, write=write)

    def latest(self) -> Saved | None:
        """Return the moment to go on from, None at a fresh start; the files were compared with their digests when the stage was opened."""
        moment = self._recorder.restore()
        if moment is None:
            return None
        document = {**moment.payload["document"], "random": moment.random}
        tensors = load_file(moment.folder / _TENSORS)
        return Saved(folder=moment.folder, step=moment.payload["step"], tensors=tensors, document=document)


class Checkpoints:
    """The checkpoints of one training in one folder; the newest is kept."""

    def __init__(self, folder: Path, *, max_share: float = MAX_SHARE) -> None:
        """Use ``folder``, made if missing, which holds nothing else.

        Args:
            folder: in which work folder.
            max_share: cost of a checkpoint as a share of the time since the last one; infinite for one after each step.
        """
        self.folder = folder
        self._max_share, self._cost_s, self._since = max_share, _FIRST_COST_S, time.monotonic()

    def due(self) -> bool:
        """Whether a checkpoint is worth its cost by now."""
        return self._cost_s <= self._max_share * (time.monotonic() - self._since)

    def save(self, step: int, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Make this the moment to go on from, with the random streams as they are; earlier ones are removed.

        Args:
            step: updates that were made.
            tensors: kept in their types; of the same storage each once.
            document: JSON; floats come back to the bit, NaN and infinities too.

        Raises:
            HostError: the disk is full; the previous checkpoint stands.
        """
        began = time.monotonic()
        temporary, final = self.folder / "new", self.folder / f"step-{step}"
        try:
            remove_folder(temporary)
            temporary.mkdir(parents=True, exist_ok=True)
            flat = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(flat, temporary / _TENSORS)
            state = {"random": random_states(), "document": document, "files": digests_of(temporary)}
            (temporary / _DOCUMENT).write_bytes(sealed_json(state))
            publish(temporary, final)
        except (OSError, SafetensorError) as error:
            raise no_space(error, self.folder) from error
        for earlier in self._by_step().values():
            if earlier != final:
                remove_folder(earlier)
        self._since = time.monotonic()
        self._cost_s = self._since - began

    def latest(self) -> Saved | None:
        """Return the newest checkpoint, None at a fresh start; `random_state.set_random_states` of its document's ``random`` then puts the random streams back.

        Raises:
            CheckpointError: it is damaged.
        """
        folders = self._by_step()
        if not folders:
            return None
        step = max(folders)
        folder = folders[step]
        try:
            state = read_sealed(folder / _DOCUMENT, plain=False)
            if why := difference(folder, state["files"], wholly=True):
                raise ValueError(why)
            tensors = load_file(folder / _TENSORS)
            document = {**state["document"], "random": state["random"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: a damaged checkpoint ({error}); delete it to train anew", damaged=folder
            ) from error
        return Saved(folder=folder, step=step, tensors=tensors, document=document)

    def _by_step(self) -> dict[int, Path]:
        """Return the checkpoints by step; anything else in the folder is somebody else's."""
        folders = ((_STEP.fullmatch(path.name), path) for path in self.folder.glob("step-*") if path.is_dir())
        return {int(match[1]): path for match, path in folders if match}

"""A checkpoint's files for whoever reads a little of its weights and no text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from modelassay.models.hub import Files
from modelassay.models.tokenizer import TOKENIZER_FILES


class WeightsOnly:
    """The files of a checkpoint without those of its tokenizer: of a repository they may be more than what is read of its weights."""

    def __init__(self, files: Files) -> None:
        """Stand before ``files``."""
        self._files = files
        self.reference, self.folder, self.revision, self.local = (
            files.reference,
            files.folder,
            files.revision,
            files.local,
        )
        self.chosen, self.notes, self.adapter, self.not_run = files.chosen, files.notes, files.adapter, files.not_run

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file as ``files`` does; None for one of a tokenizer."""
        return None if name in TOKENIZER_FILES else self._files.get(name, required=required)

    def open_weights(self, name: str, *, required: bool = False) -> Path | None:
        """Do as ``files`` does."""
        return self._files.open_weights(name, required=required)

    def open_all(self, names: Iterable[str]) -> None:
        """Do as ``files`` does."""
        self._files.open_all(names)

    def list_files(self) -> list[str]:
        """Do as ``files`` does."""
        return self._files.list_files()

    def weights_bytes(self) -> int:
        """Do as ``files`` does."""
        return self._files.weights_bytes()

    def fetched_bytes(self) -> int:
        """Do as ``files`` does."""
        return self._files.fetched_bytes()

    def release(self) -> None:
        """Do as ``files`` does."""
        self._files.release()

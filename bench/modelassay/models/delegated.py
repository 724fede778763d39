"""Files of a checkpoint that stand before others, and do as these do in all but what a kind of them changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from modelassay.models.hub import Files


class DelegatedFiles:
    """The files of a checkpoint as ``files`` has them."""

    def __init__(self, files: Files) -> None:
        """Stand before ``files``."""
        self._files = files
        self.reference, self.folder, self.revision, self.local, self.chosen = (
            files.reference, files.folder, files.revision, files.local, files.chosen,
        )  # fmt: skip

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

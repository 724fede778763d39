"""A checkpoint's files for whoever reads a little of its weights and no text."""

from __future__ import annotations

from pathlib import Path

from modelassay.models.delegated import DelegatedFiles
from modelassay.models.hub import Files
from modelassay.models.tokenizer import TOKENIZER_FILES


class WeightsOnly(DelegatedFiles):
    """The files of a checkpoint without those of its tokenizer: of a repository they may be more than what is read of its weights."""

    def __init__(self, files: Files) -> None:
        """Stand before ``files``."""
        super().__init__(files)
        self.notes, self.adapter, self.not_run = files.notes, files.adapter, files.not_run

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file as ``files`` does; None for one of a tokenizer."""
        return None if name in TOKENIZER_FILES else self._files.get(name, required=required)

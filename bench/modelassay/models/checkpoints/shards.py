"""The tensors of a checkpoint as its files name them, whichever form it has: each with dtype, shape and the file to read it in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from modelassay.errors import CheckpointError, printable
from modelassay.models.checkpoints.forms import Stored
from modelassay.models.checkpoints.safetensors import TensorInfo, read_header
from modelassay.models.gate import DAMAGED, one_line
from modelassay.models.hub import Files
from modelassay.models.places import SHARD


class Source(Protocol):
    """What a form decodes stored tensors to."""

    notes: tuple[str, ...]
    """What a reader of the results should know of the form, a sentence each."""

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return the file in which a tensor can be read, once `parts.ensure` was asked for it, and where."""

    def open_files(self, names: Iterable[str]) -> None:
        """Open the files that hold some tensors, of a repository several at once: each costs an answer's time."""

    def files_read(self) -> list[str]:
        """Return the names of the files that were opened so far, sorted."""


class Shards:
    """Tensors of safetensors files; a file is got and its header read when first asked for one of its tensors."""

    def __init__(self, files: Files, stored: Stored) -> None:
        """Read the headers only where no index tells which file holds what."""
        self.notes: tuple[str, ...] = () if stored.note is None else (stored.note,)
        self._files, self._index = files, stored.index
        self._headers: dict[str, dict[str, TensorInfo]] = {}
        self._paths: dict[str, Path] = {}
        self._file_of = stored.file_of if stored.file_of is not None else self._by_headers(stored.files)

    def _by_headers(self, names: Iterable[str]) -> Mapping[str, str]:
        names = list(names)
        self._files.open_all(names if len(names) > 1 else ())
        file_of: dict[str, str] = {}
        for file in names:
            for tensor in self._header(file):
                if tensor in file_of:
                    raise CheckpointError(
                        f"{one_line(self._paths[file])}: {printable(tensor)} is also in {file_of[tensor]}; {DAMAGED}"
                    )
                file_of[tensor] = file
        return file_of

    def names(self) -> Collection[str]:
        """Return the names of all tensors."""
        return self._file_of.keys()

    def open_files(self, names: Iterable[str]) -> None:
        """Open the files that hold some tensors."""
        self._files.open_all(self._file_of[name] for name in names)

    def files_read(self) -> list[str]:
        """Return the names of the files whose headers were read so far, sorted."""
        return sorted(self._headers)

    def find(self, name: str) -> tuple[Path, TensorInfo]:
        """Return the file that holds a tensor, and where in it."""
        file = self._file_of[name]
        header = self._header(file)
        if name not in header:
            raise CheckpointError(
                f"{one_line(self._paths[file])}: no tensor {printable(name)}, though {self._index} says so; fetch or save the checkpoint again"
            )
        return self._paths[file], header[name]

    def _header(self, file: str) -> dict[str, TensorInfo]:
        if file not in self._headers:
            path = self._files.open_weights(file, required=True)
            if path is None:
                raise absent(self._files, file, self._index)
            self._headers[file], self._paths[file] = read_header(path), path
        return self._headers[file]


def absent(files: Files, name: str, index: str | None) -> CheckpointError:
    """Return why there is no file ``name``, and what to do."""
    path = files.folder / name
    if path.is_symlink():
        why = (
            f"{name} is a link to {printable(str(path.readlink()))}, which is not there; restore that file, or the link"
        )
    elif path.exists():
        why = f"{name} is not a file; take it away, or put the weights there"
    elif index is not None:
        why = f"{index} names {name}, which is not there; fetch the missing shard"
    elif SHARD.fullmatch(name):
        why = f"{name} is not there; fetch the missing shard"
    else:
        why = f"{name} is not there; fetch or save the checkpoint again"
    return CheckpointError(f"{one_line(files.reference)}: {why}")

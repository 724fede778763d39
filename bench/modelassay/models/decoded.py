"""Tensors that are made of what a file stores: unpacked, dequantised, merged, each when it is first read.

A model that is stored in another form than plain numbers gets one scratch file in the cache, ``decoded/PROCESS-NUMBER``, as long as all
its tensors would be, with holes where nothing was read. Whoever reads weights in place says so before (`parts.ensure`, `parts.prepare`), as of
a file of the Hub that lies here in parts, and what lacks is made: nobody reads a hole. The scratch goes with whoever holds it, and what a killed
process left is swept away by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelassay.errors import HostError
from modelassay.models.ranges import Range
from modelassay.storage.store import cache_root

PIECE_BYTES: Final = 64 << 20
"""What is made at once, so that no tensor takes more memory than this and what its making takes."""

_ALIGNMENT: Final = 64
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """How one tensor is made, in units that can be made alone: rows, or all of it."""

    num_units: int
    unit_bytes: int
    """Of what is made."""
    make: Callable[[int, int], Any]
    """Returns the bytes of the units from the first number up to the second, anything with the buffer protocol."""
    sources: Callable[[int, int], Iterable[tuple[Path, Range]]]
    """Ranges of files that making these units reads."""


class DecodedFile:
    """One model's scratch file."""

    def __init__(self) -> None:
        """Make it, empty.

        Raises:
            HostError: the cache cannot be written.
        """
        self.path, self._file = _create()
        self._recipes: list[tuple[int, Recipe, bytearray]] = []
        self._end = 0
        self._lock = threading.RLock()
        _files[str(self.path)] = self
        self._finalizer = weakref.finalize(self, _remove, self.path, self._file, os.getpid())

    def add(self, recipe: Recipe) -> int:
        """Return the byte at which a tensor begins, which is made when it is read."""
        offset = self._end
        size = recipe.num_units * recipe.unit_bytes
        self._recipes.append((offset, recipe, bytearray(recipe.num_units)))
        self._end = offset + size + -(offset + size) % _ALIGNMENT
        os.ftruncate(self._file, self._end)
        return offset

    def sources(self, ranges: Iterable[Range]) -> dict[str, list[Range]]:
        """Return which ranges of which files are read to make what lacks of ``ranges``."""
        found: dict[str, list[Range]] = {}
        for _, recipe, _, first, last in self._lacking(ranges):
            for path, piece in recipe.sources(first, last):
                found.setdefault(str(path), []).append(piece)
        return found

    def ensure(self, ranges: Iterable[Range]) -> None:
        """Make what lacks of ``ranges``.

        Raises:
            CheckpointError: it cannot be made of what is stored.
            HostError: the cache cannot be written.
        """
        with self._lock:
            for offset, recipe, is_made, first, last in self._lacking(ranges):
                step = max(1, PIECE_BYTES // max(recipe.unit_bytes, 1))
                for begin in range(first, last, step):
                    end = min(begin + step, last)
                    self._write(offset + begin * recipe.unit_bytes, recipe.make(begin, end))
                    is_made[begin:end] = b"\1" * (end - begin)

    def _write(self, at: int, data: Any) -> None:
        view = memoryview(data).cast("B")
        try:
            while view:
                count = os.pwrite(self._file, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise _unwritable(self.path.parent, error) from None

    def _lacking(self, ranges: Iterable[Range]) -> list[tuple[int, Recipe, bytearray, int, int]]:
        """Return for each run of units that are wanted and not there: the tensor, and the first and the last but one."""
        lacking = []
        for begin, end in ranges:
            for offset, recipe, is_made in self._between(begin, end):
                first = max(begin - offset, 0) // recipe.unit_bytes
                last = min(-(-(end - offset) // recipe.unit_bytes), recipe.num_units)
                at = is_made.find(0, first, last)
                while at != -1:
                    stop = is_made.find(1, at, last)
                    stop = last if stop == -1 else stop
                    lacking.append((offset, recipe, is_made, at, stop))
                    at = is_made.find(0, stop, last)
        return lacking

    def _between(self, begin: int, end: int) -> Sequence[tuple[int, Recipe, bytearray]]:
        """Return the tensors that a range touches, those without bytes left out."""
        from bisect import bisect_left, bisect_right

        first = max(bisect_right(self._recipes, begin, key=lambda entry: entry[0]) - 1, 0)
        last = bisect_left(self._recipes, end, key=lambda entry: entry[0])
        return [entry for entry in self._recipes[first:last] if entry[1].unit_bytes and entry[1].num_units]


_files: weakref.WeakValueDictionary[str, DecodedFile] = weakref.WeakValueDictionary()


def decoded_file(path: Path | str) -> DecodedFile | None:
    """Return the scratch that lies at ``path``; None for any other file."""
    return _files.get(str(path))


def stored_ranges(ranges: Mapping[str, Iterable[Range]]) -> dict[str, list[Range]]:
    """Return what is read of files that somebody wrote so that ``ranges`` can be read: of tensors still to be made, what they are made of."""
    stored: dict[str, list[Range]] = {}
    pending = [(path, list(pieces)) for path, pieces in ranges.items()]
    while pending:
        path, pieces = pending.pop()
        made = decoded_file(path)
        if made is None:
            stored.setdefault(path, []).extend(pieces)
        else:
            pending.extend(made.sources(pieces).items())
    return stored


def _create() -> tuple[Path, int]:
    folder = cache_root().absolute() / "decoded"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        while True:
            path = folder / f"{os.getpid()}-{next(_numbers)}"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks: it is not swept there either
                fcntl.flock(file, fcntl.LOCK_SH)
            if path.exists():  # no other process swept it between the two
                os.ftruncate(file, 0)
                return path, file
            os.close(file)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _sweep(folder: Path) -> None:
    """Remove scratch files that no process holds."""
    for path in folder.iterdir():
        if str(path) in _files:
            continue
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(file)


def _remove(path: Path, file: int, process: int) -> None:
    os.close(file)
    if os.getpid() == process:  # a fork leaves it to whoever made it
        path.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> HostError:
    return HostError(
        f"{folder}: weights cannot be unpacked into the cache: {error.strerror}; free some space, or point MODELASSAY_CACHE elsewhere"
    )

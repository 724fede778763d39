"""The folder of a run to be: refused where it holds anything already, and left as it was where no run begins.

Whoever makes a run directory notes each folder and file that it makes. Where nothing begins, those are removed by name,
a folder only while it is empty. So nothing that was there before, or that somebody else put there, can be lost.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from modelassay.errors import HostError, UsageError
from modelassay.storage.locks import owner_path

CLIENT_LOCK: Final = "client.lock"
"""The file by which the client of a container holds its run directory; a new run's folder may hold it."""

LOCK: Final = "run.lock"
"""The file by which a process holds the run directory that it executes."""

MANIFEST: Final = "run.json"
"""What makes a folder a run directory."""

MANIFEST_DRAFT: Final = "run.json.new"
"""What it is written as; whoever makes this file first makes the run."""

CELLS: Final = "cells"
"""The folder of the cells."""

HUB_COMMITS: Final = "models"
"""The folder of what references to the Hub without a commit mean in the run."""

_HOLDER: Final = re.compile(rb"(\d+( in container \S+)?)?")


def is_run(folder: Path) -> bool:
    """Tell whether ``folder`` is a run directory."""
    return (folder / MANIFEST).is_file()


def require_free(folder: Path) -> None:
    """Refuse ``folder`` for a new run where it holds anything but a client's lock; it need not exist.

    Raises:
        UsageError: it holds a run, or something else.
        HostError: it cannot be listed.
    """
    try:
        names = sorted(path.name for path in list(folder.iterdir()) if not _is_client_lock(path))
        has_run = is_run(folder)
    except (FileNotFoundError, NotADirectoryError):
        return  # to be made; what is in the way is told then
    except OSError as error:
        raise HostError(f"{folder}: cannot be read ({error.strerror}); choose another folder") from error
    if has_run:
        raise UsageError(f"{folder}: holds a run already; `modelassay run {folder}` goes on with it")
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UsageError(f"{folder}: not empty and no run directory: it holds {names[0]}{more};"
                         " a new run needs a new or an empty folder")  # fmt: skip


def _is_client_lock(path: Path) -> bool:
    """Tell whether ``path`` is a lock as clients write it; a file of the same name may be anybody's."""
    if path.name == owner_path(path.with_name(CLIENT_LOCK)).name:
        return path.with_name(CLIENT_LOCK).exists()
    if path.name != CLIENT_LOCK:
        return False
    try:
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size < 200 and bool(_HOLDER.fullmatch(path.read_bytes()))
    except FileNotFoundError:  # its client has just removed it
        return True


def discard(folder: Path) -> None:
    """Remove the run directory ``folder`` in which nothing has begun; one that holds anything else stays as it is."""
    with suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        if names <= {MANIFEST, CELLS, LOCK, owner_path(folder / LOCK).name} and not any((folder / CELLS).iterdir()):
            for name in names - {CELLS}:
                (folder / name).unlink()
            (folder / CELLS).rmdir()
            folder.rmdir()


class Scaffold:
    """The folders and files that this process made for a run that has not begun."""

    def __init__(self) -> None:
        """Begin with none."""
        self._paths: list[Path] = []

    def folder(self, path: Path) -> list[Path]:
        """Make the folder ``path`` and what is missing above it; return those that were made, the outermost first."""
        path = path.resolve()  # the target of a link, not a folder in its place
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        own = []
        for folder in reversed(missing):
            try:
                folder.mkdir()
            except FileExistsError:
                if not folder.is_dir():
                    raise
            else:
                own.append(folder)
                self._paths.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return own

    def file(self, path: Path) -> BinaryIO:
        """Make the file ``path``, which must not exist, and open it for writing."""
        handle = path.open("xb")
        self._paths.append(path)
        return handle

    def note(self, *paths: Path) -> None:
        """Take ``paths``, which did not exist when this process locked their folder, for its own."""
        self._paths += paths

    def remove(self) -> None:
        """Remove what was made, the last first: files, and folders that are empty."""
        while self._paths:
            path = self._paths.pop()
            with suppress(OSError):  # not empty, a mount point, or gone already: not ours to remove
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()

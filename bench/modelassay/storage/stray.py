"""Files that nobody put there on purpose: what file managers, file servers and version control leave in any folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

_NAMES: Final = frozenset({
    "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found", "thumbs.db",
})  # fmt: skip


def is_stray(name: str) -> bool:
    """Whether a file or folder called ``name`` is no part of what its folder holds: hidden, or a system's own.

    >>> [is_stray(name) for name in (".DS_Store", "._model", ".nfs0001", ".gitattributes", "Thumbs.db", "notes.txt~", "config.json")]
    [True, True, True, True, True, True, False]
    """
    return name.startswith(".") or name.endswith("~") or name.lower() in _NAMES


def remove_folder(folder: Path) -> None:
    """Remove a folder that nobody needs any more; what cannot be removed, as a file that a file server holds open, stays."""
    shutil.rmtree(folder, ignore_errors=True)

"""What cells of the toy share."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from modelassay.errors import UsageError
from toy.params import TABLE

if TYPE_CHECKING:
    from modelassay.storage.store import Store


def table(store: Store) -> None:
    """Write the table, once."""

    def build(folder: Path) -> None:
        (folder / "table.txt").write_text("1 2 3")

    store.get(TABLE.recipe, build)


def write(store: Store, name: str) -> None:
    """Write ``name`` into a file of that artifact."""
    store.get({"kind": "t", "name": name}, lambda folder: (folder / "name.txt").write_text(name) and None)


def refuse(store: Store, name: str) -> None:
    """Refuse."""
    raise UsageError("asked to refuse")


def killed(store: Store, name: str) -> None:
    """End as a process does for which there is no memory."""
    os.kill(os.getpid(), signal.SIGKILL)

"""What a run reads that is not its own: recorded when it is created, compared when it goes on.

A path may lead to something else a month later. So a run records the digest of each file and of each local model, whether its
experiment lists them among its needs or only declares them by type. (Which commit of the Hub it reads: `models.commits`.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from modelassay.errors import UsageError, printable
from modelassay.experiments.references import Reference, absolute, references
from modelassay.storage.needs import File
from modelassay.suite import Suite

_OF_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def file_digests(suite: Suite, *, present: bool) -> dict[str, str]:
    """Return path -> digest of every file that ``suite`` reads; of a local model those that decide it.

    Args:
        suite: whose cells' needs, and parameters that name a model or a file, count.
        present: whether what is not there is an error; else it is left out, as where a run goes on and says what is gone.

    Raises:
        UsageError: one is not there or cannot be read.
    """
    files = {
        need.path: need
        for cell in suite.cells
        for need in suite.experiment.needs(cell.params)
        if isinstance(need, File)
    }
    needed = set(files)
    for reference in _named(suite):
        path = Path(reference.text)
        if path.is_absolute() and (os.path.isdir(path) if reference.kind == "model" else os.path.isfile(path)):  # noqa: PTH112, PTH113 - False for what no path can be
            files.setdefault(path, File(path=path, kind="model" if reference.kind == "model" else "data"))
    digests: dict[str, str] = {}
    for path, file in sorted(files.items()):
        if path in needed and not os.path.exists(path):  # noqa: PTH110 - False for what no path can be, too
            if present:
                raise UsageError(f"{printable(str(path))}: {_why_absent(path)}")
            continue
        digests |= file.digests()
    return digests


def require_absolute(suite: Suite) -> None:
    """Raise UsageError where a parameter names a path from the current folder, as only a default can."""
    for reference in _named(suite):
        if absolute(reference.text, reference.kind) != reference.text:
            raise UsageError(
                f"{reference.parameter}={printable(reference.text)}: a default that is a path from the current folder;"
                " set the parameter in the suite, or with -o"
            )


def _named(suite: Suite) -> Iterable[Reference]:
    """Return what the parameters of all cells name, each text once."""
    named = {reference.text: reference for cell in suite.cells for reference in references(cell.params)}
    return named.values()


def _why_absent(path: Path) -> str:
    """Return why an input is not there, and what to do."""
    try:
        path.stat()
        reason = "gone"
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
    below = os.path.relpath(path)
    if _OF_HUB.fullmatch(below):
        return f"cannot be read: {reason}; a repository of the Hub is written hf:{below}"
    return f"cannot be read: {reason}; check the path and its permissions"

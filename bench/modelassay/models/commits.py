"""The commit that a reference to the Hub without one means in a run: what it meant when the run first read it.

A branch moves: an attempt a month later, or a cell an hour later, would read another model under the same name. The first process
of a run that reads ``hf:ORG/NAME`` or ``hf:ORG/NAME@BRANCH`` leaves the commit in the run's folder; all others take it from there.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

from modelassay.errors import UsageError, printable
from modelassay.storage.files import locked, read_json
from modelassay.storage.store import content_key

VARIABLE: Final = "MODELASSAY_HUB_COMMITS"
"""Names the folder in which a run keeps them; not set outside of runs."""

COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def keep_commits_in(folder: Path) -> None:
    """Let this process, and all that it starts, read of each reference the commit that ``folder`` holds, or leave it there."""
    os.environ[VARIABLE] = str(folder.absolute())


def kept_commit(reference: str) -> str | None:
    """Return the commit that ``reference`` means in this run; None where it was not read yet, or outside of runs.

    Raises:
        UsageError: what the run holds is no commit of it.
    """
    path = _path(reference)
    if path is None or not path.exists():
        return None
    try:
        entry = read_json(path)
        commit = entry["commit"] if entry["reference"] == reference else None
    except (ValueError, KeyError, TypeError):
        commit = None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise UsageError(f"{path}: holds no commit of {printable(reference)}; restore it, or start a new run")
    return commit


def keep_commit(reference: str, commit: str | None) -> str | None:
    """Leave that ``reference`` means ``commit``, and return what it means: another process may have been first."""
    path = _path(reference)
    if path is None or commit is None or not COMMIT.fullmatch(commit):
        return commit
    path.parent.mkdir(exist_ok=True)
    with locked(path.parent / "lock"):
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.write_text(json.dumps({"reference": reference, "commit": commit}) + "\n")
            draft.rename(path)
    return kept_commit(reference)


def _path(reference: str) -> Path | None:
    folder = os.environ.get(VARIABLE)
    return Path(folder) / f"{content_key(reference)}.json" if folder else None

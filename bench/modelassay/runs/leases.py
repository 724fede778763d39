"""Who works on a cell: workers take cells, each for one attempt, and no two the same.

``cells/<id>/attempt-<n>.lease`` names the worker that has the cell for attempt n. Whoever makes that file has it: a file can be
made once. It is gone when the attempt has ended. A lease whose worker has ended is taken over by the next, ``attempt-<n+1>.lease``:
a worker that was only asleep sees by it that its attempt no longer counts, and what it has still written is void, since the next
attempt's segment says from where on it counts itself (`recording.log`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelassay.runs.workers import Sign, Worker
from modelassay.storage.files import open_regular, require_folders, unwritable
from modelassay.storage.locks import make_once

_ATTEMPT: Final = re.compile(r"attempt-([1-9][0-9]{0,8})\.(lease|jsonl)")
_MAX_BYTES: Final = 20


@dataclass(frozen=True, kw_only=True)
class Lease:
    """One attempt at a cell, which one worker has."""

    cell_dir: Path
    attempt: int
    previous: str | None
    """Who had the cell before and did not come to an end; None where nobody had."""

    @property
    def path(self) -> Path:
        """The lease's file."""
        return lease_path(self.cell_dir, self.attempt)

    def is_held(self) -> bool:
        """Tell whether nobody has taken the cell over."""
        return is_held(self.cell_dir, self.attempt)

    def release(self) -> None:
        """Give the cell back: its attempt has ended."""
        self.path.unlink(missing_ok=True)


def lease_path(cell_dir: Path, attempt: int) -> Path:
    """Return the lease of an attempt."""
    return cell_dir / f"attempt-{attempt}.lease"


def is_held(cell_dir: Path, attempt: int) -> bool:
    """Tell whether nobody has taken over the cell from the worker that has it for ``attempt``; costs two looks at the folder."""
    following = lease_path(cell_dir, attempt + 1)
    return not (following.exists() or following.with_suffix(".jsonl").exists())


def holder_of(cell_dir: Path) -> str | None:
    """Return the id of the worker that has the cell, whether it is still there or not; "" where the lease does not say yet.

    None where nobody has it.

    Raises:
        UsageError: a lease is no regular file.
    """
    newest, has_lease = _newest(cell_dir)
    return _read(lease_path(cell_dir, newest)) if has_lease else None


def holders(cell_dir: Path) -> dict[int, str]:
    """Return by attempt who has or had the cell: the leases that lie in its folder, the newest last.

    All but the newest were taken over from workers that ended before their attempt did.

    Raises:
        UsageError: a lease is no regular file.
    """
    require_folders([cell_dir])
    try:
        names = [path.name for path in cell_dir.iterdir()]
    except FileNotFoundError:
        return {}
    attempts = sorted(int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name)) and match[2] == "lease")
    read = {attempt: _read(lease_path(cell_dir, attempt)) for attempt in attempts}
    return {attempt: holder for attempt, holder in read.items() if holder is not None}


def claim(cell_dir: Path, worker: Worker) -> Lease | Sign | None:
    """Take the cell in ``cell_dir`` for its next attempt.

    Returns:
        The lease; else who has the cell, None where that is not known (another worker was faster).

    Raises:
        HostError: the folder cannot be written.
        UsageError: something else lies in a lease's place.
    """
    newest, has_lease = _newest(cell_dir)
    previous = None
    if has_lease:
        path = lease_path(cell_dir, newest)
        holder = _read(path)
        if holder is None:
            return None  # given back just now
        sign = worker.sign_of(holder)
        if sign is not None and not sign.has_ended(worker.now()):
            return sign
        if holder == "" and _is_young(path, worker):
            return None  # whoever made it where there are no links has not written into it yet
        previous = "a worker that has left" if sign is None else str(sign)
    # The number after the one that was judged: whoever was faster has it, and this worker has not.
    lease = Lease(cell_dir=cell_dir, attempt=newest + 1, previous=previous)
    try:
        cell_dir.mkdir(parents=True, exist_ok=True)
        if not _make(lease.path, worker.id):
            return None
    except OSError as error:
        raise unwritable(error, cell_dir) from error
    if lease.path.with_suffix(".jsonl").exists():  # another had it meanwhile, and has ended
        lease.release()
        return None
    return lease


def _newest(cell_dir: Path) -> tuple[int, bool]:
    """Return the number of the newest attempt, 0 where there is none, and whether it has a lease; from one look at the folder."""
    require_folders([cell_dir])
    try:
        names = [path.name for path in cell_dir.iterdir()]
    except FileNotFoundError:
        return 0, False
    attempts = {(int(match[1]), match[2]) for name in names if (match := _ATTEMPT.fullmatch(name))}
    newest = max((number for number, _ in attempts), default=0)
    return newest, (newest, "lease") in attempts


def _read(path: Path) -> str | None:
    try:
        with open_regular(path) as handle:
            return handle.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None


def _is_young(path: Path, worker: Worker) -> bool:
    try:
        return worker.now() - path.stat().st_mtime < worker.silence_s
    except FileNotFoundError:
        return True


def _make(path: Path, holder: str) -> bool:
    """Make a lease with what it says; return False where it is there already."""
    return make_once(path, f"{holder}\n")

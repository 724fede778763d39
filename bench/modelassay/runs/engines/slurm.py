"""Slurm: arrays of workers, handed to ``sbatch`` and followed by ``squeue``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from modelassay.errors import HostError, IncompleteRun, printable
from modelassay.runs.engines import Job
from modelassay.runs.engines.slurm_commands import ENDED, QUEUE, call
from modelassay.runs.engines.slurm_script import FOLDER, Script
from modelassay.storage.files import unwritable

QUERY_S: Final = 5.0
"""Between two questions to the controller."""

PATIENCE_S: Final = 600.0
"""How long the controller may be silent."""


class Slurm:
    """The jobs of a run in a Slurm queue, those of an earlier command for it too."""

    def __init__(self, job: Job, script: Script) -> None:
        """Submit ``script``.

        Raises:
            HostError: the run directory cannot be written, or the controller gives no answer.
        """
        self._script = script
        self._folder = job.run.folder / FOLDER
        self._submitted = self._folder / "jobs.txt"
        try:
            self._folder.mkdir(exist_ok=True)
            self._submitted.touch()
            self._ids = self._submitted.read_text().split()
        except OSError as error:
            raise unwritable(error, self._folder) from error
        self._states: dict[str, str] = {}
        self._cancelled: list[str] = []
        self._asked = self._answered = time.monotonic()
        self._told: str | None = None
        self._query()
        self._cancelled.clear()  # before this process: whoever gives the command again wants workers

    def start(self, count: int) -> None:
        """Submit an array of ``count`` workers, unless somebody has cancelled one: those are not replaced."""
        if self._cancelled:
            return
        text = self._script.text(count)
        identity = call("sbatch", "--parsable", stdin=text).strip().partition(";")[0]
        (self._folder / f"{identity}.sbatch").write_text(text, encoding="utf-8")
        with self._submitted.open("a", encoding="utf-8") as file:
            file.write(f"{identity}\n")
        self._ids.append(identity)
        self._states |= {f"{identity}_{index}": "PENDING||" for index in range(count)}
        self._asked = time.monotonic()

    def look(self) -> Sequence[str]:
        """Ask the controller, at most every few seconds."""
        if time.monotonic() - self._asked < QUERY_S or not self._ids:
            return ()
        self._asked = time.monotonic()
        try:
            self._query()
        except HostError as error:
            if time.monotonic() - self._answered > PATIENCE_S:
                raise
            return (f"{error}; asking again",)
        self._answered = time.monotonic()
        if self._cancelled and not self._states:
            raise IncompleteRun(f"slurm: {self._cancelled[0]} was cancelled, and no other worker is in the queue; what was"
                                " measured is kept, the same command goes on")  # fmt: skip
        told = self._in_words()
        if told == self._told:
            return ()
        self._told = told
        return (told,)

    def _query(self) -> None:
        """Read the queue, and forget the jobs that have left it.

        Raises:
            HostError: the controller gives no answer.
        """
        if not self._ids:
            return
        rows = [row.split("|", 1) for row in call(*QUEUE).splitlines() if "|" in row]
        states = {name: rest for name, rest in rows if name.partition("_")[0] in self._ids}
        self._cancelled += [name for name, rest in states.items() if rest.startswith("CANCELLED")]
        self._states = {name: rest for name, rest in states.items() if _is_alive(rest)}
        self._ids = [each for each in self._ids if any(name.partition("_")[0] == each for name in self._states)]

    def _in_words(self) -> str:
        states = Counter(_state(text) for text in self._states.values())
        return "slurm: " + (
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no worker in the queue"
        )

    @property
    def num_alive(self) -> int:
        """How many elements are in the queue, waiting or running."""
        return len(self._states)

    @property
    def last_words(self) -> str:
        """The last line of the newest output."""
        outputs = sorted(self._folder.glob("*.out"), key=lambda path: path.stat().st_mtime)
        lines = outputs[-1].read_text(errors="replace").split("\n") if outputs else []
        said = [line for line in lines if line.strip() and not line.startswith("run directory: ")]
        return printable(said[-1]) if said else f"none has written into {self._folder}; is it seen on the nodes?"

    def withdraw(self) -> None:
        """Cancel the elements that wait in the queue."""
        for identity in {name.partition("_")[0] for name, text in self._states.items() if text.startswith("PENDING")}:
            call("scancel", "--state=PENDING", identity)
        self._states.clear()

    def leave(self) -> str:
        """Leave workers that are in the queue where they are."""
        ids = sorted({name.partition("_")[0] for name in self._states})
        if not ids:
            return ""
        return f"slurm: {', '.join(ids)} may go on in the queue; the same command follows it again, `scancel {' '.join(ids)}` ends it"


def _is_alive(text: str) -> bool:
    return not text.startswith(ENDED)


def _state(text: str) -> str:
    """Return what one row of squeue says, for people.

    >>> _state("PENDING|Resources|"), _state("RUNNING|None|n1")
    ('pending (Resources)', 'running on n1')
    """
    state, reason, node = (text.split("|") + ["", ""])[:3]
    where = f" on {node}" if node else ""
    why = f" ({reason})" if state == "PENDING" and reason not in {"", "None"} else ""
    return printable(f"{state.lower()}{why}{where}")

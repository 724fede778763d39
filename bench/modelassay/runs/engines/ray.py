"""Ray: one task is one worker, or, where nodes do not see the run directory, one cell that is brought back as bytes.

Ray runs a task again whose node is lost; what a worker says of its cells is a result and is not tried again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from modelassay.errors import HostError, printable
from modelassay.recording.status import read_status
from modelassay.runs.engines import Job, ray_node
from modelassay.runs.engines.ray_cluster import leave, living, request
from modelassay.runs.engines.ray_likeness import describe_nodes, why_unfit
from modelassay.runs.leases import Lease, claim
from modelassay.runs.workers import Worker
from modelassay.storage.durable import disk_fault

RETRIES: Final = 3
"""How often Ray runs a task again whose node is lost."""


class Ray:
    """The tasks of a run."""

    def __init__(self, job: Job, ray: Any, *, shared: bool, silence_s: float) -> None:
        """Compare the nodes with this machine, and find out whether all see the run directory.

        Args:
            job: what is to be done.
            ray: the package, connected to a cluster.
            shared: whether the run directory may be used where all see it.
            silence_s: after how long without a sign of life others take over the cells that this process keeps for its tasks.

        Raises:
            HostError: a node has another Python, Ray or modelassay, or does not answer.
        """
        self._job, self._ray, self._stack = job, ray, ExitStack()
        self._stack.callback(leave, ray)
        self._pending: dict[Any, Lease | None] = {}
        self._said: list[str] = []
        self._last_words = ""
        with ExitStack() as stack:
            stack.callback(self._stack.close)
            manifest = job.run.folder.absolute() / "run.json"
            self._manifest = manifest.read_bytes()
            here, nodes = ray_node.describe(str(manifest)), describe_nodes(ray, str(manifest))
            for node in nodes:
                if why := why_unfit(node, here):
                    raise HostError(printable(f"Ray's node {node['host']}: {why}"))
            seen = hashlib.sha256(self._manifest).hexdigest()
            self._shared = shared and all(node["manifest"] == seen for node in nodes)
            self._options = request(job.run.suite.resources, living(ray)) | {"max_retries": RETRIES}
            self._worker = (
                None if self._shared else self._stack.enter_context(Worker(job.run.folder, silence_s=silence_s))
            )
            stack.pop_all()
        how = "all see the run directory" if self._shared else "results are brought back as bytes"
        self._said.append(f"ray: {len(nodes)} nodes; {how}")

    def start(self, count: int) -> None:
        """Give Ray ``count`` more tasks."""
        if self._worker is None:
            work = self._ray.remote(ray_node.work).options(**self._options)
            self._pending |= {work.remote(self._job.worker): None for _ in range(count)}
            return
        words = [word for word in self._job.worker[2:] if word != "--no-wait"]
        for cell in self._job.run.suite.cells:
            cell_dir = self._job.run.cell_dir(cell)
            status = read_status(cell_dir)
            is_left = status.outcome == "failed" and status.num_attempts >= self._job.attempts
            if count == 0 or status.is_complete or is_left:
                continue
            lease = claim(cell_dir, self._worker)
            if isinstance(lease, Lease):
                parts = ray_node.pack(cell_dir)
                parts.pop(lease.path.name)  # the worker takes one of the same number there
                task = self._ray.remote(ray_node.carry).options(**self._options)
                self._pending[task.remote(words, self._manifest, cell.id, parts)] = lease
                count -= 1

    def look(self) -> Sequence[str]:
        """Take in what tasks have ended with."""
        said, self._said = self._said, []
        if self._pending:
            ended, _ = self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
            for task in ended:
                said += self._take(task, self._pending.pop(task))
        return said

    def _take(self, task: Any, lease: Lease | None) -> list[str]:
        try:
            code, words, *parts = self._ray.get(task)
        except Exception as error:  # Ray raises whatever its parts raise: the task is lost for good
            code, words, parts = -1, next((line for line in str(error).splitlines() if line), type(error).__name__), []
        if lease is not None:
            self._bring(lease, parts[0] if parts else {})
        if code in {0, 3}:
            return []
        self._last_words = printable(words)
        return [f"ray: a worker ended with code {code}: {self._last_words}"]

    def _bring(self, lease: Lease, parts: Mapping[str, bytes]) -> None:
        """Put what came of a cell into the run directory, unless somebody else has taken it over, and give it back.

        Raises:
            HostError: the disk is full or fails.
        """
        if lease.is_held():
            log = lease.path.with_suffix(".jsonl").name
            try:
                if log in parts:
                    ray_node.unpack(
                        lease.cell_dir, {name: data for name, data in parts.items() if not name.endswith(".lease")}
                    )
            except OSError as error:
                raise disk_fault(error, lease.cell_dir) from error
        lease.release()

    @property
    def num_alive(self) -> int:
        """How many tasks have not ended."""
        return len(self._pending)

    @property
    def last_words(self) -> str:
        """What the newest task that failed said."""
        return self._last_words

    def withdraw(self) -> None:
        """Cancel what has not ended: every cell has."""
        for task in self._pending:
            self._ray.cancel(task)

    def leave(self) -> str:
        """Leave the cluster, on which Ray ends what is left of the tasks, and give cells back."""
        for lease in self._pending.values():
            if lease is not None:
                lease.release()
        self._pending.clear()
        self._stack.close()
        return ""

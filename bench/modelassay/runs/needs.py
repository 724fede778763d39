"""What the cells of a run need, made once before them: artifacts in processes of one thread each, inputs first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

from modelassay.errors import AssayError, HostError
from modelassay.storage.needs import Artifact, Need, in_order
from modelassay.storage.store import Report, Store, say

Progress = Callable[[float, float, str], None]
"""Receives how much is done, of how much, and what was made last."""


def missing_artifacts(needs: Iterable[Need], store: Store) -> list[Artifact]:
    """Return the artifacts that ``store`` lacks, inputs before what is made of them."""
    return [artifact for artifact in in_order(needs) if not artifact.is_built(store)]


def build_needs(
    artifacts: Sequence[Artifact], *, store: Store, processes: int, progress: Progress, report: Report = say
) -> tuple[dict[str, float], dict[str, str]]:
    """Build ``artifacts``, those first whose longest line of descendants has the most work left.

    Processes are spawned, not forked: a child forked after torch has started threads may hang or compute other bits. What was
    made before an interruption stays; a process that outlives its parent ends itself. An artifact that cannot be built, and what
    is made from it, is left out: the cells that need it say why.

    Args:
        artifacts: what to build, inputs before what is made of them.
        store: where.
        processes: how many at a time.
        progress: is told after each.
        report: is told what was damaged and is made anew.

    Returns:
        Processor seconds of each that was built, and why others were not, by key.

    Raises:
        HostError: processes cannot be started side by side, or one was killed.
    """
    if not artifacts:
        return {}, {}
    by_key = {artifact.key: artifact for artifact in artifacts}
    waiting = {key: {source.key for source in artifact.inputs} & by_key.keys() for key, artifact in by_key.items()}
    order, seconds, failures = _by_remaining_work(artifacts), dict[str, float](), dict[str, str]()
    total, done = sum(artifact.work for artifact in artifacts), 0.0
    running: dict[Future[tuple[float, list[str]]], str] = {}
    pool, lifeline, held = _start_pool(processes)
    try:
        while running or any(not inputs for inputs in waiting.values()):
            ready = [key for key in order if key in waiting and not waiting[key]]
            for key in ready[: processes - len(running)]:
                del waiting[key]
                running[pool.submit(_build, by_key[key], store.root)] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                done += by_key[key].work
                try:
                    seconds[key], notes = future.result()
                except AssayError as error:
                    failures[key] = str(error)
                    continue
                for note in notes:
                    report(note)
                for inputs in waiting.values():
                    inputs.discard(key)
                progress(done, total, by_key[key].name)
    except BrokenProcessPool as error:
        names = ", ".join(by_key[key].name for key in by_key.keys() - waiting.keys() - seconds.keys() - failures.keys())
        raise HostError(
            f"a process that built {names} was killed; out of memory? Run the same again, with fewer at a time (--jobs 1): what was built stays"
        ) from error
    except BaseException:
        held.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lifeline.close()
        held.close()
    return seconds, failures


def _by_remaining_work(artifacts: Sequence[Artifact]) -> list[str]:
    """Keys, those first whose longest line of descendants has the most work left."""
    left = dict.fromkeys((artifact.key for artifact in artifacts), 0.0)
    for artifact in reversed(artifacts):
        left[artifact.key] += artifact.work
        for source in artifact.inputs:
            if source.key in left:
                left[source.key] = max(left[source.key], left[artifact.key])
    return sorted(left, key=lambda key: -left[key])


def _start_pool(processes: int) -> tuple[ProcessPoolExecutor, Connection, Connection]:
    """Return a pool, and both ends of the pipe that closes when this process is gone, however it went, or gives up.

    Raises:
        HostError: the machine has no shared memory for it.
    """
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    try:
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(lifeline,))
    except (OSError, NotImplementedError) as error:  # it makes semaphores
        raise HostError(
            f"processes cannot be started side by side: {error}; they need shared memory at /dev/shm: mount it"
            " (mount -t tmpfs shm /dev/shm; docker run --shm-size 1g), and free what others left there"
        ) from error
    return pool, lifeline, held


def _start_worker(lifeline: Connection) -> None:
    """Leave Ctrl-C to the parent, and die when ``lifeline`` closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        lifeline.poll(None)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _build(artifact: Artifact, root: Path) -> tuple[float, list[str]]:
    """Build it; return processor seconds, and what was damaged and is made anew."""
    began, notes = time.process_time(), list[str]()
    artifact.make(Store(root, report=notes.append))
    return time.process_time() - began, notes

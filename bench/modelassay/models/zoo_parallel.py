"""Making many members at once: processes of one thread, parents before children, the longest lines of descent first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from modelassay.models.zoo_members import Member


@dataclass(frozen=True, kw_only=True)
class Made:
    """A member in the store."""

    folder: Path
    """Its checkpoint."""
    cpu_s: float | None
    """Processor time its making took, imports left out; None if the store held it before."""
    num_steps: int
    """Training steps its making holds, without its ancestors'."""


def in_dependency_order(members: Sequence[Member], *, root: Path, processes: int, with_utility: bool,
                        report: Callable[[str], None] = lambda _: None) -> dict[str, float]:  # fmt: skip
    """Make ``members`` (parents may be among them or made already) in the store at ``root``; return CPU seconds by name.

    Processes are spawned, not forked: a child forked after torch has started threads may hang or compute other bits.
    The first error ends all; what was made stays.
    """
    if not members:
        return {}
    names = {member.name for member in members}
    waiting = {member.name: names & {member.parent, member.other_parent} for member in members}
    order, seconds = _by_remaining_work(members), dict[str, float]()
    running: dict[Future[float], str] = {}
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)  # closes when this process is gone, however it went, or gives up
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(lifeline,))
    try:
        while waiting or running:
            for name in [name for name in order if name in waiting and not waiting[name]]:
                if len(running) == processes:
                    break
                del waiting[name]
                running[pool.submit(_make, name, root, with_utility)] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                seconds[name] = future.result()
                report(f"made {name}, {len(seconds)} of {len(members)} models")
                for above in waiting.values():
                    above.discard(name)
    except BaseException:
        held.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lifeline.close()
        held.close()
    return seconds


def _by_remaining_work(members: Sequence[Member]) -> list[str]:
    """Names, those first whose longest line of descendants has the most training left."""
    by_name = {member.name: member for member in members}
    left = dict.fromkeys(by_name, 0.0)
    for member in reversed(members):
        left[member.name] += 1 + member.num_steps * member.shape.num_layers * member.shape.hidden_size
        for above in (member.parent, member.other_parent):
            if above in left:
                left[above] = max(left[above], left[member.name])
    return sorted(by_name, key=lambda name: -left[name])


def _start_worker(lifeline: Connection) -> None:
    """Leave Ctrl-C to the parent, die when ``lifeline`` closes, and import what every member needs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        lifeline.poll(None)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    from modelassay.models import zoo_build  # noqa: F401 - its transformers (4 s) is no member's processor time


def _make(name: str, root: Path, with_utility: bool) -> float:
    from modelassay.models import zoo
    from modelassay.state import Store

    began = time.process_time()
    store = Store(root)
    zoo.ensure(name, store=store)
    if with_utility:
        zoo.utility(name, store=store)
    return time.process_time() - began

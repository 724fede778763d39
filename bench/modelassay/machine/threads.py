"""The same work on several things at once, by threads, its results in order."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from modelassay.machine.memory import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 4
"""Threads at most: each holds what it works on, and the disk serves no more."""


def in_order(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int | None = None) -> Iterator[Result]:
    """Yield ``work(item)`` of each item, in order; ``threads`` of them are at work at once, and one more waits to be taken.

    For work that lets others run: reading, numpy, torch and hashes do. ``threads`` is torch's own number, `MOST` at most: a process
    that was told to use one core uses one, and then nothing runs beside the caller. Context variables (numpy's errstate) are the caller's.
    Threads keep freed memory for what comes next (`keep_freed_memory`). The first error ends it, when its turn comes; what is at work
    then is waited for.

    >>> list(in_order(lambda number: number**2, range(5), threads=3))
    [0, 1, 4, 9, 16]
    """
    if threads is None:
        import torch  # here: who only names a number of threads needs none of it

        threads = min(MOST, torch.get_num_threads())
    if threads < 2:
        yield from map(work, items)
        return
    keep_freed_memory()
    with ThreadPoolExecutor(threads, thread_name_prefix="in-order") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(contextvars.copy_context().run, work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

"""A deed in a process of its own, under limits of memory and time."""

import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path


def in_a_child(deed: Callable[[], None], *, more_bytes: int, cpu_s: int) -> str:
    """Run ``deed`` in a fork that may take so much more memory and time; return its traceback, or how it died."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, size = 1, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        try:
            resource.setrlimit(resource.RLIMIT_AS, (size + more_bytes, size + more_bytes))
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            deed()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc(limit=-4).encode(errors="replace")[-60_000:])
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    return said or ("" if status == 0 else f"died of signal {status & 127}")

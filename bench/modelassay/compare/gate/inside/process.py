"""A measured process: it makes the calls it is asked for, one at a time, each with inputs of its own.

::

    python process.py REQUEST.json        # JSON lines: questions on stdin, answers on stdout

The request: ``workload`` (a Python file) and ``first`` (folders that go before all others on the path of imports). The first
answer says who this is: ``package``, ``device``, ``empty_ns``, ``cases``. Then ``{"case": 0, "seed": 7, "check": true}`` is
answered by ``{"ns": ..., "cpu_ns": ...}``, or by ``{"wrong": why}`` or ``{"failed": why}``; ``{"usage": true}`` by the CPU seconds
and preemptions so far. It ends with its standard input.

A workload has ``package`` (the name of the package under test) and ``cases() -> list``; a case has ``name``, ``labels``,
``make(seed) -> inputs``, ``run(inputs) -> output`` and ``check(inputs, output)``, which raises AssertionError. The clock is
bound before the code under test is imported. Inputs to check by are made anew from their seed, so that code which writes over
its inputs is judged by what it was given.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

clock_ns: Callable[[], int] = time.perf_counter_ns
cpu_ns: Callable[[], int] = time.process_time_ns

EMPTY_WINDOWS = 101
"""Windows without a call, whose median says what the clock itself takes."""


def load(path: Path) -> ModuleType:
    """Return a Python file as a module, whatever the path of imports holds."""
    spec = importlib.util.spec_from_file_location(f"gate_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def put_first(folders: list[str]) -> None:
    """Make imports look into ``folders`` before all else, editable installs included."""
    if folders:
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__.lower()
                            and "Redirecting" not in type(finder).__name__]  # fmt: skip
    sys.path[:0] = folders


def copy_of(output: Any) -> Any:
    """Return a copy of an output as it is now: what a thread adds to it later does not count.

    Raises:
        AssertionError: it holds something else than tensors, numbers and bytes, as an object that puts its work off.
    """
    if type(output) in (tuple, list):
        return type(output)(copy_of(part) for part in output)
    torch = sys.modules.get("torch")
    if torch is not None and type(output) is torch.Tensor:
        return output.detach().to("cpu", copy=True)
    if type(output) in (bool, int, float, bytes, str, type(None)):
        return output
    raise AssertionError(f"the output holds a {type(output).__name__}, expected a plain torch.Tensor or number")


def timed(run: Callable[[Any], Any], inputs: Any, wait: Callable[[], None]) -> tuple[int, int, Any]:
    """Return wall and CPU nanoseconds of one call with the device work it starts, and its output."""
    wait()
    begin_cpu, begin = cpu_ns(), clock_ns()
    output = run(inputs)
    wait()
    end, end_cpu = clock_ns(), cpu_ns()
    return end - begin, end_cpu - begin_cpu, output


def call(case: Any, seed: int, check: bool, wait: Callable[[], None]) -> dict[str, Any]:
    """Return the time of one call, or what is wrong with it and then no time."""
    try:
        inputs = case.make(seed)
        wall, cpu, output = timed(case.run, inputs, wait)
        if check:
            kept = copy_of(output)
            case.check(case.make(seed), kept)
    except AssertionError as error:
        return {"wrong": first_line(error)}
    except Exception as error:  # the code under test may fail in any way
        return {"failed": f"{type(error).__name__}: {first_line(error)}"}
    return {"ns": wall, "cpu_ns": cpu}


def first_line(error: BaseException) -> str:
    """Return the beginning of a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__


def waiting() -> Callable[[], None]:
    """Return what waits for the device's work: all of it on a GPU, nothing on a CPU or for a workload without torch."""
    torch = sys.modules.get("torch")
    wait: Callable[[], None] = (
        torch.cuda.synchronize if torch is not None and torch.cuda.is_available() else lambda: None
    )
    return wait


def empty_window_ns(wait: Callable[[], None]) -> int:
    """Return the median time of a call that does nothing."""
    return sorted(timed(lambda _: None, None, wait)[0] for _ in range(EMPTY_WINDOWS))[EMPTY_WINDOWS // 2]


def device() -> str:
    """Return the card's name, else the processor's and how many cores this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else os.uname().machine}, {cores} cores"


def usage() -> dict[str, Any]:
    """Return the CPU seconds of this process and how often it was interrupted."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"own_s": used.ru_utime + used.ru_stime, "preemptions": used.ru_nivcsw}


def main(path: str) -> None:
    """Answer questions until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # stdout is for answers: whatever the code under test prints goes to stderr

    def answer(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    request = json.loads(Path(path).read_text(encoding="utf-8"))
    put_first(request["first"])
    workload = load(Path(request["workload"]))
    package = importlib.import_module(workload.package)
    wait, cases = waiting(), workload.cases()
    answer({
        "package": str(Path(package.__file__ or ".").resolve().parent),
        "python": sys.version.split()[0],
        "device": device(),
        "empty_ns": empty_window_ns(wait),
        "cases": [{"case": case.name, "labels": dict(case.labels)} for case in cases],
    })  # fmt: skip
    for line in sys.stdin:
        question = json.loads(line)
        answer(
            usage() if "usage" in question else call(cases[question["case"]], question["seed"], question["check"], wait)
        )


if __name__ == "__main__":
    main(sys.argv[1])

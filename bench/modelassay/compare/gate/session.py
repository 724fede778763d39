"""Processes that live side by side and are measured in turns, one call at a time.

Of every pair both processes are fresh, and so is a third, of the base again, which says how far apart the same code comes out
tonight. Their rounds take turns in all orders (A B A', A' B A, ...): what the machine does in a second it does to all three.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from modelassay.compare.gate.environments import INSIDE, Environment
from modelassay.compare.gate.guards import Watch
from modelassay.errors import HostError

Clock = Literal["wall", "cpu"]

WARM_UPS: Final = 5
"""Calls before the first round: code is loaded, kernels are compiled, memory is there."""
ROUNDS: Final = 30
"""A multiple of the six orders of three processes."""
CHECKED: Final = 4
"""Rounds of each process and case whose output is checked, chosen by chance; and all warm-ups but the first."""
_ORDERS: Final = tuple(itertools.permutations(range(3)))
_ANSWER_BYTES: Final = 1 << 22


class Process:
    """One fresh process of an environment, which answers questions."""

    def __init__(self, environment: Environment, workload: Path, scratch: Path) -> None:
        """Start it; `hello` waits until it is ready.

        Raises:
            HostError: its Python cannot be started.
        """
        handle, name = tempfile.mkstemp(
            prefix="request-", suffix=".json", dir=scratch
        )  # its own: others may be read just now
        with os.fdopen(handle, "w") as file:
            json.dump({"workload": environment.inside(workload), "first": list(environment.first)}, file)
        request = Path(name)
        request.chmod(0o644)  # a container's user reads it
        command = [*environment.python, environment.inside(INSIDE / "process.py"), environment.inside(request)]
        self.environment, self._log = environment, scratch / "stderr.txt"
        try:
            with self._log.open("ab") as stderr:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
                )
        except OSError as error:
            raise HostError(f"{environment.name}: {command[0]} cannot be started: {error.strerror}") from error

    def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            HostError: the process ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline(_ANSWER_BYTES)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            code = self._process.wait(timeout=10) if not line else "none"
            last = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise HostError(f"{self.environment.name}: the measured process answered nothing (exit code {code}): "
                            f"{' | '.join(last)}") from error  # fmt: skip
        return answer

    def ask(self, **question: Any) -> dict[str, Any]:
        """Return the answer to a question."""
        assert self._process.stdin is not None
        with suppress(OSError):  # where it ended, reading its answer will tell
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # it had ended before it read its last question
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(kw_only=True)
class Sample:
    """One case in the three processes of a pair: their medians, or what is wrong."""

    case: str
    labels: Mapping[str, Any] = field(default_factory=dict)
    medians_ns: tuple[float, float, float] | None = None
    """Base, candidate, base again; None where a result was wrong or a call failed."""
    wrong: dict[str, str] = field(default_factory=dict)
    """Side (``base``, ``candidate``) to what is wrong with its result."""
    marks: list[str] = field(default_factory=list)
    """What disturbed the machine meanwhile."""


@dataclass(frozen=True, kw_only=True)
class PairOfProcesses:
    """What one pair, with its third process, gave."""

    samples: Sequence[Sample]
    hello: Sequence[Mapping[str, Any]]
    """What the base and the candidate said of themselves."""
    empty_ns: Sequence[float]
    """Median time of an empty window in each of the three."""


@contextmanager
def three_processes(
    base: Environment, candidate: Environment, workload: Path, scratch: Path
) -> Iterator[list[Process]]:
    """Start base, candidate and base again, and end them."""
    processes: list[Process] = []
    try:
        for environment in (base, candidate, base):
            processes.append(Process(environment, workload, scratch))
        yield processes
    finally:
        for process in processes:
            process.close()


def measure_pair(
    base: Environment, candidate: Environment, *, workload: Path, scratch: Path, cases: Sequence[str] | None = None,
    rounds: int = ROUNDS, clock: Clock = "wall", seed: int = 0, watch: Watch | None = None,
) -> PairOfProcesses:  # fmt: skip
    """Measure one fresh process of each side, and one more of the base, in turns.

    Args:
        base: the control.
        candidate: what is judged.
        workload: the file with the cases.
        scratch: a folder for requests.
        cases: names; None: all that both sides have.
        rounds: of each process and case.
        clock: ``wall``, or the ``cpu`` time of a process, on a machine that others use too.
        seed: of inputs and of what is checked.
        watch: looks at the machine meanwhile.

    Raises:
        HostError: a process cannot be started or dies.
    """
    chance = random.Random(seed)
    with three_processes(base, candidate, workload, scratch) as processes:
        hellos = [process.answer() for process in processes]
        names = [[case["case"] for case in hello["cases"]] for hello in hellos]
        samples = []
        for at, case in enumerate(hellos[0]["cases"]):
            if case["case"] in names[1] and (cases is None or case["case"] in cases):
                places = [at, names[1].index(case["case"]), at]
                sample = Sample(case=case["case"], labels=case["labels"])
                _measure_case(processes, places, sample, rounds, clock, chance, watch or Watch())
                samples.append(sample)
    return PairOfProcesses(samples=samples, hello=hellos[:2], empty_ns=[hello["empty_ns"] for hello in hellos])


def _measure_case(processes: Sequence[Process], places: Sequence[int], sample: Sample, rounds: int, clock: Clock,
                  chance: random.Random, watch: Watch) -> None:  # fmt: skip
    """Fill in ``sample``; every process gets the same inputs in the same round."""
    key = "ns" if clock == "wall" else "cpu_ns"
    times: list[list[float]] = [[], [], []]
    checked = {*chance.sample(range(rounds), min(CHECKED, rounds)), *range(1 - WARM_UPS, 0)}
    for at in range(-WARM_UPS, rounds):
        if at == 0:
            before = watch.read(processes)
        seed = chance.getrandbits(62)
        for side in _ORDERS[at % len(_ORDERS)]:
            answer = processes[side].ask(case=places[side], seed=seed, check=at in checked)
            if key not in answer:
                sample.wrong["candidate" if side == 1 else "base"] = answer.get("wrong") or answer["failed"]
            elif at >= 0:
                times[side].append(answer[key])
        if sample.wrong:
            return
    sample.marks = watch.marks(before, watch.read(processes))
    base, candidate, again = (statistics.median(side) for side in times)
    sample.medians_ns = (max(base, 1.0), max(candidate, 1.0), max(again, 1.0))

"""The gate: what it does with samples, and what it catches in real processes of builds made here."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelassay.commands.compare import failure_of
from modelassay.compare.document import gate_document
from modelassay.compare.gate.decide import LOOKS
from modelassay.compare.gate.environments import Environment, environment
from modelassay.compare.gate.guards import Watch
from modelassay.compare.gate.rerun import Rerun, rerun
from modelassay.compare.gate.session import PairOfProcesses, Sample, measure_pair
from modelassay.errors import HostError, Inconclusive, Regression, UsageError
from modelassay_kernels import native

HELLO = {"package": "p", "python": "3", "device": "d", "cases": [{"case": name, "labels": {}} for name in ("a", "b")]}


def measured(sd: float, *, slower: float = 0.0, marks: int = 0, wrong: str = "") -> Callable[..., PairOfProcesses]:
    """A measurement without processes: log-normal medians around 1 ms, case ``b`` of the candidate slower."""
    rng, calls = np.random.default_rng(0), []

    def measure(*_: Any, cases: Any, **__: Any) -> PairOfProcesses:
        calls.append(cases)
        samples = []
        for name in cases or ("a", "b"):
            times = 1e6 * np.exp(rng.normal(0, sd, size=3))
            times[1] *= 1 + slower * (name == "b")
            sample = Sample(case=name, medians_ns=tuple(times), marks=["throttled"] * (len(calls) <= marks))
            if name == "b" and wrong:
                sample = Sample(case=name, wrong={wrong: "off by one"})
            samples.append(sample)
        return PairOfProcesses(samples=samples, hello=(HELLO, HELLO), empty_ns=(100, 110, 120))

    measure.calls = calls  # type: ignore[attr-defined]
    return measure


def run_gate(measure: Callable[..., PairOfProcesses], tmp_path: Path, **options: Any) -> Rerun:
    here = Environment(name="here", python=("python",))
    return rerun(here, here, scratch=tmp_path, measure=measure, **options)


def verdicts(result: Rerun) -> dict[str, str]:
    return {outcome.case: outcome.verdict for outcome in result.outcomes}


def test_the_same_code_is_same_after_the_first_look(tmp_path: Path) -> None:
    measure = measured(0.001)
    result = run_gate(measure, tmp_path)
    assert verdicts(result) == {"a": "same", "b": "same"}
    assert len(measure.calls) == LOOKS[0]
    assert result.absolute_ns == 20  # the range of the empty windows; both cases are long
    assert result.false_alarms is not None
    assert result.false_alarms.value == 0
    assert failure_of(gate_document(result, ("x", "y"), relative=0.01)) is None


def test_only_what_is_undecided_is_measured_on(tmp_path: Path) -> None:
    measure = measured(0.006, slower=0.10)
    result = run_gate(measure, tmp_path)
    assert verdicts(result)["b"] == "slower"
    later = measure.calls[LOOKS[0] :]
    assert later
    assert all(cases == ["a"] for cases in later)
    failure = failure_of(gate_document(result, ("x", "y"), relative=0.01))
    assert isinstance(failure, Regression)
    assert failure.exit_code == 4


def test_a_night_too_loud_is_inconclusive_and_not_green(tmp_path: Path) -> None:
    result = run_gate(measured(0.2), tmp_path)
    assert set(verdicts(result).values()) == {"inconclusive"}
    assert len(result.samples["a"]) == LOOKS[-1]
    document = gate_document(result, ("x", "y"), relative=0.01)
    assert isinstance(failure_of(document), Inconclusive)
    assert all(row["case"] in ("a", "b") for row in document["gate"]["cleared"])
    json.dumps(document, allow_nan=False)


def test_when_the_time_is_over_what_is_undecided_stays_so(tmp_path: Path) -> None:
    measure = measured(0.001)
    result = run_gate(measure, tmp_path, limit_s=0.0)
    assert len(measure.calls) == 1  # one pair, so that it says who was measured
    assert verdicts(result) == {"a": "inconclusive", "b": "inconclusive"}
    document = gate_document(result, ("x", "y"), relative=0.01)
    assert {cell["why"] for cell in document["cells"]} == {"the time was over after 1 pairs, before the first look"}
    assert isinstance(failure_of(document), Inconclusive)
    json.dumps(document, allow_nan=False)


def test_disturbed_pairs_are_measured_again_but_not_for_ever(tmp_path: Path) -> None:
    few, all_night = measured(0.001, marks=2), measured(0.001, marks=1_000)
    result = run_gate(few, tmp_path)
    assert len(few.calls) == LOOKS[0] + 2
    assert len(result.disturbed) == 4
    run_gate(all_night, tmp_path)
    assert LOOKS[0] < len(all_night.calls) <= 2 * LOOKS[0]


@pytest.mark.parametrize(
    ("side", "verdict", "kind"), [("candidate", "wrong", Regression), ("base", "invalid", Inconclusive)]
)
def test_a_wrong_result_has_no_time(side: str, verdict: str, kind: type[Exception], tmp_path: Path) -> None:
    document = gate_document(run_gate(measured(0.001, wrong=side), tmp_path), ("x", "y"), relative=0.01)
    (cell,) = [cell for cell in document["cells"] if cell["case"] == "b"]
    assert (cell["verdict"], cell["base_ms"], cell["ratio"]) == (verdict, None, None)
    assert "off by one" in cell["why"]
    assert isinstance(failure_of(document), kind)


def test_an_unknown_case_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nonsense: no case of the workload; there are a, b"):
        run_gate(measured(0.001), tmp_path, cases=["nonsense"])


def test_guards_name_what_disturbs() -> None:
    watch = Watch()
    quiet = {"wall_s": 0.0, "own_s": 0.0, "busy_s": 0.0, "steal_s": 0.0, "gpu_mhz": 1980, "ecc_errors": 0}
    cores = os.cpu_count() or 1
    loud = {"wall_s": 1.0, "own_s": 0.5, "busy_s": 0.5 + 0.5 * cores, "steal_s": 0.1 * cores, "gpu_mhz": 1500, "celsius": 91.0,
            "gpu_throttle": 0x40, "ecc_errors": 1, "gpu_processes": 5}  # fmt: skip
    assert watch.marks(quiet, quiet | {"wall_s": 1.0, "own_s": 0.9, "busy_s": 0.9}) == []
    assert watch.marks(quiet, loud) == [
        "other processes took 50% of the machine", "the host kept 10% of the machine", "uncorrected memory errors",
        "the card was throttled: hardware thermal", "other processes are on the card", "91 C",
        "the card's clock fell to 1500 MHz",
    ]  # fmt: skip


WORKLOAD = """
import random
package = "toy"

class Case:
    name, labels = "sum", {"op": "sum"}

    def make(self, seed):
        return [random.Random(seed).random() for _ in range(4000)]

    def run(self, values):
        import toy
        return toy.total(values)

    def check(self, values, got):
        assert abs(got - sum(values)) < 1e-9, f"{got} instead of {sum(values)}"

def cases():
    return [Case()]
"""
HONEST = "def total(values):\n    out = 0.0\n    for value in values:\n        out += value\n    return out\n"
CHEATS = {
    "caches by size": "cache = {}\ndef total(values):\n    return cache.setdefault(len(values), sum(values))\n",
    "replays the warm-up": "calls = []\ndef total(values):\n    if len(calls) < 5:\n        calls.append(sum(values))\n    return calls[-1]\n",
    "skips work": "calls = [0]\ndef total(values):\n    calls[0] += 1\n    return sum(values) if calls[0] % 3 else 0.0\n",
    "puts work off": "class Later(float):\n    pass\ndef total(values):\n    return Later(sum(values))\n",
    "writes over its inputs": "def total(values):\n    values[:] = [0.0] * len(values)\n    return 0.0\n",
    "fails": "def total(values):\n    raise RuntimeError('no such kernel')\n",
}


def build(folder: Path, text: str) -> Path:
    """A build of the package ``toy``: a folder that holds it."""
    (folder / "toy").mkdir(parents=True)
    (folder / "toy/__init__.py").write_text(text)
    return folder


@pytest.fixture
def toys(tmp_path: Path) -> Callable[[str], tuple[Environment, Environment, Path]]:
    workload = tmp_path / "workload.py"
    workload.write_text(WORKLOAD)

    def make(candidate: str) -> tuple[Environment, Environment, Path]:
        folders = (build(tmp_path / "base", HONEST), build(tmp_path / "candidate", candidate))
        base, other = (environment(str(folder), tmp_path, workload=workload) for folder in folders)
        return base, other, workload

    return make


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_wrong_and_not_fast(cheat: str, toys: Any, tmp_path: Path) -> None:
    base, candidate, workload = toys(CHEATS[cheat])
    pair = measure_pair(base, candidate, workload=workload, scratch=tmp_path, rounds=18)
    (sample,) = pair.samples
    assert set(sample.wrong) == {"candidate"}, sample
    assert sample.medians_ns is None


def test_processes_are_of_the_builds_that_were_named(toys: Any, tmp_path: Path) -> None:
    base, candidate, workload = toys(HONEST)
    pair = measure_pair(base, candidate, workload=workload, scratch=tmp_path, rounds=6, clock="cpu")
    assert [Path(hello["package"]) for hello in pair.hello] == [tmp_path / "base/toy", tmp_path / "candidate/toy"]
    assert pair.samples[0].wrong == {}
    assert all(median > 1000 for median in pair.samples[0].medians_ns or (0,))


def test_a_process_that_dies_says_why(toys: Any, tmp_path: Path) -> None:
    base, candidate, workload = toys("raise SystemExit('toy: needs another driver')\n")
    with pytest.raises(HostError, match="candidate: the measured process answered nothing .*toy: needs another driver"):
        measure_pair(base, candidate, workload=workload, scratch=tmp_path, rounds=6)


def test_no_environment_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no environment; name a Python"):
        environment("nowhere", tmp_path)


SLOWED = HONEST.replace(
    "    return out\n",
    "    for value in values[:200]:\n        out += value\n    for value in values[:200]:\n        out -= value\n    return out\n",
)
"""A tenth of the work once more."""


def native_library() -> Path | None:
    """The compiled extension that is installed here."""
    return Path(native._native.__file__) if native.native_available() else None


DELAY = """

import time as _time

_plain = {op}


def {op}(*inputs):
    began = _time.process_time_ns()
    output = _plain(*inputs)
    until = _time.process_time_ns() + (_time.process_time_ns() - began) // 10
    while _time.process_time_ns() < until:
        pass
    return output
"""
"""Added to a build of modelassay_kernels: one operation takes a tenth longer."""


@pytest.fixture
def one_core() -> Iterator[None]:
    """Measured processes take turns, so that one core serves them all; on two, each would have neighbours of its own."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.nightly
@pytest.mark.usefixtures("one_core")
def test_the_same_build_is_not_slower_and_a_delayed_one_is(toys: Any, tmp_path: Path) -> None:
    base, candidate, workload = toys(SLOWED)
    same = rerun(base, base, scratch=tmp_path, workload=workload, rounds=90, clock="cpu")
    assert verdicts(same)["sum"] in ("same", "inconclusive")
    assert_slower(rerun(base, candidate, scratch=tmp_path, workload=workload, rounds=90, clock="cpu"), "sum")


@pytest.mark.nightly
@pytest.mark.usefixtures("one_core")
@pytest.mark.skipif(native_library() is None, reason="needs the compiled kernels")
def test_a_build_of_the_kernels_with_one_delay_is_slower_in_that_operation(tmp_path: Path) -> None:
    base, delayed = tmp_path / "base", tmp_path / "delayed"
    for folder in (base, delayed):
        shutil.copytree(Path(native.__file__).parent, folder / "modelassay_kernels")
        library = native_library()
        assert library is not None
        shutil.copy2(library, folder / "modelassay_kernels")
    with (delayed / "modelassay_kernels/__init__.py").open("a") as file:
        file.write(DELAY.format(op="softmax_ggn"))
    workload = Path(__file__).with_name("small_ops.py")
    sides = [environment(str(folder), tmp_path, workload=workload) for folder in (base, delayed)]
    result = rerun(
        *sides, scratch=tmp_path, workload=workload, cases=["softmax_ggn", "layer_std"], rounds=90, clock="cpu"
    )
    assert_slower(result, "softmax_ggn")
    assert verdicts(result)["layer_std"] in ("same", "inconclusive")


def assert_slower(result: Rerun, case: str) -> None:
    (outcome,) = [outcome for outcome in result.outcomes if outcome.case == case]
    assert outcome.verdict == "slower", outcome
    assert outcome.ratio is not None
    assert math.log(outcome.ratio.value) > outcome.effect
    assert 1.05 < outcome.ratio.value < 1.2

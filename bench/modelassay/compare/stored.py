"""Results that exist, compared: what ratio, with what interval, and what can be said of it.

Stored results were measured at different times, and what the machine did differently then is in no interval of theirs: a verdict
on times needs the interval to lie beyond ``RELATIVE``, and PyTorch, where it was measured beside it on both sides, to have taken its
old time: else the machine changed, and a load does not slow all code alike. The gate measures anew and needs 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelassay.compare.frame import Source, Timing
from modelassay.compare.metrics import compare_metrics
from modelassay.errors import UsageError
from modelassay.statistics.estimate import LEVEL, Estimate

RELATIVE: Final = 0.05
"""Two nights of the same code on one tuned GPU differ by about 4 % (meta-pytorch/tritonbench, pull request 143)."""
DRAWS: Final = 1_999
BLOCK: Final = 3
"""Neighbouring rounds drawn together: they are alike."""
FEWEST_PROCESSES: Final = 3
"""On each side, from which on the unit is the process's median."""
MAX_ROUNDS: Final = 2_000
"""Resampled of one case; of more, the medians of as many batches of neighbours are."""

Floats = NDArray[np.float64]
PYTORCH: Final = ("torch", "sdpa")
"""What names of providers begin with that are PyTorch's own."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One case of one source against the base."""

    case: str
    labels: Mapping[str, Any]
    source: int
    measure: str
    """``time``, ``share of peak`` or ``speed over reference``."""
    ratio: Estimate
    """Candidate over base."""
    verdict: str
    base_ms: float | None = None
    candidate_ms: float | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Level:
    """What one source reaches of its own device."""

    case: str
    labels: Mapping[str, Any]
    source: int
    median_ms: float
    share_of_peak: Estimate | None
    reference: str | None
    speed_over_reference: Estimate | None


@dataclass(kw_only=True)
class Stored:
    """A comparison of stored results."""

    sources: Sequence[Source]
    cells: list[Cell] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    ignored: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)


def compare(sources: Sequence[Source], *, relative: float = RELATIVE) -> Stored:
    """Compare each source with the first.

    Raises:
        UsageError: nothing can be compared; the message says in what they differ.
    """
    result = Stored(sources=sources)
    for number, source in enumerate(sources):
        result.ignored += [{"source": number, "what": what, "why": why} for what, why in source.left_out]
        result.levels += levels(source, number)
    for number in range(1, len(sources)):
        _compare_times(result, number, relative)
        _compare_metrics(result, number)
    if not result.cells and not any(row["equal"] or row["differ"] for row in result.metrics):
        reasons = [reason for other in sources[1:] for reason in _of_other_runs(sources[0], other)]
        reasons += [f"{row['case']}: {'; '.join(row['differs'])}" for row in result.refused]
        reasons += [f"{row['what']}: {row['why']}" for row in result.ignored]
        raise UsageError(f"{sources[0].name} and {', '.join(s.name for s in sources[1:])} have nothing that can be compared: "
                         f"{' | '.join(reasons[:4]) or 'neither holds times or metrics'}")  # fmt: skip
    return result


def _compare_times(result: Stored, number: int, relative: float) -> None:
    base, other = result.sources[0], result.sources[number]
    for case in base.timings.keys() - other.timings.keys():
        result.ignored.append({"source": number, "what": case, "why": "only the base has it"})
    for case in other.timings.keys() - base.timings.keys():
        result.ignored.append({"source": number, "what": case, "why": "the base does not have it"})
    ratios: dict[str, Estimate] = {}
    for case, timing in base.timings.items():
        candidate = other.timings.get(case)
        if candidate is None:
            continue
        if differs := different_work(base, other, timing, candidate):
            result.refused.append({"source": number, "case": case, "differs": differs})
        elif base.device is not None and base.device == other.device and timing.where == candidate.where:
            ratios[case] = times_ratio(timing, candidate)
        elif cells := _across_devices(base, other, timing, candidate, number, relative):
            result.cells += cells
        else:
            why = "of another device, without a measured peak or a reference on both: milliseconds tell nothing"
            result.ignored.append({"source": number, "what": case, "why": why})
    is_same_torch = base.facts.get("torch") is not None and base.facts["torch"] == other.facts.get("torch")
    for case, ratio in ratios.items():
        timing = base.timings[case]
        verdict, why = judge(ratio, relative, lower_is_faster=True)
        if is_same_torch and (moved := _machine_moved(_pytorch_beside(base, timing), ratios, relative)):
            verdict, why = "inconclusive", moved
        result.cells.append(Cell(case=case, labels=timing.labels, source=number, measure="time", ratio=ratio, verdict=verdict,
                                 why=why, base_ms=median_ms(timing), candidate_ms=median_ms(other.timings[case])))  # fmt: skip


def _across_devices(
    base: Source, other: Source, timing: Timing, candidate: Timing, number: int, relative: float
) -> list[Cell]:
    cells = []
    pairs = {
        "share of peak": (share_draws(timing), share_draws(candidate)),
        "speed over reference": (reference_draws(base, timing), reference_draws(other, candidate)),
    }
    for measure, (ours, theirs) in pairs.items():
        if ours is not None and theirs is not None:
            ratio = _ratio(ours, theirs)
            verdict, why = judge(ratio, relative, lower_is_faster=False)
            cells.append(Cell(case=timing.case, labels=timing.labels, source=number, measure=measure, ratio=ratio,
                              verdict=verdict, why=why))  # fmt: skip
    return cells


def different_work(base: Source, other: Source, ours: Timing, theirs: Timing) -> list[str]:
    """Return in what the work of two timings of one case differs, parameters of a run's cell included."""
    differs = [
        f"{name}: {ours.work.get(name, 'not told')} against {theirs.work.get(name, 'not told')}"
        for name in sorted(ours.work.keys() | theirs.work.keys())
        if ours.work.get(name) != theirs.work.get(name)
    ]
    cell = str(ours.labels.get("cell"))
    before, after = base.parameters.get(cell, {}), other.parameters.get(cell, {})
    differs += [
        f"{name}: {before.get(name)} against {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    return differs + _of_other_runs(base, other)


def _of_other_runs(base: Source, other: Source) -> list[str]:
    """Return in what two runs differ as a whole: suite and profile."""
    if not base.kind == other.kind == "run":
        return []
    pairs = {"suite": (base.suite, other.suite), "profile": (base.profile, other.profile)}
    return [f"{name}: {ours} against {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def median_ms(timing: Timing) -> float:
    """Return the median over processes of their medians, in milliseconds."""
    return float(np.median([np.median(rounds) for rounds in timing.processes_ns])) / 1e6


def block_indices(size: int, *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.int64]:
    """Return resamples of ``size`` neighbours in circular blocks of three: [draws, size]. Politis and Romano 1992."""
    starts = np.random.default_rng([seed, size]).integers(0, size, size=(draws, -(-size // BLOCK)))
    return ((starts[:, :, None] + np.arange(BLOCK)) % size).reshape(draws, -1)[:, :size]


def _log_medians(values: Sequence[float] | Floats, *, seed: int) -> Floats:
    """Return the logarithm of the median of ``values``, then of its resamples."""
    array = np.asarray(values, dtype=np.float64)
    batched = batch_medians(array)
    return np.log(np.append(np.median(array), np.median(batched[block_indices(batched.size, seed=seed)], axis=1)))


def batch_medians(values: Floats) -> Floats:
    """Return ``values``, or at most `MAX_ROUNDS` medians of batches of neighbours of odd size; those beyond the last whole one are left out.

    The median of an odd number of draws lies above the median of their law as often as below: a resample of batches is centred. Its
    spread is wider than that of all values, by up to sqrt(pi / 2), a quarter.
    """
    size = -(-values.size // MAX_ROUNDS)
    size += 1 - size % 2
    if size == 1:
        return values
    num_batches = values.size // size
    return np.asarray(np.median(values[: num_batches * size].reshape(num_batches, size), axis=1))


def _pooled(timing: Timing) -> Floats:
    return np.concatenate([np.asarray(rounds, dtype=np.float64) for rounds in timing.processes_ns])


def _ratio(base: Floats, candidate: Floats) -> Estimate:
    difference = candidate - base
    value = float(difference[0])
    low, high = np.quantile(difference[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=math.exp(value), low=math.exp(min(low, value)), high=math.exp(max(high, value)), level=LEVEL,
                    method="block bootstrap within one process", note="what differs between processes and times is not in it")  # fmt: skip


def times_ratio(base: Timing, candidate: Timing) -> Estimate:
    """Return candidate time over base time: of the processes' medians where each side has three, else of rounds."""
    sides = base.processes_ns, candidate.processes_ns
    if min(map(len, sides)) < FEWEST_PROCESSES:
        return _ratio(_log_medians(_pooled(base), seed=0), _log_medians(_pooled(candidate), seed=1))
    from scipy.stats import ttest_ind

    logs = [np.log([np.median(rounds) for rounds in side]) for side in sides]
    interval = ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(LEVEL)
    value = math.exp(float(logs[1].mean() - logs[0].mean()))
    return Estimate(value=value, low=math.exp(interval.low), high=math.exp(interval.high), level=LEVEL,
                    method="Welch, medians of processes", n=min(map(len, sides)))  # fmt: skip


def share_draws(timing: Timing) -> Floats | None:
    """Return the log of the share of the measured peak, then of its resamples over rounds; None without a peak."""
    if not timing.ceilings:
        return None
    gbps = timing.work["size_bytes"] / _pooled(timing)
    return _log_medians(gbps / np.asarray(timing.ceilings), seed=0)


def _machine_moved(controls: Sequence[Timing], ratios: Mapping[str, Estimate], relative: float) -> str:
    """Return which of ``controls``, code that is the same on both sides, took another time; empty where none did, or none was compared."""
    for control in controls:
        ratio = ratios.get(control.case)
        if ratio is not None and judge(ratio, relative, lower_is_faster=True)[0] in ("slower", "faster"):
            return f"{control.labels['provider']}, the same code on both sides, took {ratio.value:.2f} of its time: the machine changed; --rerun measures both now"
    return ""


def _pytorch_beside(source: Source, timing: Timing) -> list[Timing]:
    """Return the timings of PyTorch's own ways to do the same work in the same source, this one among them if it is one."""
    mine = {name: value for name, value in timing.labels.items() if name != "provider"}
    return [
        other for other in source.timings.values()
        if str(other.labels.get("provider", "")).startswith(PYTORCH) and other.where == timing.where and other.work == timing.work
        and {name: value for name, value in other.labels.items() if name != "provider"} == mine
    ]  # fmt: skip


def reference_of(source: Source, timing: Timing) -> Timing | None:
    """Return the timing of PyTorch's own way to do the same work in the same source: the fastest one; None for itself."""
    if str(timing.labels.get("provider", "torch")).startswith(PYTORCH):
        return None
    return min(_pytorch_beside(source, timing), key=median_ms, default=None)


def reference_draws(source: Source, timing: Timing) -> Floats | None:
    """Return the log of the speed over the reference, then of its resamples; None without one."""
    reference = reference_of(source, timing)
    if reference is None:
        return None
    return _log_medians(_pooled(reference), seed=1) - _log_medians(_pooled(timing), seed=2)


def levels(source: Source, number: int) -> list[Level]:
    """Return what a source reaches of its own device, of cases with a peak or a reference."""
    rows = []
    for case, timing in source.timings.items():
        share, speed = share_draws(timing), reference_draws(source, timing)
        reference = reference_of(source, timing)
        if share is not None or speed is not None:
            rows.append(Level(
                case=case, labels=timing.labels, source=number, median_ms=median_ms(timing),
                share_of_peak=None if share is None else _ratio(np.zeros(1), share),
                reference=None if reference is None else str(reference.labels["provider"]),
                speed_over_reference=None if speed is None else _ratio(np.zeros(1), speed),
            ))  # fmt: skip
    return rows


def judge(ratio: Estimate, relative: float, *, lower_is_faster: bool) -> tuple[str, str]:
    """Return the verdict of a ratio against an effect, and why it is inconclusive.

    >>> judge(Estimate(value=1.1, low=1.08, high=1.12), 0.05, lower_is_faster=True)
    ('slower', '')
    """
    low, high = (math.log(end) for end in (ratio.low or ratio.value, ratio.high or ratio.value))
    effect = math.log1p(relative)
    if low > effect or high < -effect:
        return ("slower" if (low > effect) == lower_is_faster else "faster"), ""
    if -effect <= low and high <= effect:
        return "same", ""
    return "inconclusive", f"the interval crosses {relative:.0%}"


def _compare_metrics(result: Stored, number: int) -> None:
    """Count the metrics that are equal and those that differ, by name."""
    base, other = result.sources[0], result.sources[number]
    if base.metrics is not None and other.metrics is not None:
        result.metrics += compare_metrics(base.metrics, other.metrics, number)

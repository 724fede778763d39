"""The gate: base and candidate measured in turns until each case is decided or the pairs are used up."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelassay.compare.gate.decide import LOOKS, RELATIVE, SPENT, Decision, Effect, decide
from modelassay.compare.gate.environments import KERNELS, Environment
from modelassay.compare.gate.guards import Watch
from modelassay.compare.gate.session import ROUNDS, Clock, PairOfProcesses, Sample, measure_pair
from modelassay.errors import UsageError
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.proportions import wilson

REPLACED: Final = 4
"""Of so many pairs one may be measured again because the machine was disturbed; beyond, disturbed ones count: they are no worse
than a night that is not quiet, and a guard that takes everything out leaves nothing (NVIDIA/nvbench, issue 231)."""
SHORT_NS: Final = 100_000.0
"""Calls below this jitter by a constant more than by a share; of them the absolute effect is learnt."""
ASSIGNMENTS: Final = 100
"""Nights of base against base: in each, chance says which of a pair's two base processes plays the candidate."""

Report = Callable[[str], None]
Measurement = Callable[..., PairOfProcesses]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one case."""

    case: str
    labels: Mapping[str, Any]
    verdict: str
    """faster, slower, same, inconclusive; wrong: the candidate's result is; invalid: the base's is, so there is no control."""
    base_ns: float | None = None
    """Median of the processes' medians."""
    candidate_ns: float | None = None
    ratio: Estimate | None = None
    effect: float = 0.0
    why: str = ""


@dataclass(kw_only=True)
class Rerun:
    """Everything a gate measured and said."""

    outcomes: list[Outcome] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """Case to the samples that count, in the order of time."""
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each case."""
    disturbed: list[Sample] = field(default_factory=list)
    """Measured again because the machine was disturbed; they do not count."""
    empty_ns: list[float] = field(default_factory=list)
    looks: int = 0
    cleared: list[dict[str, Any]] = field(default_factory=list)
    """Alerts of an early look (the point estimate exceeds the effect) that later pairs did not confirm."""
    false_alarms: Estimate | None = None
    absolute_ns: float = 0.0
    hello: Sequence[Mapping[str, Any]] = ()
    one_sided: list[tuple[str, str]] = field(default_factory=list)
    """Case and which side lacks it."""
    untold: list[str] = field(default_factory=list)


def rerun(
    base: Environment,
    candidate: Environment,
    *,
    scratch: Path,
    workload: Path = KERNELS,
    cases: Sequence[str] | None = None,
    relative: float = RELATIVE,
    clock: Clock = "wall",
    rounds: int = ROUNDS,
    looks: Sequence[int] = LOOKS,
    limit_s: float | None = None,
    report: Report = lambda _: None,
    measure: Measurement = measure_pair,
) -> Rerun:
    """Measure both environments in turns and decide each case.

    Args:
        base: the control.
        candidate: what is judged.
        scratch: a folder for requests.
        workload: the file with the cases.
        cases: names; None: all.
        relative: smallest change, as a share of the base's time, that is called one.
        clock: ``wall`` or ``cpu``.
        rounds: of each process and case.
        looks: pairs at which a decision is taken; as many as there are levels to spend.
        limit_s: no pair begins later than so many seconds after the first; what no look has decided by then is inconclusive, since a
            look at another number of pairs than was planned would spend alpha that nobody counted.
        report: receives a line after each pair.
        measure: measures one pair.

    Raises:
        UsageError: none of ``cases`` exists on both sides.
        HostError: a process cannot be started or dies.
    """
    result, watch = Rerun(), Watch()
    end_s = math.inf if limit_s is None else time.monotonic() + limit_s
    open_cases = cases
    decisions: dict[str, Decision] = {}
    for look, (num_pairs, alpha) in enumerate(zip(looks, SPENT, strict=False)):
        replaced = 0
        num_done = looks[look - 1] if look else 0
        while (
            num_done < num_pairs
            and (open_cases is None or open_cases)
            and not (result.hello and time.monotonic() > end_s)
        ):
            pair = measure(base, candidate, workload=workload, scratch=scratch, cases=open_cases, rounds=rounds,
                           clock=clock, seed=secrets.randbits(62), watch=watch)  # fmt: skip
            if open_cases is None or not result.hello:
                open_cases = _begin(result, pair, cases)
            report(f"pair {num_done + 1} of at most {looks[-1]}: {len(open_cases)} cases{_in_words(pair.samples)}")
            again = replaced < (num_pairs - num_done) // REPLACED + 1 and any(sample.marks for sample in pair.samples)
            open_cases = _take(result, pair, open_cases, again=again)
            replaced += again
            num_done += not again
        if not open_cases or num_done < num_pairs:
            break
        result.looks = look + 1
        result.absolute_ns = absolute_effect(result)
        decisions |= _look(result, open_cases, Effect(relative=relative, absolute_ns=result.absolute_ns), alpha)
        undecided = [case for case in open_cases if decisions[case].verdict == "inconclusive"]
        _alerts(result, decisions, open_cases, look + 1)
        open_cases = undecided
    _finish(result, decisions, Effect(relative=relative, absolute_ns=result.absolute_ns))
    result.untold = watch.untold() if watch.told else []
    return result


def _begin(result: Rerun, pair: PairOfProcesses, cases: Sequence[str] | None) -> list[str]:
    """Note who was measured, and return the cases that both sides have."""
    result.hello = pair.hello
    sides = [{case["case"] for case in hello["cases"]} for hello in pair.hello]
    for name in sorted(sides[0] ^ sides[1]):
        result.one_sided.append((name, "candidate" if name in sides[0] else "base"))
    if missing := sorted(set(cases or ()) - sides[0]):
        raise UsageError(f"{missing[0]}: no case of the workload; there are {', '.join(sorted(sides[0]))}")
    names = [sample.case for sample in pair.samples]
    if not names:
        raise UsageError("base and candidate have no case in common")
    result.samples = {name: [] for name in names}
    result.labels = {sample.case: sample.labels for sample in pair.samples}
    return names


def _take(result: Rerun, pair: PairOfProcesses, open_cases: Sequence[str], *, again: bool) -> list[str]:
    """Keep a pair's samples, and return the cases that can still be decided."""
    wrong = set()
    result.empty_ns += pair.empty_ns
    for sample in pair.samples:
        if sample.wrong:
            wrong.add(sample.case)
            side = "base" if "base" in sample.wrong else "candidate"
            why = f"{side}: {sample.wrong[side]}"
            verdict = "invalid" if side == "base" else "wrong"
            result.outcomes.append(Outcome(case=sample.case, labels=sample.labels, verdict=verdict, why=why))
        elif again:
            result.disturbed.append(sample)
        else:
            result.samples[sample.case].append(sample)
    return [case for case in open_cases if case not in wrong]


def _in_words(samples: Sequence[Sample]) -> str:
    marks = sorted({mark for sample in samples for mark in sample.marks})
    return f"; disturbed: {', '.join(marks[:3])}" if marks else ""


def log_ratios(samples: Sequence[Sample], *, of: int = 1) -> list[float]:
    """Return the log-ratio of each sample: of the candidate (``of`` = 1) or of the base's second process (2) over the base."""
    return [math.log(s.medians_ns[of] / s.medians_ns[0]) for s in samples if s.medians_ns is not None]


def base_ns(samples: Sequence[Sample], *, of: int = 0) -> float:
    """Return the median over processes of their medians."""
    return float(np.median([s.medians_ns[of] for s in samples if s.medians_ns is not None]))


def absolute_effect(result: Rerun) -> float:
    """Return the smallest change in nanoseconds that is called one, learnt from the base against itself.

    The larger of two: the range over processes of an empty window's median; and of the short cases the largest mean difference
    between a pair's two base processes.
    """
    floors = [max(result.empty_ns) - min(result.empty_ns)] if result.empty_ns else [0.0]
    for samples in result.samples.values():
        if samples and base_ns(samples) < SHORT_NS:
            floors.append(abs(float(np.mean([s.medians_ns[2] - s.medians_ns[0] for s in samples if s.medians_ns]))))
    return max(floors)


def _look(result: Rerun, cases: Sequence[str], effect: Effect, alpha: float) -> dict[str, Decision]:
    ratios = {case: log_ratios(result.samples[case]) for case in cases}
    effects = {case: effect.log(base_ns(result.samples[case])) for case in cases}
    return decide(ratios, effects, alpha=alpha, family=len(result.samples))


def _alerts(result: Rerun, decisions: Mapping[str, Decision], cases: Sequence[str], look: int) -> None:
    """List the cases whose estimate alone would be called slower, and strike those that are."""
    listed = {alert["case"] for alert in result.cleared}
    for case in cases:
        decision = decisions[case]
        if (
            decision.verdict == "inconclusive"
            and math.log(decision.ratio.value) > decision.effect
            and case not in listed
        ):
            why = "its estimate exceeds the effect, its interval does not"
            result.cleared.append({"case": case, "look": look, "ratio": decision.ratio.value, "why": why})
    slower = {case for case in cases if decisions[case].verdict == "slower"}
    result.cleared = [alert for alert in result.cleared if alert["case"] not in slower]


def _finish(result: Rerun, decisions: Mapping[str, Decision], effect: Effect) -> None:
    """Turn decisions into outcomes, in the order of the workload, and measure how often base against base fires."""
    settled = {outcome.case: outcome for outcome in result.outcomes}
    for case, samples in result.samples.items():
        if case in settled:
            continue
        if case not in decisions:
            why = f"the time was over after {len(samples)} pairs, before the first look"
            settled[case] = Outcome(case=case, labels=result.labels[case], verdict="inconclusive", why=why)
            continue
        decision = decisions[case]
        why = (
            "" if decision.verdict != "inconclusive" else f"the interval crosses the effect after {len(samples)} pairs"
        )
        settled[case] = Outcome(
            case=case,
            labels=samples[0].labels,
            verdict=decision.verdict,
            base_ns=base_ns(samples),
            candidate_ns=base_ns(samples, of=1),
            ratio=decision.ratio,
            effect=decision.effect,
            why=why,
        )
    result.outcomes = [settled[case] for case in result.samples if case in settled]
    result.false_alarms = false_alarms(result, effect)


def false_alarms(result: Rerun, effect: Effect, *, assignments: int = ASSIGNMENTS) -> Estimate | None:
    """Return how often this night's base against its own second process would have been called slower in any case.

    Of the pairs of the first look, whose number all cases have, and with all of alpha spent on it; in each assignment chance says
    which of the two processes of a pair plays the candidate, for all cases alike. None with fewer than six pairs.
    """
    samples = {case: kept for case, kept in result.samples.items() if len(kept) >= LOOKS[0]}
    if not samples:
        return None
    num_pairs = min(len(kept) for kept in samples.values())
    ratios = {case: np.array(log_ratios(kept[:num_pairs], of=2)) for case, kept in samples.items()}
    effects = {case: effect.log(base_ns(kept)) for case, kept in samples.items()}
    chance = np.random.default_rng(0)
    fired = 0
    for _ in range(assignments):
        sign_P = chance.choice([-1.0, 1.0], size=num_pairs)
        night = decide({case: sign_P * ratio_P for case, ratio_P in ratios.items()}, effects, alpha=sum(SPENT))
        fired += any(decision.verdict == "slower" for decision in night.values())
    note = f"base against base, {num_pairs} pairs, {len(samples)} cases; assignments of the same processes, so no independent nights"
    return replace(wilson(fired, assignments), note=note)


def worst(verdicts: Sequence[str]) -> str:
    """Return the verdict of a whole: wrong, slower, inconclusive, faster, same.

    >>> worst(["same", "faster", "inconclusive"])
    'inconclusive'
    """
    order = ("wrong", "invalid", "slower", "inconclusive", "faster", "same")
    return next((verdict for verdict in order if verdict in verdicts), "inconclusive")

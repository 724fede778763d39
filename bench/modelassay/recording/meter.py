"""Microbatch timing, memory and clocks: what an experiment calls around its work.

::

    with meter.microbatch("forward", tokens=n, bytes=b, flops=f, layer=3):
        ...
    meter.metric("overlap", 0.91, step=4)

The unit is timed on the host and, where torch sees a GPU, between two CUDA events; its line is written after the clock
has stopped. A unit that raises leaves no time behind.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from modelassay.recording.line import RESERVED
from modelassay.recording.log import CellLog, Log, encode_value, metric_key

PROGRESS_SECONDS = 1.0
"""Between two lines of progress."""


class Clocks(Protocol):
    """Whatever can say how the GPU runs now; `gpu_clocks.ClockSampler` in practice."""

    def latest(self) -> dict[str, Any] | None:
        """Return the newest sample, None when there is none."""


class _Microbatch:
    """One timed unit; made by `Meter.microbatch`."""

    __slots__ = ("_begin_event", "_begin_ns", "_line", "_meter")

    def __init__(self, meter: Meter, line: dict[str, Any]) -> None:
        self._meter, self._line = meter, line

    def __enter__(self) -> Self:
        self._begin_event = self._meter._device_mark(self._line["stage"])
        self._begin_ns = time.perf_counter_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        end_ns = time.perf_counter_ns()
        if kind is None:
            self._meter._finish(self._line, self._begin_ns, end_ns, self._begin_event)


class Meter:
    """Writes timings and metrics of one cell to its log. Costs under 10 us a unit on the host."""

    def __init__(
        self,
        log: Log,
        *,
        counters: dict[str, int] | None = None,
        recorded: Iterable[dict[str, Any]] = (),
        clocks: Clocks | None = None,
    ) -> None:
        """Continue after a checkpoint.

        Args:
            log: where lines go.
            counters: stage -> units so far.
            recorded: metric lines that count already.
            clocks: what samples the GPU's clocks.
        """
        self.log = log
        self.counters = dict(counters or {})
        self._clocks, self._clocks_at = clocks, 0.0
        self._origin_ns = time.perf_counter_ns()
        self._pending: deque[tuple[str, dict[str, Any], Any, Any]] = deque()
        """Kind, line, and of a unit the events around it; in the order of the work."""
        self._progress_at = -math.inf
        self._recorded = {metric_key(line["name"], line["labels"]) for line in recorded}
        self._cuda = _cuda()
        self._stage: str | None = None
        self._peaks: dict[str, int] = {}

    def microbatch(self, stage: str, *, tokens: int | None = None, bytes: int | None = None, flops: int | None = None,
                   warmup: bool = False, **labels: str | int | float) -> _Microbatch:  # fmt: skip
        """Return a context that times one unit of ``stage``.

        Args:
            stage: what is done; units of one stage are numbered from 0 through the whole cell.
            tokens: tokens processed.
            bytes: the fewest bytes the work must move.
            flops: floating-point operations the work must do.
            warmup: recorded and marked, left out of statistics.
            **labels: what tells this unit from others, for tables.
        """
        line: dict[str, Any] = {"stage": stage}
        if tokens is not None:
            line["tokens"] = tokens
        if bytes is not None:
            line["bytes"] = bytes
        if flops is not None:
            line["flops"] = flops
        if warmup:
            line["warmup"] = True
        if labels:
            line["labels"] = _checked(labels)
        return _Microbatch(self, line)

    def timed(self, stage: str, *, host_s: float, device_s: float | None, bytes: int, flops: int,
              **labels: str | int | float) -> None:  # fmt: skip
        """Record a unit that was timed elsewhere and is known to have been right: of one that was not there is no time to write.

        Args:
            stage: as of `microbatch`, whose numbering it shares.
            host_s: by the host's clock.
            device_s: by the device's; None without one.
            bytes: the fewest bytes the work must move.
            flops: floating-point operations the work must do.
            **labels: what tells this unit from others.
        """
        index = self.counters.get(stage, 0)
        self.counters[stage] = index + 1
        line: dict[str, Any] = {
            "stage": stage,
            "index": index,
            "host_ns": round(host_s * 1e9),
            "bytes": bytes,
            "flops": flops,
        }
        if device_s is not None:
            line["device_ns"] = round(device_s * 1e9)
        self._enqueue("microbatch", line | {"labels": _checked(labels)})

    def metric(self, name: str, value: float, **labels: str | int | float) -> None:
        """Record the number ``value`` (NaN and infinities allowed) under ``name`` and ``labels``, once per cell.

        Raises:
            ValueError: a second time under the same labels: a log that says two things could not be read any more.
        """
        if (key := metric_key(name, labels)) in self._recorded:
            raise ValueError(f"metric {name} {labels} was recorded before; its labels do not tell its units apart")
        self._recorded.add(key)
        self._enqueue("metric", {"name": name, "value": encode_value(float(value)), "labels": _checked(labels)})

    def fact(self, kind: str, value: Any, **labels: str | int | float) -> None:
        """Record something that is no number: ``value`` is any JSON, of ``kind``, under ``labels``."""
        self._enqueue("fact", {"fact": kind, "value": value, "labels": _checked(labels)})

    def note(self, text: str) -> None:
        """Record what the attempt had to say besides; part of the log, of no table."""
        self._enqueue("note", {"text": text})

    def progress(self, done: float, total: float, unit: str) -> None:
        """Say how far the cell is, at most once a second and when it is done; part of the log, of no table."""
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_SECONDS or done >= total:
            self._progress_at = now
            self._enqueue("progress", {"done": done, "total": total, "unit": unit})

    def replay(self, log: CellLog, *, measured_in: int | None, labels: dict[str, str | int | float]) -> None:
        """Record again what a stage's own log holds, with ``labels`` added.

        Units keep their times; those of another attempt at the stage than ``measured_in`` (None: all) are marked ``reused``.
        """
        lines = [*log.microbatches, *log.metrics, *log.facts, *log.others]
        for line in sorted(lines, key=lambda line: int(line["seq"])):
            body = {key: value for key, value in line.items() if key not in {"seq", "kind", "attempt"}}
            match line["kind"]:
                case "microbatch":
                    index = self.counters.get(line["stage"], 0)
                    self.counters[line["stage"]] = index + 1
                    body |= {"index": index, "labels": {**line.get("labels", {}), **labels}}
                    self._enqueue("microbatch", body if line["attempt"] == measured_in else body | {"reused": True})
                case "metric":
                    self.metric(line["name"], line["value"], **line["labels"], **labels)
                case "fact":
                    self.fact(line["fact"], line["value"], **line["labels"], **labels)
                case "memory" | "clocks" if measured_in is not None:
                    self._enqueue(line["kind"], body)
                case _:
                    pass

    def _enqueue(self, kind: str, line: dict[str, Any]) -> None:
        """Write a line once the units before it have their device times; never wait for the device."""
        if self._pending:
            self._pending.append((kind, line, None, None))
            self._drain(wait=False)
        else:
            self.log.append(kind, line)

    def settle(self) -> None:
        """Write every unit still waiting for its device time, and the peaks; called at checkpoints and at the end."""
        self._drain(wait=True)
        self._note_peak()
        host_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        for stage, device_peak in self._peaks.items():
            self.log.append("memory", {"stage": stage, "host_peak_bytes": host_peak, "device_peak_bytes": device_peak})
        self._peaks.clear()

    def _device_mark(self, stage: str) -> Any:
        if self._cuda is None:
            self._peaks.setdefault(stage, 0)
            return None
        if stage != self._stage:
            self._note_peak()
            self._stage = stage
        return self._event()

    def _event(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def _note_peak(self) -> None:
        if self._cuda is None or self._stage is None:
            return
        peak = int(self._cuda.max_memory_allocated())
        self._peaks[self._stage] = max(peak, self._peaks.get(self._stage, 0))
        self._cuda.reset_peak_memory_stats()

    def _finish(self, line: dict[str, Any], begin_ns: int, end_ns: int, begin_event: Any) -> None:
        stage = line["stage"]
        line["index"] = self.counters.get(stage, 0)
        self.counters[stage] = line["index"] + 1
        line["host_ns"] = end_ns - begin_ns
        line["at_us"] = (begin_ns - self._origin_ns) // 1000
        if begin_event is None:
            self.log.append("microbatch", line)
        else:
            self._pending.append(("microbatch", line, begin_event, self._event()))
            self._drain(wait=False)
        self._sample_clocks(end_ns)

    def _drain(self, *, wait: bool) -> None:
        """Write waiting lines in order, those whose device time is not known yet only if ``wait``: seq follows the order of the work."""
        while self._pending:
            kind, line, begin, end = self._pending[0]
            if end is not None:
                if not wait and not end.query():
                    return
                end.synchronize()
                line["device_ns"] = int(begin.elapsed_time(end) * 1e6)
            self._pending.popleft()
            self.log.append(kind, line)

    def _sample_clocks(self, now_ns: int) -> None:
        if self._clocks is None or now_ns / 1e9 - self._clocks_at < 1.0:
            return
        self._clocks_at = now_ns / 1e9
        if sample := self._clocks.latest():
            self.log.append("clocks", sample)


def _checked(labels: dict[str, str | int | float]) -> dict[str, str | int | float]:
    if clash := RESERVED.intersection(labels):
        raise ValueError(f"label {min(clash)!r} is a column of the tables; choose another name")
    return labels


def _cuda() -> Any:
    """Return ``torch.cuda`` when torch is loaded and sees a GPU: the meter never imports torch itself."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None

"""What else the machine did while a case was measured: other processes, waiting, clocks, temperature, throttling.

Read from Linux's files and from NVML; what this machine does not tell is not guarded, and the comparison says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from modelassay.machine.gpu import ask, device_handle, opened_nvml, throttle_reasons

CPUS: Final = Path("/sys/devices/system/cpu")
THERMAL: Final = Path("/sys/class/thermal")
STAT: Final = Path("/proc/stat")

MAX_OTHERS: Final = 0.10
"""Share of the machine's processor time that other processes may take."""
MAX_STEAL: Final = 0.02
"""Share that the host may keep from a virtual machine."""
MIN_CLOCK: Final = 0.95
"""A card's clock, of the highest of this comparison."""
MAX_CELSIUS: Final = 88.0
"""Data-centre cards slow down from about here; NVML's own reasons tell it exactly where it has them."""
BENIGN_REASONS: Final = 0x001 | 0x002 | 0x100
"""Idle, application clocks, display clocks: no throttling."""
MIN_WINDOW_S: Final = 0.1
"""Ten ticks of the kernel's clock; shares of shorter windows are not told."""


class Asked(Protocol):
    """A measured process."""

    def ask(self, **question: Any) -> dict[str, Any]:
        """Answer ``usage=True`` with the CPU seconds it used."""
        ...


class Watch:
    """Reads the machine before and after a case, and says what disturbed it."""

    def __init__(self) -> None:
        self.highest_mhz = 0
        """Clock of the card, the highest seen in this comparison."""
        self.told: set[str] = set()
        """What this machine tells at all."""

    def read(self, processes: Sequence[Asked]) -> dict[str, Any]:
        """Return the counters of this moment."""
        own = [process.ask(usage=True) for process in processes]
        here = os.times()
        state: dict[str, Any] = {
            "wall_s": time.monotonic(),
            "own_s": sum(usage["own_s"] for usage in own) + here.user + here.system,
        }
        state |= cpu_state() | gpu_state()
        self.told |= state.keys()
        return state

    def marks(self, before: Mapping[str, Any], after: Mapping[str, Any], *, num_processes: int = 3) -> list[str]:
        """Name what disturbed the machine between two readings."""
        marks = []
        change = {name: after[name] - before[name] for name in after.keys() & before.keys()}
        capacity_s = change["wall_s"] * (os.cpu_count() or 1)
        if "busy_s" in change and change["wall_s"] >= MIN_WINDOW_S:
            if (share := (change["busy_s"] - change["own_s"]) / capacity_s) > MAX_OTHERS:
                marks.append(f"other processes took {share:.0%} of the machine")
            if (share := change["steal_s"] / capacity_s) > MAX_STEAL:
                marks.append(f"the host kept {share:.0%} of the machine")
        if change.get("cpu_throttles", 0) > 0:
            marks.append("the processor was throttled")
        if change.get("ecc_errors", 0) > 0:
            marks.append("uncorrected memory errors")
        if reasons := throttle_reasons(after.get("gpu_throttle", 0) | before.get("gpu_throttle", 0)):
            marks.append(f"the card was throttled: {', '.join(reasons)}")
        if after.get("gpu_processes", 0) > num_processes:
            marks.append("other processes are on the card")
        if after.get("celsius", 0) > MAX_CELSIUS:
            marks.append(f"{after['celsius']:.0f} C")
        clock = after.get("gpu_mhz", 0)
        self.highest_mhz = max(self.highest_mhz, clock)
        if clock < MIN_CLOCK * self.highest_mhz:
            marks.append(f"the card's clock fell to {clock} MHz")
        return marks

    def untold(self) -> list[str]:
        """Return what this machine does not tell, so that nothing guards it."""
        guards = {
            "busy_s": "other processes",
            "cpu_throttles": "throttling of the processor",
            "celsius": "temperature",
            "gpu_mhz": "clocks of a card",
        }
        return [name for key, name in guards.items() if key not in self.told]


def cpu_state() -> dict[str, Any]:
    """Return the processor's counters: seconds busy and stolen, throttle events, temperature."""
    state: dict[str, Any] = {}
    with suppress(OSError, ValueError, IndexError):
        ticks = [int(word) for word in STAT.read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
        per_s = os.sysconf("SC_CLK_TCK")
        state |= {"busy_s": (user + nice + system + irq + softirq) / per_s, "steal_s": steal / per_s}
    if throttles := _numbers(CPUS.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")):
        state["cpu_throttles"] = sum(throttles)
    if heat := _numbers(THERMAL.glob("thermal_zone*/temp")):
        state["celsius"] = max(heat) / 1000
    return state


def _numbers(paths: Iterable[Path]) -> list[int]:
    """Return the whole numbers in ``paths``, as far as they can be read."""
    values = []
    for path in paths:
        with suppress(OSError, ValueError):
            values.append(int(path.read_text()))
    return values


def gpu_state() -> dict[str, Any]:
    """Return what NVML tells of the first visible card; nothing where there is none."""
    with opened_nvml() as (nvml, _):
        handle = None if nvml is None else device_handle(nvml, 0)
        if nvml is None or handle is None:
            return {}
        running = ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle)
        reasons = ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        ecc = (getattr(nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1), getattr(nvml, "NVML_VOLATILE_ECC", 0))
        answers = {
            "gpu_mhz": ask(nvml, "nvmlDeviceGetClockInfo", handle, getattr(nvml, "NVML_CLOCK_SM", 1)),
            "celsius": ask(nvml, "nvmlDeviceGetTemperature", handle, getattr(nvml, "NVML_TEMPERATURE_GPU", 0)),
            "ecc_errors": ask(nvml, "nvmlDeviceGetTotalEccErrors", handle, *ecc),
            "gpu_processes": None if running is None else len(running),
            "gpu_throttle": None if reasons is None else reasons & ~BENIGN_REASONS,
        }
    return {name: value for name, value in answers.items() if value is not None}

"""What the GPU did while it was timed: clocks, temperature, throttling, power and energy, sampled through NVML.

A throttled card gives a slower kernel, and nothing in the time itself says so; the sample taken beside it does. The
sampler never fails a measurement: where there is no driver, no card, or a field this card does not have, it is None.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

Sample = dict[str, int | float | None]
"""``sampled_ns`` (``time.perf_counter_ns``), ``sm_clock_mhz``, ``memory_clock_mhz``, ``temperature_c``,
``throttle_mask``, ``power_w``, ``energy_mj`` (since the driver was loaded); None where the card does not tell."""

# nvml.h, nvmlClocksEventReason*: the bits of the mask.
THROTTLE_REASONS: Final = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal",
    0x040: "hardware thermal",
    0x080: "power brake",
    0x100: "display clocks",
}

# The energy counter moves in steps of up to about this long on data-centre cards; a shorter window may read 0.
ENERGY_COUNTER_PERIOD_S: Final = 0.1
# Five steps keep the error of a window, at most one step in all, within 20 %.
MIN_ENERGY_WINDOW_S: Final = 5 * ENERGY_COUNTER_PERIOD_S


def open_nvml() -> tuple[Any | None, str]:
    """Return NVML's Python binding, initialised, and ""; or None and the reason why there is none.

    Whoever gets the binding calls its ``nvmlShutdown`` once; NVML counts the openings.
    """
    try:
        nvml: ModuleType = importlib.import_module("pynvml")
    except ImportError as error:
        return None, f"nvidia-ml-py is not installed ({error})"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, str(error)
    return nvml, ""


@contextlib.contextmanager
def opened_nvml() -> Iterator[tuple[Any | None, str]]:
    """Hold what :func:`open_nvml` returns, and shut it down at the end."""
    nvml, reason = open_nvml()
    try:
        yield nvml, reason
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def ask(nvml: Any, function: str, *args: Any) -> Any | None:
    """Return the answer of one NVML call, None where this card, driver or binding has no such thing."""
    call = getattr(nvml, function, None)
    if call is None:
        return None
    try:
        return call(*args)
    except nvml.NVMLError:
        return None


def throttle_reasons(mask: int | None) -> list[str]:
    """Name the bits of ``throttle_mask``; an unknown bit is given in hexadecimal.

    >>> throttle_reasons(0x44)
    ['power cap', 'hardware thermal']
    >>> throttle_reasons(0x1000), throttle_reasons(0), throttle_reasons(None)
    (['0x1000'], [], [])
    """
    bits = [1 << index for index in range((mask or 0).bit_length()) if (mask or 0) >> index & 1]
    return [THROTTLE_REASONS.get(bit, hex(bit)) for bit in bits]


@dataclass(frozen=True, kw_only=True)
class EnergyMark:
    """One reading of the energy counter: where a window begins or ends."""

    read_ns: int
    """``time.perf_counter_ns`` at the reading."""
    energy_mj: int
    """The counter, in millijoules since the driver was loaded."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The energy of a window, or the reason why there is no figure for it."""

    joules: float | None
    """None where the counter cannot tell."""
    window_s: float | None
    """Length of the window, None where it has no beginning or no end."""
    relative_error: float | None
    """Bound from the counter's period: period / window. None without a figure."""
    reason: str | None
    """Why ``joules`` is None."""


def energy_between(start: EnergyMark | None, end: EnergyMark | None) -> Energy:
    """Return the energy used from ``start`` to ``end``, refused for windows the counter cannot resolve.

    The counter is updated every ``ENERGY_COUNTER_PERIOD_S``, so a difference is off by at most one period's energy;
    below ``MIN_ENERGY_WINDOW_S`` that is no figure.

    >>> second = 1_000_000_000
    >>> begin = EnergyMark(read_ns=0, energy_mj=5_000)
    >>> energy_between(begin, EnergyMark(read_ns=second, energy_mj=355_000)).joules
    350.0
    >>> energy_between(begin, EnergyMark(read_ns=second // 20, energy_mj=5_000)).reason
    'window of 0.050 s is below 0.5 s, the least the energy counter resolves'
    """
    if start is None or end is None:
        return Energy(joules=None, window_s=None, relative_error=None, reason="this machine has no GPU energy counter")
    window_s = (end.read_ns - start.read_ns) / 1e9
    if window_s < MIN_ENERGY_WINDOW_S:
        least = f"{MIN_ENERGY_WINDOW_S:g} s, the least the energy counter resolves"
        return Energy(
            joules=None, window_s=window_s, relative_error=None, reason=f"window of {window_s:.3f} s is below {least}"
        )
    if end.energy_mj < start.energy_mj:
        return Energy(joules=None, window_s=window_s, relative_error=None, reason="the energy counter was reset")
    return Energy(
        joules=(end.energy_mj - start.energy_mj) / 1e3,
        window_s=window_s,
        relative_error=ENERGY_COUNTER_PERIOD_S / window_s,
        reason=None,
    )


def device_handle(nvml: Any, device: int | str) -> Any | None:
    """Return NVML's handle of a card, None where there is no such card.

    A string is a UUID (``GPU-...`` or ``MIG-...``) and never ambiguous. A number counts as in ``torch.cuda``: among
    the cards that ``CUDA_VISIBLE_DEVICES`` leaves, in its order. NVML itself knows nothing of that variable and
    always counts in PCI order, so on a machine with unlike cards give the UUID.
    """
    if isinstance(device, str):
        return ask(nvml, "nvmlDeviceGetHandleByUUID", device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ask(nvml, "nvmlDeviceGetHandleByIndex", device)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if device >= len(names):
        return None
    if names[device].isdecimal():
        return ask(nvml, "nvmlDeviceGetHandleByIndex", int(names[device]))
    return ask(nvml, "nvmlDeviceGetHandleByUUID", names[device])


class ClockSampler:
    """Samples one card every ``interval_s`` seconds in a daemon thread; reading the latest sample costs nothing.

    A sample is about seven driver calls outside the GIL, none of which waits for the GPU. Used as a context manager
    or by :meth:`start` and :meth:`stop`; without NVML both do nothing, :meth:`latest` is None and :attr:`reason`
    says why.
    """

    def __init__(self, device: int | str = 0, *, interval_s: float = 0.2, nvml: Any | None = None) -> None:
        """Prepare to sample ``device`` (see :func:`device_handle`).

        Args:
            device: number among the visible cards, or UUID.
            interval_s: seconds between samples; 0.2 is well below what a clock needs to settle after a load.
            nvml: an object with the functions of ``pynvml``, already initialised and owned by the caller; None
                opens NVML at :meth:`start` and closes it at :meth:`stop`.
        """
        self.reason = "not started"
        """Why there are no samples, "" while there are."""
        self._device, self._interval_s = device, interval_s
        self._shared_nvml, self._nvml = nvml, nvml
        self._handle: Any | None = None
        self._latest: Sample | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take the first sample and begin sampling; does nothing when already running or without a card."""
        if self._thread is not None:
            return
        self._nvml, self.reason = (self._shared_nvml, "") if self._shared_nvml is not None else open_nvml()
        if self._nvml is None:
            return
        self._handle = device_handle(self._nvml, self._device)
        if self._handle is None:
            self.reason = f"NVML has no device {self._device!r}"
            self._close()
            return
        self._latest = self._sample()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-clocks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End sampling; the latest sample stays readable."""
        if self._thread is None:
            return
        self._stopping.set()
        self._thread.join()
        self._thread = None
        self.reason = "stopped"
        self._close()

    def latest(self) -> Sample | None:
        """Return the newest sample (see ``Sample`` for the keys), None where there never was one."""
        return self._latest

    def mark(self) -> EnergyMark | None:
        """Read the energy counter now, for :func:`energy_between`; None without a counter. Call it outside timing."""
        if self._nvml is None or self._handle is None:
            return None
        energy_mj = ask(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if energy_mj is None else EnergyMark(read_ns=time.perf_counter_ns(), energy_mj=int(energy_mj))

    def __enter__(self) -> ClockSampler:
        """Start."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop."""
        self.stop()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._latest = self._sample()

    def _sample(self) -> Sample:
        nvml, handle = self._nvml, self._handle
        read: Callable[..., Any | None] = lambda function, *args: ask(nvml, function, handle, *args)  # noqa: E731
        throttle_mask = read("nvmlDeviceGetCurrentClocksEventReasons")
        if throttle_mask is None:  # the older name of the same call, for drivers before 535
            throttle_mask = read("nvmlDeviceGetCurrentClocksThrottleReasons")
        power_mw = read("nvmlDeviceGetPowerUsage")
        return {
            "sampled_ns": time.perf_counter_ns(),
            "sm_clock_mhz": read("nvmlDeviceGetClockInfo", getattr(nvml, "NVML_CLOCK_SM", 1)),
            "memory_clock_mhz": read("nvmlDeviceGetClockInfo", getattr(nvml, "NVML_CLOCK_MEM", 2)),
            "temperature_c": read("nvmlDeviceGetTemperature", getattr(nvml, "NVML_TEMPERATURE_GPU", 0)),
            "throttle_mask": throttle_mask,
            "power_w": None if power_mw is None else power_mw / 1e3,
            "energy_mj": read("nvmlDeviceGetTotalEnergyConsumption"),
        }

    def _close(self) -> None:
        if self._shared_nvml is None and self._nvml is not None:
            self._nvml.nvmlShutdown()
        self._nvml, self._handle = None, None

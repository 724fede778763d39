"""The clock sampler against a fake NVML; no GPU is touched."""

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from modelassay.machine.gpu import (
    MIN_ENERGY_WINDOW_S,
    ClockSampler,
    EnergyMark,
    device_handle,
    energy_between,
    open_nvml,
    throttle_reasons,
)

SECOND_NS = 1_000_000_000


class FakeNvmlError(Exception):
    """Stands for pynvml.NVMLError."""


class FakeNvml:
    """Stands for pynvml with two cards; each sample finds the clock 15 MHz lower. ``lacking`` names calls that fail."""

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *, lacking: tuple[str, ...] = (), wanted_samples: int = 3) -> None:
        self.lacking, self.wanted_samples = lacking, wanted_samples
        self.num_samples = self.num_opened = self.num_closed = 0
        self.sampled_enough = threading.Event()

    def nvmlInit(self) -> None:
        self._answer("nvmlInit", None)
        self.num_opened += 1

    def nvmlShutdown(self) -> None:
        self.num_closed += 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index not in (0, 1):
            raise FakeNvmlError("Invalid Argument")
        return ("GPU-aaaa", "GPU-bbbb")[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-aaaa", "GPU-bbbb"):
            raise FakeNvmlError("Not Found")
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        if kind == self.NVML_CLOCK_MEM:
            return int(self._answer("memory clock", 3201))
        self.num_samples += 1
        if self.num_samples >= self.wanted_samples:
            self.sampled_enough.set()
        return int(self._answer("sm clock", 1995 - 15 * self.num_samples))

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        return int(self._answer("temperature", 61))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return int(self._answer("event reasons", 0x4))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return int(self._answer("throttle reasons", 0x40))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return int(self._answer("power", 350_500))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return int(self._answer("energy", 5_000 + 100 * self.num_samples))

    def _answer(self, call: str, value: Any) -> Any:
        if call in self.lacking:
            raise FakeNvmlError("Not Supported")
        return value


def test_first_sample_is_there_at_once_and_complete() -> None:
    with ClockSampler(nvml=FakeNvml(), interval_s=60) as sampler:
        sample = sampler.latest()
        assert sampler.reason == ""
    assert sample is not None
    assert sample.pop("sampled_ns") is not None
    assert sample == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 61,
        "throttle_mask": 0x4,
        "power_w": 350.5,
        "energy_mj": 5_100,
    }


def test_thread_keeps_sampling_until_stopped() -> None:
    nvml = FakeNvml(wanted_samples=4)
    sampler = ClockSampler(nvml=nvml, interval_s=0.001)
    sampler.start()
    assert nvml.sampled_enough.wait(timeout=30)
    sampler.stop()
    taken, latest = nvml.num_samples, sampler.latest()
    assert latest is not None
    assert latest["sm_clock_mhz"] == 1995 - 15 * taken
    assert "gpu-clocks" not in [thread.name for thread in threading.enumerate()]
    assert (nvml.num_opened, nvml.num_closed) == (0, 0), "a given NVML belongs to its giver"


def test_start_and_stop_may_be_repeated() -> None:
    nvml = FakeNvml()
    sampler = ClockSampler(nvml=nvml, interval_s=60)
    for _ in range(2):
        sampler.start()
        sampler.start()
        sampler.stop()
        sampler.stop()
    assert nvml.num_samples == 2


@pytest.mark.parametrize(
    ("lacking", "field"),
    [
        ("sm clock", "sm_clock_mhz"), ("memory clock", "memory_clock_mhz"), ("temperature", "temperature_c"),
        ("power", "power_w"), ("energy", "energy_mj"),
    ],
)  # fmt: skip
def test_a_field_the_card_lacks_is_none_and_the_rest_stay(lacking: str, field: str) -> None:
    with ClockSampler(nvml=FakeNvml(lacking=(lacking,)), interval_s=60) as sampler:
        sample = sampler.latest()
    assert sample is not None
    assert [name for name, value in sample.items() if value is None] == [field]


def test_older_drivers_tell_throttling_under_the_older_name() -> None:
    with ClockSampler(nvml=FakeNvml(lacking=("event reasons",)), interval_s=60) as sampler:
        sample = sampler.latest()
    assert sample is not None
    assert throttle_reasons(int(sample["throttle_mask"] or 0)) == ["hardware thermal"]


def test_own_nvml_is_opened_and_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with ClockSampler(interval_s=60):
        assert (fake.num_opened, fake.num_closed) == (1, 0)
    assert (fake.num_opened, fake.num_closed) == (1, 1)


def test_without_driver_everything_is_none_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(lacking=("nvmlInit",)))
    with ClockSampler() as sampler:
        assert sampler.latest() is None
        assert sampler.mark() is None
        assert sampler.reason == "Not Supported"


def test_without_binding_everything_is_none_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml, reason = open_nvml()
    assert nvml is None
    assert reason.startswith("nvidia-ml-py is not installed")


def test_unknown_device_is_none_and_closes_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    with ClockSampler("GPU-cccc") as sampler:
        assert sampler.latest() is None
        assert sampler.reason == "NVML has no device 'GPU-cccc'"
    assert (fake.num_opened, fake.num_closed) == (1, 1)


@pytest.mark.parametrize(
    ("visible", "device", "handle"),
    [
        (None, 0, "GPU-aaaa"), (None, 1, "GPU-bbbb"), (None, 2, None), ("1", 0, "GPU-bbbb"), ("1,0", 1, "GPU-aaaa"),
        ("1", 1, None), ("", 0, None), ("GPU-bbbb", 0, "GPU-bbbb"), ("-1", 0, None), ("1", "GPU-aaaa", "GPU-aaaa"),
    ],
)  # fmt: skip
def test_devices_count_as_in_torch(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: int | str, handle: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_handle(FakeNvml(), device) == handle


def test_a_binding_without_a_call_gives_none() -> None:
    bare = SimpleNamespace(NVMLError=FakeNvmlError, nvmlDeviceGetHandleByIndex=lambda index: "card")
    with ClockSampler(nvml=bare, interval_s=60) as sampler:
        sample = sampler.latest()
        assert sampler.mark() is None
    assert sample is not None
    assert {name for name, value in sample.items() if value is not None} == {"sampled_ns"}


def test_energy_is_the_difference_of_the_counter() -> None:
    start = EnergyMark(read_ns=7 * SECOND_NS, energy_mj=1_000_000)
    energy = energy_between(start, EnergyMark(read_ns=9 * SECOND_NS, energy_mj=2_400_500))
    assert (energy.joules, energy.window_s, energy.reason) == (1400.5, 2.0, None)
    assert energy.relative_error == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("window_s", "resolved"), [(0.001, False), (0.1, False), (0.499, False), (0.5, True), (1.0, True)]
)
def test_windows_below_the_counter_have_no_energy(window_s: float, resolved: bool) -> None:
    energy = energy_between(
        EnergyMark(read_ns=0, energy_mj=0), EnergyMark(read_ns=round(window_s * SECOND_NS), energy_mj=100)
    )
    assert (energy.joules is not None) is resolved
    assert (energy.reason is None) is resolved
    assert MIN_ENERGY_WINDOW_S == 0.5


def test_energy_without_counter_or_after_a_reset_has_a_reason() -> None:
    mark = EnergyMark(read_ns=0, energy_mj=500)
    assert energy_between(None, mark).reason == "this machine has no GPU energy counter"
    assert energy_between(mark, EnergyMark(read_ns=SECOND_NS, energy_mj=400)).reason == "the energy counter was reset"


def test_mark_reads_the_counter_now() -> None:
    with ClockSampler(nvml=FakeNvml(), interval_s=60) as sampler:
        mark = sampler.mark()
    assert mark is not None
    assert mark.energy_mj == 5_100

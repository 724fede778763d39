"""What `doctor` says of containers, with stand-ins for the engines and cards that are not here."""

from __future__ import annotations

import sys
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from docker.errors import APIError, ImageNotFound, NotFound

from modelassay.containers import doctor as doctor_container
from modelassay.containers.doctor import check_engine_disk, check_gpu_inside, check_images, examine_containers
from modelassay.containers.engine import Engine
from modelassay.containers.images import expected_labels, locked_image

Usage = namedtuple("Usage", "total used free")  # what shutil.disk_usage returns


@dataclass
class Card:
    """An engine's client with one image, whose containers answer as they are told."""

    labels: dict[str, str]
    refusals: dict[str, str] = field(default_factory=dict)
    """How a device is asked for -> what the engine says to that."""
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Command -> exit code and output."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """How, and which command."""
    removed: int = 0

    @property
    def containers(self) -> Card:
        return self

    images = api = containers

    def get(self, reference: str) -> Any:
        if reference != f"modelassay/{self.labels['org.modelassay.image']}:0.1.0":
            raise ImageNotFound("no such image")
        return namedtuple("Found", "id labels tags attrs")("sha256:1", self.labels, [reference], {})

    def create(self, image: str, *, entrypoint: list[str], device_requests: list[Any], network_mode: str) -> Any:
        assert (image, network_mode) == ("sha256:1", "none")
        return _Container(self, device_requests[0]["Driver"] or "request", entrypoint[0])

    def remove_container(self, identity: str, *, force: bool) -> None:
        self.removed += 1
        raise NotFound("gone")


@dataclass
class _Container:
    card: Card
    how: str
    command: str
    id: str = "c1"

    def start(self) -> None:
        self.card.asked.append((self.how, self.command))
        if self.how in self.card.refusals:
            raise APIError("refused", explanation=self.card.refusals[self.how])

    def wait(self, *, timeout: int) -> dict[str, int]:
        if self.command not in self.card.answers:
            raise requests.exceptions.ReadTimeout
        return {"StatusCode": self.card.answers[self.command][0]}

    def logs(self) -> bytes:
        return self.card.answers[self.command][1].encode()


def engine_with(card: Card, **changed: Any) -> Engine:
    values = {"client": card, "name": "Docker 29", "rootless": False, "remaps_users": False, "can_limit_memory": True,
              "memory_bytes": 1 << 36, "root_dir": "/"}  # fmt: skip
    return Engine(**values | changed)


LISTED = (0, "GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n")
CORE = {"org.modelassay.image": "core"}


def test_gpus_are_listed_and_used() -> None:
    card = Card(CORE, answers={"nvidia-smi": LISTED, "python3": (0, "1048576.0")})
    check = check_gpu_inside(engine_with(card))
    assert (check.status, check.fix) == ("ok", None)
    assert check.detail == "GPU 0: NVIDIA H200, GPU 1: NVIDIA H200 (GPUs by the engine's driver)"
    assert card.asked == [("request", "nvidia-smi"), ("request", "python3")]
    assert card.removed == 2


def test_image_for_cpus_has_no_torch_that_could_use_one() -> None:
    card = Card({"org.modelassay.image": "cpu"}, answers={"nvidia-smi": LISTED})
    assert check_gpu_inside(engine_with(card)).status == "ok"
    assert card.asked == [("request", "nvidia-smi")]


def test_cdi_is_tried_where_the_driver_is_not_there() -> None:
    card = Card(CORE, refusals={"request": 'could not select device driver "" with capabilities: [[gpu]]'},
                answers={"nvidia-smi": LISTED, "python3": (0, "1048576.0")})  # fmt: skip
    check = check_gpu_inside(engine_with(card))
    assert (check.status, check.detail.endswith("(GPUs by CDI)")) == ("ok", True)
    assert [how for how, _ in card.asked] == ["request", "cdi", "request", "cdi"]
    assert card.removed == 4


def test_engine_that_refuses_both_ways_wants_the_toolkit() -> None:
    refusals = {how: f'could not select device driver "{how}"' for how in ("request", "cdi")}
    card = Card(CORE, refusals=refusals)
    check = check_gpu_inside(engine_with(card))
    assert check.status == "failed"
    assert 'could not select device driver "cdi"' in check.detail
    assert "install the NVIDIA Container Toolkit" in str(check.fix)
    assert card.removed == 2


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("RuntimeError: Error 803: system has unsupported display driver / cuda driver combination", "after an update of the driver"),
        ("RuntimeError: Error 804: forward compatibility was attempted on non supported HW", "580 or later"),
        ("RuntimeError: CUDA error: out of memory", "Container Toolkit"),
    ],
)  # fmt: skip
def test_errors_of_cuda_inside_are_explained(said: str, fix: str) -> None:
    card = Card(CORE, answers={"nvidia-smi": LISTED, "python3": (1, f"Traceback (most recent call last):\n{said}\n")})
    check = check_gpu_inside(engine_with(card))
    assert check.status == "failed"
    assert check.detail.endswith(said)
    assert fix in str(check.fix)


def test_container_that_hangs_is_removed_and_told() -> None:
    card = Card(CORE)
    check = check_gpu_inside(engine_with(card))
    assert (check.status, "nvidia-smi in modelassay/core:0.1.0 has not ended" in check.detail) == ("failed", True)
    assert card.removed == 1


def test_without_an_image_gpus_cannot_be_tried() -> None:
    check = check_gpu_inside(engine_with(Card({"org.modelassay.image": "other"})))
    assert (check.status, check.fix) == ("missing", "modelassay images build core")


def test_the_image_this_machine_wants_decides() -> None:
    locked, changed = expected_labels(locked_image("cpu")), dict.fromkeys(expected_labels(locked_image("cpu")), "cpu")
    here = check_images(engine_with(Card(locked)), wanted="cpu")
    assert (here.status, here.fix) == ("ok", None)
    assert "cpu: locked; " in here.detail
    assert check_images(engine_with(Card(changed)), wanted="cpu").status == "failed"
    absent = check_images(engine_with(Card(locked)), wanted="core")
    assert (absent.status, absent.fix) == ("missing", "modelassay images build core")


@pytest.mark.parametrize(("free_gb", "status"), [(24, "failed"), (25, "ok")])
def test_disk_where_the_engine_keeps_images(monkeypatch: pytest.MonkeyPatch, free_gb: int, status: str) -> None:
    monkeypatch.setattr(doctor_container.shutil, "disk_usage", lambda path: Usage(10**12, 0, free_gb * 10**9))
    check = check_engine_disk(engine_with(Card(CORE), root_dir="/var/lib/docker"))
    assert (check.status, check.detail) == (status, f"{free_gb}.0 GB free at /var/lib/docker")
    assert (check.fix is None) == (status == "ok")


def test_disk_of_an_engine_elsewhere_is_not_a_fault() -> None:
    assert check_engine_disk(engine_with(Card(CORE), root_dir="/no/such/folder")).status == "ok"


@pytest.mark.parametrize("required", [False, True])
def test_machine_without_an_engine_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch, required: bool) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    (check,) = examine_containers(required=required)
    assert (check.name, check.status, check.required) == ("container engine", "missing", required)
    assert check.detail == "no container engine: there is no /no/such/socket"
    assert str(check.fix).startswith("install Docker")


@pytest.fixture
def without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    for name in ("engine", "session", "settings"):
        monkeypatch.delitem(sys.modules, f"modelassay.containers.{name}", raising=False)


@pytest.mark.usefixtures("without_the_sdk")
def test_missing_sdk_is_a_check_like_any_other() -> None:
    (check,) = examine_containers(required=False)
    assert (check.status, check.fix) == ("missing", "pip install 'docker>=7.1'")

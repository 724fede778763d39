"""A real container engine, and images with the toy experiment and this checkout's code; without them, skips that say why."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelassay.containers.images import expected_labels, locked_image
from modelassay.errors import HostError
from support.toy_suite import REPOSITORY

BASE = os.environ.get("MODELASSAY_TEST_IMAGE", "modelassay/cpu:0.1.0")


@dataclass(frozen=True)
class ToyImages:
    """References of images that hold the toy."""

    locked: str
    """Carries the labels of what docker/images.lock.json pins as ``cpu``."""
    unlocked: str
    """Another digest, and a label that differs."""
    empty: str
    """Without modelassay."""
    idle: str
    """Sleeps for ten minutes instead of running modelassay."""


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """The SDK's client of the engine that the environment names."""
    from modelassay.containers.engine import connect

    try:
        connection = connect(timeout_s=120)
    except HostError as error:
        pytest.skip(f"no container engine: {error}")
    yield connection.client
    connection.client.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the engine."""
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker("docker")


@pytest.fixture(scope="session")
def cpu_image(engine: Any) -> str:
    """The reference of the built cpu image: ``MODELASSAY_TEST_IMAGE``, or what ci/image gives."""
    import docker.errors

    try:
        engine.images.get(BASE)
    except docker.errors.ImageNotFound:
        pytest.skip(
            f"image {BASE} is not on this engine; build it (ci/image cpu), or name one with MODELASSAY_TEST_IMAGE"
        )
    return BASE


@pytest.fixture(scope="session")
def toy(engine: Any) -> Iterator[ToyImages]:
    """Images on top of ``MODELASSAY_TEST_IMAGE``: its libraries and entry, this checkout's code, the toy."""
    import docker.errors

    try:
        engine.images.get(BASE)
    except docker.errors.ImageNotFound:
        pytest.skip(
            f"image {BASE} is not on this engine; build it (modelassay images build cpu), or name one with MODELASSAY_TEST_IMAGE"
        )
    stem = f"modelassay-test/{uuid.uuid4().hex[:8]}"
    labels = expected_labels(locked_image("cpu"))
    built = ToyImages(locked=f"{stem}:locked", unlocked=f"{stem}:unlocked", empty=f"{stem}:empty", idle=f"{stem}:idle")
    copy = "COPY bench /checkout/bench\nCOPY kernels /checkout/kernels\nCOPY toy /checkout/bench/toy\nENV PYTHONPATH=/checkout/bench:/checkout/kernels\n"
    _build(engine, built.locked, f"FROM {BASE}\n{copy}", labels)
    _build(engine, built.unlocked, f"FROM {built.locked}\n", labels | {"org.modelassay.lock.sha256": "f" * 64})
    _build(engine, built.empty, f"FROM {BASE}\nENTRYPOINT []\n", labels)
    _build(engine, built.idle, f'FROM {BASE}\nENTRYPOINT ["sh", "-c", "exec sleep 600"]\n', labels)
    yield built
    for reference in (built.idle, built.empty, built.unlocked, built.locked):
        engine.images.remove(reference, force=True)


def _build(engine: Any, reference: str, dockerfile: str, labels: Mapping[str, str]) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        tar.addfile(entry, io.BytesIO(dockerfile.encode()))
        for inside, folder in (("bench", REPOSITORY / "bench"), ("kernels", REPOSITORY / "kernels"), ("toy", REPOSITORY / "tests/toy")):  # fmt: skip
            for path in sorted(folder.rglob("*.py")) + sorted(folder.rglob("*.txt")) + sorted(folder.rglob("*.json")):
                tar.add(path, f"{inside}/{path.relative_to(folder)}")
    context.seek(0)
    engine.images.build(fileobj=context, custom_context=True, tag=reference, labels=dict(labels), rm=True)


def open_to_all(folder: Path) -> None:
    """Let other users into ``folder``: pytest keeps its folders from them."""
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)


@pytest.fixture
def owner(tmp_path: Path) -> tuple[int, int]:
    """User and group that results belong to; ``tmp_path / "runs"`` is theirs."""
    runs = tmp_path / "runs"
    runs.mkdir()
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    os.chown(runs, 1234, 1234)
    return 1234, 1234


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: tuple[int, int]) -> None:
    """A cache that the container's user may write to, and no token."""
    cache = tmp_path / "cache"
    cache.mkdir()
    os.chown(cache, *owner)
    monkeypatch.setenv("MODELASSAY_CACHE", str(cache))
    monkeypatch.delenv("HF_TOKEN", raising=False)

"""Building and verifying images against a real engine; the registry is a stand-in on the loopback interface."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from modelassay.containers import build as image_build
from modelassay.containers import images
from modelassay.containers.build import build, revision, source_date_epoch, verify, verify_all, write_context
from modelassay.containers.images import Image, expected_labels, locked_image, why_not_locked
from modelassay.errors import HostError, UsageError

ROOT = Path(__file__).parents[2]

# As small as an image can be, with the labels of the real ones.
TINY = "\n".join([
    "ARG BASE", "ARG BASE_DIGEST", "ARG IMAGE", "ARG VERSION", "ARG REVISION", "ARG LOCK_SHA256", "ARG SOURCE_DATE_EPOCH",
    "FROM scratch", "ARG BASE", "ARG BASE_DIGEST", "ARG IMAGE", "ARG VERSION", "ARG REVISION", "ARG LOCK_SHA256",
    "COPY docker/wheels /wheels", "COPY suites /suites",
    'LABEL org.modelassay.image="$IMAGE" org.modelassay.lock.sha256="$LOCK_SHA256" \\',
    '  org.opencontainers.image.version="$VERSION" org.opencontainers.image.revision="$REVISION" \\',
    '  org.opencontainers.image.base.name="$BASE" org.opencontainers.image.base.digest="$BASE_DIGEST"',
    "",
])  # fmt: skip


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose Dockerfile is tiny, and which no git knows."""
    checkout = tmp_path / "checkout"
    for name in ("bench", "kernels", "suites", "ci", "docker/wheels"):
        (checkout / name).mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "suites/fingerprinting.yaml", "ci/constraints.txt",
                 "docker/images.lock.json", "docker/wheels/README.md"):  # fmt: skip
        shutil.copy(ROOT / name, checkout / name)
    (checkout / "docker/Dockerfile").write_text(TINY)
    monkeypatch.setattr(image_build, "required_checkout", lambda _: checkout)
    monkeypatch.setattr(images, "lock_path", lambda: checkout / "docker/images.lock.json")
    return checkout


@pytest.fixture
def tiny(engine: Any, top: Path) -> Iterator[Image]:
    image = dataclasses.replace(locked_image("cpu"), reference=f"modelassay-test/{uuid.uuid4().hex[:8]}:0.1.0")
    yield image
    for tagged in engine.images.list(name=image.reference):
        engine.images.remove(tagged.id, force=True)


def quiet(_: str) -> None:
    """Nobody listens."""


def test_build_tags_and_labels_what_the_lock_pins(tiny: Image, engine: Any) -> None:
    log: list[str] = []
    built = build(tiny, base=None, wheels=None, report=log.append)
    assert built["why_not_locked"] is None
    image = engine.images.get(tiny.reference)
    assert image.id == built["id"]
    assert expected_labels(tiny).items() <= image.labels.items()
    assert image.labels["org.opencontainers.image.revision"] == "unknown"
    assert any(line.startswith("Step 1/") for line in log)


def test_build_on_another_base_is_not_locked_and_says_so(tiny: Image) -> None:
    built = build(tiny, base="local/other:1", wheels=None, report=quiet)
    assert built["labels"]["org.opencontainers.image.base.digest"] == ""
    assert built["why_not_locked"].startswith("its base is local/other:1, and the lock pins python:3.11")
    assert why_not_locked(tiny, built["labels"]) == built["why_not_locked"]


def test_same_sources_give_the_same_layers(tiny: Image, top: Path, engine: Any) -> None:
    def layers() -> list[str]:
        digests: list[str] = engine.images.get(build(tiny, base=None, wheels=None, report=quiet)["id"]).attrs["RootFS"][
            "Layers"
        ]
        return digests

    first = layers()
    (top / "suites/fingerprinting.yaml").touch()
    (top / "suites/fingerprinting.yaml").chmod(0o600)
    assert layers() == first
    (top / "suites/fingerprinting.yaml").write_text("suite: other\n")
    assert layers()[-1] != first[-1]


def test_failed_build_ends_with_the_last_lines_of_its_log(tiny: Image, top: Path) -> None:
    (top / "docker/Dockerfile").write_text(TINY + "COPY no/such/file /\n")
    with pytest.raises(HostError, match=r"cpu: the build failed: .*no/such/file") as caught:
        build(tiny, base=None, wheels=None, report=quiet)
    lines = str(caught.value).splitlines()
    assert lines[-1].strip().startswith("Step ")
    assert len(lines) <= 1 + image_build.NUM_LAST_LINES


def test_base_that_cannot_be_pulled_is_answered_with_a_way_out(tiny: Image, top: Path) -> None:
    (top / "docker/Dockerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    with pytest.raises(HostError, match="name another with --base"):
        build(tiny, base="127.0.0.1:9/nothing/there:1", wheels=None, report=quiet)


def test_build_without_an_engine_is_an_error_of_the_host(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{top}/no.sock")
    with pytest.raises(HostError, match=r"no container engine: there is no .*no\.sock"):
        build(locked_image("cpu"), base=None, wheels=None, report=quiet)


def test_wheels_must_be_a_folder(top: Path) -> None:
    with pytest.raises(UsageError, match="--wheels takes a folder"):
        build(locked_image("cpu"), base=None, wheels=top / "nothing", report=quiet)


def test_context_holds_the_given_wheels_and_nothing_stray(top: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "one-1-py3-none-any.whl").write_bytes(b"wheel")
    (wheels / "notes.txt").write_text("not a wheel")
    (top / "docker/wheels/stale-1-py3-none-any.whl").write_bytes(b"stale")
    (top / "bench/__pycache__").mkdir()
    (top / "bench/__pycache__/x.pyc").write_bytes(b"")
    (top / "bench/_native.so").write_bytes(b"")
    (top / ".env").write_text("TOKEN=secret")
    context = io.BytesIO()
    write_context(context, top=top, wheels=wheels, epoch=400_000_000)
    with tarfile.open(fileobj=context) as tar:
        entries = tar.getmembers()
    assert {entry.name for entry in entries if entry.isfile()} == {
        "pyproject.toml", "README.md", "suites/fingerprinting.yaml", "ci/constraints.txt", "docker/images.lock.json",
        "docker/Dockerfile", "docker/wheels/README.md", "docker/wheels/one-1-py3-none-any.whl",
    }  # fmt: skip
    assert {(entry.mtime, entry.uid, entry.uname) for entry in entries} == {(400_000_000, 0, "root")}


def test_time_of_files_is_source_date_epoch(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert source_date_epoch(top) == 1_700_000_000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "5")  # a wheel cannot hold a time before 1980
    assert source_date_epoch(top) == 315_532_800
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="'yesterday' is not a number of seconds"):
        source_date_epoch(top)
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert source_date_epoch(top) == 315_532_800
    assert revision(top) == "unknown"


# --- the registry


class Registry:
    """Answers for one tag, as a registry does when it is asked what the tag names."""

    def __init__(self) -> None:
        self.media_type = "application/vnd.oci.image.index.v1+json"
        platform = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2, "digest": "sha256:" + "1" * 64,
                    "platform": {"os": "linux", "architecture": "amd64"}}  # fmt: skip
        config = {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": 2,
            "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
        }
        self.bodies = {
            "application/vnd.oci.image.index.v1+json": {"manifests": [platform]},
            "application/vnd.oci.image.manifest.v1+json": {"config": config, "layers": []},
        }
        self.status = 200

    def body(self) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": self.media_type, **self.bodies[self.media_type]}).encode()

    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.body()).hexdigest()}"


@pytest.fixture
def registry(engine: Any) -> Iterator[tuple[Registry, str]]:
    """A registry, and the reference of the tag it answers for."""
    served = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"{}" if self.path == "/v2/" or "/blobs/" in self.path else served.body()
            self.send_response(served.status if "/manifests/" in self.path else 200)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            if "/manifests/" in self.path:
                self.send_header("Content-Type", served.media_type)
                self.send_header("Docker-Content-Digest", served.digest())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served, f"127.0.0.1:{server.server_address[1]}/library/python:3.11"
    server.shutdown()
    server.server_close()
    thread.join()


def pin(top: Path, tag: str, digest: str | None) -> Image:
    path = top / "docker/images.lock.json"
    lock = json.loads(path.read_text())
    lock["images"] = {"cpu": lock["images"]["cpu"]}
    lock["images"]["cpu"]["base"] |= {"tag": tag, "index_digest": digest}
    path.write_text(json.dumps(lock))
    return locked_image("cpu")


def test_pin_that_the_registry_confirms_is_noted(top: Path, registry: tuple[Registry, str]) -> None:
    served, tag = registry
    assert pin(top, tag, served.digest()).verified_at is None
    when = verify_all(())["cpu"]
    assert locked_image("cpu").verified_at == when
    assert when.endswith("Z")
    assert locked_image("cpu").base_platform_digest is None  # an index: which platforms it holds was not asked


def test_pin_of_a_single_platform_is_found_out(top: Path, registry: tuple[Registry, str]) -> None:
    served, tag = registry
    served.media_type = "application/vnd.oci.image.manifest.v1+json"
    pin(top, tag, served.digest())
    verify(locked_image("cpu"))
    assert locked_image("cpu").base_platform_digest == served.digest()


@pytest.mark.parametrize("pinned", ["sha256:" + "b" * 64, None])
def test_tag_that_names_another_digest_is_refused_with_both(top: Path, registry: tuple[Registry, str],
                                                           pinned: str | None) -> None:  # fmt: skip
    served, tag = registry
    image = pin(top, tag, pinned)
    before = (top / "docker/images.lock.json").read_bytes()
    with pytest.raises(HostError) as caught:
        verify(image)
    assert served.digest() in str(caught.value)
    assert (pinned or "no digest") in str(caught.value)
    assert (top / "docker/images.lock.json").read_bytes() == before


def test_registry_that_does_not_answer_changes_nothing(top: Path, registry: tuple[Registry, str]) -> None:
    served, tag = registry
    served.status = 503
    images_before = (pin(top, tag, served.digest()), (top / "docker/images.lock.json").read_bytes())
    with pytest.raises(HostError, match=r"its registry cannot be reached \(.*\); nothing was changed"):
        verify(images_before[0])
    assert (top / "docker/images.lock.json").read_bytes() == images_before[1]


# --- the cpu image itself


def test_image_says_its_version_and_holds_no_tools(engine: Any, cpu_image: str) -> None:
    version = engine.containers.run(cpu_image, ["--version"], remove=True, network_mode="none")
    assert version.decode() == "modelassay, version 0.1.0\n"
    listed = engine.containers.run(cpu_image, ["-c", "ls /opt / && id -u 65532 || true"], entrypoint="sh", remove=True)
    names = set(listed.decode().split())
    assert "modelassay" in names
    assert names.isdisjoint({"tools", "wheels", "source", "own", "locks"})


def test_image_reads_its_own_lock_and_has_the_compiled_kernels(engine: Any, cpu_image: str) -> None:
    options = {"remove": True, "network_mode": "none", "read_only": True, "tmpfs": {"/tmp": ""}, "user": "1234:0"}
    listed = json.loads(engine.containers.run(cpu_image, ["images", "--json"], **options))
    assert listed["cpu"]["lock_sha256"] == locked_image("cpu").lock_sha256
    probe = "import torch, modelassay_kernels; print(torch.__version__, modelassay_kernels.native_available())"
    output = engine.containers.run(cpu_image, ["-c", probe], entrypoint="python", **options)
    assert output.decode() == "2.13.0+cpu True\n"


def test_image_carries_the_labels_of_its_build(engine: Any, cpu_image: str) -> None:
    labels = engine.images.get(cpu_image).labels
    expected = expected_labels(locked_image("cpu"))
    assert labels["org.modelassay.lock.sha256"] == expected["org.modelassay.lock.sha256"]
    assert labels["org.modelassay.image"] == "cpu"
    assert labels["org.opencontainers.image.base.name"]

"""docker/: the lock, the requirement locks and the Dockerfiles hold together; none of it needs an engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

import modelassay
from modelassay.cli import cli
from modelassay.containers import images
from modelassay.containers.images import (
    LABEL_BASE_DIGEST,
    LABEL_BASE_NAME,
    LABEL_IMAGE,
    LABEL_LOCK,
    LABEL_VERSION,
    expected_labels,
    locked_image,
    locked_images,
    why_not_locked,
)
from modelassay.errors import HostError, UsageError

ROOT = Path(__file__).parents[2]
NAMES = ["core", "cpu", "vllm"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def pins(path: Path) -> dict[str, str]:
    """Name -> version of a constraints file or a hashed lock, without the local part of a version."""
    lines = [line.split(" --hash")[0].strip() for line in path.read_text().splitlines()]
    return {
        canonicalize_name(name): version.split("+")[0]
        for name, version in (line.split("==") for line in lines if line and not line.startswith("#"))
    }


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of docker/ that may be changed."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker", ignore=shutil.ignore_patterns("wheels"))
    monkeypatch.setattr(images, "lock_path", lambda: tmp_path / "docker/images.lock.json")
    return tmp_path


def edit(top: Path, name: str, **base: Any) -> None:
    path = top / "docker/images.lock.json"
    lock = json.loads(path.read_text())
    lock["images"][name]["base"] |= base
    path.write_text(json.dumps(lock))


def test_lock_names_the_three_images_and_pins_each_base_by_digest() -> None:
    assert list(locked_images()) == NAMES
    for image in locked_images().values():
        assert image.base_index_digest is not None
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", image.base_index_digest)
        assert image.pinned_base == f"{image.base}@{image.base_index_digest}"
        assert image.base_source
        assert image.reference == f"modelassay/{image.name}:{modelassay.__version__}"


def test_unknown_image_is_answered_with_the_closest_name() -> None:
    with pytest.raises(UsageError, match=r"cpuu: no such image; did you mean 'cpu'\?"):
        locked_image("cpuu")
    with pytest.raises(UsageError, match="there are core, cpu, vllm"):
        locked_image("zebra")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not an image lock"),
        ('{"format": 2, "images": {}}', "not an image lock of format 1"),
        ('{"format": 1, "images": {"cpu": {"reference": "x:1"}}}', r"images\.cpu: 'base' is missing"),
        ('{"format": 1, "images": {"cpu": {"base": []}}}', r"images\.cpu: .* is missing"),
    ],
)
def test_damaged_lock_is_a_usage_error_that_says_what_to_do(top: Path, text: str, message: str) -> None:
    (top / "docker/images.lock.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        locked_images()


def test_missing_lock_is_a_usage_error(top: Path) -> None:
    (top / "docker/images.lock.json").unlink()
    with pytest.raises(UsageError, match="restore it from the project's repository"):
        locked_images()


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_a_locked_build_are_what_the_lock_pins(name: str) -> None:
    image = locked_image(name)
    assert why_not_locked(image, expected_labels(image) | {"unrelated": "label"}) is None


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        (LABEL_IMAGE, "core", "it is the image 'core', not 'cpu'"),
        (LABEL_VERSION, "0.0.1", "it was built from modelassay 0.0.1"),
        (LABEL_BASE_NAME, "local/python:bookworm", "its base is local/python:bookworm, and the lock pins python:3.11"),
        (LABEL_BASE_DIGEST, "sha256:" + "0" * 64, "its base has the digest 'sha256:0000"),
        (LABEL_LOCK, "f" * 64, "its requirements have the sha256 ffff"),
        (LABEL_LOCK, None, r"its requirements have the sha256 \(no label\)"),
        (LABEL_IMAGE, None, "it was not built from docker/Dockerfile"),
    ],
)
def test_each_difference_from_the_lock_is_said(label: str, value: str | None, message: str) -> None:
    image = locked_image("cpu")
    labels = {k: v for k, v in (expected_labels(image) | {label: value}).items() if v is not None}
    why = why_not_locked(image, labels)
    assert why is not None
    assert re.search(message, why)


def test_everything_the_lock_pins_is_fresh(top: Path) -> None:
    """What `modelassay images lock` would write is what is committed."""
    assert images.refresh_lock(top) == []
    for path in sorted((top / "docker").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (ROOT / path.relative_to(top)).read_bytes()


def test_a_changed_requirement_lock_and_pin_reach_lock_and_dockerfile(top: Path) -> None:
    requirements = top / "docker/locks/cpu.txt"
    requirements.write_text(requirements.read_text() + "# one more line\n")
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    edit(top, "cpu", tag="python:3.11.17", index_digest="sha256:" + "a" * 64)
    changed = images.refresh_lock(top)
    assert changed == [
        f"cpu: docker/locks/cpu.txt has the sha256 {digest}",
        "cpu: docker/Dockerfile names what the lock pins",
    ]
    assert locked_image("cpu").lock_sha256 == digest
    text = (top / "docker/Dockerfile").read_text()
    assert f"ARG BASE=python:3.11.17@sha256:{'a' * 64}\nARG BASE_DIGEST=sha256:{'a' * 64}\n" in text
    assert f"ARG LOCK_SHA256={digest}\n" in text
    assert images.refresh_lock(top) == []


def test_base_without_a_known_digest_is_pinned_by_its_tag_alone(top: Path) -> None:
    edit(top, "cpu", index_digest=None)
    images.refresh_lock(top)
    text = (top / "docker/Dockerfile").read_text()
    assert "ARG BASE=python:3.11.16-slim-bookworm\nARG BASE_DIGEST=\n" in text
    assert expected_labels(locked_image("cpu"))[LABEL_BASE_DIGEST] == ""


def test_missing_requirement_lock_says_how_to_make_it(top: Path) -> None:
    (top / "docker/locks/vllm.txt").unlink()
    with pytest.raises(HostError, match="make it with ci/lock vllm"):
        images.refresh_lock(top)


def test_installed_without_a_checkout_there_is_nothing_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "checkout", lambda: None)
    with pytest.raises(HostError, match="images build needs the project's checkout"):
        images.required_checkout("build")


# --- requirement locks


@pytest.mark.parametrize("name", [*NAMES, "build"])
def test_requirement_lock_is_hashed_sorted_and_without_addresses(name: str) -> None:
    text = (ROOT / f"docker/locks/{name}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.+!]* --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert "://" not in text


@pytest.mark.parametrize("name", NAMES)
def test_requirement_lock_covers_the_project_at_the_versions_of_ci(name: str) -> None:
    """Every dependency is locked at its pin, or kept by the base; nothing in the lock differs from a pin."""
    locked, pinned = pins(ROOT / f"docker/locks/{name}.txt"), pins(ROOT / "ci/constraints.txt")
    shared = locked.keys() & pinned.keys()
    assert {n: locked[n] for n in shared} == {n: pinned[n] for n in shared}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    missing = dependencies - locked.keys()
    # vLLM's image has what vLLM needs.
    brought = {"click", "huggingface-hub", "numpy", "nvidia-ml-py", "pydantic", "rich", "safetensors", "tokenizers",
               "torch", "transformers"}  # fmt: skip
    assert missing == {"core": {"torch"}, "cpu": set(), "vllm": brought}[name]


def test_no_lock_holds_triton() -> None:
    """It is 0.7 GB; the bases with a GPU's libraries keep theirs, and the cpu image has no use for it."""
    assert [name for name in NAMES if "triton" in pins(ROOT / f"docker/locks/{name}.txt")] == []


def test_every_dependency_is_pinned_for_ci() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert dependencies - pins(ROOT / "ci/constraints.txt").keys() == set()


def test_what_builds_the_wheel_is_what_ci_builds_with() -> None:
    locked, pinned = pins(ROOT / "docker/locks/build.txt"), pins(ROOT / "ci/constraints.txt")
    build = ("scikit-build-core", "nanobind", "cmake", "ninja")
    assert {name: locked[name] for name in build} == {name: pinned[name] for name in build}


# --- Dockerfiles


def test_stages_and_what_each_image_stands_on() -> None:
    """The GPU images keep the compiler that Triton needs; the other has none."""
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == [
        "${BASE} AS base",
        "base AS toolchain",
        "toolchain AS dependencies",
        "dependencies AS builder",
        "${FOUNDATION}",
    ]
    foundations = {name: image.foundation for name, image in locked_images().items()}
    assert foundations == {"core": "toolchain", "cpu": "base", "vllm": "toolchain"}


@pytest.mark.parametrize("name", NAMES)
def test_a_build_names_what_the_lock_pins(name: str) -> None:
    image = locked_image(name)
    assert images.dockerfile_arguments(image) == {
        "BASE": f"{image.base}@{image.base_index_digest}",
        "BASE_DIGEST": image.base_index_digest,
        "IMAGE": name,
        "VERSION": modelassay.__version__,
        "LOCK_SHA256": hashlib.sha256((ROOT / f"docker/locks/{name}.txt").read_bytes()).hexdigest(),
        "FOUNDATION": image.foundation,
    }


def test_without_arguments_it_is_the_cpu_image() -> None:
    defaults = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    assert defaults.pop("REVISION") == "unknown"
    assert int(defaults.pop("SOURCE_DATE_EPOCH")) >= 315532800  # zip files begin in 1980
    assert defaults == images.dockerfile_arguments(locked_image("cpu"))


def test_only_the_classic_builders_syntax_is_used_and_nothing_moves() -> None:
    assert "--mount" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    assert ":latest" not in DOCKERFILE
    assert "ADD " not in DOCKERFILE
    assert "http" not in DOCKERFILE
    installs = re.findall(r"pip --python \S+ install.*?(?:;|\n(?! ))", DOCKERFILE, re.DOTALL)
    assert len(installs) == 2
    assert all("--require-hashes" in command or "--no-index" in command for command in installs)
    assert all("--no-deps" in command for command in installs)


def test_labels_say_what_the_image_is() -> None:
    labels = set(re.findall(r"(org\.[\w.]+)=\"\$\{\w+\}\"", DOCKERFILE))
    assert labels >= {*expected_labels(locked_image("cpu")), "org.opencontainers.image.revision"}
    assert 'org.opencontainers.image.title="modelassay ${IMAGE}"' in DOCKERFILE


def test_the_entry_decides_the_user_and_runs_land_in_the_mounted_folder() -> None:
    """The entry becomes the owner of /runs, so that results belong to the caller: tests of it are in test_entrypoint."""
    last = DOCKERFILE.split("FROM ${FOUNDATION}\n")[1]
    assert "COPY docker/entrypoint.sh /usr/local/bin/modelassay-entrypoint\n" in last
    assert 'ENTRYPOINT ["/usr/local/bin/modelassay-entrypoint"]' in last
    assert "\nWORKDIR /\n" in last
    assert os.access(ROOT / "docker/entrypoint.sh", os.X_OK)


def test_only_what_the_dockerfile_copies_is_in_the_context() -> None:
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")
    assert all(any(word == entry or word.startswith(f"{entry}/") for entry in allowed) for word in copied)


def test_folder_of_wheels_is_there_and_is_not_committed() -> None:
    assert (ROOT / "docker/wheels/README.md").is_file()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/docker/wheels/*" in ignored
    assert "!/docker/wheels/README.md" in ignored


@pytest.mark.parametrize("folder", ["docker", "tests/docker"])
def test_folders_called_docker_do_not_hide_the_sdk(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_compose_file_asks_for_gpus_and_gives_up_what_it_does_not_need() -> None:
    service = YAML(typ="safe").load(ROOT / "docker/compose.yaml")["services"]["modelassay"]
    assert service["image"] == locked_image("core").reference
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["shm_size"] == "16gb"
    assert service["ulimits"] == {"memlock": -1, "stack": 67108864}
    assert service["user"].endswith(":0")
    assert any(mount.startswith("/tmp:exec") for mount in service["tmpfs"])
    targets = {volume["target"] for volume in service["volumes"]}
    assert targets == {"/runs", service["environment"]["HF_HOME"], service["environment"]["MODELASSAY_CACHE"]}
    assert service["environment"]["HF_TOKEN"] is None  # passed on, never written down


def test_compose_file_holds_only_what_the_compose_of_debian_12_knows() -> None:
    """What compose_spec.json of docker-compose 1.29.2 allows; a newer key is an error there."""
    compose = YAML(typ="safe").load(ROOT / "docker/compose.yaml")
    assert compose.keys() <= {"version", "services", "networks", "volumes", "secrets", "configs"}
    for volume in compose["services"]["modelassay"]["volumes"]:
        assert volume.keys() <= {"type", "source", "target", "read_only", "consistency", "bind", "volume", "tmpfs"}
        assert volume.get("bind", {}).keys() <= {"propagation"}


# --- verbs


def test_images_without_a_verb_lists_them() -> None:
    done = CliRunner().invoke(cli, ["images", "--json"])
    assert done.exit_code == 0
    listed = json.loads(done.output)
    assert list(listed) == NAMES
    assert listed["cpu"]["lock_sha256"] == locked_image("cpu").lock_sha256
    assert locked_image("cpu").reference in CliRunner().invoke(cli, ["images"]).output


def test_images_lock_says_when_there_is_nothing_to_do() -> None:
    assert CliRunner().invoke(cli, ["images", "lock"]).output == "everything is up to date\n"

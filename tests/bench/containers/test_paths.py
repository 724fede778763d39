"""What a container sees of hostile model folders, of dangerous paths, of texts that look like paths, and of honest models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelassay.containers import settings
from modelassay.containers.paths import MAX_ENTRIES
from modelassay.errors import UsageError
from modelassay.suite import load_suite
from support.hostile_folders import HOSTILE, Scene, listen, make_scene
from support.toy_suite import SUITE, write_suite

FINGERPRINTING = """\
suite: fingerprinting
question: What is seen?
profiles:
  embedded: {}
"""
DOWNLOADS = FINGERPRINTING.replace("fingerprinting", "downloads")
SPECTRAL = FINGERPRINTING.replace("fingerprinting", "spectral")


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scene:
    root = tmp_path / "scene"
    root.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return make_scene(root)


def seen(scene: Scene, text: str, **params: Any) -> dict[str, str]:
    """What the container sees beside the run directory and the cache: paths inside, and what lies there, below the scene."""
    overrides = [f"{name}={json.dumps(value)}" for name, value in params.items()]
    suite = load_suite(str(write_suite(Path.cwd(), text)), overrides=overrides)
    shown = settings.binds(suite, Path("runs/a"), {"HF_HUB_CACHE": str(scene.hub)}, offline=True, suite_file=False)
    assert [bind.writable for bind in shown] == [True, True] + [False] * (len(shown) - 2)
    return {str(bind.path): str(bind.source) for bind in shown[2:]}


@pytest.mark.parametrize(("make", "says"), HOSTILE, ids=[make.__name__ for make, _ in HOSTILE])
def test_hostile_model_folder_is_refused(scene: Scene, make: Callable[[Scene], Path], says: str) -> None:
    folder = make(scene)
    with pytest.raises(UsageError) as caught:
        seen(scene, FINGERPRINTING, model=str(folder))
    message = str(caught.value).replace(str(scene.root), "ROOT")
    assert says in message
    assert message.startswith(f"model={str(folder).replace(str(scene.root), 'ROOT')}: ")
    assert message.isprintable()


TEXTS = ["/root", "/", "/var/run/docker.sock", "/etc/passwd", ".", "..", "~", "ROOT/model", "ROOT/secret/key", "hf:a/b"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_looks_like_a_path_is_only_text(scene: Scene, text: str) -> None:
    """Parameters that are not declared as paths, of a third party's experiment and of a shipped one."""
    scene.model()
    text = text.replace("ROOT", str(scene.root))
    assert seen(scene, SUITE, note=text, say=text) == {}
    assert seen(scene, FINGERPRINTING, model="zoo:base", family=text) == {}
    for file, more in ((SUITE, {"note": text}), (FINGERPRINTING, {"model": "zoo:base", "family": text})):
        overrides = [f"{name}={json.dumps(value)}" for name, value in more.items()]
        assert settings.is_offline(load_suite(str(write_suite(Path.cwd(), file)), overrides=overrides), {})


DANGEROUS = [
    ("/", "a folder of the system"),
    ("/root", "a folder of the system"),
    ("/usr/lib", "a folder of the system"),
    ("/tmp/../tmp", "a folder of the system"),
    ("/etc", "lies in /etc, which belongs to the system"),
    ("/etc/passwd", "lies in /etc, which belongs to the system"),
    ("/dev", "lies in /dev, which belongs to the system"),
    ("/dev/null", "lies in /dev, which belongs to the system"),
    ("/dev/shm", "lies in /dev, which belongs to the system"),
    ("/proc", "lies in /proc, which belongs to the system"),
    ("/proc/self/environ", "lies in /proc, which belongs to the system"),
    ("/sys/kernel", "lies in /sys, which belongs to the system"),
    ("/var/run", "lies in /run, which belongs to the system"),
    ("BASE", "holds the run directory (BASE/work/runs/a)"),
    ("BASE/work", "holds the run directory (BASE/work/runs/a)"),
    ("BASE/cache", "holds modelassay's cache (BASE/cache)"),
    ("BASE/scene/hf", "holds the Hub's cache (BASE/scene/hf/hub)"),
    ("BASE/home", "holds your home folder (BASE/home)"),
    ("BASE/scene/hf/token", "holds the Hub's token (BASE/scene/hf/token)"),
    ("BASE/home/.docker", "lies in .docker, which holds credentials"),
    ("BASE/home/.ssh/id_rsa", "lies in .ssh, which holds credentials"),
    ("BASE/docker.sock", "a socket"),
    ("BASE/fifo", "a FIFO"),
]


@pytest.mark.parametrize("parameter", ["model", "data"])
@pytest.mark.parametrize(("text", "says"), DANGEROUS, ids=[text for text, _ in DANGEROUS])
def test_declared_path_that_no_container_is_shown(scene: Scene, parameter: str, text: str, says: str) -> None:
    base = scene.root.parent
    for name in ("cache", "home", "work/runs/a"):
        (base / name).mkdir(parents=True)
    for name in ("home/.docker/config.json", "home/.ssh/id_rsa", "scene/hf/token"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("secret")
    listen(base / "docker.sock")
    os.mkfifo(base / "fifo")
    with pytest.raises(UsageError) as caught:
        seen(scene, SPECTRAL, **{"model": "zoo:base", "data": "corpus:en", parameter: text.replace("BASE", str(base))})
    expected = {"model": "the folder of one model", "data": "a file"}[parameter]
    assert str(caught.value).replace(str(base), "BASE") == (
        f"{parameter}={text}: {says}; a container is not shown it: name {expected}"
    )


def test_what_is_not_there_is_left_to_the_command_inside(scene: Scene) -> None:
    for text in ("no/such/folder", "x" * 5000, "a\0b", "", "zoo:base"):
        assert seen(scene, FINGERPRINTING, model=text) == {}
    assert seen(scene, FINGERPRINTING, model="hf:a/b").keys() == {str(scene.hub)}


def test_folder_of_a_model_is_seen_as_it_is_named(scene: Scene) -> None:
    folder = scene.model()
    (folder / "vocab.json").symlink_to("model.safetensors")
    (folder / "latest").symlink_to(".")
    (folder / "gone").symlink_to("nothing")
    Path("by-link").symlink_to(folder)
    here = {str(Path("by-link").absolute()): str(folder), str(folder): str(folder)}
    assert seen(scene, FINGERPRINTING, model="by-link", against=[str(folder), "zoo:base"]) == here
    assert seen(scene, SPECTRAL, model="../scene/model", data="corpus:en") == {str(folder): str(folder)}


def test_link_by_another_name_of_the_folder_is_refused(scene: Scene) -> None:
    """Inside there is only the name that the parameter gives; the link would lead to nothing."""
    folder = scene.model()
    (folder / "vocab.json").symlink_to(folder / "config.json")
    Path("by-link").symlink_to(folder)
    assert seen(scene, FINGERPRINTING, model=str(folder)) == {str(folder): str(folder)}
    with pytest.raises(UsageError, match="vocab.json: a link to .*scene/model/config.json"):
        seen(scene, FINGERPRINTING, model="by-link")


def test_snapshot_in_the_hubs_cache_is_seen_with_its_own_blobs(scene: Scene) -> None:
    snapshot = scene.snapshot()
    blobs = snapshot.parents[1] / "blobs"
    (blobs / "old").write_text("of another revision")
    (snapshot / "onnx").mkdir()
    (snapshot / "onnx/model.onnx").symlink_to("../../../blobs/9abc")
    (blobs / "9abc").write_text("weights")
    (snapshot / "gone").symlink_to("../../blobs/gone")
    expected = {str(path): str(path) for path in (snapshot, blobs / "1234", blobs / "5678", blobs / "9abc")}
    assert seen(scene, FINGERPRINTING, model=str(snapshot)) == expected
    inner = seen(scene, SPECTRAL, model="zoo:base", data=str(snapshot / "onnx/model.onnx"))
    assert inner == {str(snapshot / "onnx/model.onnx"): str(blobs / "9abc")}


def test_snapshot_of_a_cache_that_is_reached_by_a_link(scene: Scene) -> None:
    snapshot, real = scene.snapshot(), scene.root.parent / "disk"
    scene.hub.rename(real)
    scene.hub.symlink_to(real)
    blobs, relative = real / "models--a--b/blobs", snapshot.relative_to(scene.hub)
    inside = {str(scene.hub / "models--a--b/blobs" / name): str(blobs / name) for name in ("1234", "5678")}
    assert seen(scene, FINGERPRINTING, model=str(snapshot)) == {str(snapshot): str(real / relative), **inside}


def test_files_that_are_declared_are_seen_and_folders_are_not(scene: Scene) -> None:
    Path("tables").mkdir()
    for name in ("notes.txt", "tables/a.csv", "listing.json"):
        Path(name).write_text("text")
    assert seen(scene, SPECTRAL, model="zoo:base", data="notes.txt").keys() == {str(Path.cwd() / "notes.txt")}
    assert seen(scene, DOWNLOADS, model="hf:a/b", listing="listing.json").keys() == {
        str(scene.hub), str(Path.cwd() / "listing.json")
    }  # fmt: skip
    tables = {"measured": {"random_sample": ["tables/a.csv"]}}
    assert seen(scene, DOWNLOADS, model="hf:a/b", **tables).keys() == {
        str(scene.hub), str(Path.cwd() / "tables/a.csv")
    }  # fmt: skip
    with pytest.raises(UsageError, match=f"^data={Path.cwd()}/tables: a folder; name a file$"):
        seen(scene, SPECTRAL, model="zoo:base", data="tables")


def test_names_in_a_message_are_printable(scene: Scene) -> None:
    (scene.model() / "\x1b[2J\udcff").symlink_to("/\x1b]0;x")
    with pytest.raises(UsageError, match=r"\\x1b\[2J\\udcff: a link to /\\x1b\]0;x") as caught:
        seen(scene, FINGERPRINTING, model=str(scene.root / "model"))
    assert str(caught.value).isprintable()


def test_folder_of_very_many_files_is_no_model(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scene.model()
    monkeypatch.setattr("modelassay.containers.paths.MAX_ENTRIES", 2)
    assert seen(scene, FINGERPRINTING, model=str(folder)) == {str(folder): str(folder)}
    (folder / "third").write_text("")
    with pytest.raises(UsageError, match="holds more than 2 files; name the folder of one model"):
        seen(scene, FINGERPRINTING, model=str(folder))
    assert MAX_ENTRIES == 100_000


def test_folder_that_cannot_be_read_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so permission is refused by hand."""

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    folder = scene.model()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UsageError, match="cannot be read: .*Permission denied.*scene/model'; check its permissions"):
        seen(scene, FINGERPRINTING, model=str(folder))


@pytest.mark.parametrize("folder", ["/", "/root", "/etc/x", "/proc/self", "/dev/shm"])
def test_run_directory_is_no_folder_of_the_system(scene: Scene, folder: str) -> None:
    suite = load_suite(str(write_suite(Path.cwd())))
    Path("link").symlink_to(folder)
    for name in (folder, "link"):
        with pytest.raises(UsageError, match="which belongs to the system|a folder of the system"):
            settings.binds(suite, Path(name), {}, offline=True, suite_file=False)


def test_suite_that_is_no_regular_file_is_not_seen(scene: Scene) -> None:
    path = write_suite(Path.cwd())
    suite = load_suite(str(path))
    path.unlink()
    listen(path)
    with pytest.raises(UsageError, match="walk.yaml: not a regular file; .*save it as one"):
        settings.binds(suite, Path("runs/a"), {}, offline=True, suite_file=True)

"""Model folders that somebody sends, each trying to show a container more of this machine than the model."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a case is built."""

    root: Path
    """Everything of the case; `root / "secret/key"` is what nobody may see."""
    hub: Path
    """The Hub's cache."""

    @property
    def secret(self) -> Path:
        """A file outside of the model folder."""
        return self.root / "secret/key"

    def model(self) -> Path:
        """Make a folder like one that ``save_pretrained`` wrote."""
        folder = self.root / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text("weights")
        return folder

    def snapshot(self, *, cache: Path | None = None) -> Path:
        """Make a repository in the Hub's cache, or in another; return its snapshot."""
        repository = (cache or self.hub) / "models--a--b"
        snapshot = repository / "snapshots/c0ffee"
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        for name, blob in (("config.json", "1234"), ("model.safetensors", "5678")):
            (repository / "blobs" / blob).write_text("{}")
            (snapshot / name).symlink_to(f"../../blobs/{blob}")
        return snapshot


def make_scene(root: Path) -> Scene:
    scene = Scene(root=root, hub=root / "hf/hub")
    scene.secret.parent.mkdir()
    scene.secret.write_text("secret")
    scene.hub.mkdir(parents=True)
    return scene


def listen(path: Path) -> None:
    """Make a socket at ``path``, however long its name."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


def link_to_file(scene: Scene) -> Path:
    (scene.model() / "tokenizer.json").symlink_to(scene.secret)
    return scene.root / "model"


def relative_link(scene: Scene) -> Path:
    (scene.model() / "tokenizer.json").symlink_to("../secret/key")
    return scene.root / "model"


def link_to_folder(scene: Scene) -> Path:
    (scene.model() / "assets").symlink_to(scene.secret.parent)
    return scene.root / "model"


def link_to_root(scene: Scene) -> Path:
    (scene.model() / "assets").symlink_to("/")
    return scene.root / "model"


def link_to_engine(scene: Scene) -> Path:
    listen(scene.root / "docker.sock")
    (scene.model() / "tokenizer.json").symlink_to(scene.root / "docker.sock")
    return scene.root / "model"


def link_in_subfolder(scene: Scene) -> Path:
    (scene.model() / "onnx").mkdir()
    (scene.root / "model/onnx/model.onnx").symlink_to("../../secret/key")
    return scene.root / "model"


def link_over_link(scene: Scene) -> Path:
    folder = scene.model()
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to(scene.secret)
    return folder


def link_up_through_link(scene: Scene) -> Path:
    """By its text it stays in the folder: sub/deep/here/../../secret; followed, it leaves it."""
    folder = scene.model()
    (folder / "sub/deep").mkdir(parents=True)
    (folder / "sub/deep/here").symlink_to("../..")
    (folder / "sub/deep/vocab.json").symlink_to("here/../secret/key")
    return folder


def link_to_nothing(scene: Scene) -> Path:
    """Not there outside, there inside."""
    (scene.model() / "vocab.json").symlink_to("/checkout/bench/absent")
    return scene.root / "model"


def link_to_environment(scene: Scene) -> Path:
    (scene.model() / "tokenizer.json").symlink_to("/proc/self/environ")
    return scene.root / "model"


def link_to_neighbour(scene: Scene) -> Path:
    """A name that begins like the folder's own."""
    (scene.root / "model-b").mkdir()
    (scene.root / "model-b/key").write_text("secret")
    (scene.model() / "vocab.json").symlink_to("../model-b/key")
    return scene.root / "model"


def with_socket(scene: Scene) -> Path:
    listen(scene.model() / "engine.sock")
    return scene.root / "model"


def with_hard_linked_socket(scene: Scene) -> Path:
    listen(scene.root / "docker.sock")
    os.link(scene.root / "docker.sock", scene.model() / "vocab.json")
    return scene.root / "model"


def with_deep_fifo(scene: Scene) -> Path:
    (scene.model() / "a/b").mkdir(parents=True)
    os.mkfifo(scene.root / "model/a/b/vocab.json")
    return scene.root / "model"


def is_link_to_secret(scene: Scene) -> Path:
    (scene.root / "model").symlink_to(scene.secret.parent)
    return scene.root / "model"


def is_link_to_etc(scene: Scene) -> Path:
    (scene.root / "model").symlink_to("/etc")
    return scene.root / "model"


def holds_hub(scene: Scene) -> Path:
    (scene.root / "config.json").write_text("{}")
    return scene.root


def own_cache(scene: Scene) -> Path:
    """The form of the Hub's cache, which is not the Hub's cache."""
    return scene.snapshot(cache=scene.root / "sent")


def snapshot_of_secret(scene: Scene) -> Path:
    (scene.snapshot() / "vocab.json").symlink_to(scene.secret)
    return scene.hub / "models--a--b/snapshots/c0ffee"


def blob_that_is_link(scene: Scene) -> Path:
    (scene.snapshot() / "vocab.json").symlink_to("../../blobs/9abc")
    (scene.hub / "models--a--b/blobs/9abc").symlink_to(scene.secret)
    return scene.hub / "models--a--b/snapshots/c0ffee"


def blob_that_is_socket(scene: Scene) -> Path:
    (scene.snapshot() / "vocab.json").symlink_to("../../blobs/9abc")
    listen(scene.hub / "models--a--b/blobs/9abc")
    return scene.hub / "models--a--b/snapshots/c0ffee"


def blobs_as_folder(scene: Scene) -> Path:
    (scene.snapshot() / "assets").symlink_to("../../blobs")
    return scene.hub / "models--a--b/snapshots/c0ffee"


def blob_of_another(scene: Scene) -> Path:
    other = scene.hub / "models--private--c/blobs"
    other.mkdir(parents=True)
    (other / "9abc").write_text("secret")
    (scene.snapshot() / "vocab.json").symlink_to("../../../models--private--c/blobs/9abc")
    return scene.hub / "models--a--b/snapshots/c0ffee"


def token_of_hub(scene: Scene) -> Path:
    (scene.hub.parent / "token").write_text("secret")
    (scene.snapshot() / "vocab.json").symlink_to("../../../../token")
    return scene.hub / "models--a--b/snapshots/c0ffee"


OUT = "out of the model folder, where a container does not follow; if that file belongs to the model, put it there"

HOSTILE: list[tuple[Callable[[Scene], Path], str]] = [
    (link_to_file, f"tokenizer.json: a link to ROOT/secret/key, {OUT}"),
    (relative_link, f"tokenizer.json: a link to ROOT/secret/key, {OUT}"),
    (link_to_folder, f"assets: a link to ROOT/secret, {OUT}"),
    (link_to_root, f"assets: a link to /, {OUT}"),
    (link_to_engine, f"tokenizer.json: a link to ROOT/docker.sock, {OUT}"),
    (link_in_subfolder, f"onnx/model.onnx: a link to ROOT/secret/key, {OUT}"),
    (link_over_link, f": a link to ROOT/secret/key, {OUT}"),
    (link_up_through_link, f"sub/deep/vocab.json: a link to ROOT/secret/key, {OUT}"),
    (link_to_nothing, f"vocab.json: a link to /checkout/bench/absent, {OUT}"),
    (link_to_environment, "tokenizer.json: a link to /proc/"),
    (link_to_neighbour, f"vocab.json: a link to ROOT/model-b/key, {OUT}"),
    (with_socket, "engine.sock: a socket; a container is not shown it: remove it from the model folder"),
    (with_hard_linked_socket, "vocab.json: a socket; a container is not shown it: remove it from the model folder"),
    (with_deep_fifo, "a/b/vocab.json: a FIFO; a container is not shown it: remove it from the model folder"),
    (is_link_to_secret, "model=ROOT/model: holds no config.json; name the folder of one model"),
    (is_link_to_etc, "model=ROOT/model: lies in /etc, which belongs to the system; a container is not shown it"),
    (holds_hub, "model=ROOT: holds the Hub's cache (ROOT/hf/hub); a container is not shown it"),
    (own_cache, ": a link to ROOT/sent/models--a--b/blobs/"),
    (snapshot_of_secret, f"vocab.json: a link to ROOT/secret/key, {OUT}"),
    (blob_that_is_link, f"vocab.json: a link to ROOT/secret/key, {OUT}"),
    (blob_that_is_socket, f"vocab.json: a link to ROOT/hf/hub/models--a--b/blobs/9abc, {OUT}"),
    (blobs_as_folder, f"assets: a link to ROOT/hf/hub/models--a--b/blobs, {OUT}"),
    (blob_of_another, f"vocab.json: a link to ROOT/hf/hub/models--private--c/blobs/9abc, {OUT}"),
    (token_of_hub, f"vocab.json: a link to ROOT/hf/token, {OUT}"),
]
"""Each with what is said of it; ROOT stands for the scene's folder."""

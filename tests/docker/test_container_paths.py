"""What a container on a real engine sees of model folders and of texts that look like paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelassay.containers.settings import PIDS_LIMIT
from modelassay.recording.log import read_cell
from support.hostile_folders import HOSTILE, Scene, make_scene
from support.tiny_models import expected_blocks, make_model, save
from support.toy_suite import SUITE, environ, metrics_of, modelassay, only_run, start, write_suite

from .conftest import ToyImages
from .test_container import begun, containers_of, inside

SLOW = SUITE.replace("pause_ms: 3.0", "pause_ms: 25.0")
MODEL = "suite: fingerprinting\nquestion: What is seen?\nprofiles:\n  embedded: {model: zoo:base}\n"
pytestmark = pytest.mark.slow


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    (tmp_path / "scene").mkdir()
    return make_scene(tmp_path / "scene")


def run_on(scene: Scene, folder: Path, image: str) -> tuple[int, str, str]:
    suite = write_suite(scene.root.parent, MODEL)
    arguments = ("-o", f"model={folder}", "--runs", scene.root.parent / "runs")
    return modelassay("run", suite, *arguments, *inside(image), env=environ(HF_HUB_CACHE=str(scene.hub)))


# That each is refused is tested without an engine; that a refusal comes before the container, here for a kind of each.
REPRESENTATIVES = {"link_to_engine", "with_deep_fifo", "is_link_to_etc", "blob_of_another"}


@pytest.mark.parametrize(("make", "says"), [
    pytest.param(make, says, id=make.__name__, marks=() if make.__name__ in REPRESENTATIVES else pytest.mark.nightly)
    for make, says in HOSTILE
])  # fmt: skip
def test_no_container_begins_on_a_hostile_model_folder(
    engine: Any, toy: ToyImages, scene: Scene, make: Callable[[Scene], Path], says: str
) -> None:
    code, out, err = run_on(scene, make(scene), toy.locked)
    assert (code, out) == (2, "")
    assert says in err.replace(str(scene.root), "ROOT")
    assert list((scene.root.parent / "runs").iterdir()) == []
    assert containers_of(engine, scene.root.parent) == []


def test_model_folder_cannot_hand_over_the_engine(engine: Any, toy: ToyImages, scene: Scene) -> None:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        pytest.skip(f"the engine is not reached by a socket of this machine: {host}")
    (scene.model() / "tokenizer.json").symlink_to(host.removeprefix("unix://"))
    code, _, err = run_on(scene, scene.root / "model", toy.locked)
    assert (code, "tokenizer.json: a link to " in err) == (2, True)


def test_text_shows_nothing_and_processes_are_limited(engine: Any, toy: ToyImages, scene: Scene) -> None:
    """Asked of the container itself while the run goes on."""
    runs, folder = scene.root.parent / "runs", scene.model()
    suite = write_suite(scene.root.parent, SLOW)
    texts = ("-o", f"note={folder}", "-o", f"say={scene.secret}")
    process = start("run", suite, "--runs", runs, *texts, *inside(toy.locked))
    run = begun(runs)
    (container,) = containers_of(engine, runs)
    looks = [container.exec_run(["ls", str(path)]).exit_code for path in (run, scene.root, folder, scene.secret)]
    limit = container.exec_run(["sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null"])
    mounts = {mount["Destination"] for mount in container.attrs["Mounts"]}
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert looks == [0, 2, 2, 2]
    assert mounts == {str(run), os.environ["MODELASSAY_CACHE"], str(suite)}
    assert container.attrs["HostConfig"]["PidsLimit"] == PIDS_LIMIT
    assert limit.output.decode().split() == [str(PIDS_LIMIT)]


def test_snapshot_in_the_hubs_cache_is_measured_inside(toy: ToyImages, scene: Scene) -> None:
    """All its files are links to blobs; another revision's blob and another repository stay unseen, and are not needed."""
    model = make_model("qwen2")
    folder = save(model, scene.root / "saved")
    repository = scene.hub / "models--a--b"
    snapshot = repository / "snapshots/c0ffee"
    for each in (snapshot, repository / "blobs"):
        each.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / f"blobs/{number}")
        (repository / f"blobs/{number}").chmod(0o644)  # the container runs as another user than root
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    code, _, err = run_on(scene, snapshot, toy.locked)
    assert code == 0, err
    run = only_run(scene.root.parent / "runs")
    (cell,) = (run / "cells").iterdir()
    assert read_cell(cell).outcome == "done"
    sigmas = {labels: value for (_, name, labels), value in metrics_of(run).items() if name == "sigma"}
    for (role, layer), block in expected_blocks(model).items():
        labels = str([("layer", layer), ("role", role)])
        assert sigmas[labels] == pytest.approx(float(block.double().std()), rel=1e-6)  # sums of float32

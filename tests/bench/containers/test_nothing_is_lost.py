"""`run --into FOLDER` where no run begins, in a container or not: what was there before is there after, and nothing more."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click
import docker.errors
import pytest

from modelassay.cli import cli
from modelassay.containers import launch as container
from modelassay.containers.engine import Engine
from modelassay.containers.images import expected_labels, locked_image
from modelassay.containers.session import Attached, ContainerExit, TimedOut
from modelassay.errors import AssayError, HostError
from modelassay.machine import environment
from modelassay.machine.signals import Interrupted
from support.toy_suite import SUITE, write_suite

Tree = dict[str, tuple[int, str]]


def tree(top: Path) -> Tree:
    """Every path below ``top`` with its mode and what it holds or points to."""
    return {
        str(path.relative_to(top)): (path.lstat().st_mode, str(path.readlink()) if path.is_symlink()
                                     else path.read_text() if path.is_file() else "")
        for path in sorted(top.rglob("*"))
    }  # fmt: skip


@dataclass
class World:
    """A caller, the folder that they name, and an engine that does as it is told."""

    top: Path
    patch: pytest.MonkeyPatch
    client: MagicMock = field(default_factory=MagicMock)
    engine: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    suite: str = SUITE
    others: list[Path] = field(default_factory=list)
    """What somebody else makes meanwhile."""
    handles: list[Any] = field(default_factory=list)

    def connect(self) -> Engine:
        told = {"name": "Docker 29", "rootless": False, "remaps_users": False, "can_limit_memory": True,
                "memory_bytes": 1 << 36, "root_dir": "/"}  # fmt: skip
        return Engine(client=self.client, **{**told, **self.engine})

    def run(self, *options: str) -> int:
        """Return the exit code of the command line."""
        suite = write_suite(self.top, self.suite)
        try:
            cli(["run", str(suite), *options, *self.options], standalone_mode=False)
        except AssayError as error:
            return error.exit_code
        except SystemExit as end:
            return int(end.code or 0)
        except (click.exceptions.Abort, KeyboardInterrupt):
            return 130
        except (OSError, click.ClickException):
            return 6
        return 0

    def ends(self, **ending: Any) -> None:
        """Let the container start and end like this."""
        self.patch.setattr(
            container, "start", lambda *_: Attached(identity="c", events=MagicMock(), stream=MagicMock())
        )
        self.patch.setattr(container, "follow", lambda *_, **__: ContainerExit(**ending))

    def raises(self, error: BaseException, *, in_: str = "follow") -> None:
        """Let the container start and ``error`` end the waiting for it; or let it come in another function."""
        self.ends(exit_code=0)
        self.patch.setattr(container, in_, MagicMock(side_effect=error))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache/modelassay"))
    new = World(top=tmp_path, patch=monkeypatch)
    image = new.client.images.get.return_value
    image.id, image.tags, image.attrs = "sha256:1", [], {}
    image.labels = expected_labels(locked_image("cpu"))
    new.client.containers.list.return_value = []
    new.client.api.remove_container.side_effect = docker.errors.NotFound("removed")
    new.patch.setattr(container, "connect", new.connect)
    yield new
    for handle in new.handles:
        handle.close()


# --- the folder


def with_run(folder: Path) -> None:
    (folder / "cells/abc").mkdir(parents=True)
    (folder / "cells/abc/attempt-1.jsonl").write_text('{"seq": 0}\n')
    (folder / "run.json").write_text(json.dumps({"schema": 1}))


def with_files(folder: Path) -> None:
    (folder / "thesis/figures").mkdir(parents=True)
    (folder / "thesis/figures/one.svg").write_text("<svg/>")
    (folder / ".hidden").write_text("kept")
    (folder / "cells").mkdir()


def nothing(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def linked(fill: Callable[[Path], None] | None) -> Callable[[Path], str]:
    def make(work: Path) -> str:
        if fill is not None:
            fill(work / "target")
        (work / "link").symlink_to("target")
        return "link"

    return make


def here(fill: Callable[[Path], None]) -> Callable[[Path], str]:
    def make(work: Path) -> str:
        fill(work)
        return "."

    return make


def there(fill: Callable[[Path], None]) -> Callable[[Path], str]:
    def make(work: Path) -> str:
        fill(work / "results")
        return "results"

    return make


def of_runs(folder: Path) -> None:
    with_run(folder / "walk-1")
    with_run(folder / "walk-2")


def with_foreign_lock(folder: Path) -> None:
    folder.mkdir()
    (folder / "client.lock").write_text("[lock]\nof = another program\n")


FILLED = {
    "run": there(with_run), "files": there(with_files), "runs": there(of_runs), "foreign lock": there(with_foreign_lock),
    "here, run": here(with_run), "here, files": here(with_files),
    "link to run": linked(with_run), "link to files": linked(with_files),
}  # fmt: skip
FREE = {
    "absent": lambda _: "a/b/results", "empty": there(nothing), "here, empty": here(nothing),
    "link to empty": linked(nothing), "link to nothing": linked(None),
}  # fmt: skip
FOLDERS = FREE | FILLED


# --- ways in which no run begins


def refusal(text: str, status: int = 400) -> docker.errors.APIError:
    return docker.errors.APIError(text, response=MagicMock(status_code=status), explanation=text)


def patched(where: Any, name: str, error: BaseException) -> Callable[[World], None]:
    return lambda world: world.patch.setattr(where, name, MagicMock(side_effect=error))


def of_engine(**told: Any) -> Callable[[World], None]:
    return lambda world: world.engine.update(told)


def option(*words: str) -> Callable[[World], None]:
    return lambda world: world.options.extend(words)


def suite(text: str) -> Callable[[World], None]:
    return lambda world: setattr(world, "suite", text)


def api(name: str, error: Exception) -> Callable[[World], None]:
    return lambda world: setattr(getattr(world.client.api, name), "side_effect", error)


def raising(error: BaseException, in_: str = "follow") -> Callable[[World], None]:
    return lambda world: world.raises(error, in_=in_)


def ending(**told: Any) -> Callable[[World], None]:
    return lambda world: world.ends(**told)


def no_image(world: World) -> None:
    world.client.images.get.side_effect = docker.errors.ImageNotFound("no such image")


def unlocked_image(world: World) -> None:
    world.client.images.get.return_value.labels = {}


def silent_engine(world: World) -> None:
    world.client.images.get.side_effect = docker.errors.DockerException("gone")


def engine_gone_before_start(world: World) -> None:
    world.client.containers.list.side_effect = docker.errors.DockerException("gone")


def refuses_probe(source: str) -> Callable[[World], None]:
    def way(world: World) -> None:
        world.patch.setattr(container, "_why_unwritable", lambda path, _: "refused" if source in str(path) else "")

    return way


def second_client(world: World) -> None:
    """Another client takes the folder after ours has looked at it and before ours locks it."""
    real = container.prepare

    def prepare(shown: Any, *others: Any) -> None:
        real(shown, *others)
        lock = shown[0].path / "client.lock"
        world.others.append(lock.resolve())
        handle = lock.open("a+")
        fcntl.flock(handle, fcntl.LOCK_EX)
        world.handles.append(handle)

    world.patch.setattr(container, "prepare", prepare)
    world.ends(exit_code=0)


def killed_while_it_began(world: World) -> None:
    """The run inside is killed between its first folder and its run.json."""

    def start(engine: Any, image: Any, settings: Any, *_: Any) -> Attached:
        (settings.folder / "cells").mkdir(exist_ok=True)
        (settings.folder / "run.json.new").write_text("{")
        return Attached(identity="c", events=MagicMock(), stream=MagicMock())

    world.ends(exit_code=137)
    world.patch.setattr(container, "start", start)


WAYS: dict[str, Callable[[World], None]] = {
    "suite of bad YAML": suite("suite: [walk"),
    "suite with an unknown key": suite(SUITE.replace("matrix:", "matrixx:")),
    "unknown experiment": suite(SUITE.replace("experiment: toy", "experiment: tpy")),
    "unknown profile": option("--profile", "papr"),
    "unknown parameter": option("-o", "nonsense=1"),
    "no engine": patched(container, "connect", HostError("no engine")),
    "engine that stops answering": silent_engine,
    "misspelt image": option("--image", "cpuu"),
    "missing image": no_image,
    "unlocked image": unlocked_image,
    "memory that is no size": option("--memory", "much"),
    "engine without memory limits": lambda world: (
        of_engine(can_limit_memory=False)(world),
        option("--memory", "4g")(world),
    )[0],
    "timeout of zero": option("--timeout", "0"),
    "results that cannot be written": refuses_probe("/"),
    "cache that cannot be written": refuses_probe("/cache/"),
    "engine gone before the start": engine_gone_before_start,
    "memory refused by the engine": api("create_container", refusal("Minimum memory limit allowed is 6MB")),
    "start refused by the engine": api("start", refusal("bind source path does not exist")),
    "image without modelassay": ending(exit_code=127),
    "suite refused inside": ending(exit_code=2),
    "memory used up": ending(exit_code=137, out_of_memory=True),
    "killed from outside": ending(exit_code=137),
    "killed while it began": killed_while_it_began,
    "unknown end": ending(),
    "timeout": lambda world: (world.raises(TimedOut()), option("--timeout", "0.3")(world))[0],
    "Ctrl-C": raising(KeyboardInterrupt()),
    "SIGTERM": raising(Interrupted()),
    "Ctrl-C before the start": raising(KeyboardInterrupt(), "start"),
    "Ctrl-C while folders are made": raising(KeyboardInterrupt(), "_why_unwritable"),
    "engine gone": raising(HostError("the container engine went away")),
    "second client": second_client,
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_in_a_container(world: World, way: str, folder: str) -> None:
    into = FOLDERS[folder](world.top / "work")
    write_suite(world.top, world.suite)
    WAYS[way](world)
    write_suite(world.top, world.suite)
    before = tree(world.top)
    code = world.run("--in", "container", "--image", "cpu", "--into", into)
    after = tree(world.top)
    assert code != 0
    others = {str(path.relative_to(world.top)) for lock in world.others for path in (lock, *lock.parents)
              if path.is_relative_to(world.top)}  # fmt: skip
    assert {path: held for path, held in after.items() if path in before or path not in others} == before
    if folder in FILLED:
        assert world.client.api.mock_calls == [], "the engine is not asked for a folder that is taken"


@pytest.mark.parametrize("folder", FILLED)
def test_filled_folder_is_refused_before_anything_is_asked(world: World, folder: str) -> None:
    into = FILLED[folder](world.top / "work")
    write_suite(world.top)
    before = tree(world.top)
    world.patch.setattr(container, "connect", MagicMock(side_effect=AssertionError))
    for place in (["--in", "container"], []):
        assert world.run("--into", into, *place) == 2
        assert tree(world.top) == before


def failing(error: BaseException) -> Callable[[World], None]:
    return lambda world: world.patch.setattr(os, "fsync", MagicMock(side_effect=error))


PLAIN_WAYS = {
    "full disk": failing(OSError(errno.ENOSPC, "No space left on device")),
    "Ctrl-C": failing(KeyboardInterrupt()),
    "read-only": failing(OSError(errno.EROFS, "Read-only file system")),
    "no environment": patched(environment, "capture", HostError("no")),
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("way", PLAIN_WAYS)
def test_nothing_is_lost_without_a_container(world: World, way: str, folder: str) -> None:
    into = FOLDERS[folder](world.top / "work")
    write_suite(world.top)
    before = tree(world.top)
    PLAIN_WAYS[way](world)
    assert world.run("--into", into) == (2 if folder in FILLED else 130 if way == "Ctrl-C" else 6)
    assert tree(world.top) == before


def test_run_that_began_is_kept_whatever_ended_it(world: World) -> None:
    def start(engine: Any, image: Any, settings: Any, *_: Any) -> Attached:
        with_run(settings.folder)
        return Attached(identity="c", events=MagicMock(), stream=MagicMock())

    world.raises(KeyboardInterrupt())
    world.patch.setattr(container, "start", start)
    assert world.run("--in", "container", "--image", "cpu", "--into", "new") == 130
    assert {path.name for path in (world.top / "work/new").iterdir()} == {"run.json", "cells", "client.lock"}


def test_folder_with_the_lock_of_a_killed_client_is_free(world: World) -> None:
    folder = world.top / "work/new"
    folder.mkdir()
    (folder / "client.lock").write_text("4711")
    world.ends(exit_code=0)
    assert world.run("--in", "container", "--image", "cpu", "--into", "new") == 0
    assert [path.name for path in folder.iterdir()] == ["client.lock"], "it was there before"
